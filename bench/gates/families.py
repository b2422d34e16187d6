"""The gates of all families, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from grouped_conv.bench.gates import depthwise, implicit_gemm, lrn_pool, packed, ragged, separable
from grouped_conv.bench.gates.engine import Gate
from grouped_conv.bench.gates.findings import Finding

GATES: dict[str, list[Gate]] = {}
"""`kernels.families.FAMILIES` has the same names. The first gate of a family judges its default configurations."""

for _module in (implicit_gemm, packed, depthwise, ragged, separable, lrn_pool):
    for _gate in _module.GATES:
        GATES.setdefault(_gate.family, []).append(_gate)


def findings(
    family: str, archs: Sequence[str], wanted: Callable[[Any], bool] = lambda problem: True
) -> Iterator[Finding]:
    """Everything that the gates of one family find on these architectures.

    Args:
        wanted: which problems to compile; by default all.
    """
    for arch in archs:
        for gate in GATES[family]:
            yield from gate.findings(arch, wanted)
