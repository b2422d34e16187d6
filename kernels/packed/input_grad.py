"""The gradient of the input for many thin groups: adjacent groups packed block-diagonally into one product per tap.

A program computes a pack and one class of input pixels (`implicit_gemm.input_grad_rules`): it keeps the weights of the
class's taps and goes through tiles of pixels. Within a class all taps step through the output the same way, so a tile
is a forward convolution of the output's gradient with the taps in reverse. Non-finite values stay in their group: see
`class_tiles`.
"""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.bundles import Strides, Window
from grouped_conv.kernels.device_code.classes import class_taps
from grouped_conv.kernels.device_code.epilogue import pixel_offsets, store_tile
from grouped_conv.kernels.device_code.index import OUTSIDE
from grouped_conv.kernels.launching.gradient_operands import gradient_arguments
from grouped_conv.kernels.launching.launch import INT32_MAX, Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import Operand, store_vector, stride_integers
from grouped_conv.kernels.launching.window import window_constant
from grouped_conv.kernels.packed.arguments import walk_integers
from grouped_conv.kernels.packed.bundles import ClassTaps, Gradient, Image, Pack, Share, Source, Tile, Walk, Weights
from grouped_conv.kernels.packed.gradient_sums import class_weights, isolated_sums
from grouped_conv.kernels.packed.input_grad_rules import (
    PackedInputGradConfig,
    block_k,
    block_n,
    grid,
    programs,
)
from grouped_conv.kernels.packed.sums import (
    first_strips,
    hidden_zero,
    next_strips,
    pack_columns,
    per_channel,
    strip_products,
)
from grouped_conv.kernels.values.classes import class_size, class_step, most_taps
from grouped_conv.kernels.values.problem import ConvProblem


@triton.jit
def class_window(place, column, images, back_h, back_w, g_pack, k_pack, dy, DERIVATIVE: tl.constexpr):
    """The first row and column of each pixel's window, and pointers to the gradient and the known values there."""
    h0 = tl.where(place.image < images, place.row + back_h, OUTSIDE)  # no window past the last image
    w0 = column + back_w
    g_rows = g_pack + pixel_offsets(place.image, place.row + back_h, w0, dy.strides)[:, None]
    k_rows = g_rows
    if DERIVATIVE.ACTIVATION != "none":
        k_rows = k_pack + pixel_offsets(place.image, place.row + back_h, w0, dy.known_strides)[:, None]
    return h0, w0, g_rows, k_rows


@triton.jit
def class_tiles(
    share, walk, dy, w_ptr, dx, WINDOW: tl.constexpr, CLASS: tl.constexpr, PACK: tl.constexpr, TILE: tl.constexpr,
    DERIVATIVE: tl.constexpr, VECTOR: tl.constexpr, ALONE: tl.constexpr,
):  # fmt: skip
    """Compute all of a program's tiles and return the sum of their sums, [BLOCK, channels], which is NaN if one is.

    ALONE computes them a second time, each group from its own channels and each pixel from its own taps only, with
    indices from a `hidden_zero`.
    """
    READ: tl.constexpr = CLASS.READ
    pack = share.pack
    zero = 0
    taps = READ.KERNEL_H * READ.KERNEL_W
    if ALONE:
        zero = hidden_zero(walk.images) * 16
        taps += hidden_zero(walk.images) * walk.strips  # a count that is known is unrolled, and spills
        pack += zero
    first_h, _, shift_h = class_taps(
        share.class_h, WINDOW.KERNEL_H, WINDOW.STRIDE_H, WINDOW.PAD_H, WINDOW.DILATION_H, CLASS.STEP_H
    )
    first_w, _, shift_w = class_taps(
        share.class_w, WINDOW.KERNEL_W, WINDOW.STRIDE_W, WINDOW.PAD_W, WINDOW.DILATION_W, CLASS.STEP_W
    )
    back_h = shift_h - READ.DILATION_H * (READ.KERNEL_H - 1)  # from a pixel's row in its class to its window's first
    back_w = shift_w - READ.DILATION_W * (READ.KERNEL_W - 1)
    out = pack_columns(pack, dy.channels, PACK.OUT, zero)
    into = pack_columns(pack, dx.channels, PACK.IN, zero)
    diagonal = (out.member[:, None] == into.member[None, :]) & out.ok[:, None] & into.ok[None, :]
    w_rows = out.logical * (WINDOW.KERNEL_H * WINDOW.KERNEL_W * PACK.IN.PER_GROUP)
    weights = Weights(w_ptr, w_rows[:, None] + into.index[None, :], diagonal)  # [BLOCK_K, BLOCK_N]
    resident = ()
    if not ALONE:
        resident = class_weights(weights, first_h, first_w, WINDOW, PACK, CLASS)
    scale = None
    if dy.scale is not None:  # Triton 3.6 has no functions that return None: not decided inside
        scale = per_channel(dy.scale, out)[None, :]
    g_pack = dy.ptr + out.memory[None, :]
    k_pack = g_pack
    if DERIVATIVE.ACTIVATION != "none":
        k_pack = dy.known + (out.logical if DERIVATIVE.SHUFFLE_KNOWN == 1 else out.memory)[None, :]
    place = first_strips(walk, TILE, zero)
    total = tl.zeros((TILE.BLOCK, PACK.IN.BLOCK), tl.float32)
    for _ in tl.range(0, walk.tiles, num_stages=1):
        if ALONE:
            for u in tl.range(0, TILE.STRIP, num_stages=1):
                column = place.strip * TILE.STRIP + u
                h0, w0, g_rows, k_rows = class_window(
                    place, column, walk.images, back_h, back_w, g_pack, k_pack, dy, DERIVATIVE
                )
                source = Source(
                    g_rows, out.ok, h0, w0, dy.height, dy.width, dy.strides, k_rows, dy.known_strides, scale
                )
                acc = isolated_sums(
                    source, out, into, weights, first_h, first_w, taps, WINDOW, PACK, TILE, CLASS, DERIVATIVE
                )
                in_h = place.row * WINDOW.STRIDE_H + share.class_h
                in_w = column * WINDOW.STRIDE_W + share.class_w
                x_rows = pixel_offsets(place.image, in_h, in_w, dx.strides)
                pixel_ok = (place.image < walk.images) & (in_h < dx.height) & (in_w < dx.width)
                store_tile(dx.ptr, acc, x_rows, into.memory, dx.strides.c, pixel_ok, into.ok, VECTOR)
        else:
            h0, w0, g_rows, k_rows = class_window(
                place, place.strip * TILE.STRIP, walk.images, back_h, back_w, g_pack, k_pack, dy, DERIVATIVE
            )
            source = Source(g_rows, out.ok, h0, w0, dy.height, dy.width, dy.strides, k_rows, dy.known_strides, scale)
            start = tl.zeros((TILE.BLOCK, PACK.IN.BLOCK), tl.float32)
            sums = strip_products(start, source, resident, READ, TILE, PACK.OUT.EVEN, DERIVATIVE)
            in_h = place.row * WINDOW.STRIDE_H + share.class_h
            in_w = place.strip * (TILE.STRIP * WINDOW.STRIDE_W) + share.class_w
            x_rows = pixel_offsets(place.image, in_h, in_w, dx.strides)
            row_ok = (place.image < walk.images) & (in_h < dx.height)
            for u in tl.static_range(TILE.STRIP):
                total += sums[u]
                store_tile(
                    dx.ptr, sums[u], x_rows + u * WINDOW.STRIDE_W * dx.strides.w, into.memory, dx.strides.c,
                    row_ok & (in_w + u * WINDOW.STRIDE_W < dx.width), into.ok, VECTOR,
                )  # fmt: skip
        place = next_strips(place, walk)
    return total


@triton.jit
def packed_input_grad(
    dy_ptr,
    known_ptr,
    scale_ptr,
    w_ptr,
    dx_ptr,
    images,
    IN_H,
    IN_W,
    OUT_H,
    OUT_W,
    CLASS_H,
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
    stride_xc,
    stride_xh,
    stride_xw,
    WINDOW: tl.constexpr,
    CLASS: tl.constexpr,
    PACK: tl.constexpr,
    TILE: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    VECTOR: tl.constexpr,
):
    pid = tl.program_id(0)
    pack = pid % packs
    class_w = pid // packs % WINDOW.STRIDE_W
    class_h = pid // packs // WINDOW.STRIDE_W % WINDOW.STRIDE_H
    program = pid // packs // (WINDOW.STRIDE_W * WINDOW.STRIDE_H)
    share = Share(pack, class_h, class_w)
    walk = Walk(program, images, CLASS_H, strips_w, tiles_each, step_n, step_h, step_w)
    dy = Gradient(
        dy_ptr, known_ptr, scale_ptr, out_channels, OUT_H, OUT_W, Strides(stride_gn, 1, stride_gh, stride_gw),
        Strides(stride_kn, 1, stride_kh, stride_kw),
    )  # fmt: skip
    dx = Image(dx_ptr, in_channels, IN_H, IN_W, Strides(stride_xn, stride_xc, stride_xh, stride_xw))
    total = class_tiles(share, walk, dy, w_ptr, dx, WINDOW, CLASS, PACK, TILE, DERIVATIVE, VECTOR, False)
    suspect = tl.sum(total)
    if suspect != suspect:
        tl.debug_barrier()
        class_tiles(share, walk, dy, w_ptr, dx, WINDOW, CLASS, PACK, TILE, DERIVATIVE, VECTOR, True)


def plan_packed_input_grad(
    problem: ConvProblem, config: PackedInputGradConfig, operands: Mapping[str, Operand]
) -> Launch:
    """The launch for `problem`; the weight is packed as [K, R, S, C / groups]."""
    weight, target = operands["weight"], operands["grad_input"]
    strips, tiles, packs = grid(problem, config)
    class_h, _ = class_size(problem)
    loading = gradient_arguments(problem, operands)
    strides = stride_integers("x", target)
    integers = (
        *walk_integers(problem, packs, strips, rows=class_h, block=config.block_m, tiles=config.tiles_per_program),
        Integer.of("CLASS_H", class_h),
        *loading.integers,
        *strides.integers,
    )
    buffers = [*loading.buffers, Buffer("w_ptr", weight.buffer, problem.dtype, weight.alignment)]
    buffers.append(Buffer("dx_ptr", target.buffer, problem.dtype, target.alignment))
    if problem.epilogue.scale:
        buffers.append(Buffer("scale_ptr", operands["scale"].buffer, problem.dtype, operands["scale"].alignment))
    constants = {
        "WINDOW": window_constant(problem),
        "CLASS": class_constant(problem),
        "PACK": Pack.of(problem, config.pack, in_block=block_n(problem, config), out_block=block_k(problem, config)),
        "TILE": Tile(
            config.block_m,
            config.strip,
            (tiles + config.tiles_per_program) * config.block_m > INT32_MAX,
            problem.precision,
            min(config.rows_ahead, most_taps(problem)[0]),
        ),
        "VECTOR": store_vector(problem, target),
        **({} if problem.epilogue.scale else {"scale_ptr": None}),
        **loading.constants,
        **strides.constants,
    }
    return Launch(
        packed_input_grad,
        config,
        (programs(problem, config), 1, 1),
        tuple(buffers),
        integers,
        constants,
        config.tiles_per_program,
    )


def class_constant(problem: ConvProblem) -> ClassTaps:
    """The taps of a class of input pixels, and the window in which they see the output."""
    (stride_h, stride_w), (dilation_h, dilation_w) = problem.stride, problem.dilation
    step_h, step_w = class_step(stride_h, dilation_h), class_step(stride_w, dilation_w)
    down, right = dilation_h * step_h // stride_h, dilation_w * step_w // stride_w  # in the output, from tap to tap
    read = Window(*most_taps(problem), 1, 1, 0, 0, down, right)
    return ClassTaps(read, step_h, step_w, problem.stride == (1, 1))
