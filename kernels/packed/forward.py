"""Forward convolution of many thin groups: adjacent groups packed block-diagonally into one multiply per tap.

The input's channels are innermost in memory, weights are [K, R, S, C/groups] contiguous. A program keeps the weights of
its pack and computes tile after tile of output pixels. Non-finite values stay in their group: see `pack_tiles`.
"""

from __future__ import annotations

from collections.abc import Mapping

import triton
import triton.language as tl

from grouped_conv.kernels.device_code.bundles import Derivative, Epilogue, Strides
from grouped_conv.kernels.device_code.epilogue import pixel_offsets
from grouped_conv.kernels.launching.launch import INT32_MAX, Buffer, Integer, Launch
from grouped_conv.kernels.launching.operands import Operand, epilogue_arguments, stride_integers
from grouped_conv.kernels.launching.window import window_constant
from grouped_conv.kernels.packed.arguments import walk_integers
from grouped_conv.kernels.packed.bundles import Image, Pack, Source, Tile, Walk, Weights
from grouped_conv.kernels.packed.forward_rules import PackedGroupsConfig, block_k, block_n, grid, isolates, programs
from grouped_conv.kernels.packed.sums import (
    finish_pixels,
    first_strips,
    first_sums,
    hidden_zero,
    isolated_products,
    next_strips,
    pack_columns,
    per_channel,
    resident_weights,
    strip_products,
    tap_products,
    window_start,
)
from grouped_conv.kernels.values.problem import ConvProblem


@triton.jit
def finish_rows(place, column, y_strides, r_strides, epilogue):
    """Offsets of pixels in the output and in the residual, [BLOCK] each."""
    y_rows = pixel_offsets(place.image, place.row, column, y_strides)
    r_rows = y_rows
    if epilogue.residual is not None:
        r_rows = pixel_offsets(place.image, place.row, column, r_strides)
    return y_rows, r_rows


@triton.jit
def pack_tiles(
    pack, walk, x, w_ptr, y, r_strides, epilogue, WINDOW: tl.constexpr, PACK: tl.constexpr, TILE: tl.constexpr,
    FINISH: tl.constexpr, ALONE: tl.constexpr,
):  # fmt: skip
    """Compute all of a program's tiles and return the sum of their sums, [BLOCK, channels], which is NaN if one is.

    ALONE computes them a second time, each group from its own channels only, with indices from a `hidden_zero`.
    """
    zero = 0
    taps = WINDOW.KERNEL_H * WINDOW.KERNEL_W
    if ALONE:
        zero = hidden_zero(walk.images) * 16
        taps += hidden_zero(walk.images) * walk.strips  # a count that is known is unrolled, and spills
        pack += zero
    into = pack_columns(pack, x.channels, PACK.IN, zero)
    out = pack_columns(pack, y.channels, PACK.OUT, zero)
    diagonal = (into.member[:, None] == out.member[None, :]) & into.ok[:, None] & out.ok[None, :]
    w_columns = out.logical * (WINDOW.KERNEL_H * WINDOW.KERNEL_W * PACK.IN.PER_GROUP)
    weights = Weights(w_ptr, w_columns[None, :] + into.index[:, None], diagonal)
    x_pack = x.ptr + into.memory[None, :]
    resident = ()
    if TILE.RESIDENT and not ALONE:
        resident = resident_weights(weights, WINDOW, PACK)
    scale = None
    bias = None
    if epilogue.scale is not None:  # Triton 3.6 has no functions that return None: not decided inside
        scale = per_channel(epilogue.scale, out)
    if epilogue.bias is not None:
        bias = per_channel(epilogue.bias, out)
    start = first_sums(bias, scale, TILE.BLOCK, PACK.OUT.BLOCK)
    place = first_strips(walk, TILE, zero)
    total = tl.zeros((TILE.BLOCK, PACK.OUT.BLOCK), tl.float32)
    for _ in tl.range(0, walk.tiles, num_stages=1):
        if ALONE:
            for u in tl.range(0, TILE.STRIP, num_stages=1):
                column = place.strip * TILE.STRIP + u
                h0, w0, offset = window_start(place, column, walk.images, x.strides, WINDOW)
                x_rows = x_pack + offset[:, None]
                source = Source(x_rows, into.ok, h0, w0, x.height, x.width, x.strides, x_rows, x.strides, None)
                acc = isolated_products(start, source, into, out, weights, taps, WINDOW, PACK, TILE)
                y_rows, r_rows = finish_rows(place, column, y.strides, r_strides, epilogue)
                row_ok = (place.image < walk.images) & (column < y.width)
                finish_pixels(acc, scale, bias, epilogue, r_rows, y_rows, row_ok, out, FINISH)
        else:
            column = place.strip * TILE.STRIP
            h0, w0, offset = window_start(place, column, walk.images, x.strides, WINDOW)
            x_rows = x_pack + offset[:, None]  # [BLOCK, channels]; read only where a tap is inside
            source = Source(x_rows, into.ok, h0, w0, x.height, x.width, x.strides, x_rows, x.strides, None)
            if TILE.RESIDENT:
                plain: tl.constexpr = Derivative("none", 0.0, 1, 1, 1)
                sums = strip_products(start, source, resident, WINDOW, TILE, PACK.IN.EVEN, plain)
            else:
                sums = (tap_products(start, source, into.ok, weights, taps, WINDOW, PACK, TILE),)
            y_rows, r_rows = finish_rows(place, column, y.strides, r_strides, epilogue)
            for u in tl.static_range(TILE.STRIP):
                if TILE.ISOLATE:
                    total += sums[u]
                finish_pixels(
                    sums[u], scale, bias, epilogue, r_rows + u * r_strides.w, y_rows + u * y.strides.w,
                    (place.image < walk.images) & (place.strip < (y.width - u + TILE.STRIP - 1) // TILE.STRIP), out,
                    FINISH,
                )  # fmt: skip
        place = next_strips(place, walk)
    return total


@triton.jit
def packed_groups(
    x_ptr,
    w_ptr,
    scale_ptr,
    bias_ptr,
    residual_ptr,
    pre_ptr,
    y_ptr,
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
    stride_xn,
    stride_xh,
    stride_yn,
    stride_yc,
    stride_yh,
    stride_rn,
    stride_rc,
    stride_rh,
    STRIDE_XW: tl.constexpr,
    STRIDE_YW: tl.constexpr,
    STRIDE_RW: tl.constexpr,
    WINDOW: tl.constexpr,
    PACK: tl.constexpr,
    TILE: tl.constexpr,
    FINISH: tl.constexpr,
):
    pid = tl.program_id(0)
    pack = pid % packs
    walk = Walk(pid // packs, images, OUT_H, strips_w, tiles_each, step_n, step_h, step_w)
    x = Image(x_ptr, in_channels, IN_H, IN_W, Strides(stride_xn, 1, stride_xh, STRIDE_XW))
    y = Image(y_ptr, out_channels, OUT_H, OUT_W, Strides(stride_yn, stride_yc, stride_yh, STRIDE_YW))
    r_strides = Strides(stride_rn, stride_rc, stride_rh, STRIDE_RW)
    epilogue = Epilogue(scale_ptr, bias_ptr, residual_ptr, pre_ptr, y_ptr, stride_yc, stride_rc)
    total = pack_tiles(pack, walk, x, w_ptr, y, r_strides, epilogue, WINDOW, PACK, TILE, FINISH, False)
    if TILE.ISOLATE:
        suspect = tl.sum(total)
        if suspect != suspect:
            tl.debug_barrier()
            pack_tiles(pack, walk, x, w_ptr, y, r_strides, epilogue, WINDOW, PACK, TILE, FINISH, True)


def plan_packed_groups(problem: ConvProblem, config: PackedGroupsConfig, operands: Mapping[str, Operand]) -> Launch:
    """The launch for `problem`; `operands` has the input with channels innermost and the packed weight."""
    x, weight, output = operands["input"], operands["weight"], operands["output"]
    strips, tiles, packs = grid(problem, config)
    finishing = epilogue_arguments(problem, operands)
    residual = operands["residual"] if problem.epilogue.residual else None
    pairs = (stride_integers("r", residual), stride_integers("y", output))
    integers = [
        *walk_integers(
            problem, packs, strips, rows=problem.out_size[0], block=config.block_m, tiles=config.tiles_per_program
        ),
        Integer.of("stride_xn", x.strides[0], wide=True, stride=True),
        Integer.of("stride_xh", x.strides[2], wide=True, stride=True),
        *(integer for pair in pairs for integer in pair.integers if not integer.parameter.endswith("w")),
    ]
    buffers = [
        Buffer("x_ptr", x.buffer, problem.dtype, x.alignment),
        Buffer("w_ptr", weight.buffer, problem.dtype, weight.alignment),
        *finishing.buffers,
    ]
    constants = {
        "STRIDE_XW": x.strides[3],
        "STRIDE_YW": output.strides[3],
        "STRIDE_RW": residual.strides[3] if residual else 0,
        "WINDOW": window_constant(problem),
        "PACK": Pack.of(problem, config.pack, in_block=block_k(problem, config), out_block=block_n(problem, config)),
        "TILE": Tile(
            config.block_m,
            config.strip,
            (tiles + config.tiles_per_program) * config.block_m > INT32_MAX,
            problem.precision,
            min(config.rows_ahead, problem.kernel_size[0]),
            config.resident,
            isolates(config),
        ),
        **finishing.constants,
        **{name: value for pair in pairs for name, value in pair.constants.items() if not name.endswith("w")},
    }
    return Launch(
        packed_groups,
        config,
        (programs(problem, config), 1, 1),
        tuple(buffers),
        tuple(integers),
        constants,
        config.tiles_per_program,
    )
