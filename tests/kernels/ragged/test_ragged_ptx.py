"""The ragged kernel's code for sm_80 and sm_90, executed instruction by instruction: right, in bounds, no races."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
from case import Case
from conv_oracle import run_call
from emulated import check_compiled, emulator
from loop_figures import lines_of, loop_figures, wider_than_words
from ragged_cases import BIAS_RELU, LAYOUTS, layout_cases
from ragged_oracle import check_ragged, make_ragged_tensors, ragged_problem

from grouped_conv.autotune.model import heuristic
from grouped_conv.kernels import DeviceSpec, GroupLayout
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.ragged import forward
from grouped_conv.kernels.ragged.forward_rules import RaggedConfig

pytestmark = pytest.mark.ptxemu


def emulated_cases() -> list[tuple[int, Case]]:
    """The odd layouts on both architectures in turn, with 1 to 4 stages, 4 and 8 warps, small and wgmma-sized tiles."""
    variants = itertools.cycle(itertools.product((80, 90), (1, 2, 3, 4), (4, 8)))
    cases = []
    for case, (arch, stages, warps) in zip(layout_cases(), variants, strict=False):
        block_m = 64 if arch == 90 else case.config.block_m
        config = replace(case.config, num_stages=stages, num_warps=warps, block_m=block_m)
        cases.append((arch, replace(case, config=config)))
    return cases


@pytest.mark.parametrize(("arch", "case"), emulated_cases(), ids=lambda value: getattr(value, "id", value))
def test_compiled_code_is_right(arch: int, case: Case) -> None:
    check_compiled(arch, case)


# runs of 16 channels fill 32-byte sectors in fp16; of 8 channels they must waste half of each, whatever the kernel
ALIGNED = [
    ("log series", GroupLayout.log_series(128, 128, 4), 1.0),
    ("overlap", GroupLayout.overlapping(64, 96, groups=3, width=32), 1.0),
    ("listed runs of 16", GroupLayout.explicit(48, [[*range(32, 48), *range(16)], [*range(16, 32)]], [64, 32]), 1.0),
    ("whole tiles", GroupLayout.sizes([64, 32], [64, 128]), 1.0),
    ("listed runs of 8", LAYOUTS["lists of aligned runs of 8"], 0.5),
]


def figures(stats: Any) -> tuple[float, float]:
    """Useful part of the sectors of 16-byte loads, and bank conflicts but for the index list's few words."""
    lines = lines_of(stats, forward)
    return loop_figures(stats, lines, lambda access: access.endswith("b128"), wider_than_words)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(("what", "layout", "least"), ALIGNED, ids=[row[0] for row in ALIGNED])
def test_aligned_loops_waste_no_sector_and_meet_no_bank_twice(
    what: str, layout: GroupLayout, least: float, arch: int, dtype: str
) -> None:
    problem = ragged_problem(layout, (9, 9), padding=(1, 1, 1, 1), dtype=dtype, precision="tf32", epilogue=BIAS_RELU)
    config = RaggedConfig(block_m=64, block_n=64, block_k=32 if dtype == "float32" else 64, num_stages=3)
    tensors = make_ragged_tensors(problem, config)
    (stats,) = run_call(plan_call(problem, config), tensors, emulator(arch))
    check_ragged(problem, tensors, what)
    assert not stats.races
    useful, conflict = figures(stats)
    print(f"{what}, sm_{arch}, {dtype}: {useful:.1%} of sector bytes used, bank-conflict factor {conflict:.2f}")
    assert useful >= (least if dtype == "float16" else 1.0)
    assert conflict <= 1.1


@pytest.mark.parametrize("device", ["a100", "h100"])
@pytest.mark.parametrize("name", ["log series, alignment 8", "random lists"])
def test_default_configuration(name: str, device: str) -> None:
    spec = DeviceSpec.get(device)
    problem = ragged_problem(LAYOUTS[name], (9, 8), batch=2, padding=(1, 1, 1, 1), epilogue=BIAS_RELU)
    config = heuristic.choose(problem, spec)
    tensors = make_ragged_tensors(problem, config)
    (stats,) = run_call(plan_call(problem, config), tensors, emulator(int(spec.arch)))
    check_ragged(problem, tensors, name)
    assert not stats.races
