"""Terms of the cost model: clocks a multiprocessor spends on one loop trip, and how many programs share it.

Every function says what it assumes. All figures are predictions from published rates and instruction counts.
"""

from __future__ import annotations

from grouped_conv.autotune.machine_code.instructions import Mix
from grouped_conv.autotune.model.shared.machine import SCHEDULERS, SHARED_BYTES_PER_CLOCK, Machine, machine_of
from grouped_conv.kernels.implicit_gemm.forward_rules import ImplicitGemmConfig, load_widths
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

REGISTERS_BESIDE_SUMS = 90
"""Registers per thread besides the accumulators, counted in compiled kernels of AlexNet's layers (70 to 110)."""
REGISTER_BUDGET = {"mma": 176, "fma": 176, "wgmma": 196, "tcgen05": 196, "mfma": 400}
"""Sums plus 4 per global load of a trip, per thread, up to which compiled kernels of AlexNet's layers did not spill.

With operands in registers 256x128x64 on 8 warps (128 sums, 12 loads) fits and 128x128x64 on 4 (128 sums, 16 loads) does
not; wgmma and tcgen05 leave the operands in shared memory, and take 16 loads but not 20.
"""
LDMATRIX_BYTES = 512  # what one warp-wide `ldmatrix.x4` brings in: four 8x8 matrices of 2 bytes (PTX ISA)
L2_PORT_BYTES_PER_CLOCK = 64  # from L2 into one multiprocessor while few others read; assumed


def mma_form(problem: ConvProblem, config: ImplicitGemmConfig, machine: Machine) -> str:
    """How this tile multiplies: `mma`, `wgmma`, `tcgen05`, `mfma`, or `fma` outside the tensor cores."""
    if problem.dtype == "float32" and problem.precision != "tf32" and machine.mma != "mfma":
        return "fma"
    if machine.mma in ("wgmma", "tcgen05") and (config.block_m < 64 or config.num_warps % 4):
        return "mma"
    return machine.mma


def tensor_clocks(problem: ConvProblem, config: ImplicitGemmConfig, device: DeviceSpec, machine: Machine) -> float:
    """Clocks of the multiply pipe for one trip: 2 * block products at the device's peak rate per multiprocessor.

    Register-operand MMA on Hopper and Blackwell runs at the share of the peak that `Machine` gives.
    """
    flops = 2 * config.block_m * config.block_n * config.block_k
    per_clock = device.peak_flops(problem.dtype, problem.precision) / (device.sm_count * device.clock_hz)
    form = mma_form(problem, config, machine)
    return flops / per_clock / (machine.mma_register_rate if form == "mma" else 1.0)


def warp_grid(config: ImplicitGemmConfig) -> tuple[int, int]:
    """(rows, columns) of warps over the tile: as Triton does, halve the longer side of a warp's share."""
    rows = columns = 1
    while rows * columns < config.num_warps:
        if config.block_m // rows >= config.block_n // columns:
            rows *= 2
        else:
            columns *= 2
    return rows, columns


def operand_bytes(problem: ConvProblem, config: ImplicitGemmConfig, form: str) -> float:
    """Bytes of shared memory the multiplies of one trip read.

    wgmma reads its 64 rows and all columns per instruction, tcgen05 128 rows (PTX ISA, operands by descriptor); warps
    with register operands each read their own rows and columns.
    """
    rows, columns = config.block_m, config.block_n
    if form in ("wgmma", "tcgen05"):
        step = min(rows, 64 if form == "wgmma" else 128)
        read = rows // step * (step + columns)
    else:
        grid_m, grid_n = warp_grid(config)
        read = columns * grid_m + rows * grid_n
    return read * config.block_k * problem.item_size


def kept_in_l1(config: ImplicitGemmConfig, device: DeviceSpec) -> bool:
    """May input loads stay in L1? By `.ca` on NVIDIA, where asynchronous copies otherwise pass it by; always on AMD."""
    return config.cache_a == ".ca" or (device.backend == "hip" and config.cache_a == "")


def shared_clocks(problem: ConvProblem, config: ImplicitGemmConfig, form: str, through_l1: bool) -> float:
    """Clocks of shared memory for one trip: both tiles written once, operands read, 128 bytes per clock, no conflicts.

    NVIDIA's L1 is the same memory: an input tile that comes through it is read there once more.
    """
    written = (config.block_m * (1 + through_l1) + config.block_n) * config.block_k * problem.item_size
    return (written + operand_bytes(problem, config, form)) / SHARED_BYTES_PER_CLOCK


def mma_count(problem: ConvProblem, config: ImplicitGemmConfig, form: str) -> float:
    """Multiply instructions of one warp for one trip.

    Shapes: mma m16n8k16, wgmma of 64 rows and up to 256 columns, tcgen05 of 128 rows (PTX ISA; TF32 half as deep),
    v_mfma 32x32x8 and for fp32 32x32x2 (CDNA3 ISA).
    """
    products = config.block_m * config.block_n * config.block_k
    depth = 16 if problem.item_size == 2 else 8
    if form == "fma":
        return products / (32 * config.num_warps)
    if form == "wgmma":
        return config.block_m / 64 * config.block_k / depth / (config.num_warps / 4) * max(1.0, config.block_n / 256)
    if form == "tcgen05":
        return config.block_m / 128 * config.block_k / depth * max(1.0, config.block_n / 256)
    per_instruction = 32 * 32 * (8 if problem.item_size == 2 else 2) if form == "mfma" else 16 * 8 * depth
    return products / per_instruction / config.num_warps


def loop_instructions(problem: ConvProblem, config: ImplicitGemmConfig, device: DeviceSpec, form: str) -> float:
    """Instructions of one warp for one trip, before anything is compiled.

    Fitted to compiled loops of AlexNet's layers (fp16, tiles of 64 and 128, 4 and 8 warps; within about 15 %):
    multiplies, operand loads, and per global load its address and predicate (5, one more for a flat index), plus a
    constant. A load below 4 bytes cannot be asynchronous: it also passes through registers into shared memory.
    """
    threads = device.warp_size * config.num_warps
    operand_loads = 0.0
    if form in ("mma", "mfma", "fma"):
        operand_loads = operand_bytes(problem, config, form) / LDMATRIX_BYTES / config.num_warps
    width_a, width_b = load_widths(problem)
    item = problem.item_size
    per_a = (6 if config.loop_order == "flat" else 5) + 1 + (1 if width_a < 4 else 0)
    loads_a = config.block_m * config.block_k * item / (width_a * threads)
    loads_b = config.block_n * config.block_k * item / (width_b * threads)
    fixed = {"wgmma": 66, "tcgen05": 66, "mfma": 72}.get(form, 48)
    return fixed + mma_count(problem, config, form) + operand_loads + per_a * loads_a + (6 + (width_b < 4)) * loads_b


def measured_instructions(problem: ConvProblem, config: ImplicitGemmConfig, form: str, loop: Mix) -> float:
    """The same from compiled code: a loop that the assembler unrolled is divided by the trips one pass covers."""
    expected = mma_count(problem, config, form)
    unrolled = max(1, round(loop.mma / expected)) if loop.mma and expected >= 1 else 1
    return loop.instructions / unrolled


def issue_clocks(instructions: float, config: ImplicitGemmConfig, machine: Machine) -> float:
    """Clocks the schedulers need for `instructions` of every warp of one program."""
    return instructions * config.num_warps / SCHEDULERS * machine.issue_clocks


def estimated_registers(problem: ConvProblem, config: ImplicitGemmConfig, device: DeviceSpec) -> int:
    """Registers per thread before compiling: the sums plus a constant; Blackwell keeps the sums in tensor memory."""
    sums = config.block_m * config.block_n // (device.warp_size * config.num_warps)
    limit = 512 if device.backend == "hip" else 255
    return min(limit, (0 if device.arch == 100 else sums) + REGISTERS_BESIDE_SUMS)


def register_pressure(problem: ConvProblem, config: ImplicitGemmConfig, device: DeviceSpec) -> float:
    """Expected registers over the budget of this way to multiply; above 1 a compiled kernel may spill."""
    form = mma_form(problem, config, machine_of(device))
    if form == "mma" and (config.block_m, config.block_n, config.block_k, config.num_warps) == (64, 64, 64, 4):
        return 1.01  # ptxas aims at 128 registers there, and spills 8 bytes to get them
    width_a, width_b = load_widths(problem)
    threads = device.warp_size * config.num_warps
    sums = 0 if form == "tcgen05" else config.block_m * config.block_n // threads
    step = config.block_k * problem.item_size
    loads = step * (config.block_m / width_a + config.block_n / width_b) / threads
    if problem.epilogue.shuffle > 1:
        sums += sums // 2  # stored one by one: 128 sums spilled up to 896 bytes on sm_90, 64 none
    return (sums + 4 * loads) / REGISTER_BUDGET[form]


def input_pixels(problem: ConvProblem, rows: int) -> float:
    """Different input pixels that `rows` consecutive output pixels read over all taps, zeros outside not counted."""
    out_h, out_w = problem.out_size
    in_h, in_w = problem.in_size
    span = min(rows / max(out_w, 1), out_h * problem.batch)  # output rows, possibly of several images
    images = max(1.0, span / max(out_h, 1))
    window = problem.dilation[0] * (problem.kernel_size[0] - 1) + 1
    high = min(images * in_h, span * problem.stride[0] + images * (window - min(problem.stride[0], window)))
    return max(1.0, min(high * in_w, rows * problem.taps))


def load_latency(problem: ConvProblem, config: ImplicitGemmConfig, machine: Machine) -> float:
    """Clocks from a load of the loop to its data, on average: a pixel's first read misses L2, its other taps' hit."""
    first = input_pixels(problem, config.block_m) / (config.block_m * problem.taps)
    return machine.l2_latency + min(1.0, first) * (machine.dram_latency - machine.l2_latency)


def l1_hit_rate(
    problem: ConvProblem, config: ImplicitGemmConfig, device: DeviceSpec, machine: Machine, shared: int, resident: int
) -> float:
    """Share of the input's reads that find their pixel in L1 because an earlier tap brought it in.

    Only where the load is allowed to stay there (`kept_in_l1`). The cache is what shared memory leaves, divided
    among the resident programs; to be read again, a tile must keep its pixels' channels of one step (taps innermost) or
    all of a group's channels (channels innermost, flat). Less room keeps a proportional part.
    """
    if not kept_in_l1(config, device) or problem.taps == 1:
        return 0.0
    cache = machine.l1_bytes - (0 if device.backend == "hip" else resident * (shared + machine.reserved_shared))
    channels = config.block_k if config.loop_order == "taps_inner" else problem.c_per_group
    pixels = input_pixels(problem, config.block_m)
    needed = pixels * channels * problem.item_size
    once = 1.0 - pixels / (config.block_m * problem.taps)
    return max(0.0, once) * min(1.0, max(cache, 0) / resident / needed)
