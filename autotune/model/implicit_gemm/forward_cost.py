"""Predicts how long a configuration of the implicit GEMM takes. Nothing here was measured.

Model: every multiprocessor runs `ceil(programs / multiprocessors)` programs, as many at a time as fit. A loop trip
costs the largest of its clocks on the tensor pipe, the instruction schedulers, shared memory and L2, plus a part of the
others that shrinks with the number of warps; a program alone also waits for its own loads. The launch cannot be faster
than its bytes cross DRAM, which starts after the first load's latency. Passes before and after (packing, split
reduction) and launches are added. Clocks are boost clocks, L2 holds nothing at the start.

`bench.model_quality` compares it with figures it did not produce, and says where not to trust it.

Two stages: before compiling, instruction counts, registers and shared memory are estimated (`forward_terms`);
afterwards the compiled kernel's own figures replace them.
"""

from __future__ import annotations

import math

from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.model.implicit_gemm import forward_terms as terms_of
from grouped_conv.autotune.model.shared.machine import (
    SCHEDULERS,
    STORE_BYTES_PER_CLOCK,
    Machine,
    dram_us,
    l2_rate,
    machine_of,
    resident_programs,
)
from grouped_conv.autotune.model.shared.prediction import LAUNCH_US, Prediction, floor_us, pack_passes, wave_efficiency
from grouped_conv.kernels.implicit_gemm.forward_rules import (
    ImplicitGemmConfig,
    copied_ahead,
    shared_memory,
    tiles,
    total_trips,
)
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

HIDDEN = 0.75
"""Share of the smaller terms that one warp per scheduler hides behind the largest; assumed."""
TRIP_OVERHEAD = 40
"""Clocks of barrier and wait per trip, shared with other resident programs; assumed."""
LOADED_LATENCY = 1.5
"""Latency of a busy memory system over an idle one; assumed."""
LATE = 0.1
"""Share of the load latency that a trip waits for even with loads ahead, because they arrive unevenly; assumed."""
EDGE_LATENCY = 1200
"""Clocks before the first multiply and after the last: launch, index arithmetic, two loads from DRAM; assumed, as twice
the 570 to 650 that a load takes (`machine`)."""


def padding_efficiency(problem: ConvProblem, config: ImplicitGemmConfig) -> float:
    """Useful products / products the tiles issue: rounding of pixels, channels and depth up to whole blocks."""
    tiles_m, tiles_n, _ = tiles(problem, config)
    block = config.block_m * config.block_n * config.block_k
    issued = tiles_m * tiles_n * problem.groups * total_trips(problem, config) * block
    return problem.macs / issued if issued else 1.0


def predict(
    problem: ConvProblem, config: ImplicitGemmConfig, device: DeviceSpec, resources: Resources | None = None
) -> Prediction:
    """Predict the call of `problem` with `config` on `device`.

    Args:
        resources: figures of the compiled implicit-GEMM kernel; estimated when absent.
    """
    _, _, programs = tiles(problem, config)
    padding, waves, floor = padding_efficiency(problem, config), wave_efficiency(programs, device), 0.0
    if not programs:
        return Prediction(0.0, floor, padding, waves, "launch", {})
    floor = floor_us(problem, device)
    terms = gemm_terms(problem, config, device, machine_of(device), programs, resources)
    gemm = max(terms.pop("gemm"), streamed_us(terms["dram"], device))
    terms["passes"], launches = _passes(problem, config, device)
    terms["launch"] = launches * LAUNCH_US
    total = gemm + terms["passes"] + terms["launch"]
    return Prediction(total, floor, padding, waves, max(terms, key=lambda name: terms[name]), terms)


def gemm_terms(
    problem: ConvProblem,
    config: ImplicitGemmConfig,
    device: DeviceSpec,
    machine: Machine,
    programs: int,
    resources: Resources | None,
) -> dict[str, float]:
    """Microseconds of the main launch by term; `gemm` is their combination without DRAM.

    The last turn of programs may leave multiprocessors idle: each that works has its own pipes to itself as before, but
    a larger share of L2, which belongs to the chip.
    """
    shared = resources.shared_bytes if resources else shared_memory(problem, config, device)
    registers = resources.registers if resources else terms_of.estimated_registers(problem, config, device)
    full, last = divmod(programs, device.sm_count)
    turns = full + (last > 0)
    resident = min(resident_programs(config.num_warps, device, shared, registers), turns)
    own, l2_bytes = _trip(problem, config, device, machine, resources, shared, resident)
    ahead = config.num_stages - 1 if all(copied_ahead(problem, config, device)) else 0
    latency = LOADED_LATENCY * terms_of.load_latency(problem, config, machine)
    exposed = (TRIP_OVERHEAD + LATE * latency / max(ahead, 1)) / resident
    overlap = (1 - HIDDEN) / max(1.0, resident * config.num_warps / SCHEDULERS)
    trips = math.ceil(total_trips(problem, config) / config.split_k)
    edges = _edge_clocks(problem, config, device, machine, resources)
    rounds = math.ceil(full / resident)  # of resident programs, before the last turn's
    l2 = busy = alone = 0.0
    for count, waits, active in (
        (full, rounds, device.sm_count),
        (int(last > 0), math.ceil(turns / resident) - rounds, max(last, 1)),
    ):
        l2_clocks = l2_bytes / min(l2_rate(device) / active, terms_of.L2_PORT_BYTES_PER_CLOCK)
        largest = max(l2_clocks, *own.values())
        busy_trip = largest + (l2_clocks + sum(own.values()) - largest) * overlap + exposed
        waiting = latency / ahead if ahead else latency + busy_trip
        l2 += count * trips * l2_clocks
        busy += count * (trips * busy_trip + edges)
        alone += waits * (trips * max(busy_trip, waiting) + edges + EDGE_LATENCY)
    microseconds = 1e6 / device.clock_hz
    terms = {name: turns * trips * clocks * microseconds for name, clocks in own.items()}
    terms["l2"] = l2 * microseconds
    terms["edges"] = turns * edges * microseconds
    terms["latency"] = alone * microseconds if alone > busy else 0.0
    terms["dram"] = dram_us(_dram_bytes(problem, config, device), device)
    terms["gemm"] = max(busy, alone) * microseconds
    return terms


def _trip(
    problem: ConvProblem,
    config: ImplicitGemmConfig,
    device: DeviceSpec,
    machine: Machine,
    resources: Resources | None,
    shared: int,
    resident: int,
) -> tuple[dict[str, float], float]:
    """One loop trip of one program: clocks on each pipe of its multiprocessor, and the bytes it asks of L2."""
    form = terms_of.mma_form(problem, config, machine)
    through_l1 = device.backend == "cuda" and terms_of.kept_in_l1(config, device)
    hit = terms_of.l1_hit_rate(problem, config, device, machine, shared, resident)
    if resources and resources.loop:
        instructions = terms_of.measured_instructions(problem, config, form, resources.loop)
    else:
        instructions = terms_of.loop_instructions(problem, config, device, form)
    clocks = {
        "tensor": terms_of.tensor_clocks(problem, config, device, machine),
        "issue": terms_of.issue_clocks(instructions, config, machine),
        "shared": terms_of.shared_clocks(problem, config, form, through_l1),
    }
    return clocks, (config.block_m * (1 - hit) + config.block_n) * config.block_k * problem.item_size


def streamed_us(dram: float, device: DeviceSpec) -> float:
    """Microseconds of a launch that is bound by the `dram` microseconds its bytes take: nothing moves at its edges."""
    return dram + 1e6 * EDGE_LATENCY / device.clock_hz


def _edge_clocks(
    problem: ConvProblem,
    config: ImplicitGemmConfig,
    device: DeviceSpec,
    machine: Machine,
    resources: Resources | None,
) -> float:
    """Clocks of one program outside its loop: tap bits and index arithmetic, the epilogue's arithmetic and store.

    Compiled code gives the instructions, each taken as run once. Before that: 6 per tap and 40 per row a thread looks
    after (8 neighbouring threads share one), 4 per sum, and 150 more; counted in compiled kernels of AlexNet's layers.
    """
    threads = device.warp_size * config.num_warps
    if resources:
        instructions = float(resources.outside)
    else:
        rows = max(1.0, config.block_m * config.block_k / 8 / threads)
        taps = problem.taps if problem.taps <= 31 else sum(problem.kernel_size)
        per_sum = 4 if problem.epilogue.shuffle == 1 else 7  # shuffled values are stored one by one
        instructions = 150 + rows * (40 + 6 * taps) + per_sum * config.block_m * config.block_n / threads
    width = 4 if config.split_k > 1 else problem.item_size * (1 + problem.epilogue.save_preactivation)
    stored = config.block_m * config.block_n * width / STORE_BYTES_PER_CLOCK
    return max(terms_of.issue_clocks(instructions, config, machine), stored)


def _dram_bytes(problem: ConvProblem, config: ImplicitGemmConfig, device: DeviceSpec) -> float:
    """Bytes across DRAM in the main launch: every tensor once, and weights again for each band that finds them evicted.

    The input's re-reads by neighbouring tiles hit L2: they follow each other closely in the launch order. What takes
    more than half of L2 is counted as evicted; the half is assumed, other tensors need room too.
    """
    tiles_m, tiles_n, _ = tiles(problem, config)
    weights = math.prod(problem.weight_shape) * problem.item_size / problem.groups
    total = float(problem.min_bytes)
    if weights > device.l2_bytes / 2:
        total += weights * problem.groups * (math.ceil(tiles_m / config.swizzle_m) - 1)
    band = config.swizzle_m * config.block_m * problem.taps * problem.c_per_group * problem.item_size
    if tiles_n > 1 and band > device.l2_bytes / 2:
        total += math.prod(problem.input_shape) * problem.item_size * (tiles_n - 1)
    if config.split_k > 1:
        total += _workspace_bytes(problem, config) if _workspace_bytes(problem, config) > device.l2_bytes / 2 else 0
    return total


def _workspace_bytes(problem: ConvProblem, config: ImplicitGemmConfig) -> int:
    return 4 * config.split_k * problem.gemm[1] * problem.out_channels


def _passes(problem: ConvProblem, config: ImplicitGemmConfig, device: DeviceSpec) -> tuple[float, int]:
    """(microseconds, launches of the whole call): pack passes, and the split's parts read once.

    Parts that fit half of L2 are read at its rate, the rest at DRAM's; half is assumed, other data needs the rest.
    """
    us, packs = pack_passes(problem, device)
    if config.split_k == 1:
        return us, packs + 1
    parts = _workspace_bytes(problem, config)
    if parts > device.l2_bytes / 2:
        return us + dram_us(parts, device), packs + 2
    return us + 1e6 * parts / (l2_rate(device) * device.clock_hz), packs + 2
