"""The input gradient's configuration, tiles and what it can run; no kernel is loaded here.

A program computes pixels of one class (`values.classes`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from grouped_conv.kernels.values import refusals
from grouped_conv.kernels.values.classes import class_size, most_taps
from grouped_conv.kernels.values.config import GemmConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

MAX_BUSY_ACCUMULATORS = 63
"""fp32 sums per thread above which ptxas spilled when a derivative or more than `MANY_TAPS` taps need registers too."""
MANY_TAPS = 9
MAX_PACKED_CHANNELS = 16
"""Channels per group, in and out, up to which groups are packed."""
LOOP_ORDERS = ("flat", "channels_inner")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputGradConfig(GemmConfig):
    """Block sizes of the input gradient's kernel.

    Attributes:
        block_m: input pixels of one class per tile.
        block_n: input channels of one group, or of one pack of groups, per tile.
        block_k: depth of one step of the reduction over taps and output channels.
        loop_order: `flat` walks (tap, output channel) as one index; `channels_inner` walks whole channel blocks of one
            tap and needs the output channels of a group or pack to be divisible by `block_k`.
        pack: neighbouring groups that one tile computes, as one block-diagonal product; for thin groups.
        swap: multiply weights by gradients, not gradients by weights. A gradient that passed an activation or a scale
            comes out of registers; on sm_90 wgmma may take it from there only as it was before `wgmma.fence`, which the
            compiler does not ensure (found by executing the PTX), while its second operand is always in shared memory.
        isolate: recompute a tile group by group when a sum is NaN, so that Inf and NaN never cross groups in a pack.
    """

    family: ClassVar[str] = "input_grad"
    direction: ClassVar[str] = "input_grad"

    loop_order: str = "flat"
    pack: int = 1
    swap: bool = False
    isolate: bool = True

    def __post_init__(self) -> None:
        GemmConfig.__post_init__(self)
        if self.loop_order not in LOOP_ORDERS or self.pack < 1:
            raise ValueError(
                f"loop_order {self.loop_order!r} must be one of {LOOP_ORDERS} and pack={self.pack} at least 1"
            )

    def __str__(self) -> str:
        words = [GemmConfig.__str__(self), self.loop_order]
        words += [f"pack{self.pack}"] if self.pack > 1 else []
        words += ["swap"] if self.swap else []
        return " ".join(words + ([] if self.isolate else ["leaky"]))


def packed(problem: ConvProblem, config: InputGradConfig) -> tuple[int, int, int]:
    """(packs, input channels of one, output channels of one)."""
    packs = math.ceil(problem.groups / config.pack)
    return packs, config.pack * problem.c_per_group, config.pack * problem.k_per_group


def tiles(problem: ConvProblem, config: InputGradConfig) -> tuple[int, int, int]:
    """(pixel tiles of one class, channel tiles of one pack, programs of the launch)."""
    packs, columns, _ = packed(problem, config)
    tiles_m = math.ceil(problem.batch * math.prod(class_size(problem)) / config.block_m)
    tiles_n = math.ceil(columns / config.block_n)
    return tiles_m, tiles_n, tiles_m * tiles_n * math.prod(problem.stride) * packs


def trips(problem: ConvProblem, config: InputGradConfig) -> int:
    """Steps of the reduction in the largest class."""
    _, _, depth = packed(problem, config)
    taps = math.prod(most_taps(problem))
    if config.loop_order == "flat":
        return math.ceil(taps * depth / config.block_k)
    return taps * (depth // config.block_k)


def why_invalid(problem: ConvProblem, config: InputGradConfig) -> str | None:
    """Why `config` cannot run `problem` on any device; `None` when it can."""
    return (
        refusals.uniform(problem, config)
        or _loop_reason(problem, config)
        or _pack_reason(problem, config)
        or refusals.grid(tiles(problem, config)[2])
    )


def _loop_reason(problem: ConvProblem, config: InputGradConfig) -> str | None:
    _, _, depth = packed(problem, config)
    if config.loop_order != "flat" and depth % config.block_k:
        return f"loop_order {config.loop_order} needs {depth} output channels divisible by block_k={config.block_k}"
    if config.loop_order != "flat" and config.pack > 1:
        return f"loop_order {config.loop_order} computes one group per tile, not packs of {config.pack}"
    if config.loop_order != "flat" and problem.epilogue.shuffle > 1:
        return f"loop_order {config.loop_order} reads consecutive channels, which a shuffled output does not have"
    return None


def _pack_reason(problem: ConvProblem, config: InputGradConfig) -> str | None:
    if config.pack == 1 or max(problem.c_per_group, problem.k_per_group) <= MAX_PACKED_CHANNELS:
        return None
    return (
        f"groups of {problem.c_per_group} and {problem.k_per_group} channels are not packed "
        f"(at most {MAX_PACKED_CHANNELS})"
    )


def why_not_on(problem: ConvProblem, config: InputGradConfig, device: DeviceSpec) -> str | None:
    """Why a valid `config` cannot run on `device`; `None` when it can."""
    rows = config.block_m * (1 if problem.epilogue.activation == "none" else 2) + config.block_n  # with what is known
    buffers = max(config.num_stages - 1, 1) * rows * config.block_k * problem.item_size
    return (
        refusals.wgmma_tf32(problem, config.block_n if config.swap else config.block_m, config, device)
        or _register_reason(problem, config, device)
        or refusals.pipelined(problem, config, buffers, device)
    )


def _register_reason(problem: ConvProblem, config: InputGradConfig, device: DeviceSpec) -> str | None:
    active = problem.epilogue.activation != "none"
    fused = active or problem.epilogue.scale
    if fused and not config.swap and refusals.takes_wgmma(config.block_m, config, device):
        return "wgmma would read gradients from registers that were written after its fence; swap the operands"
    sums = config.block_m * config.block_n // (device.warp_size * config.num_warps)
    busy = device.backend == "cuda" and device.arch != 100 and (active or problem.taps > MANY_TAPS)
    if busy and sums > MAX_BUSY_ACCUMULATORS:
        return f"{sums} accumulators per thread spill with {problem.taps} taps or an activation"
    return None


def one_warp(problem: ConvProblem) -> InputGradConfig:
    """The smallest tile, for one warp."""
    return InputGradConfig(num_warps=1, num_stages=1, block_m=16, block_n=16, block_k=16)
