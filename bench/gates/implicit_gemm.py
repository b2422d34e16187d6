"""Gates of the implicit GEMM and its gradients: AlexNet's and ResNeXt's layers at their defaults, and known tiles.

Loops use tensor cores and take no more instructions per tensor-core instruction than the prototypes or, for gradients,
the first code that was found to be right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from grouped_conv.autotune.workloads.named import workload
from grouped_conv.bench.gates.engine import Compiled, Gate, Tile, convolution, gradients, square, uncounted
from grouped_conv.bench.gates.findings import VECTOR_BYTES, width_fault
from grouped_conv.bench.gates.rules import (
    GRADIENT_VARIANTS,
    PLAIN,
    least_width,
    tensor_cores,
    tile_loads,
    wide_loads,
    wide_loop_loads,
    wide_stores,
)
from grouped_conv.kernels.gradient_call import plan_bias_gradient
from grouped_conv.kernels.implicit_gemm.forward_rules import ImplicitGemmConfig
from grouped_conv.kernels.implicit_gemm.input_grad_rules import InputGradConfig
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import ENTRY_BYTES, WeightGradConfig
from grouped_conv.kernels.launching.launch import Launch
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.problem import ConvProblem

EXEMPT = {
    "conv1": "3 channels: a pixel is 6 bytes and a filter 726, so both tiles load 2 bytes at a time through registers"
}
"""Layers whose loads cannot be 16 bytes wide, and why."""


_TAPS = ImplicitGemmConfig(block_m=128, block_n=128, block_k=64, num_warps=4, num_stages=3, loop_order="channels_inner")
TILES = (
    Tile(("conv5",), _TAPS, {"sm_80": 303 / 128, "sm_90": 161 / 8, "sm_100": 166 / 4, "gfx942": 181 / 32}),
    Tile(
        ("conv5",),
        replace(_TAPS, num_warps=8),
        {
            **dict.fromkeys(("sm_80", "sm_86", "sm_89"), 175 / 64),
            **{"sm_90": 140 / 4, "sm_100": 131 / 4, "sm_120": 158 / 64},
        },
    ),
    Tile(
        ("conv2",),
        replace(_TAPS, num_warps=8, loop_order="flat"),
        {"sm_80": 216 / 64, "sm_90": 147 / 4, "sm_100": 143 / 4, "gfx942": 138 / 16},
    ),
)
"""Instructions per tensor-core instruction of the same tiles in the prototypes of this design, whose output channels
filled whole tiles as those of these AlexNet layers do.

Counted with Triton 3.9, except for two loops that 3.8, which the gate runs with, makes longer from the same prototype:
gfx942 with 4 warps (3.9: 168) and sm_120 (3.9: 156)."""


def tile_limit(layer: str, problem: ConvProblem, config: Any, device: DeviceSpec) -> float | None:
    """The limit of the same tile; both orders of whole taps share one."""
    limits = (tile.limits for tile in TILES if _shape(tile.config) == _shape(config))
    return next((found[device.arch_name] for found in limits if device.arch_name in found), None)


def _shape(config: Any) -> tuple[Any, ...]:
    shape = [getattr(config, name, None) for name in ("family", "block_m", "block_n", "block_k", "num_warps")]
    return (*shape, getattr(config, "loop_order", None) == "flat")


_INPUT = InputGradConfig(block_m=128, block_n=64, block_k=64, num_warps=4, num_stages=3, loop_order="channels_inner")
_WEIGHT = WeightGradConfig(block_m=128, block_n=128, block_k=64, num_warps=8, num_stages=3, splits=8)
_TABLE = replace(_WEIGHT, pixel_table=True)
TILE_LAYERS = ("conv4", "conv2", "fat stride 2")
INPUT_GRAD_TILES = (Tile(TILE_LAYERS, _INPUT, {"sm_80": 246 / 64, "sm_90": 165 / 8}),)
"""The prototype's at strides 1 and 2 (233 to 246 and 144 to 165), without an activation."""
WEIGHT_GRAD_TILES = (
    Tile(TILE_LAYERS, _WEIGHT, {"sm_80": 256 / 64, "sm_90": 180 / 4}),
    Tile(TILE_LAYERS, _TABLE, {"sm_80": 214 / 64, "sm_90": 125 / 4}),
    Tile(TILE_LAYERS, replace(_TABLE, num_stages=2), {"gfx942": 139 / 16}),
)
"""With a table of pixels the prototype, which copies the table to shared memory, had 222, 153 and 131. Ours reads it
one step ahead into registers; the limit is what Triton 3.8 makes of it. H100's defaults do without the table: the model
expects L2 to bound AlexNet's layers there (conv2: 111 of 153 us, instructions 64), so a table would cost a launch and
save nothing. On gfx942 conv2 has 123; the other two layers have 192 output channels per group, and a mask there is a
branch."""


def gradient_limit(layer: str, problem: ConvProblem, config: Any, device: DeviceSpec) -> float | None:
    """The limit of the same tile, without an activation and a scale."""
    if not problem.epilogue.is_identity:
        return None
    tiles = (*INPUT_GRAD_TILES, *WEIGHT_GRAD_TILES)
    return next((tile.limits.get(device.arch_name) for tile in tiles if tile.config == config), None)


def loads_but_of_table(compiled: Compiled) -> Iterator[str]:
    """All loads in the loop are as wide as the tiles allow, except 8 bytes of the pixel table per copy of the input."""
    config, widths = compiled.config, dict(compiled.loop_loads)
    if config.pixel_table:
        copies = config.block_n * config.block_k * compiled.problem.item_size // (VECTOR_BYTES * compiled.threads)
        widths[ENTRY_BYTES] = max(0, widths.get(ENTRY_BYTES, 0) - copies)
    found = {width: count for width, count in widths.items() if count}
    return width_fault("loads in the inner loop", found, least_width(compiled))


def bias_pass(problem: ConvProblem, config: None) -> Sequence[Launch]:
    """The pass that sums the bias's gradient and stores the gradient before the activation for the other kernels."""
    return plan_bias_gradient(problem, grad_residual=True).launches[:1]


def one_sum_stored(compiled: Compiled) -> Iterator[str]:
    """Each thread stores one sum of 4 bytes and the gradient in 16 bytes."""
    stores = dict(compiled.resources.total.store_widths)
    sums = stores.pop(4, 0)
    yield from width_fault("stores", stores)
    if sums != 1:
        yield f"{sums} stores of sums"


ALEXNET = workload("alexnet", epilogue=PLAIN)
LAYERS = {name: problem for name, problem in ALEXNET.items() if name != "conv1"} | {
    "rx50 stage 4": square(32, 32, 32, 7, 3),
    "fat stride 2": square(64, 64, 4, 28, 3, 2),
}
"""AlexNet's grouped layers, and ResNeXt-50's wide groups with strides 1 and 2."""
PASS_LAYERS = {
    f"conv4 {dtype} {activation}": convolution(LAYERS["conv4"], dtype, Epilogue(activation))
    for dtype in ("float16", "bfloat16")
    for activation in ("relu", "gelu")
}

FORWARD = Gate(
    family="implicit_gemm",
    unit="MMA",
    layers=ALEXNET,
    variants=(("float16", Epilogue(bias=True)),),  # what a plain `GroupedConv2d(...)` computes
    rivals=True,
    limit=tile_limit,
    rules=(tensor_cores,),
    wide=(wide_loop_loads, wide_stores),
    exemption=lambda compiled: EXEMPT.get(compiled.layer, ""),
)
INPUT_GRAD = Gate(
    family="input_grad",
    unit="MMA",
    layers=gradients(LAYERS, "input_grad"),
    variants=GRADIENT_VARIANTS,
    limit=gradient_limit,
    rules=(tensor_cores, tile_loads, wide_stores),
)
WEIGHT_GRAD = replace(
    INPUT_GRAD,
    family="weight_grad",
    layers=gradients(LAYERS, "weight_grad"),
    rules=(tensor_cores, loads_but_of_table, wide_stores),
)
GATES = (
    FORWARD,
    INPUT_GRAD,
    WEIGHT_GRAD,
    replace(FORWARD, variants=(), tiles=TILES),
    replace(INPUT_GRAD, variants=(), tiles=INPUT_GRAD_TILES),
    replace(WEIGHT_GRAD, variants=(), tiles=WEIGHT_GRAD_TILES),
    Gate(
        family="weight_grad",
        kernel="channel_sums",
        unit="MMA",
        layers=gradients(PASS_LAYERS, "weight_grad"),
        choose=lambda problem, device: None,
        launches=bias_pass,
        count=uncounted,
        rules=(wide_loads, one_sum_stored),
    ),
)
