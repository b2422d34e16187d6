"""What the native lane's lowering gets wrong, and the rules that keep our tests clear of it. The one list of them.

The lane compiles kernels for this CPU. It is a witness, never the reference: float64 is. A disagreement that the
interpreter does not share belongs here, with its case.
"""

from dataclasses import dataclass

from grouped_conv.kernels import ConvProblem, ImplicitGemmConfig

COLUMNS_PER_WARP = 64


@dataclass(frozen=True)
class Miscompile:
    """A construct that the lane computes wrongly."""

    what: str
    evidence: str
    rule: str


KNOWN = (
    Miscompile(
        "tl.dot with more than 64 columns per warp, all warps along the columns",
        "a 64x128 tile on one warp is wrong by 0.97 of the largest value; on four warps right to 1.3e-6",
        "block_n <= 64 * num_warps; we use one warp and at most 64 columns",
    ),
    Miscompile("tl.interleave on 2 and 4 warps", "one warp is right", "not used by our kernels"),
    Miscompile("casts from fp8e5", "wrong values", "not used by our kernels"),
)


def config_for(problem: ConvProblem, loop_order: str = "flat", split_k: int = 1) -> ImplicitGemmConfig:
    """A configuration that the lane gets right and builds quickly: one warp, a small tile, 16 deep."""
    block_n = 16
    while block_n < min(problem.k_per_group, COLUMNS_PER_WARP):
        block_n *= 2
    return ImplicitGemmConfig(
        block_m=32, block_n=block_n, block_k=16, num_warps=1, loop_order=loop_order, split_k=split_k
    )
