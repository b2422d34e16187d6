"""Measured matrix multiplications that others published, transcribed; fp16 with fp32 sums throughout.

Left out are tables that do not name their GPU, and rows that measure the host. In the H100 table of Triton's issue 3672
every Triton time up to size 2816 is 79 to 90 us, whatever the size, so only the two larger sizes are here. We take each
H100 to be the SXM card, because the PCIe card could not reach the published rates at the clocks it holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

from grouped_conv.bench.model_truth.gemm_shapes import Gemm

TUTORIAL_TILES = (
    (128, 256, 64, 3, 8),
    (64, 256, 32, 4, 4),
    (128, 128, 32, 4, 4),
    (128, 64, 32, 4, 4),
    (64, 128, 32, 4, 4),
    (128, 32, 32, 4, 4),
    (64, 32, 32, 5, 2),
    (32, 64, 32, 5, 2),
    (128, 256, 128, 3, 8),
    (256, 128, 128, 3, 8),
    (256, 64, 128, 4, 4),
    (64, 256, 128, 4, 4),
    (128, 128, 128, 4, 4),
    (128, 64, 64, 4, 4),
    (64, 128, 64, 4, 4),
    (128, 32, 64, 4, 4),
)
"""(block_m, block_n, block_k, stages, warps) that the tutorial's autotuner tries, all with a swizzle of 8 rows."""


@dataclass(frozen=True, slots=True)
class Published:
    """One column of one table.

    Attributes:
        device: key of the `DeviceSpec`.
        what: kernel and compiler.
        url: where it was published.
        tiles: the kernel's tiles (`TUTORIAL_TILES`); empty where they are unknown, and our own choice is used.
        protocol_us: what the same document's timing shows for almost no work; `None` where it does not say.
        rows: each GEMM with its TFLOP/s.
    """

    device: str
    what: str
    url: str
    tiles: tuple[tuple[int, int, int, int, int], ...]
    protocol_us: float | None
    rows: tuple[tuple[Gemm, float], ...]


def _squares(first: int, tflops: str) -> tuple[tuple[Gemm, float], ...]:
    """Square GEMMs whose sizes grow by 128 from `first`."""
    rates = [float(rate) for rate in tflops.split()]
    return tuple((Gemm(size, size, size), rate) for size, rate in zip(count(first, 128), rates, strict=False))


_TUTORIAL = "https://triton-lang.org/main/getting-started/tutorials/03-matrix-multiplication.html"
_VECTOR_ADD_US = 3 * 4 * 4096 / 9600
"""9.6 GB/s for a vector addition of 4096 fp32 numbers, in tutorial 01 of the same build of the documentation."""

PUBLISHED = (
    Published(
        "a100",
        "Triton's tutorial 03, its own documentation's run (2024; the text names A100)",
        _TUTORIAL,
        TUTORIAL_TILES,
        _VECTOR_ADD_US,
        _squares(
            256,
            "4.096 12.288 26.214401 42.666665 68.056616 87.808 99.864382 129.825388 163.840004 132.970149 "
            "157.286398 179.978245 204.353162 168.585369 190.65018 211.827867 225.357284 203.583068 221.405396 "
            "198.602388 212.75223 222.482283 213.672083 218.430042 206.871539 219.080343 225.351853 217.641271 "
            "212.26871 217.89988 220.029067",
        ),
    ),
    Published(
        "a100",
        "cuBLAS in the same table",
        _TUTORIAL,
        (),
        _VECTOR_ADD_US,
        _squares(
            256,
            "4.096 12.288 26.214401 42.666665 63.195428 78.051553 110.376426 135.726544 157.538463 155.765024 "
            "176.947204 183.651271 172.914215 200.347822 223.696203 211.827867 228.592087 203.583068 224.438347 "
            "200.704002 212.75223 222.482283 209.715208 216.216207 207.467716 217.308808 219.30583 206.399476 "
            "210.250955 208.587935 219.668951",
        ),
    ),
    Published(
        "a100",
        "Triton's tutorial 03, Triton 3.2",
        "https://github.com/triton-lang/triton/issues/7085",
        TUTORIAL_TILES,
        None,
        _squares(256, "3.64 11.06 23.83 39.38 55.30 87.81 97.54"),
    ),
    Published(
        "h100-sxm",
        "Triton's tutorial 03 (April 2024), sizes not bound by the host",
        "https://github.com/triton-lang/triton/issues/3672",
        TUTORIAL_TILES,
        None,
        _squares(2944, "471.402029 524.7435"),
    ),
    Published(
        "h100-sxm",
        "cuBLAS in the same table",
        "https://github.com/triton-lang/triton/issues/3672",
        (),
        None,
        _squares(
            256,
            "4.112063 12.730015 28.630062 46.545454 74.504082 97.100854 121.135128 164.460392 218.089858 "
            "245.71385 255.923638 306.999136 369.262381 401.058924 511.305649 466.297406 521.426951 518.467603 "
            "533.355017 433.365881 616.455234 573.858596 584.68515",
        ),
    ),
    Published(
        "h100-sxm",
        "Triton's TMA tutorial (September 2023), tiles unknown",
        "https://github.com/triton-lang/triton/issues/2339",
        (),
        None,
        tuple(
            (Gemm(2048, size, size), rate)
            for size, rate in (
                (512, 77.852512),
                (1024, 206.806979),
                (2048, 295.146186),
                (4096, 346.284548),
                (8192, 369.841318),
            )
        ),
    ),
)
