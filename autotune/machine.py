"""Micro-architecture figures that data sheets leave out, per architecture, each with where it comes from.

Only the cost model reads them. "assumed" marks our own estimate; none was measured here.
"""

from __future__ import annotations

from dataclasses import dataclass

from grouped_conv.kernels.device import DeviceSpec

KB = 1024


@dataclass(frozen=True, slots=True)
class Machine:
    """What one multiprocessor and its path to memory can do.

    Attributes:
        l1_bytes: first-level cache and shared memory together (cache alone on AMD, where they are separate).
        l2_bytes_per_clock: L2 reads of the whole chip per clock.
        l2_latency: clocks from a load to its data when it hits L2.
        issue_clocks: clocks a scheduler is busy with one instruction of one warp.
        mma: how tensor cores are fed: `mma` (operands in registers), `wgmma` (Hopper), `tcgen05` (Blackwell), `mfma`.
        mma_register_rate: share of the peak that register-operand MMA reaches where the peak needs a newer form.
        reserved_shared: shared memory the driver keeps per program.
    """

    l1_bytes: int
    l2_bytes_per_clock: float
    l2_latency: int
    issue_clocks: int = 1
    mma: str = "mma"
    mma_register_rate: float = 1.0
    reserved_shared: int = KB


SCHEDULERS = 4
"""Warp schedulers (SIMD units on AMD) of a multiprocessor, for every architecture below."""
SHARED_BYTES_PER_CLOCK = 128
"""Shared memory and L1: 32 banks of 4 bytes (CUDA programming guide; CDNA3 ISA for LDS)."""
STORE_BYTES_PER_CLOCK = 64
"""Global stores of one multiprocessor; assumed, half of the load path."""

# L1 sizes: CUDA programming guide, section on each compute capability; CDNA2 and CDNA3 white papers.
# L2 of sm_80: 5120 bytes per clock (GA100 white paper); sm_90 assumed the same per clock; sm_100 assumed twice that
# (two dies); sm_86, sm_89 and sm_120 assumed 16 bytes per clock and multiprocessor; gfx942: 128 bytes per clock for
# each of 16 channels on 8 dies, gfx90a the same for 32 channels (CDNA white papers).
# L2 latency: about 260 clocks on A100 and H100, 273 on RTX 4090 (arXiv 2402.13499); the others assumed.
# Register-operand MMA on sm_90 reaches about 0.62 of the peak (arXiv 2402.13499); on sm_100 assumed half of that.
# AMD issues a 64-lane vector instruction on 16 lanes in 4 clocks (CDNA3 ISA).
_MACHINES = {
    80: Machine(192 * KB, 5120, 260),
    86: Machine(128 * KB, 82 * 16, 260),
    89: Machine(128 * KB, 128 * 16, 273),
    90: Machine(256 * KB, 5120, 260, mma="wgmma", mma_register_rate=0.62),
    100: Machine(256 * KB, 10240, 350, mma="tcgen05", mma_register_rate=0.31),
    120: Machine(128 * KB, 170 * 16, 300),
    "gfx90a": Machine(16 * KB, 4096, 400, issue_clocks=4, mma="mfma", reserved_shared=0),
    "gfx942": Machine(32 * KB, 16384, 400, issue_clocks=4, mma="mfma", reserved_shared=0),
}


def machine_of(device: DeviceSpec) -> Machine:
    """The figures for `device`; an architecture without an entry gets its family's oldest."""
    known = _MACHINES.get(device.arch)
    if known is not None:
        return known
    return _MACHINES["gfx90a" if device.backend == "hip" else 80]


def resident_programs(num_warps: int, device: DeviceSpec, shared: int, registers: int) -> int:
    """Programs one multiprocessor holds at a time: limited by shared memory, registers per thread, and warps."""
    threads = device.warp_size * num_warps
    by_shared = device.shared_per_sm // max(shared + machine_of(device).reserved_shared, 1)
    by_registers = device.registers_per_sm // (max(-(-registers // 8) * 8, 16) * threads)
    return max(1, min(by_shared, by_registers, device.max_warps_per_sm // num_warps))
