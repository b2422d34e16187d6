"""What the implicit GEMM's predicate refuses for want of resources is compiled all the same: it must not fit."""

import random
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
from conv_cases import alexnet_layers

from grouped_conv.autotune.compiling.offline import gpu_target
from grouped_conv.autotune.machine_code.resources import Resources, read_resources
from grouped_conv.autotune.model.implicit_gemm.forward_axes import axes
from grouped_conv.kernels import ConvProblem, DeviceSpec, ImplicitGemmConfig
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.implicit_gemm.forward_rules import load_widths, pipeline_buffers, why_not_on
from grouped_conv.kernels.launching.launch import compile_launch
from grouped_conv.kernels.values.refusals import MAX_ACCUMULATORS

DEVICES = ("a100", "h100-sxm", "rtx5090", "mi300x")  # sm_80, sm_90, sm_120, gfx942
CONV4 = alexnet_layers(128)["conv4"]
PROBLEMS = {
    "wide": CONV4,
    "tf32": replace(CONV4, dtype="float32", precision="tf32"),
    "2-byte": alexnet_layers(128)["conv1"],  # neither tile is copied asynchronously
    "mixed": ConvProblem.of((32, 12, 56, 56), (256, 3, 4, 6), groups=4),  # the weight's is, the input's is not
}
MOST_LOADS = 64
"""More of them compile for minutes."""
SUMS, BUFFERS = "accumulators per thread spill", "bytes of pipeline buffers"


def _raw(problem: ConvProblem, device: DeviceSpec) -> list[ImplicitGemmConfig]:
    """The space's pipelined tiles before any rule about the device, up to twice the sums that it allows."""
    offered = axes(problem, device)
    names = ("block_m", "block_n", "block_k", "num_warps", "num_stages", "loop_order")
    configs = (
        ImplicitGemmConfig(**dict(zip(names, values, strict=True)))  # type: ignore[arg-type]
        for values in product(*(getattr(offered, name) for name in names))
    )
    most = 2 * MAX_ACCUMULATORS * 32  # of 32-bit registers: a wider warp's thread has as many more
    return [
        config
        for config in configs
        if config.num_stages > 1
        and why_invalid(problem, config) is None
        and config.block_m * config.block_n // config.num_warps <= most * (device.warp_size // 32) ** 2
        and _loads(problem, config, device) <= MOST_LOADS
    ]


def _loads(problem: ConvProblem, config: ImplicitGemmConfig, device: DeviceSpec) -> float:
    """Of one thread in one trip."""
    rows = sum(rows / width for rows, width in zip((config.block_m, config.block_n), load_widths(problem), strict=True))
    return rows * config.block_k * problem.item_size / (config.num_warps * device.warp_size)


@cache
def _sample(key: str, name: str) -> tuple[ImplicitGemmConfig | None, ...]:
    """The refused tile nearest to the limit of shared memory, two refused at random, and two accepted."""
    problem, device, draw = PROBLEMS[name], DeviceSpec.get(key), random.Random(f"2012 {key} {name}")
    refused: list[ImplicitGemmConfig] = []
    accepted: list[ImplicitGemmConfig] = []
    deep: list[tuple[int, ImplicitGemmConfig]] = []
    for config in _raw(problem, device):
        reason = why_not_on(problem, config, device)
        (refused if reason else accepted).append(config)
        if reason and BUFFERS in reason:
            deep.append((pipeline_buffers(problem, config, device), config))
    nearest = min(deep, key=lambda entry: entry[0])[1] if deep else None
    return nearest, *(draw.sample(refused, 2) if refused else (None, None)), *draw.sample(accepted, 2)


def _compiled(problem: ConvProblem, config: ImplicitGemmConfig, device: DeviceSpec) -> Resources:
    return read_resources(compile_launch(plan_call(problem, config).launches[0], gpu_target(device)))


def _judge(key: str, name: str, config: ImplicitGemmConfig) -> None:
    problem, device = PROBLEMS[name], DeviceSpec.get(key)
    reason = why_not_on(problem, config, device)
    found = _compiled(problem, config, device)
    assert found.total.mma > 0
    assert pipeline_buffers(problem, config, device) <= found.shared_bytes
    if reason is not None and BUFFERS in reason:
        assert found.shared_bytes > device.shared_per_block, reason
    elif reason is not None:
        assert SUMS in reason
        assert found.spill_bytes > 0, reason


@pytest.mark.sweep
@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("key", DEVICES)
def test_what_is_refused_would_not_have_fitted(key: str, name: str, place: int) -> None:
    config = _sample(key, name)[place]
    if config is None:
        pytest.skip("nothing of this problem is refused here")
    _judge(key, name, config)


@pytest.mark.full
@pytest.mark.parametrize(("key", "name"), [("a100", "tf32"), ("h100-sxm", "wide"), ("rtx5090", "wide")])
def test_nearest_refusals_would_not_have_fitted(key: str, name: str) -> None:
    nearest = _sample(key, name)[0]
    assert nearest is not None
    assert BUFFERS in str(why_not_on(PROBLEMS[name], nearest, DeviceSpec.get(key)))
    _judge(key, name, nearest)


def test_too_many_sums_spill() -> None:
    config = ImplicitGemmConfig(block_m=128, block_n=128, block_k=16, num_warps=2, num_stages=2)
    assert SUMS in str(why_not_on(CONV4, config, DeviceSpec.get("h100-sxm")))
    _judge("h100-sxm", "wide", config)
