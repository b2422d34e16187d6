"""The ragged kernel's code for sm_80 and sm_90, executed instruction by instruction: right, in bounds, no races."""

from typing import Any

import pytest
from case import Case
from emulated import check_compiled, emulator, varied
from loop_figures import lines_of, loop_figures, wider_than_words
from ragged_cases import BIAS_RELU, LAYOUTS, layout_cases
from ragged_oracle import ragged_problem
from truth import judge

from grouped_conv.autotune.model import heuristic
from grouped_conv.kernels import DeviceSpec, GroupLayout
from grouped_conv.kernels.ragged import forward
from grouped_conv.kernels.ragged.forward_rules import RaggedConfig

pytestmark = pytest.mark.ptxemu


@pytest.mark.parametrize(("arch", "case"), varied(layout_cases()), ids=lambda value: getattr(value, "id", value))
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
    _, (stats,) = judge(problem, config, emulator(arch), what)
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
    _, (stats,) = judge(problem, config, emulator(int(spec.arch)), name)
    assert not stats.races
