"""The kernels as compiled for sm_80 and sm_90, executed instruction by instruction: right, in bounds, free of races.

The interpreter has no layouts, no shared memory and no asynchronous copies; these runs have all of them.
"""

from dataclasses import replace
from typing import Any

import pytest
from case import Case
from conv_cases import BIAS_RELU, alexnet_layers, shape_cases
from emulated import check_compiled, emulator, varied
from loop_figures import lines_of, loop_figures
from truth import judge

from grouped_conv.autotune.model import heuristic
from grouped_conv.kernels import ConvProblem, DeviceSpec, Epilogue, ImplicitGemmConfig
from grouped_conv.kernels.device_code import reduction

pytestmark = pytest.mark.ptxemu


@pytest.mark.parametrize(("arch", "case"), varied(shape_cases()), ids=lambda value: getattr(value, "id", value))
def test_compiled_code_is_right(arch: int, case: Case) -> None:
    check_compiled(arch, case)


ALIGNED = [
    ("conv2-like, flat", ConvProblem.of((1, 96, 9, 9), (128, 48, 5, 5), padding=2, groups=2), "flat"),
    ("conv4-like, taps inner", ConvProblem.of((1, 128, 13, 13), (128, 64, 3, 3), padding=1, groups=2), "taps_inner"),
    ("conv4-like, channels", ConvProblem.of((1, 128, 13, 13), (128, 64, 3, 3), padding=1, groups=2), "channels_inner"),
    ("stride 2", ConvProblem.of((1, 128, 15, 15), (64, 64, 3, 3), stride=2, padding=1, groups=2), "taps_inner"),
]  # fmt: skip


def figures(stats: Any) -> tuple[float, float]:
    """Useful part of the sectors and bank conflicts in the inner loop."""
    return loop_figures(stats, lines_of(stats, reduction))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(("what", "problem", "order"), ALIGNED, ids=[row[0] for row in ALIGNED])
def test_aligned_loops_waste_no_sector_and_meet_no_bank_twice(
    what: str, problem: ConvProblem, order: str, arch: int, dtype: str
) -> None:
    problem = replace(problem, dtype=dtype, precision="tf32", epilogue=BIAS_RELU)
    block_k = 32 if dtype == "float32" else 64
    config = ImplicitGemmConfig(block_m=64, block_n=64, block_k=block_k, num_stages=3, loop_order=order)
    _, (stats,) = judge(problem, config, emulator(arch), what)
    useful, conflict = figures(stats)
    assert not stats.races
    assert useful == 1.0, f"{useful:.1%} of the loop's sector bytes are used"
    assert conflict <= 1.1, f"bank-conflict factor {conflict:.2f}"


@pytest.mark.parametrize("device", ["a100", "h100"])
@pytest.mark.parametrize("layer", ["conv2", "conv3", "conv4", "conv5"])
def test_alexnet_at_its_default_configuration(layer: str, device: str) -> None:
    """Batch 1 with splits, as the heuristic chooses; whole layers."""
    problem, spec = alexnet_layers(1)[layer], DeviceSpec.get(device)
    _, runs = judge(problem, heuristic.choose(problem, spec), emulator(int(spec.arch)), layer)
    assert not any(stats.races for stats in runs)
    useful, conflict = figures(runs[0])
    assert useful == 1.0
    assert conflict <= 1.1


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("order", ["flat", "channels_inner", "taps_inner"])
def test_cache_policy_and_unknown_trip_count(order: str, arch: int) -> None:
    problem = replace(ALIGNED[1][1], batch=2)
    for cache, static in ((".ca", True), (".cg", False)):
        config = ImplicitGemmConfig(
            block_m=64, block_n=64, block_k=32, num_stages=3, loop_order=order, cache_a=cache, static_trips=static
        )
        _, (stats,) = judge(problem, config, emulator(arch), f"{order} {cache}")
        assert not stats.races
        assert figures(stats) == (1.0, 1.0)


def test_ragged_channel_tile_reads_no_weight_beyond_its_group() -> None:
    """K/groups = 24 with 32-wide tiles: the last group's tile would read past the end of the weights."""
    problem = ConvProblem.of((1, 32, 6, 6), (48, 16, 3, 3), padding=1, groups=2, epilogue=Epilogue("relu"))
    for order in ("flat", "channels_inner", "taps_inner"):
        config = ImplicitGemmConfig(block_m=64, block_n=32, block_k=16, num_stages=2, loop_order=order)
        judge(problem, config, emulator(80), order)
