"""Integer arguments that all packed kernels take."""

from __future__ import annotations

from grouped_conv.kernels.launching.launch import Integer
from grouped_conv.kernels.values.problem import ConvProblem


def walk_integers(
    problem: ConvProblem, packs: int, strips: int, *, rows: int, block: int, tiles: int
) -> tuple[Integer, ...]:
    """Sizes of the problem, and how a program goes through the strips of all images.

    Args:
        packs: packs of groups.
        strips: strips in a row of pixels.
        rows: rows of an image, or of a class of its pixels.
        block: strips in a tile.
        tiles: tiles of one program.
    """
    whole_rows, step_w = divmod(block, strips)
    step_n, step_h = divmod(whole_rows, rows)
    return (
        Integer.of("images", problem.batch),
        *(Integer.of(f"IN_{axis}", size) for axis, size in zip("HW", problem.in_size, strict=True)),
        *(Integer.of(f"OUT_{axis}", size) for axis, size in zip("HW", problem.out_size, strict=True)),
        Integer.of("in_channels", problem.in_channels, stride=True),
        Integer.of("out_channels", problem.out_channels, stride=True),
        Integer.of("packs", packs),
        Integer.of("tiles_each", tiles),
        Integer.of("strips_w", strips),
        Integer.of("step_n", step_n),
        Integer.of("step_h", step_h),
        Integer.of("step_w", step_w),
    )
