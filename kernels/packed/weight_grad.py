"""The gradient of the weight for many thin groups: adjacent groups packed side by side into one product per tap.

A program computes some kernel rows of a pack from a part of the output pixels. For each tile of pixels it reads the
output's gradient once and multiplies it with the input under each tap, into sums of that tap's own. Products across
groups are computed and never stored, so Inf and NaN stay in their group.
"""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.bundles import Derivative, Strides
from grouped_conv.kernels.device_code.epilogue import pixel_offsets
from grouped_conv.kernels.device_code.gradient import load_gradient
from grouped_conv.kernels.device_code.reduction import multiply_add
from grouped_conv.kernels.launching.gradient_operands import gradient_arguments
from grouped_conv.kernels.launching.launch import INT32_MAX, Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import Operand
from grouped_conv.kernels.launching.window import window_constant
from grouped_conv.kernels.packed.arguments import walk_integers
from grouped_conv.kernels.packed.bundles import Gradient, Image, Pack, Source, Tile, Walk
from grouped_conv.kernels.packed.sums import first_strips, load_row, next_strips, pack_columns, window_start
from grouped_conv.kernels.packed.weight_grad_rules import (
    PackedWeightGradConfig,
    block_m,
    block_n,
    grid,
    kernel_rows,
    programs,
    steps_each,
)
from grouped_conv.kernels.values.problem import ConvProblem


@triton.jit
def strip_gradients(
    place, images, out, dy, dy_pack, known_pack, TILE: tl.constexpr, EVEN: tl.constexpr, DERIVATIVE: tl.constexpr
):
    """The gradient of each pixel of the strips: STRIP tiles [channels, BLOCK].

    Through transposed pointers: transposing a loaded tile costs narrow shared-memory accesses.
    """
    first = place.strip * TILE.STRIP
    g_rows = pixel_offsets(place.image, place.row, first, dy.strides)
    known = known_pack
    if DERIVATIVE.ACTIVATION != "none":
        known = known_pack + pixel_offsets(place.image, place.row, first, dy.known_strides)[None, :]
    pointers = dy_pack + g_rows[None, :]
    image_ok = place.image < images
    tiles = ()
    for u in tl.static_range(TILE.STRIP):
        mask = (image_ok & (place.strip < (dy.width - u + TILE.STRIP - 1) // TILE.STRIP))[None, :]
        if not EVEN:
            mask = mask & out.ok[:, None]
        known_u = known
        if DERIVATIVE.ACTIVATION != "none":
            known_u = known + u * dy.known_strides.w
        tiles = tiles + (load_gradient(pointers + u * dy.strides.w, known_u, mask, None, DERIVATIVE),)
    return tiles


@triton.jit
def add_rows(
    sums, gradients, source, first_row, ROWS: tl.constexpr, WINDOW: tl.constexpr, TILE: tl.constexpr, EVEN: tl.constexpr
):
    """The sums of ROWS kernel rows with the products of a tile's gradients and the input under each tap added."""
    plain: tl.constexpr = Derivative("none", 0.0, 1, 1, 1)
    added = ()
    for r in tl.static_range(ROWS):
        tiles = load_row(source, (first_row + r) * WINDOW.DILATION_H, WINDOW, TILE.STRIP, EVEN, plain)
        for s in tl.static_range(WINDOW.KERNEL_W):
            acc = sums[r * WINDOW.KERNEL_W + s]
            for u in tl.static_range(TILE.STRIP):
                x = tiles[u * WINDOW.STRIDE_W + s * WINDOW.DILATION_W]
                acc = multiply_add(gradients[u], x, acc, TILE.PRECISION)
            added = added + (acc,)
    return added


@triton.jit
def packed_weight_grad(
    dy_ptr,
    known_ptr,
    x_ptr,
    workspace_ptr,
    images,
    IN_H,
    IN_W,
    OUT_H,
    OUT_W,
    in_channels,
    out_channels,
    packs,
    tiles_each,
    strips_w,
    step_n,
    step_h,
    step_w,
    stride_gn,
    stride_gh,
    stride_gw,
    stride_kn,
    stride_kh,
    stride_kw,
    stride_xn,
    stride_xh,
    STRIDE_XW: tl.constexpr,
    ROWS: tl.constexpr,
    WINDOW: tl.constexpr,
    PACK: tl.constexpr,
    TILE: tl.constexpr,
    DERIVATIVE: tl.constexpr,
):
    PARTS: tl.constexpr = (WINDOW.KERNEL_H + ROWS - 1) // ROWS
    TAPS: tl.constexpr = ROWS * WINDOW.KERNEL_W
    pid = tl.program_id(0)
    pack = pid % packs
    first_row = 0
    if PARTS > 1:
        first_row = pid // packs % PARTS * ROWS
    split = pid // packs // PARTS
    walk = Walk(split, images, OUT_H, strips_w, tiles_each, step_n, step_h, step_w)
    x = Image(x_ptr, in_channels, IN_H, IN_W, Strides(stride_xn, 1, stride_xh, STRIDE_XW))
    dy = Gradient(
        dy_ptr, known_ptr, None, out_channels, OUT_H, OUT_W, Strides(stride_gn, 1, stride_gh, stride_gw),
        Strides(stride_kn, 1, stride_kh, stride_kw),
    )  # fmt: skip
    out = pack_columns(pack, out_channels, PACK.OUT)
    into = pack_columns(pack, in_channels, PACK.IN)
    x_pack = x_ptr + into.memory[None, :]
    dy_pack = dy_ptr + out.memory[:, None]
    known_pack = dy_pack
    if DERIVATIVE.ACTIVATION != "none":
        known_pack = known_ptr + (out.logical if DERIVATIVE.SHUFFLE_KNOWN == 1 else out.memory)[:, None]
    sums = ()
    for _ in tl.static_range(TAPS):
        sums = sums + (tl.zeros((PACK.OUT.BLOCK, PACK.IN.BLOCK), tl.float32),)
    place = first_strips(walk, TILE)
    for _ in tl.range(0, tiles_each, num_stages=1):
        gradients = strip_gradients(place, images, out, dy, dy_pack, known_pack, TILE, PACK.OUT.EVEN, DERIVATIVE)
        h0, w0, offset = window_start(place, place.strip * TILE.STRIP, images, x.strides, WINDOW)
        x_rows = x_pack + offset[:, None]  # [BLOCK, channels]; read only where a tap is inside
        source = Source(x_rows, into.ok, h0, w0, IN_H, IN_W, x.strides, x_rows, x.strides, None)
        sums = add_rows(sums, gradients, source, first_row, ROWS, WINDOW, TILE, PACK.IN.EVEN)
        place = next_strips(place, walk)

    diagonal = (out.member[:, None] == into.member[None, :]) & out.ok[:, None] & into.ok[None, :]
    C_PER_GROUP: tl.constexpr = PACK.IN.PER_GROUP
    target = (split.to(tl.int64) * out_channels + out.logical) * (WINDOW.KERNEL_H * WINDOW.KERNEL_W * C_PER_GROUP)
    pointers = workspace_ptr + (target[:, None] + into.index[None, :])  # [BLOCK_M, BLOCK_N]
    for tap in tl.static_range(TAPS):
        mask = diagonal
        if WINDOW.KERNEL_H % ROWS != 0:
            mask = mask & (first_row + tap // WINDOW.KERNEL_W < WINDOW.KERNEL_H)
        tl.store(pointers + (first_row * WINDOW.KERNEL_W + tap) * C_PER_GROUP, sums[tap], mask=mask)


def plan_packed_weight_grad(
    problem: ConvProblem, config: PackedWeightGradConfig, operands: Mapping[str, Operand]
) -> Launch:
    """The launch that leaves partial sums in `workspace`, `[splits, K, R, S, C / groups]` in fp32."""
    x = operands["input"]
    strips, steps, packs, _ = grid(problem, config)
    each = steps_each(problem, config)
    loading = gradient_arguments(problem, operands)
    integers = (
        *walk_integers(problem, packs, strips, rows=problem.out_size[0], block=config.block_k, tiles=each),
        *loading.integers,
        Integer.of("stride_xn", x.strides[0], wide=True, stride=True),
        Integer.of("stride_xh", x.strides[2], wide=True, stride=True),
    )
    constants = {
        "STRIDE_XW": x.strides[3],
        "ROWS": kernel_rows(problem, config),
        "WINDOW": window_constant(problem),
        "PACK": Pack.of(problem, config.pack, in_block=block_n(problem, config), out_block=block_m(problem, config)),
        "TILE": Tile(config.block_k, config.strip, (steps + each) * config.block_k > INT32_MAX, problem.precision),
        **loading.constants,
    }
    buffers = (
        *loading.buffers,
        Buffer("x_ptr", x.buffer, problem.dtype, x.alignment),
        Buffer("workspace_ptr", "workspace", "float32"),
    )
    return Launch(packed_weight_grad, config, (programs(problem, config), 1, 1), buffers, integers, constants, each)
