"""The depthwise kernel as compiled: executed for sm_80 and sm_90, and its code held to instruction counts."""

import itertools
from dataclasses import replace

import pytest
from case import Case
from depthwise_cases import BIAS_RELU, SMALL, depthwise, shape_cases
from emulated import check_compiled, emulator
from truth import judge

from grouped_conv.autotune.compiling.offline import compile_offline
from grouped_conv.autotune.machine_code.instructions import Instruction
from grouped_conv.autotune.model.depthwise import forward as depthwise_model
from grouped_conv.autotune.model.heuristic import choose
from grouped_conv.bench.gates.depthwise import issued
from grouped_conv.bench.gates.families import findings
from grouped_conv.bench.gates.findings import EVERY_RUN, SWEEP
from grouped_conv.kernels import ConvProblem, DeviceSpec, Epilogue
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.depthwise.forward_rules import DepthwiseConfig, per_thread

EVERY_THIRD = 4  # a step that has no divisor in common with the five paths of a shape
ARCHS = EVERY_RUN


def emulated_cases() -> list[tuple[int, Case]]:
    """A quarter of the odd shapes, architectures and warps in turn, small kernels only: they compile in seconds."""
    turns = itertools.cycle(itertools.product((80, 90), (1, 2, 4)))
    small = [case for case in shape_cases() if case.problem.taps <= 31]
    return [
        (arch, replace(case, config=replace(case.config, num_warps=warps)))
        for case, (arch, warps) in zip(small[::EVERY_THIRD], turns, strict=False)
    ]


@pytest.mark.ptxemu
@pytest.mark.parametrize(("arch", "case"), emulated_cases(), ids=lambda value: getattr(value, "id", value))
def test_compiled_code_is_right(arch: int, case: Case) -> None:
    check_compiled(arch, case)


LOOPED = DepthwiseConfig(tile_h=1, tile_w=8, row_loop=True)
ALIGNED = [
    ("3x3", depthwise(64, (8, 16), (3, 3)), DepthwiseConfig(block_w=4, block_h=4)),
    ("7x7 loop", depthwise(64, (4, 16), (7, 7)), replace(LOOPED, block_w=2, block_h=2, num_warps=1)),
    ("stride 2", depthwise(64, (8, 16), (3, 3), stride=2), DepthwiseConfig(tile_h=1, block_w=2, block_h=8)),
    ("short and wide", depthwise(64, (1, 128), (1, 4), padding=(0, 0, 3, 0)), DepthwiseConfig(tile_h=1, tile_w=8)),
]


@pytest.mark.ptxemu
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("what", "problem", "config"), ALIGNED, ids=[row[0] for row in ALIGNED])
def test_inputs_and_outputs_move_in_whole_sectors(
    what: str, problem: ConvProblem, config: DepthwiseConfig, dtype: str
) -> None:
    """What is loaded with a mask is the input. A thread's weights are 32 bytes in fp32: two loads share each sector."""
    arch = 80 if dtype == "float16" else 90
    stats = judge(replace(problem, dtype=dtype), config, emulator(arch), what)[1][-1]
    shares = {}
    for (_, kind), (_, sectors, useful, _) in stats.gline.items():
        before = shares.get(kind, (0.0, 0))
        shares[kind] = (max(before[0], useful / (32 * sectors)), before[1] + sectors)
    loads, stores = shares["ld.b128"], shares["st.b128"]
    print(f"{what} {dtype}: useful part of sectors: input {loads[0]:.1%}, output {stores[0]:.1%}")
    assert not stats.races
    assert set(shares) == {"ld.b128", "st.b128"}
    assert loads[0] >= 0.9
    assert stores[0] >= 0.9


@pytest.mark.full
@pytest.mark.parametrize("arch", [*EVERY_RUN, *(pytest.param(arch, marks=pytest.mark.sweep) for arch in SWEEP)])
def test_compiles_well(arch: str) -> None:
    found = list(findings("depthwise", [arch]))
    assert len(found) > 8
    assert {f"{finding.layer} {finding.config}": finding.faults for finding in found if finding.faults} == {}


def test_the_count_follows_the_loop() -> None:
    code = [Instruction(address, "OP", "other") for address in range(10)]
    code[6] = Instruction(6, "BRA", "branch", target=3)
    assert issued(code, 1) == 10
    assert issued(code, 5) == 10 + 4 * 4
    assert issued(code[:5], 5) == 5


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize(
    ("problem", "config"),
    [
        (depthwise(64, (56, 56), (3, 3), epilogue=BIAS_RELU), DepthwiseConfig()),
        (depthwise(64, (56, 56), (3, 3), epilogue=Epilogue(), stride=2), DepthwiseConfig(tile_h=1, pack_weight=False)),
        (depthwise(64, (56, 56), (7, 7), epilogue=BIAS_RELU), DepthwiseConfig(tile_h=1, tile_w=7, row_loop=True)),
    ],
    ids=["3x3", "stride 2", "7x7"],
)
def test_the_model_counts_what_is_compiled(arch: str, problem: ConvProblem, config: DepthwiseConfig) -> None:
    device = DeviceSpec.get(arch)
    compiled = compile_offline(problem, device, config)[-1]
    _, code = depthwise_model.thread_instructions(problem, config, per_thread(config, device))
    assert compiled.resources.total.instructions == pytest.approx(code, rel=0.12)


@pytest.mark.full
@pytest.mark.parametrize("arch", ARCHS)
def test_31x31_compiles_quickly_and_does_not_spill(arch: str) -> None:
    problem = depthwise(128, (56, 56), (31, 31), batch=8)
    device = DeviceSpec.get(arch)
    compiled = compile_offline(problem, device)[-1]
    assert compiled.resources.spill_bytes == 0
    assert compiled.resources.total.instructions < 4000  # a loop over rows: 31 x 31 x 8 products would be 61,504


def test_a_large_one_dimensional_problem_has_small_offsets_and_one_grid_axis() -> None:
    """12288 channels of 16384 positions: the window fits 32 bits, images do not, and the grid is flat."""
    problem = depthwise(12288, (1, 16384), (1, 4), batch=16, padding=(0, 0, 3, 0))
    config = choose(problem, DeviceSpec.get("h100"))
    launch = plan_call(problem, config).launches[-1]
    types = {integer.parameter: integer.type for integer in launch.integers}
    assert launch.grid[1:] == (1, 1)
    assert types["stride_xn"] == "i64"
    assert types["stride_xh"] == "i32"
    assert config.tile_h == 1


def test_small_offsets_grow_where_a_window_needs_it() -> None:
    problem = depthwise(2**20, (3, 2**12), (3, 3))
    launch = plan_call(problem, replace(SMALL, static_channels=True)).launches[-1]
    types = {integer.parameter: integer.type for integer in launch.integers}
    assert types["stride_xh"] == types["stride_xw"] == "i64"
