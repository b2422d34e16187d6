"""The lane that runs compiled kernels natively on this CPU, as a device of the tuner: its key, figures and small space.

For development: the live path of the tuner runs there for real. It says nothing about any GPU, and its lowering gets
some tiles wrong, which verification has to notice (`block_n > 64 * num_warps` is in the space on purpose).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from grouped_conv.autotune.model.heuristic import choose
from grouped_conv.kernels.families import FAMILIES, families_for, why_invalid
from grouped_conv.kernels.implicit_gemm.forward_rules import ImplicitGemmConfig
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

KEY = "cpu-native"
MODULE = "cpu_native"
"""The module whose import makes the lane's driver Triton's active one."""

DEVICE = DeviceSpec(
    key=KEY,
    name="this CPU, through the native lane",
    backend="cpu_native",
    arch="cpu",
    sm_count=2,
    clock_hz=2.5e9,
    shared_per_block=1 << 20,
    shared_per_sm=1 << 20,
    registers_per_sm=1 << 16,
    max_warps_per_sm=64,
    l2_bytes=32 << 20,
    dram_bytes_per_s=2e10,
    half_flops=1.2e11,
    tf32_flops=0.0,
    fp32_flops=1.2e11,
    source="round figures of two AVX-512 cores; no decision about a GPU rests on them",
)


def as_computed(problem: ConvProblem) -> ConvProblem:
    """The problem as the lane computes it: its products of float32 are exact."""
    return replace(problem, precision="ieee")


def default(problem: ConvProblem) -> KernelConfig:
    """What runs there without tuning: the smallest tile of the family that the heuristic takes for an H100."""
    config = smallest(choose(problem, DeviceSpec.get("h100")).family, problem)
    return config or next(configs(problem))


def smallest(family: str, problem: ConvProblem) -> KernelConfig | None:
    """The family's smallest tile; None where the family cannot run the problem.

    The branch of the packed groups that recomputes tiles takes minutes to build on the lane: it is left out.
    """
    if family not in families_for(problem):
        return None
    config = FAMILIES[family].one_warp(problem)
    if getattr(config, "isolate", False):
        config = replace(config, isolate=False)  # type: ignore[call-arg]
    return config if why_invalid(problem, config) is None else None


def configs(problem: ConvProblem) -> Iterator[KernelConfig]:
    """Each family's smallest tile; for the implicit GEMM also tiles that build in seconds and one known to go wrong."""
    for family in families_for(problem):
        config = smallest(family, problem)
        if config is not None:
            yield config
    if problem.direction == "forward":
        tiles = [_tile(*knobs) for knobs in itertools.product((16, 32, 64), (16, 32, 64), (1, 2))]
        for tile in (*tiles, _tile(32, 128, 1), _tile(64, 32, 4)):
            if why_invalid(problem, tile) is None:
                yield tile


def _tile(block_m: int, block_n: int, warps: int) -> ImplicitGemmConfig:
    return ImplicitGemmConfig(block_m=block_m, block_n=block_n, block_k=16, num_warps=warps, num_stages=1)
