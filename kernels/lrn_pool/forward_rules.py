"""Which configurations of the LRN + pool kernel can run a problem, and how it is cut into programs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem
from grouped_conv.kernels.values.config import KernelConfig, power_of_two
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.refusals import INT32_MAX

if TYPE_CHECKING:
    from grouped_conv.kernels.launching.operands import Operand

MAX_WINDOW = 17
"""Channels of the widest window: beyond it the lanes of one pixel fill the registers."""
MAX_KEPT_LANES = 120
"""Row maxima per thread: 120 take 168 registers of sm_80, 144 take them all and spill (Triton 3.8)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LrnPoolConfig(KernelConfig):
    """How the LRN + pool kernel cuts its work.

    Attributes:
        block: threads' worth of work per program: each is a strip of pooled columns of a few channels.
        strip: pooled columns of a strip; a 3x3 pool of stride 2 normalises (2 * strip + 1) / strip pixels per column.
        rows: pooled rows that a program walks down; it also normalises the first row of its first window.
    """

    family: ClassVar[str] = "lrn_pool"

    block: int = 128
    strip: int = 2
    rows: int = 8

    def __post_init__(self) -> None:
        KernelConfig.__post_init__(self)
        power_of_two(block=self.block)
        if self.strip < 1 or self.rows < 1:
            raise ValueError(f"strip and rows must be at least 1, but got {self.strip} and {self.rows}")

    def __str__(self) -> str:
        return f"{self.block} strip{self.strip} rows{self.rows} w{self.num_warps}"


def vector_width(problem: LrnPoolProblem, x: Operand, y: Operand) -> int:
    """Channels of one thread: what 16 bytes hold, or as much of it as towers, strides and addresses allow."""
    width = 16 // problem.item_size
    sizes = [problem.channels // problem.groups]
    for operand, shape in ((x, problem.input_shape), (y, problem.output_shape)):
        sizes += [operand.strides[axis] for axis in (0, 2, 3) if shape[axis] > 1]
        sizes.append(operand.alignment // problem.item_size)
    while any(size % width for size in sizes):
        width //= 2
    return width


def items(problem: LrnPoolProblem, config: LrnPoolConfig, width: int) -> tuple[int, int, int]:
    """(strips across a map, programs down a map, threads' worth of work at one height) for vectors of `width`."""
    out_h, out_w = problem.out_size
    strips = math.ceil(out_w / config.strip)
    return strips, math.ceil(out_h / config.rows), problem.batch * strips * (problem.channels // width)


def why_invalid(problem: LrnPoolProblem, config: LrnPoolConfig) -> str | None:
    """Why `config` cannot run `problem` on any device; `None` when it can."""
    if problem.size > MAX_WINDOW:
        return f"a window of {problem.size} channels is more than {MAX_WINDOW}"
    if not problem.channels_last:
        return "channels must be innermost in memory; a pass to bring them there would cost as much as the kernel"
    _, chunks, count = items(problem, config, 1)
    if chunks * math.ceil(count / config.block) * config.block > INT32_MAX:
        return f"{chunks} times {count} threads are more than the grid's {INT32_MAX}"
    return None


def why_not_on(problem: LrnPoolProblem, config: LrnPoolConfig, device: DeviceSpec) -> str | None:
    """Why a valid `config` would spill on `device`; `None` when it does not."""
    lanes = kept_lanes(problem, config)
    return None if lanes <= MAX_KEPT_LANES else f"{lanes} row maxima per thread spill (at most {MAX_KEPT_LANES})"


def kept_lanes(problem: LrnPoolProblem, config: LrnPoolConfig) -> int:
    """Row maxima that a thread holds: one window's rows, for each column of the strip and each of its channels."""
    lanes = 16 // problem.item_size + (problem.size - 1 if problem.lrn_place == "after" else 0)
    return config.strip * lanes * problem.kernel_size[0]


def one_warp(problem: LrnPoolProblem) -> LrnPoolConfig:
    """A small configuration of one warp, for places that compile for a CPU."""
    return LrnPoolConfig(num_warps=1, block=32, strip=1, rows=max(problem.out_size[0], 1))
