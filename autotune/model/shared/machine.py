"""Micro-architecture figures that data sheets leave out, per architecture, each with where it comes from.

Only the cost model reads them. "assumed" marks our own estimate; none was measured here. Measurements of others come
from two places: [L] is Luo et al., arXiv 2402.13499, and [B] are the result files of github.com/te42kyfo/gpu-benches,
named by their path there.
"""

from __future__ import annotations

from dataclasses import dataclass

from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

KB = 1024


@dataclass(frozen=True, slots=True)
class Machine:
    """What one multiprocessor and its path to memory can do.

    Attributes:
        l1_bytes: first-level cache and shared memory together (cache alone on AMD, where they are separate).
        l2_bytes_per_clock: L2 reads of each multiprocessor per clock while all of them read.
        l2_latency: clocks from a load to its data when it hits L2.
        dram_latency: the same when it misses.
        issue_clocks: clocks a scheduler is busy with one instruction of one warp.
        mma: how tensor cores are fed: `mma` (operands in registers), `wgmma` (Hopper), `tcgen05` (Blackwell), `mfma`.
        mma_register_rate: share of the peak that register-operand MMA reaches where the peak needs a newer form.
        reserved_shared: shared memory the driver keeps per program.
    """

    l1_bytes: int
    l2_bytes_per_clock: float
    l2_latency: int
    dram_latency: int
    issue_clocks: int = 1
    mma: str = "mma"
    mma_register_rate: float = 1.0
    reserved_shared: int = KB


SCHEDULERS = 4
"""Warp schedulers of a multiprocessor (CUDA programming guide), SIMD units on AMD (CDNA3 ISA); alike for all below."""
SHARED_BYTES_PER_CLOCK = 128
"""Shared memory and L1: 32 banks of 4 bytes (CUDA programming guide; CDNA3 ISA for LDS)."""
DRAM_SHARE = 0.9
"""Share of the peak bandwidth that a kernel reaches at best. [B] gpu-stream and cuda-stream measured 0.84 (copies) to
0.95 (reads) on H100 PCIe and 0.85 (copies) on MI210."""
STORE_BYTES_PER_CLOCK = 64
"""Global stores of one multiprocessor; assumed, half of L1's rate."""

# L1 sizes: CUDA programming guide, section on each compute capability; CDNA2 and CDNA3 white papers.
# L2 bytes per clock and multiprocessor, reading data that fits it ([B] gpu-l2-cache): A100 5400 GB/s at 1.41 GHz on 108
# (the GA100 white paper's 5120 per clock of the chip would be 47); H100 PCIe 6900 at 1.755 on 114 (34.5), H200 9750 on
# 132 (37.3 at its 1.98 GHz boost, which the file does not state); L40 5200 at 2.49 on 142; MI210 5000 at 1.7 on 104,
# which is 0.72 of its white paper's 32 channels of 128 bytes. Assumed: gfx942 that share of 16 channels on 8 dies;
# sm_86 and sm_120 as sm_89; sm_100 twice sm_90, as its tensor cores are twice as fast.
# L2 latency: about 260 clocks on A100 and H100, 273 on RTX 4090 [L]; 240 on MI210 ([B] gpu-latency); the rest assumed.
# DRAM latency ([B] gpu-latency, cuda-latency, the plateau beyond L2): A100 570, H100 PCIe 650, L40 630, MI210 655; the
# rest assumed, as their nearest relative or, with more dies to cross, more.
# Register-operand MMA on sm_90 reaches about 0.62 of the peak [L]; on sm_100 assumed half of that.
# AMD issues a 64-lane vector instruction on 16 lanes in 4 clocks (CDNA3 ISA).
# Shared memory that the driver keeps per program: 1 KB (CUDA programming guide, 8.x and later); none on AMD, assumed.
_MACHINES = {
    80: Machine(192 * KB, 35.5, 260, 570),
    86: Machine(128 * KB, 14.7, 260, 630),
    89: Machine(128 * KB, 14.7, 273, 630),
    90: Machine(256 * KB, 36, 260, 650, mma="wgmma", mma_register_rate=0.62),
    100: Machine(256 * KB, 72, 350, 800, mma="tcgen05", mma_register_rate=0.31),
    120: Machine(128 * KB, 14.7, 300, 650),
    "gfx90a": Machine(16 * KB, 28.3, 240, 655, issue_clocks=4, mma="mfma", reserved_shared=0),
    "gfx942": Machine(32 * KB, 38.8, 400, 800, issue_clocks=4, mma="mfma", reserved_shared=0),
}


def machine_of(device: DeviceSpec) -> Machine:
    """The figures for `device`; an architecture without an entry gets its family's oldest."""
    known = _MACHINES.get(device.arch)
    if known is not None:
        return known
    return _MACHINES["gfx90a" if device.backend == "hip" else 80]


def l2_rate(device: DeviceSpec) -> float:
    """Bytes per clock that L2 delivers to the whole chip."""
    return machine_of(device).l2_bytes_per_clock * device.sm_count


def dram_us(traffic: float, device: DeviceSpec) -> float:
    """Microseconds in which `traffic` bytes cross DRAM, at the share of its peak that kernels reach."""
    return 1e6 * traffic / (DRAM_SHARE * device.dram_bytes_per_s)


def multiply_clocks(products: float, problem: ConvProblem, device: DeviceSpec) -> float:
    """Clocks of one multiprocessor for so many products of the problem's dtype at the device's peak rate."""
    return 2 * products * device.sm_count * device.clock_hz / device.peak_flops(problem.dtype, problem.precision)


def scalar_clocks(products: float, device: DeviceSpec) -> float:
    """Clocks of one multiprocessor's fp32 pipe for so many products outside the tensor cores."""
    return 2 * products * device.sm_count * device.clock_hz / device.fp32_flops


def scalar_products(problem: ConvProblem, device: DeviceSpec) -> bool:
    """Are products taken outside the tensor cores: exact float32 on NVIDIA?"""
    return problem.dtype == "float32" and problem.precision != "tf32" and device.backend == "cuda"


def products_per_multiply(problem: ConvProblem, device: DeviceSpec) -> int:
    """Products of one multiply instruction of one warp: `mma` m16n8k16 (TF32 half as deep), `mfma`, or FMA."""
    if scalar_products(problem, device):
        return device.warp_size
    return 16 * 16 * 16 if device.backend != "cuda" else 16 * 8 * (16 if problem.item_size == 2 else 8)


def resident_programs(num_warps: int, device: DeviceSpec, shared: int, registers: int) -> int:
    """Programs one multiprocessor holds at a time: limited by shared memory, registers per thread, and warps."""
    threads = device.warp_size * num_warps
    by_shared = device.shared_per_sm // max(shared + machine_of(device).reserved_shared, 1)
    by_registers = device.registers_per_sm // (max(-(-registers // 8) * 8, 16) * threads)
    return max(1, min(by_shared, by_registers, device.max_warps_per_sm // num_warps))
