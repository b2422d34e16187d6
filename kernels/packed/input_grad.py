"""The gradient of the input for many thin groups: adjacent groups packed block-diagonally into one product per tap.

A program owns a pack and one class of input pixels (`input_grad_rules`): it keeps the weights of the class's taps and
walks tiles of pixels. Within a class the taps step through the output one way, so a tile is a forward convolution of
the output's gradient with the taps in reverse. Non-finite values stay in their group: see `recompute_input_grad`.
"""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.bundles import Strides
from grouped_conv.kernels.device_code.classes import class_taps
from grouped_conv.kernels.device_code.epilogue import pixel_offsets, store_tile
from grouped_conv.kernels.launching.gradient_operands import gradient_arguments
from grouped_conv.kernels.launching.launch import INT32_MAX, Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import Operand, store_vector, stride_integers
from grouped_conv.kernels.launching.window import window_constant
from grouped_conv.kernels.packed.gradient_sums import class_weights, own_sums, window_of, window_sums
from grouped_conv.kernels.packed.input_grad_rules import (
    PackedInputGradConfig,
    block_k,
    block_n,
    grid,
    programs,
)
from grouped_conv.kernels.packed.sums import first_strips, next_strips, pack_columns, per_channel
from grouped_conv.kernels.values.classes import class_size, class_step, most_taps
from grouped_conv.kernels.values.problem import ConvProblem


@triton.jit
def recompute_input_grad(
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
    pack,
    class_h,
    class_w,
    program,
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
    C_PER_GROUP: tl.constexpr,
    K_PER_GROUP: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PAD_H: tl.constexpr,
    PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    MOST_H: tl.constexpr,
    MOST_W: tl.constexpr,
    IN_SHUFFLE: tl.constexpr,
    OUT_SHUFFLE: tl.constexpr,
    PACK: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    EVEN_TAPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STRIP: tl.constexpr,
    AHEAD: tl.constexpr,
    WIDE_M: tl.constexpr,
    PRECISION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    NEGATIVE_SLOPE: tl.constexpr,
    SHUFFLE: tl.constexpr,
    SHUFFLE_KNOWN: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """All of a program's tiles once more, each group from its own channels and each pixel from its own taps only.

    Its indices are made anew from a zero that the compiler cannot see through, so that the loop before it does not
    hold them in registers. It is made of `images`: that a sum is NaN tells the compiler that `tiles_each` is positive.
    """
    zero = (images >> 31) * 16
    taps = MOST_H * MOST_W + (images >> 31) * strips_w  # a count that is known is unrolled, and spills
    pack += zero
    first_h, _, shift_h = class_taps(class_h, KERNEL_H, STRIDE_H, PAD_H, DILATION_H, STEP_H)
    first_w, _, shift_w = class_taps(class_w, KERNEL_W, STRIDE_W, PAD_W, DILATION_W, STEP_W)
    BACK_H: tl.constexpr = DILATION_H * STEP_H // STRIDE_H  # output rows from one tap of a class to the next
    BACK_W: tl.constexpr = DILATION_W * STEP_W // STRIDE_W
    back_h = shift_h - BACK_H * (MOST_H - 1)  # from a pixel's row in its class to the window's first output row
    back_w = shift_w - BACK_W * (MOST_W - 1)
    read, channel, _, member_k, channel_ok = pack_columns(
        pack, out_channels, PACK, K_PER_GROUP, OUT_SHUFFLE, EVEN_K, BLOCK_K, zero
    )
    stored, _, index, member_n, column_ok = pack_columns(
        pack, in_channels, PACK, C_PER_GROUP, IN_SHUFFLE, EVEN_N, BLOCK_N, zero
    )
    diagonal = (member_k[:, None] == member_n[None, :]) & channel_ok[:, None] & column_ok[None, :]
    w_offsets = (channel * (KERNEL_H * KERNEL_W * C_PER_GROUP))[:, None] + index[None, :]
    scale = None
    if scale_ptr is not None:
        scale = per_channel(scale_ptr, channel, channel_ok)[None, :]
    g_pack = dy_ptr + read[None, :]
    k_pack = g_pack
    if ACTIVATION != "none":
        k_pack = known_ptr + (channel if SHUFFLE_KNOWN == 1 else read)[None, :]
    image, row, strip_w = first_strips(program, CLASS_H, strips_w, tiles_each, BLOCK_M, WIDE_M, zero)
    for _ in tl.range(0, tiles_each, num_stages=1):
        for u in tl.range(0, STRIP, num_stages=1):
            oh0, ow0 = window_of(image, row, strip_w * STRIP + u, images, back_h, back_w)
            g_pointers = (
                g_pack + pixel_offsets(image, row + back_h, ow0, Strides(stride_gn, 1, stride_gh, stride_gw))[:, None]
            )
            k_pointers = g_pointers
            if ACTIVATION != "none":
                k_pointers = (
                    k_pack
                    + pixel_offsets(image, row + back_h, ow0, Strides(stride_kn, 1, stride_kh, stride_kw))[:, None]
                )
            acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for member in tl.range(0, PACK, num_stages=1):
                own = own_sums(
                    g_pointers, k_pointers, channel_ok & (member_k == member), scale, w_ptr, w_offsets, diagonal, taps,
                    first_h, first_w, oh0, ow0, OUT_H, OUT_W, stride_gh, stride_gw, stride_kh, stride_kw, C_PER_GROUP,
                    KERNEL_H, KERNEL_W, STEP_H, STEP_W, MOST_H, MOST_W, BACK_H, BACK_W, BLOCK_M, BLOCK_N, EVEN_TAPS,
                    PRECISION, ACTIVATION, NEGATIVE_SLOPE,
                )  # fmt: skip
                acc = tl.where((member_n == member)[None, :], own, acc)
            in_h = row * STRIDE_H + class_h
            in_w = (strip_w * STRIP + u) * STRIDE_W + class_w
            x_rows = pixel_offsets(image, in_h, in_w, Strides(stride_xn, 1, stride_xh, stride_xw))
            pixel_ok = (image < images) & (in_h < IN_H) & (in_w < IN_W)
            store_tile(dx_ptr, acc, x_rows, stored, stride_xc, pixel_ok, column_ok, VECTOR)
        image, row, strip_w = next_strips(image, row, strip_w, CLASS_H, strips_w, step_n, step_h, step_w)


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
    C_PER_GROUP: tl.constexpr,
    K_PER_GROUP: tl.constexpr,
    WINDOW: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    MOST_H: tl.constexpr,
    MOST_W: tl.constexpr,
    IN_SHUFFLE: tl.constexpr,
    OUT_SHUFFLE: tl.constexpr,
    PACK: tl.constexpr,
    EVEN_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    EVEN_TAPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STRIP: tl.constexpr,
    AHEAD: tl.constexpr,
    WIDE_M: tl.constexpr,
    PRECISION: tl.constexpr,
    DERIVATIVE: tl.constexpr,
    VECTOR: tl.constexpr,
):
    KERNEL_H: tl.constexpr = WINDOW.KERNEL_H
    KERNEL_W: tl.constexpr = WINDOW.KERNEL_W
    STRIDE_H: tl.constexpr = WINDOW.STRIDE_H
    STRIDE_W: tl.constexpr = WINDOW.STRIDE_W
    PAD_H: tl.constexpr = WINDOW.PAD_H
    PAD_W: tl.constexpr = WINDOW.PAD_W
    DILATION_H: tl.constexpr = WINDOW.DILATION_H
    DILATION_W: tl.constexpr = WINDOW.DILATION_W
    ACTIVATION: tl.constexpr = DERIVATIVE.ACTIVATION
    NEGATIVE_SLOPE: tl.constexpr = DERIVATIVE.NEGATIVE_SLOPE
    SHUFFLE: tl.constexpr = DERIVATIVE.SHUFFLE
    SHUFFLE_KNOWN: tl.constexpr = DERIVATIVE.SHUFFLE_KNOWN
    OUT_CHANNELS: tl.constexpr = DERIVATIVE.OUT_CHANNELS
    pid = tl.program_id(0)
    pack = pid % packs
    class_w = pid // packs % STRIDE_W
    class_h = pid // packs // STRIDE_W % STRIDE_H
    program = pid // packs // (STRIDE_W * STRIDE_H)
    first_h, _, shift_h = class_taps(class_h, KERNEL_H, STRIDE_H, PAD_H, DILATION_H, STEP_H)
    first_w, _, shift_w = class_taps(class_w, KERNEL_W, STRIDE_W, PAD_W, DILATION_W, STEP_W)
    BACK_H: tl.constexpr = DILATION_H * STEP_H // STRIDE_H  # output rows from one tap of a class to the next
    BACK_W: tl.constexpr = DILATION_W * STEP_W // STRIDE_W
    back_h = shift_h - BACK_H * (MOST_H - 1)  # from a pixel's row in its class to the window's first output row
    back_w = shift_w - BACK_W * (MOST_W - 1)
    read, channel, _, member_k, channel_ok = pack_columns(
        pack, out_channels, PACK, K_PER_GROUP, OUT_SHUFFLE, EVEN_K, BLOCK_K
    )
    stored, _, index, member_n, column_ok = pack_columns(
        pack, in_channels, PACK, C_PER_GROUP, IN_SHUFFLE, EVEN_N, BLOCK_N
    )
    diagonal = (member_k[:, None] == member_n[None, :]) & channel_ok[:, None] & column_ok[None, :]
    w_offsets = (channel * (KERNEL_H * KERNEL_W * C_PER_GROUP))[:, None] + index[None, :]  # [BLOCK_K, BLOCK_N]
    weights = class_weights(
        w_ptr, w_offsets, diagonal, first_h, first_w, STEP_H, STEP_W, MOST_H, MOST_W, C_PER_GROUP, KERNEL_H, KERNEL_W,
        EVEN_TAPS,
    )  # fmt: skip
    scale = None
    if scale_ptr is not None:  # Triton 3.6 has no functions that return None: not decided inside
        scale = per_channel(scale_ptr, channel, channel_ok)[None, :]
    g_pack = dy_ptr + read[None, :]
    k_pack = g_pack
    if ACTIVATION != "none":
        k_pack = known_ptr + (channel if SHUFFLE_KNOWN == 1 else read)[None, :]
    image, row, strip_w = first_strips(program, CLASS_H, strips_w, tiles_each, BLOCK_M, WIDE_M)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in tl.range(0, tiles_each, num_stages=1):
        oh0, ow0 = window_of(image, row, strip_w * STRIP, images, back_h, back_w)
        g_pointers = (
            g_pack + pixel_offsets(image, row + back_h, ow0, Strides(stride_gn, 1, stride_gh, stride_gw))[:, None]
        )
        k_pointers = g_pointers
        if ACTIVATION != "none":
            k_pointers = (
                k_pack + pixel_offsets(image, row + back_h, ow0, Strides(stride_kn, 1, stride_kh, stride_kw))[:, None]
            )
        sums = window_sums(
            g_pointers, k_pointers, channel_ok, scale, weights, oh0, ow0, OUT_H, OUT_W, stride_gh, stride_gw, stride_kh,
            stride_kw, MOST_H, MOST_W, BACK_H, BACK_W, BLOCK_M, BLOCK_N, STRIP, AHEAD, EVEN_K, PRECISION, ACTIVATION,
            NEGATIVE_SLOPE,
        )  # fmt: skip
        in_h = row * STRIDE_H + class_h
        in_w = strip_w * (STRIP * STRIDE_W) + class_w
        x_rows = pixel_offsets(image, in_h, in_w, Strides(stride_xn, 1, stride_xh, stride_xw))
        row_ok = (image < images) & (in_h < IN_H)
        for u in tl.static_range(STRIP):
            total += sums[u]
            store_tile(
                dx_ptr, sums[u], x_rows + u * STRIDE_W * stride_xw, stored, stride_xc,
                row_ok & (in_w + u * STRIDE_W < IN_W), column_ok, VECTOR,
            )  # fmt: skip
        image, row, strip_w = next_strips(image, row, strip_w, CLASS_H, strips_w, step_n, step_h, step_w)
    suspect = tl.sum(total)
    if suspect != suspect:
        tl.debug_barrier()
        recompute_input_grad(
            dy_ptr, known_ptr, scale_ptr, w_ptr, dx_ptr, images, IN_H, IN_W, OUT_H, OUT_W, CLASS_H, in_channels,
            out_channels, pack, class_h, class_w, program, tiles_each, strips_w, step_n, step_h, step_w, stride_gn,
            stride_gh, stride_gw, stride_kn, stride_kh, stride_kw, stride_xn, stride_xc, stride_xh, stride_xw,
            C_PER_GROUP, K_PER_GROUP, KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H, DILATION_W,
            STEP_H, STEP_W, MOST_H, MOST_W, IN_SHUFFLE, OUT_SHUFFLE, PACK, EVEN_K, EVEN_N, EVEN_TAPS, BLOCK_M, BLOCK_N,
            BLOCK_K, STRIP, AHEAD, WIDE_M, PRECISION, ACTIVATION, NEGATIVE_SLOPE, SHUFFLE, SHUFFLE_KNOWN, OUT_CHANNELS,
            VECTOR,
        )  # fmt: skip


def plan_packed_input_grad(
    problem: ConvProblem, config: PackedInputGradConfig, operands: Mapping[str, Operand]
) -> Launch:
    """The launch for `problem`; the weight is packed as [K, R, S, C / groups]."""
    weight, target = operands["weight"], operands["grad_input"]
    strips, tiles, packs = grid(problem, config)
    class_h, _ = class_size(problem)
    rows, step_w = divmod(config.block_m, strips)
    step_n, step_h = divmod(rows, class_h)
    loading = gradient_arguments(problem, operands)
    strides = stride_integers("x", target)
    integers = (
        Integer.of("images", problem.batch),
        *(Integer.of(f"IN_{axis}", size) for axis, size in zip("HW", problem.in_size, strict=True)),
        *(Integer.of(f"OUT_{axis}", size) for axis, size in zip("HW", problem.out_size, strict=True)),
        Integer.of("CLASS_H", class_h),
        Integer.of("in_channels", problem.in_channels, stride=True),
        Integer.of("out_channels", problem.out_channels, stride=True),
        Integer.of("packs", packs),
        Integer.of("tiles_each", config.tiles_per_program),
        Integer.of("strips_w", strips),
        Integer.of("step_n", step_n),
        Integer.of("step_h", step_h),
        Integer.of("step_w", step_w),
        *loading.integers,
        *strides.integers,
    )
    buffers = [*loading.buffers, Buffer("w_ptr", weight.buffer, problem.dtype, weight.alignment)]
    buffers.append(Buffer("dx_ptr", target.buffer, problem.dtype, target.alignment))
    if problem.epilogue.scale:
        buffers.append(Buffer("scale_ptr", operands["scale"].buffer, problem.dtype, operands["scale"].alignment))
    constants = {
        **_constants(problem, config),
        "WIDE_M": (tiles + config.tiles_per_program) * config.block_m > INT32_MAX,
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


def _constants(problem: ConvProblem, config: PackedInputGradConfig) -> dict[str, object]:
    """What the problem and the configuration alone decide."""
    steps = [class_step(s, d) for s, d in zip(problem.stride, problem.dilation, strict=True)]
    most = most_taps(problem)
    even = problem.groups % config.pack == 0
    tile_k, tile_n = block_k(problem, config), block_n(problem, config)
    shuffle = problem.epilogue.shuffle
    return {
        "C_PER_GROUP": problem.c_per_group,
        "K_PER_GROUP": problem.k_per_group,
        "WINDOW": window_constant(problem),
        **{f"STEP_{axis}": size for axis, size in zip("HW", steps, strict=True)},
        **{f"MOST_{axis}": size for axis, size in zip("HW", most, strict=True)},
        "IN_SHUFFLE": problem.input_shuffle,
        "OUT_SHUFFLE": problem.out_channels // shuffle if shuffle > 1 else 1,
        "PACK": config.pack,
        "EVEN_K": even and config.pack * problem.k_per_group == tile_k,
        "EVEN_N": even and config.pack * problem.c_per_group == tile_n,
        "EVEN_TAPS": problem.stride == (1, 1),
        "BLOCK_M": config.block_m,
        "BLOCK_N": tile_n,
        "BLOCK_K": tile_k,
        "STRIP": config.strip,
        "AHEAD": min(config.rows_ahead, most[0]),
        "PRECISION": problem.precision,
    }
