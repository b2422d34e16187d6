"""The predicate's figures against compiled code: it must not refuse what compiles within a device's limits."""

import itertools
import random
from dataclasses import replace

import pytest
from conv_cases import alexnet_layers
from triton.backends.compiler import GPUTarget

from grouped_conv.kernels import ConvProblem, DeviceSpec, GroupLayout, ImplicitGemmConfig
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.implicit_gemm.forward_rules import pipeline_buffers
from grouped_conv.kernels.launching.launch import compile_launch

CONV4 = alexnet_layers(128)["conv4"]


def _sample(count: int) -> list[tuple[str, ConvProblem, ImplicitGemmConfig]]:
    """`count` pipelined configurations per architecture, drawn once and for all."""
    draw = random.Random(2012)
    rows = []
    for device, _ in itertools.product(("a100", "h100", "rtx4090", "mi300x"), range(count)):
        problem = replace(CONV4, dtype=draw.choice(["float16", "float32"]), precision="tf32")
        config = ImplicitGemmConfig(
            block_m=draw.choice([32, 64, 128]),
            block_n=draw.choice([16, 32, 64]),
            block_k=draw.choice([32, 64]),
            num_warps=draw.choice([4, 8]),
            num_stages=draw.choice([2, 3, 4]),
            loop_order=draw.choice(["flat", "taps_inner"]),
        )
        rows.append((device, problem, config))
    return rows


@pytest.mark.parametrize(("device", "problem", "config"), _sample(4), ids=str)
def test_pipeline_buffers_are_the_compilers(device: str, problem: ConvProblem, config: ImplicitGemmConfig) -> None:
    spec = DeviceSpec.get(device)
    launch = plan_call(problem, config).launches[0]
    compiled = compile_launch(launch, GPUTarget(spec.backend, spec.arch, spec.warp_size))
    assert pipeline_buffers(problem, config, spec) <= compiled.metadata.shared


REFUSALS = [
    (dict(loop_order="taps_inner", block_k=128), "C_PER_GROUP=192 divisible by block_k=128"),
    (dict(split_k=16), "leaves less than 2 of 27 blocks"),
    (dict(block_m=256, block_n=256), "512 accumulators per thread"),
    (dict(num_stages=5, block_k=128), "bytes of pipeline buffers, a100 has 166912"),
]


@pytest.mark.parametrize(("knobs", "reason"), REFUSALS)
def test_reasons_name_the_numbers(knobs: dict[str, object], reason: str) -> None:
    told = why_invalid(CONV4, ImplicitGemmConfig(**knobs), DeviceSpec.get("a100"))  # type: ignore[arg-type]
    assert told is not None
    assert reason in told


def test_other_families_problems_are_refused() -> None:
    ragged = replace(CONV4, layout=GroupLayout.sizes([200, 184], [192, 192]))
    assert "equal, consecutive groups" in str(why_invalid(ragged, ImplicitGemmConfig()))
    assert "weight_grad" in str(why_invalid(replace(CONV4, direction="weight_grad"), ImplicitGemmConfig()))


def test_planning_an_invalid_configuration_says_why() -> None:
    with pytest.raises(ValueError, match=r"cannot run .*: split_k=16 leaves"):
        plan_call(CONV4, ImplicitGemmConfig(split_k=16))
