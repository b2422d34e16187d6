"""The fused kernel as compiled for sm_80 and sm_90, executed: right, in bounds, no race, no address written twice.

Useful sector bytes and bank conflicts are printed per problem (`-s`), and asserted for aligned ones: of the input, of
the 1x1 weight and of the output. Weights of thin groups are gathered into diagonal blocks, a few bytes at a time.
"""

import itertools
from dataclasses import replace
from typing import Any

import pytest
from case import Case
from emulated import check_compiled, emulator
from separable_cases import FULL, RELU, RELU6, RESIDUAL, block, check_separable, run_separable, separable_tensors

from grouped_conv.kernels.separable.forward_rules import SeparableConfig, why_invalid

pytestmark = pytest.mark.ptxemu
C = SeparableConfig

ALIGNED = (
    Case("MobileNetV2 96 to 24", block((1, 96, 8, 8), (96, 1, 3, 3), 24, RELU6), C(block_m=64, block_n=32, width=16)),
    Case("the same channel by channel", block((1, 96, 8, 8), (96, 1, 3, 3), 24, RELU6),
         C(block_m=64, block_n=32, width=16, method="direct")),
    Case("MobileNetV2 144 to 32, stride 2, residual", block((1, 144, 15, 15), (144, 1, 3, 3), 32, RELU6, RESIDUAL,
         stride=2), C(block_m=64, block_n=32, width=16)),
    Case("ResNet-50 res2 in 16 groups", block((1, 64, 8, 8), (64, 4, 3, 3), 256, RELU),
         C(block_m=64, block_n=256, width=32, num_warps=8)),
    Case("ResNet-50 res2 in 4 groups", block((1, 64, 8, 8), (64, 16, 3, 3), 128, RELU, RESIDUAL),
         C(block_m=64, block_n=128, width=32)),
    Case("ResNet-50 res3 in 2 groups, a loop", block((1, 128, 8, 8), (128, 64, 3, 3), 64, RELU),
         C(block_m=64, block_n=64, width=64, block_k=32, num_stages=3)),
    Case("dense, what does not fit unrolled", block((1, 64, 9, 8), (64, 64, 3, 3), 128, RELU),
         C(block_m=128, block_n=64, width=64, block_k=64, num_stages=2)),
    Case("multiplier 2", block((1, 32, 8, 8), (64, 1, 3, 3), 64, RELU), C(block_m=64, block_n=64, width=32)),
)  # fmt: skip
ODD = (
    Case("odd depthwise channels", block((1, 21, 7, 6), (21, 1, 3, 3), 19, RELU, FULL), C(block_m=64, width=16)),
    Case("groups of 3 to 5", block((1, 33, 6, 6), (55, 3, 3, 3), 17, FULL, RESIDUAL), C(block_m=64, block_n=32)),
    Case("groups of 6, tiles of 32", block((1, 54, 5, 5), (54, 6, 3, 3), 40, RELU), C(block_m=32, block_n=32)),
    Case("parts of odd groups", block((1, 46, 6, 5), (74, 23, 3, 3), 40, FULL, RELU),
         C(block_m=64, block_n=32, width=16, block_k=16, num_stages=2)),
    Case("5x5 in a loop over taps", block((1, 24, 6, 6), (24, 4, 5, 5), 40, RELU), C(block_m=64, num_stages=3)),
)  # fmt: skip


def cases() -> list[tuple[int, Case]]:
    """Every problem on both architectures, dtypes in turn; aligned ones on each dtype of 16 bits."""
    dtypes = itertools.cycle([("float16", "ieee"), ("bfloat16", "ieee"), ("float32", "tf32"), ("float32", "ieee")])
    rows = []
    for arch in (80, 90):
        for case in (*ALIGNED, *ODD):
            dtype, precision = next(dtypes) if case in ODD else ("float16" if arch == 80 else "bfloat16", "ieee")
            first = replace(case.problem.first, dtype=dtype, precision=precision)
            config = case.config if dtype != "float32" else replace(case.config, block_m=32, num_stages=1)
            rows.append((arch, replace(case, problem=replace(case.problem, first=first), config=config)))
        next(dtypes)
    return rows


def figures(stats: Any) -> tuple[float, float, float]:
    """(useful part of the sectors that 16-byte accesses move, of those that others move, bank-conflict factor).

    Input, 1x1 weight and output of aligned problems move 16 bytes at a time, the weights of thin groups fewer.
    """
    sectors, useful = [0, 0], [0, 0]
    for (_, kind), found in stats.gline.items():
        wide = "b128" in kind or kind.endswith("16")
        narrow = not wide or kind.endswith(".b16")
        sectors[narrow] += found[1]
        useful[narrow] += found[2]
    wavefronts, ideal = (sum(found[index] for found in stats.sline.values()) for index in (1, 2))
    wide, narrow = (part / (32 * whole) if whole else 1.0 for part, whole in zip(useful, sectors, strict=True))
    return wide, narrow, wavefronts / ideal if ideal else 1.0


@pytest.mark.parametrize(("arch", "case"), cases(), ids=lambda value: getattr(value, "id", value))
def test_compiled_code_is_right(arch: int, case: Case) -> None:
    assert why_invalid(case.problem, case.config) is None
    (stats,) = check_compiled(arch, case)
    wide, narrow, conflicts = figures(stats)
    print(f"sm_{arch} {case.id}: useful sector bytes {wide:.1%}, narrow {narrow:.1%}; conflicts {conflicts:.2f}")
    if case.reason in {aligned.reason for aligned in ALIGNED}:
        assert wide >= 0.9
        assert conflicts <= 1.2


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("weight", [(32, 4, 3, 3), (32, 1, 3, 3)])
def test_the_cold_branch_is_right_as_compiled(arch: int, weight: tuple[int, ...]) -> None:
    problem = block((1, 32, 8, 8), weight, 32, RELU, RELU)
    tensors = separable_tensors(problem)
    tensors["input"][0, 9, 2, 3] = float("-inf")
    tensors["input"][0, 17, 6, 6] = float("inf")
    tensors["weight"] = tensors["weight"].abs()
    (stats,) = run_separable(problem, C(block_m=64, block_n=32, width=16), tensors, emulator(arch))
    check_separable(problem, tensors)
    assert not stats.races
