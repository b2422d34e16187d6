"""The implicit GEMM's configuration, its arithmetic of tiles, and what it can run; no kernel is loaded here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from grouped_conv.kernels.values import refusals
from grouped_conv.kernels.values.config import CACHE_POLICIES, GemmConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

MIN_SPLIT_TRIPS = 2
"""Blocks of the reduction that each part of a split must have; below that the second pass costs more than it saves."""
LOOP_ORDERS = ("flat", "channels_inner", "taps_inner")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImplicitGemmConfig(GemmConfig):
    """Block sizes and knobs of the implicit-GEMM kernel.

    Attributes:
        block_m: output pixels per tile.
        block_n: output channels of one group per tile.
        block_k: depth of one step of the reduction.
        split_k: programs that share one tile's reduction; a second kernel adds their parts in a fixed order.
        swizzle_m: pixel tiles walked before the next channel tile (L2 reuse); 1 walks the channel tiles first.
        loop_order: `flat` walks (kernel row, kernel column, channel) as one index; `channels_inner` and `taps_inner`
            step through whole channel blocks of one tap, and need `C_PER_GROUP % block_k == 0`.
        cache_a: cache modifier of the input loads, `""`, `.ca` (L1 and L2) or `.cg` (L2 only).
        static_trips: compile the number of loop trips in. A 128x128x64 loop of AlexNet's conv3 has 173 instructions
            with it and 198 without on sm_80 (8 warps, Triton 3.8), but 109 and 100 on sm_90.
    """

    family: ClassVar[str] = "implicit_gemm"

    block_n: int = 128
    split_k: int = 1
    swizzle_m: int = 1
    loop_order: str = "flat"
    cache_a: str = ""
    static_trips: bool = True

    def __post_init__(self) -> None:
        GemmConfig.__post_init__(self)
        if self.split_k < 1 or self.swizzle_m < 1:
            raise ValueError(f"split_k and swizzle_m must be at least 1, but got {self.split_k} and {self.swizzle_m}")
        if self.loop_order not in LOOP_ORDERS or self.cache_a not in CACHE_POLICIES:
            raise ValueError(
                f"loop_order {self.loop_order!r} must be one of {LOOP_ORDERS} "
                f"and cache_a {self.cache_a!r} one of {CACHE_POLICIES}"
            )

    def __str__(self) -> str:
        words = [GemmConfig.__str__(self), self.loop_order]
        words += [f"split{self.split_k}"] if self.split_k > 1 else []
        words += [f"sw{self.swizzle_m}"] if self.swizzle_m > 1 else []
        words += [self.cache_a] if self.cache_a else []
        return " ".join(words + ([] if self.static_trips else ["dyn"]))


def total_trips(problem: ConvProblem, config: ImplicitGemmConfig) -> int:
    """Blocks of the whole reduction."""
    if config.loop_order == "flat":
        return math.ceil(problem.taps * problem.c_per_group / config.block_k)
    return problem.taps * (problem.c_per_group // config.block_k)


def tiles(problem: ConvProblem, config: ImplicitGemmConfig) -> tuple[int, int, int]:
    """(pixel tiles, channel tiles of one group, programs of the launch)."""
    groups, m, n, _ = problem.gemm
    tiles_m, tiles_n = math.ceil(m / config.block_m), math.ceil(n / config.block_n)
    return tiles_m, tiles_n, tiles_m * tiles_n * groups * config.split_k


def workspace(problem: ConvProblem, config: ImplicitGemmConfig) -> tuple[int, ...]:
    """Shape of the fp32 parts of a split reduction."""
    return (config.split_k, problem.gemm[1], problem.out_channels)


def why_invalid(problem: ConvProblem, config: ImplicitGemmConfig) -> str | None:
    """Why `config` cannot run `problem` on any device; `None` when it can."""
    return (
        refusals.uniform(problem, config)
        or _loop_reason(problem, config)
        or refusals.grid(tiles(problem, config)[2])
        or _split_reason(problem, config)
    )


def _loop_reason(problem: ConvProblem, config: ImplicitGemmConfig) -> str | None:
    if config.loop_order != "flat" and problem.input_shuffle > 1:
        return f"loop_order {config.loop_order} reads consecutive channels, which a shuffled input does not have"
    if config.loop_order != "flat" and problem.c_per_group % config.block_k:
        return (
            f"loop_order {config.loop_order} needs C_PER_GROUP={problem.c_per_group} "
            f"divisible by block_k={config.block_k}"
        )
    return None


def _split_reason(problem: ConvProblem, config: ImplicitGemmConfig) -> str | None:
    blocks = math.ceil(problem.gemm[3] / config.block_k)
    if config.split_k == 1 or blocks >= MIN_SPLIT_TRIPS * config.split_k:
        return None
    return f"split_k={config.split_k} leaves less than {MIN_SPLIT_TRIPS} of {blocks} blocks of the reduction to a part"


def one_warp(problem: ConvProblem) -> ImplicitGemmConfig:
    """The smallest tile, which one warp takes and a CPU's compiler builds in 1.2 s (32x64: 5 s, measured)."""
    return ImplicitGemmConfig(num_warps=1, num_stages=1, block_m=16, block_n=16, block_k=16)


def why_not_on(problem: ConvProblem, config: ImplicitGemmConfig, device: DeviceSpec) -> str | None:
    """Why a valid `config` cannot run on `device`; `None` when it can."""
    return refusals.pipelined(problem, config, pipeline_buffers(problem, config, device), device)


def pipeline_buffers(problem: ConvProblem, config: ImplicitGemmConfig, device: DeviceSpec) -> int:
    """Bytes of shared memory of the pipelined loop's operand tiles; 0 without a pipeline, where compilers differ.

    Asynchronous copies keep `num_stages - 1` tiles in flight, and registers hold the tile being multiplied; wgmma
    reads its operands from shared memory while the next tiles arrive, so it keeps all `num_stages`. A tile that is not
    copied ahead has one buffer, and two of those may take turns in it. Never more than compiled code has (tests).
    """
    if config.num_stages == 1:
        return 0
    copies = config.num_stages if _uses_wgmma(config, device) else config.num_stages - 1
    tiles = [rows * config.block_k * problem.item_size for rows in (config.block_m, config.block_n)]
    rows = list(zip(tiles, copied_ahead(problem, config, device), strict=True))
    return sum(copies * tile for tile, ahead in rows if ahead) + max(
        (tile for tile, ahead in rows if not ahead), default=0
    )


def copied_ahead(problem: ConvProblem, config: ImplicitGemmConfig, device: DeviceSpec) -> tuple[bool, bool]:
    """Are the (input, weight) tiles copied to shared memory trips before their use?

    Not without a pipeline, and not where a thread loads less than 4 bytes at a time: such a tile is loaded in the trip
    that multiplies it, on NVIDIA and AMD alike (seen in Triton 3.8's intermediate code).
    """
    threads = config.num_warps * device.warp_size
    width_a, width_b = load_widths(problem)
    each = 4 * threads / (config.block_k * problem.item_size)  # rows with 4 bytes for every thread
    piped = config.num_stages > 1
    return piped and width_a >= 4 and config.block_m >= each, piped and width_b >= 4 and config.block_n >= each


def load_widths(problem: ConvProblem) -> tuple[int, int]:
    """(input, weight) bytes of one load: what a group's channels and a filter's row are divisible by; 16 at most."""
    run = problem.c_per_group * problem.item_size
    width_a = problem.item_size if problem.input_shuffle > 1 else math.gcd(16, run)
    return width_a, math.gcd(16, run * problem.taps)


def shared_memory(problem: ConvProblem, config: ImplicitGemmConfig, device: DeviceSpec) -> int:
    """An estimate of the compiled kernel's shared memory: the loop's tiles, or the tile that the epilogue rearranges.

    The compiler may rearrange the store in parts, so this can be too high; the compiled kernel's own figure decides.
    """
    tile = (config.block_m + config.block_n) * config.block_k * problem.item_size
    store = config.block_m * config.block_n * (problem.item_size if config.split_k == 1 else 4)
    return max(pipeline_buffers(problem, config, device), tile, 0 if _uses_wgmma(config, device) else store)


def _uses_wgmma(config: ImplicitGemmConfig, device: DeviceSpec) -> bool:
    return device.backend == "cuda" and device.arch in (90, 100) and config.block_m >= 64 and config.num_warps % 4 == 0
