"""Compiled kernels, run natively on this CPU: random problems of every kernel family, and AlexNet's layers in full."""

from types import ModuleType

import pytest
from conv_cases import alexnet_layers
from conv_oracle import allowance, check_output, make_tensors, reference, relative_error, run_call
from native_rules import config_for
from native_variants import SOURCES, Runner, Source, Variant, run_variant
from truth import judge

import grouped_conv
from grouped_conv.kernels import ConvProblem, ImplicitGemmConfig
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.families import FAMILIES
from grouped_conv.planning.interpreting import through_driver

pytestmark = pytest.mark.native
VARIANTS = [  # every second one in each run: a build takes 10 to 20 s
    pytest.param(source, variant, id=f"{family}-{variant.name}", marks=[pytest.mark.sweep] * (index % 2))
    for family, source in SOURCES.items()
    for index, variant in enumerate(source.variants())
]


@pytest.mark.parametrize(("source", "variant"), VARIANTS)
def test_random_sizes(source: Source, variant: Variant, native: ModuleType) -> None:
    run_variant(source, variant, native)


def test_there_are_enough_problems() -> None:
    """2000 over all families, no family without some."""
    counts = {family: source.sizes * len(source.variants()) for family, source in SOURCES.items()}
    convolutions = {name for name, row in FAMILIES.items() if row.problem is ConvProblem and row.direction == "forward"}
    assert counts.keys() == convolutions
    assert sum(counts.values()) >= min(2000, 1000 + 400 * (len(counts) - 1))


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_alexnet_at_full_size_batch_8(dtype: str, native: ModuleType) -> None:
    layers = alexnet_layers(8, dtype, precision="ieee")
    run = Runner(native)
    for layer, problem in layers.items():
        judge(problem, config_for(problem), run, layer)


def test_the_public_call_takes_the_compiled_kernel(native: ModuleType) -> None:
    problem = alexnet_layers(2, "float32", precision="ieee")["conv2"]
    tensors = make_tensors(problem)
    with through_driver(), grouped_conv.trace() as calls:
        tensors["output"] = grouped_conv.grouped_conv2d(
            tensors["input"], tensors["weight"], tensors["bias"], padding=2, groups=2, activation="relu"
        )
    assert [call.path for call in calls] == ["implicit_gemm"]
    assert "cpu_native" in calls[0].reason
    check_output(problem, tensors)


def test_a_known_miscompile_is_noticed(native: ModuleType) -> None:
    """The first of native_rules.KNOWN: our check must reject what the lane computes wrongly."""
    problem = ConvProblem.of((1, 32, 8, 8), (128, 32, 1, 1), dtype="float32", precision="ieee")
    config = ImplicitGemmConfig(block_m=64, block_n=128, block_k=16, num_warps=1)
    tensors = make_tensors(problem)
    run_call(plan_call(problem, config), tensors, Runner(native))
    exact = reference(problem, tensors)
    assert relative_error(tensors["output"], exact) > allowance(problem, tensors, exact)
