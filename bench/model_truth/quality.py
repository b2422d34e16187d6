"""Compares the cost model with data that it did not produce: an estimator's and published measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from grouped_conv.autotune.model.families import predict
from grouped_conv.autotune.model.heuristic import choose
from grouped_conv.autotune.model.implicit_gemm.forward_cost import EDGE_LATENCY
from grouped_conv.autotune.model.shared.prediction import LAUNCH_US, MODEL_VERSION, Prediction
from grouped_conv.bench.model_truth.agreement import Agreement, agreement, is_far, order
from grouped_conv.bench.model_truth.gemm_shapes import SHAPES, Gemm
from grouped_conv.bench.model_truth.nv_estimator import Estimator
from grouped_conv.bench.model_truth.published_matmul import PUBLISHED, Published
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.implicit_gemm.forward_rules import ImplicitGemmConfig
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec

PROPOSALS = 16
"""Kernels that the estimator proposes for each shape."""
SMALL_US = 20.0
"""Published times from here up show the kernel rather than the way of timing, which adds 3 to 5 us."""


@dataclass(frozen=True, slots=True)
class Row:
    """One shape compared with the estimator.

    Attributes:
        shape, kind: the GEMM.
        choice: our heuristic's configuration.
        bound: the term that decides our prediction.
        flops: the work.
        us, theirs_us: our prediction of our choice, and their estimate of their best.
        proposal: their best.
        held: how many of their proposals are in our space.
        tau: Kendall's tau of the order of those; `None` where there are too few.
        regret: their estimate of our choice / of their best; `None` where they give none.
        own_regret: our prediction of their first proposal in our space / of our choice (self-consistency).
    """

    shape: str
    kind: str
    choice: str
    bound: str
    flops: int
    us: float
    theirs_us: float
    proposal: str
    held: int
    tau: float | None
    regret: float | None
    own_regret: float | None

    @property
    def ratio(self) -> float:
        """Ours / theirs."""
        return self.us / self.theirs_us


def rows_agreement(rows: Sequence[Row]) -> Agreement | None:
    """The agreement of all `rows` together; `None` for fewer than two."""
    return _agreement([row.us for row in rows], [row.theirs_us for row in rows], [float(row.flops) for row in rows])


@dataclass(frozen=True, slots=True)
class Column:
    """One published column compared with our predictions.

    Attributes:
        what, url: the column.
        whole: all of its rows; `None` for fewer than two, as in the other fields.
        beyond_protocol: with the time that the document measures for almost no work added to our predictions.
        large: rows of `SMALL_US` and more.
        worst: the shape with the ratio furthest from 1, and that ratio.
        far_us: the longest published time with a ratio beyond 2x; 0 for none.
        estimator: the estimator's best proposals instead of ours; `None` without an estimator.
    """

    what: str
    url: str
    whole: Agreement | None
    beyond_protocol: Agreement | None
    large: Agreement | None
    worst: tuple[str, float]
    far_us: float
    estimator: Agreement | None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything for one device. Without the extra `estimate`, `estimator` is `None` and `rows` is empty."""

    device: str
    model: int
    estimator: str | None
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]


def compare(gemm: Gemm, device: DeviceSpec, estimator: Estimator) -> Row:
    """Compare one shape with the estimator.

    Raises:
        ValueError: when the estimator proposes nothing.
    """
    problem, proposals = gemm.problem(), estimator.ranked(gemm, PROPOSALS)
    if not proposals:
        raise ValueError(f"{estimator.name} proposes no kernel for {gemm}")
    choice = choose(problem, device)
    ours = predict(problem, choice, device)
    held = {
        one.config: one.us for one in reversed(proposals) if one.config is not None
    }  # of equal configurations the faster stays
    pairs = [(predict(problem, config, device).us, us) for config, us in reversed(held.items())]
    seen = estimator.time_us(gemm, choice) if choice.family == "implicit_gemm" else None
    return Row(
        str(gemm),
        gemm.kind,
        str(choice),
        ours.bound,
        gemm.flops,
        ours.us,
        proposals[0].us,
        proposals[0].tile,
        len(held),
        order([mine for mine, _ in pairs], [theirs for _, theirs in pairs]),
        seen / min(seen, proposals[0].us) if seen else None,
        pairs[0][0] / ours.us if pairs else None,
    )


def compare_column(column: Published, device: DeviceSpec, estimator: Estimator | None) -> Column:
    """Compare one published column with our predictions, and with the estimator's."""
    ours = [_tutorial(gemm, column.tiles, device).us for gemm, _ in column.rows]
    theirs = [gemm.flops / rate / 1e6 for gemm, rate in column.rows]
    empty_us = LAUNCH_US + 1e6 * EDGE_LATENCY / device.clock_hz  # what our model expects of almost no work
    added = max(0.0, column.protocol_us - empty_us) if column.protocol_us else None
    work = [float(gemm.flops) for gemm, _ in column.rows]
    large = [row for row in zip(ours, theirs, work, strict=True) if row[1] >= SMALL_US]
    worst = max(range(len(ours)), key=lambda i: abs(math.log(ours[i] / theirs[i])))
    return Column(
        column.what,
        column.url,
        _agreement(ours, theirs, work),
        _agreement([us + added for us in ours], theirs, work) if added else None,
        _agreement(*([row[i] for row in large] for i in range(3))),
        (str(column.rows[worst][0]), ours[worst] / theirs[worst]),
        max((us for mine, us in zip(ours, theirs, strict=True) if is_far(mine / us)), default=0.0),
        _agreement([estimator.ranked(gemm, 1)[0].us for gemm, _ in column.rows], theirs, work) if estimator else None,
    )


def _tutorial(gemm: Gemm, tiles: Sequence[tuple[int, ...]], device: DeviceSpec) -> Prediction:
    """The fastest prediction among a kernel's tiles, as its autotuner would choose; our choice where none is known."""
    problem = gemm.problem()
    configs: list[KernelConfig] = []
    for block_m, block_n, block_k, stages, warps in tiles:
        config = ImplicitGemmConfig(
            block_m=block_m,
            block_n=block_n,
            block_k=block_k,
            num_stages=stages,
            num_warps=warps,
            swizzle_m=8,
            loop_order="flat" if gemm.k % block_k else "channels_inner",
        )
        if why_invalid(problem, config, device) is None:
            configs.append(config)
    return min(
        (predict(problem, config, device) for config in configs or [choose(problem, device)]), key=lambda one: one.us
    )


def _agreement(ours: Sequence[float], theirs: Sequence[float], work: Sequence[float]) -> Agreement | None:
    return agreement(ours, theirs, work) if len(ours) > 1 else None


def report(device: DeviceSpec, estimator: Estimator | None, shapes: Sequence[Gemm] = SHAPES) -> Report:
    """All comparisons for one device; without an estimator, those that need none."""
    rows = tuple(compare(gemm, device, estimator) for gemm in shapes) if estimator else ()
    columns = tuple(compare_column(column, device, estimator) for column in PUBLISHED if column.device == device.key)
    return Report(device.key, MODEL_VERSION, estimator.name if estimator else None, rows, columns)
