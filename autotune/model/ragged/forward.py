"""The ragged kernel in tuning: its defaults, its search space, and its predicted times. Nothing here was measured.

Model: a program of a group costs what one of the implicit GEMM does (`implicit_gemm.forward_cost`) on a dense problem
of the group's sizes. Programs of all groups share the device, deep ones first, so the groups' times are averaged by
their numbers of programs; no call is faster than its deepest program alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.model.implicit_gemm.forward_cost import gemm_terms, streamed_us
from grouped_conv.autotune.model.implicit_gemm.forward_defaults import DEPTHS, LITTLE_WASTE, TILES
from grouped_conv.autotune.model.implicit_gemm.forward_terms import register_pressure
from grouped_conv.autotune.model.shared.machine import dram_us, machine_of
from grouped_conv.autotune.model.shared.model import SPILLS, Model, variants
from grouped_conv.autotune.model.shared.prediction import LAUNCH_US, Prediction, floor_us, pack_passes, wave_efficiency
from grouped_conv.kernels.implicit_gemm.forward_rules import ImplicitGemmConfig
from grouped_conv.kernels.ragged.forward_rules import RaggedConfig, tiles, traits
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.layout import Bucket, GroupLayout
from grouped_conv.kernels.values.problem import ConvProblem

LAST_RESORT = RaggedConfig(block_m=32, block_n=16, block_k=16, num_warps=4, num_stages=1)
"""Runs every problem of the family on every device."""
SPILL_SLACK = 1.35
"""Expected register pressure up to which compiling is worth a try, see `register_pressure` of the implicit GEMM."""


def predict(
    problem: ConvProblem, config: RaggedConfig, device: DeviceSpec, resources: Resources | None = None
) -> Prediction:
    """Predict the call of `problem` with `config` on `device`.

    Args:
        resources: figures of the compiled kernel; estimated when absent.
    """
    _, rows, programs = tiles(problem, config)
    padding, waves = padding_efficiency(problem, config), wave_efficiency(programs, device)
    if not programs:
        return Prediction(0.0, 0.0, padding, waves, "launch", {})
    machine, gemm = machine_of(device), as_gemm(config)
    terms: dict[str, float] = {}
    alone = 0.0
    for bucket in problem.layout.buckets:
        group = stand_in(problem, bucket)
        share = len(bucket.groups) * math.ceil(bucket.outputs / config.block_n) / rows
        for name, us in gemm_terms(group, gemm, device, machine, programs, resources).items():
            terms[name] = terms.get(name, 0.0) + share * us
        alone = max(alone, gemm_terms(group, gemm, device, machine, 1, resources)["gemm"])
    terms["dram"] = dram_us(_dram_bytes(problem, config, device), device)
    main = max(terms.pop("gemm"), alone, streamed_us(terms["dram"], device))
    terms["latency"] = max(terms["latency"], alone if alone == main else 0.0)
    terms["passes"], packs = pack_passes(problem, device)
    terms["launch"] = (1 + packs) * LAUNCH_US
    total = main + terms["passes"] + terms["launch"]
    bound = max(terms, key=lambda name: terms[name])
    return Prediction(total, floor_us(problem, device), padding, waves, bound, terms)


def as_gemm(config: RaggedConfig) -> ImplicitGemmConfig:
    """The implicit GEMM's configuration with the same loop."""
    return ImplicitGemmConfig(
        block_m=config.block_m,
        block_n=config.block_n,
        block_k=config.block_k,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        cache_a=config.cache_a,
    )


def stand_in(problem: ConvProblem, bucket: Bucket) -> ConvProblem:
    """A dense problem whose programs cost what those of the bucket's groups do.

    Its channels are as many as the group's, up to the rounding that gives its loads the width of the whole layout's.
    """
    align = traits(problem.layout).in_align
    width = align * (max(1, bucket.inputs // align) | 1)
    return replace(
        problem,
        layout=GroupLayout.uniform(width, bucket.outputs),
        input_channels_last=True,
        weight_channels_last=True,
    )


def padding_efficiency(problem: ConvProblem, config: RaggedConfig) -> float:
    """Useful products / products the tiles issue: rounding of pixels, channels and depth up to whole blocks."""
    tiles_m, _, _ = tiles(problem, config)
    issued = 0
    for bucket in problem.layout.buckets:
        blocks_k = math.ceil(problem.taps * bucket.inputs / config.block_k)
        issued += len(bucket.groups) * math.ceil(bucket.outputs / config.block_n) * blocks_k
    issued *= tiles_m * config.block_m * config.block_n * config.block_k
    return problem.macs / issued if issued else 1.0


def _dram_bytes(problem: ConvProblem, config: RaggedConfig, device: DeviceSpec) -> float:
    """Every tensor once; the input again for each table row beyond the first that finds it evicted from L2."""
    total = float(problem.min_bytes)
    image = math.prod(problem.input_shape) * problem.item_size
    if image <= device.l2_bytes / 2:
        return total
    read = sum(
        len(bucket.groups) * math.ceil(bucket.outputs / config.block_n) * bucket.inputs
        for bucket in problem.layout.buckets
    )
    return total + max(0.0, image * (read / problem.in_channels - 1))


def defaults(problem: ConvProblem, device: DeviceSpec) -> Iterator[RaggedConfig]:
    """The configurations that the heuristic compares, the last resort last."""
    pixels, widest = problem.batch * math.prod(problem.out_size), max(problem.layout.outputs)
    caches = ("",) if device.backend != "cuda" or problem.taps == 1 else ("", ".ca")
    for block_m, block_n, warps in TILES:
        if (block_m > 32 and block_m >= 2 * pixels) or (block_n > 16 and block_n >= 2 * widest):
            continue
        shape = RaggedConfig(block_m=block_m, block_n=block_n, num_warps=warps)
        for depth, stages, cache in itertools.product(_depths(problem, shape, device), (3, 2), caches):
            yield replace(shape, block_k=depth, num_stages=stages, cache_a=cache)
    yield LAST_RESORT


def _depths(problem: ConvProblem, config: RaggedConfig, device: DeviceSpec) -> list[int]:
    """Steps of the reduction worth comparing: the deepest that wastes little and the next, none expected to spill."""
    fitting = [depth for depth in DEPTHS if _pressure(problem, replace(config, block_k=depth), device) <= 1]
    useful = problem.taps * problem.layout.connections()
    for position, depth in enumerate(fitting):
        issued = sum(
            len(bucket.groups) * bucket.outputs * depth * math.ceil(problem.taps * bucket.inputs / depth)
            for bucket in problem.layout.buckets
        )
        if useful >= LITTLE_WASTE * issued:
            return fitting[position : position + 2]
    return fitting[-1:]


def _candidates(problem: ConvProblem, device: DeviceSpec) -> Iterator[RaggedConfig]:
    """Tiles, warps, stages and cache policies."""
    cuda = device.backend == "cuda"
    return variants(
        [RaggedConfig()],
        block_m=(32, 64, 128, 256),
        block_n=(16, 32, 64, 128),
        block_k=(16, 32, 64),
        num_warps=(4, 8),
        num_stages=(2, 3, 4) if cuda else (1, 2, 3),
        cache_a=("", ".ca") if cuda and problem.taps > 1 else ("",),
    )


def _why_not(problem: ConvProblem, config: RaggedConfig, device: DeviceSpec) -> str | None:
    if config.num_warps == 8 and config.block_m * config.block_n < 64 * 64:
        return "8 warps are for large tiles"
    return SPILLS if _pressure(problem, config, device) > SPILL_SLACK else None


def _pressure(problem: ConvProblem, config: RaggedConfig, device: DeviceSpec) -> float:
    """Expected registers over the budget, as for the implicit GEMM with loads of this layout's width."""
    return register_pressure(stand_in(problem, problem.layout.buckets[0]), as_gemm(config), device)


MODEL = Model(
    defaults, _candidates, timed=predict, why_not=_why_not, tile=lambda config: (config.block_m, config.block_n)
)
