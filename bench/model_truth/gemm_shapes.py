"""GEMMs on which the cost model is compared with others: plain and batched, as 1x1 convolutions of one image."""

from __future__ import annotations

from dataclasses import dataclass

from grouped_conv.kernels.values.problem import ConvProblem


@dataclass(frozen=True, slots=True)
class Gemm:
    """[m, k] times [k, n], `groups` times; fp16 with fp32 sums, both operands with k innermost.

    Attributes:
        kind: the part of the table that it belongs to.
    """

    m: int
    n: int
    k: int
    groups: int = 1
    kind: str = "plain"

    def __str__(self) -> str:
        shape = f"{self.m}x{self.n}x{self.k}"
        return shape if self.groups == 1 else f"{self.groups} of {shape}"

    @property
    def flops(self) -> int:
        """Two per multiply-add."""
        return 2 * self.groups * self.m * self.n * self.k

    def problem(self) -> ConvProblem:
        """A grouped 1x1 convolution over an image of m rows and one column: a row of A holds all groups' channels."""
        return ConvProblem.of(
            (1, self.groups * self.k, self.m, 1), (self.groups * self.n, self.k, 1, 1), groups=self.groups
        )


def _of(kind: str, *shapes: tuple[int, int, int] | tuple[int, int, int, int]) -> tuple[Gemm, ...]:
    return tuple(Gemm(m, n, k, groups[0] if groups else 1, kind) for m, n, k, *groups in shapes)


SHAPES = (
    *_of("square", *((size, size, size) for size in (256, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192))),
    # ResNet-50's 1x1 layers at batch 32: narrow and widen of each stage
    *_of("tall", (100352, 64, 256), (100352, 256, 64), (25088, 512, 128), (25088, 128, 512)),
    *_of("tall", (6272, 1024, 256), (6272, 256, 1024), (65536, 128, 128), (16384, 64, 64), (4096, 128, 4096)),
    *_of("wide", (1568, 2048, 512), (256, 4096, 1024), (128, 4096, 4096), (64, 4096, 4096), (128, 4096, 9216)),
    *_of("small k", (8192, 8192, 128), (8192, 8192, 64), (4096, 4096, 32), (65536, 64, 64)),
    *_of("deep k", (1568, 512, 2048), (256, 1024, 9216), (128, 128, 16384), (256, 256, 8192), (512, 512, 16384)),
    *_of("deep k", (64, 1000, 4096), (512, 4096, 16384), (2048, 2048, 8192)),
    # AlexNet's layers of two groups at batch 128, each as a GEMM
    *_of("batched", (93312, 128, 1200, 2), (21632, 192, 1728, 2), (21632, 128, 1728, 2)),
    # ResNeXt's and RegNet's groups
    *_of("batched", (100352, 128, 128, 2), (25088, 16, 16, 32), (6272, 32, 32, 32), (25088, 64, 64, 8)),
    *_of("batched", (6272, 128, 128, 8), (6272, 64, 64, 16), (1568, 128, 128, 32), (196, 256, 256, 32)),
    *_of("batched", (512, 512, 64, 64), (512, 64, 512, 64), (1024, 1024, 128, 16), (2048, 128, 128, 96)),
    # rows that only loads of 2 bytes divide (AlexNet's conv1), and groups thinner than a tensor core
    *_of("unaligned", (387200, 96, 363), (3136, 4, 4, 32)),
)
"""Rows of a kind are comparable. No row was chosen for what the model says about it."""
