"""Gates of the depthwise kernels: tiles with a limit, and layers of MobileNetV2 and ConvNeXt-T at their defaults.

The figure of a tile counts what one thread issues: a loop over kernel rows once per row, everything else once. It is
per output value, or per value of the gradient's image. The weight's gradient counts its inner loop alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from grouped_conv.autotune.machine_code.instructions import Instruction, loops
from grouped_conv.autotune.workloads.named import workload
from grouped_conv.bench.gates.engine import Compiled, Gate, Tile, first_loop, gradients, per, square, uncounted
from grouped_conv.bench.gates.rules import BIAS_RELU, no_atomics, wide_loads, wide_stores
from grouped_conv.kernels.depthwise.forward_rules import DepthwiseConfig, per_thread
from grouped_conv.kernels.depthwise.input_grad_rules import DepthwiseInputGradConfig
from grouped_conv.kernels.depthwise.weight_grad_rules import DepthwiseWeightGradConfig
from grouped_conv.kernels.values.epilogue import Epilogue

TILE_LAYERS = {f"{kernel}x{kernel}": square(1, 1, 64, 56, kernel, batch=8) for kernel in (3, 5, 7)}
TILE_LAYERS["3x3/2"] = square(1, 1, 64, 56, 3, 2, batch=8)
LOOPED: dict[str, Any] = {"tile_h": 1, "tile_w": 8, "row_loop": True}
AMD: dict[str, Any] = {"block_w": 32}
TILES = (
    Tile(("3x3",), DepthwiseConfig(), {"sm_80": 17.0, "sm_90": 17.3}),
    Tile(("3x3",), DepthwiseConfig(**AMD), {"gfx942": 20.0}),
    Tile(("3x3",), DepthwiseConfig(pack_weight=False), {"sm_80": 19.3, "sm_90": 19.9}),
    Tile(("3x3",), DepthwiseConfig(pack_weight=False, **AMD), {"gfx942": 22.0}),
    Tile(("5x5",), DepthwiseConfig(), {"sm_80": 39.0, "sm_90": 39.5}),
    Tile(("5x5",), DepthwiseConfig(**LOOPED), {"sm_80": 44.0, "sm_90": 44.0}),
    Tile(("5x5",), DepthwiseConfig(**LOOPED, **AMD), {"gfx942": 50.0}),
    Tile(("7x7",), DepthwiseConfig(**LOOPED), {"sm_80": 76.5, "sm_90": 77.0}),
    Tile(("7x7",), DepthwiseConfig(**LOOPED, **AMD), {"gfx942": 90.0}),
)
"""With bias and ReLU. The prototypes had 27, 61 and 111 on sm_80; 111 at 7x7 was without a loop."""
INPUT_GRAD_TILES = (
    Tile(("3x3",), DepthwiseInputGradConfig(), {"sm_80": 17.4, "sm_90": 17.7}),
    Tile(("3x3",), DepthwiseInputGradConfig(**AMD), {"gfx942": 17.2}),
    Tile(("3x3/2",), DepthwiseInputGradConfig(), {"sm_80": 6.5, "sm_90": 6.7}),
    Tile(("3x3/2",), DepthwiseInputGradConfig(**AMD), {"gfx942": 8.3}),
    Tile(("5x5",), DepthwiseInputGradConfig(**LOOPED), {"sm_80": 45.0, "sm_90": 45.0}),
)
WEIGHT_GRAD_TILES = (
    Tile(("3x3",), DepthwiseWeightGradConfig(splits=8), {"sm_80": 20.8}),
    Tile(("7x7",), DepthwiseWeightGradConfig(splits=8, rows=1), {"sm_80": 102.0}),
)
"""Without an activation."""


def issued(code: Sequence[Instruction], trips: int) -> int:
    """Instructions of one thread when the first loop makes `trips` trips and everything else runs once."""
    found = loops(code)
    return len(code) + (trips - 1) * (len(found[0]) if found else 0)


def per_value(compiled: Compiled) -> float:
    """All instructions of a thread per value of the output or of the input's gradient."""
    config = compiled.config
    trips = compiled.problem.kernel_size[0] if config.row_loop else 1
    return issued(compiled.code, trips) / (per_thread(config, compiled.device) * config.tile_h * config.tile_w)


def weight_values(compiled: Compiled) -> float:
    """Output pixels and channels of one trip of the weight's gradient, divided by its trips over kernel rows."""
    config = compiled.config
    rows = compiled.problem.kernel_size[0] if config.rows == 1 else 1
    return float(config.block_p * config.block_c * config.tile_h * config.tile_w / rows)


def wide_if_packed(compiled: Compiled) -> Iterator[str]:
    """All loads are 16 bytes wide if the weight was packed for that."""
    return wide_loads(compiled) if compiled.config.pack_weight else iter(())


LAYERS = {
    f"{model} {layer}": problem
    for model in ("mobilenet_v2", "convnext_t")
    for layer, problem in workload(model).items()
    if problem.c_per_group == 1
}
GRADIENT_LAYERS = {
    "mobilenet_v2 96@112/2": square(1, 1, 96, 112, 3, 2, epilogue=Epilogue("relu6")),
    "mobilenet_v2 144@56": square(1, 1, 144, 56, 3, dtype="bfloat16", epilogue=Epilogue("relu6")),
    "5x5 240@28": square(1, 1, 240, 28, 5),
    "convnext_t 96@56": square(1, 1, 96, 56, 7, dtype="bfloat16"),
    "convnext_t 768@7": square(1, 1, 768, 7, 7),
}
FORWARD = Gate(
    family="depthwise",
    unit="output",
    layers=LAYERS,
    variants=(("float16", BIAS_RELU),),
    rivals=True,
    count=uncounted,
    rules=(wide_stores,),
)
INPUT_GRAD = Gate(
    family="depthwise_input_grad",
    unit="value",
    layers=gradients(GRADIENT_LAYERS, "input_grad"),
    count=uncounted,
    rules=(no_atomics,),
)
WEIGHT_GRAD = replace(INPUT_GRAD, family="depthwise_weight_grad", layers=gradients(GRADIENT_LAYERS, "weight_grad"))
GATES = (
    FORWARD,
    INPUT_GRAD,
    WEIGHT_GRAD,
    replace(FORWARD, layers=TILE_LAYERS, tiles=TILES, count=per_value, rules=(wide_if_packed, wide_stores)),
    replace(
        INPUT_GRAD,
        layers=gradients(TILE_LAYERS, "input_grad"),
        tiles=INPUT_GRAD_TILES,
        count=per_value,
        rules=(wide_loads, wide_stores, no_atomics),
    ),
    replace(
        WEIGHT_GRAD,
        layers=gradients(TILE_LAYERS, "weight_grad"),
        tiles=WEIGHT_GRAD_TILES,
        loop=first_loop(),
        count=per(weight_values),
        rules=(wide_loads, no_atomics),
    ),
)
