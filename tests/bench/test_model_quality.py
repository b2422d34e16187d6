"""The cost model's comparison with others: its statistics on known data, its command, and the bounds it must keep."""

import json
import math
from importlib.util import find_spec

import pytest
from click.testing import CliRunner

from grouped_conv.bench import model_quality
from grouped_conv.bench.model_truth import quality
from grouped_conv.bench.model_truth.agreement import agreement, is_far, order, percentile
from grouped_conv.bench.model_truth.gemm_shapes import SHAPES, Gemm
from grouped_conv.bench.model_truth.nv_estimator import Estimate
from grouped_conv.bench.model_truth.published_matmul import PUBLISHED
from grouped_conv.kernels import DeviceSpec, ImplicitGemmConfig

A100 = DeviceSpec.get("a100")
needs_estimator = pytest.mark.skipif(
    find_spec("nvMatmulHeuristics") is None, reason="needs the extra `estimate` (nvidia-matmul-heuristics)"
)


class Recorded:
    """An estimator with three proposals, 1, 2 and 4 us per GFLOP and 2 us more; the third is outside our space."""

    name = "recorded 1.0"
    tiles = (
        ("128x128x32 w4 s3", ImplicitGemmConfig(block_k=32, num_stages=3, loop_order="channels_inner")),
        ("64x64x64 w4 s3", ImplicitGemmConfig(block_m=64, block_n=64, num_stages=3, loop_order="channels_inner")),
        ("256x256x64 w16 s3", None),
    )

    def ranked(self, gemm, count):
        each = 2 + gemm.flops / 1e9
        return [Estimate(tile, each * 2**i, config) for i, (tile, config) in enumerate(self.tiles)][:count]

    def time_us(self, gemm, config):
        return 1.5 * (2 + gemm.flops / 1e9)


# ---- statistics


def test_agreement_on_known_pairs():
    found = agreement([1, 2, 3, 4], [2, 4, 6, 8], [1, 1, 1, 1])
    assert (found.pairs, found.spearman, found.kendall, found.rates) == pytest.approx((4, 1, 1, 1))
    assert (found.low, found.median, found.high, found.far) == (0.5, 0.5, 0.5, 0)
    swapped = agreement([1, 2, 4, 3], [1, 2, 3, 4], [4, 3, 2, 1])
    assert swapped.spearman == pytest.approx(1 - 6 * 2 / (4 * 15))  # two ranks off by one
    assert swapped.kendall == pytest.approx(4 / 6)  # one discordant pair of six
    assert swapped.rates == pytest.approx(1)  # the work falls by more than the times differ
    assert agreement([1, 2], [4, 3], [1, 1]).kendall == pytest.approx(-1)
    assert agreement([1, 9, 5], [1, 3, 20], [1, 1, 1]).far == 2


def test_agreement_wants_pairs():
    with pytest.raises(ValueError, match="at least 2, are compared, but got 1, 1 and 1"):
        agreement([1], [1], [1])
    with pytest.raises(ValueError, match="got 2, 3 and 2"):
        agreement([1, 2], [1, 2, 3], [1, 1])


def test_order_says_nothing_of_ties():
    assert order([1, 2, 3], [1, 2, 3]) == pytest.approx(1)
    assert order([3, 2, 1], [1, 2, 3]) == pytest.approx(-1)
    assert order([1, 2, 3], [1, 1, 2]) == pytest.approx(2 / math.sqrt(3 * 2))  # tau-b: one pair tied
    assert order([1, 2], [1, 2]) is None
    assert order([1, 2, 3], [5, 5, 5]) is None


def test_percentiles_lie_between_neighbours():
    assert percentile([1, 2, 3, 4, 5], 0.5) == 3
    assert percentile([0, 10], 0.1) == 1
    assert percentile([7], 0.9) == 7
    assert math.isnan(percentile([], 0.5))
    assert [is_far(ratio) for ratio in (0.49, 0.5, 2, 2.1)] == [True, False, False, True]


# ---- data


def test_the_table_is_broad():
    assert len(SHAPES) >= 40
    assert len(set(SHAPES)) == len(SHAPES)
    assert sum(gemm.groups > 1 for gemm in SHAPES) >= 10
    for gemm in SHAPES:
        problem = gemm.problem()
        assert problem.gemm == (gemm.groups, gemm.m, gemm.n, gemm.k)
        assert 2 * problem.macs == gemm.flops


def test_published_rows_are_possible():
    for column in PUBLISHED:
        peak = DeviceSpec.get(column.device).half_flops / 1e12
        assert column.url.startswith("https://")
        assert all(0 < rate < peak for _, rate in column.rows)
    tutorial = PUBLISHED[0]
    assert [gemm.m for gemm, _ in tutorial.rows] == [128 * i for i in range(2, 33)]
    assert tutorial.protocol_us == pytest.approx(5.12)


# ---- comparison


def test_a_row_beside_a_recorded_estimator():
    gemm = Gemm(4096, 4096, 4096, kind="square")
    row = quality.compare(gemm, A100, Recorded())
    assert (row.shape, row.held, row.proposal) == ("4096x4096x4096", 2, "128x128x32 w4 s3")
    assert row.theirs_us == pytest.approx(139.4, abs=0.1)
    assert row.tau is None  # two configurations have no order to speak of
    assert row.regret == pytest.approx(1.5)
    assert row.own_regret is not None
    assert row.own_regret >= 1
    assert row.ratio == row.us / row.theirs_us


def test_an_estimator_without_an_answer():
    silent = Recorded()
    silent.tiles = ()
    with pytest.raises(ValueError, match=r"recorded 1\.0 proposes no kernel for 8x8x8"):
        quality.compare(Gemm(8, 8, 8), A100, silent)


def test_the_report_says_whose_figures_they_are():
    shapes = [Gemm(size, size, size, kind="square") for size in (512, 1024, 2048)]
    text = "\n".join(model_quality.lines(quality.report(A100, Recorded(), shapes)))
    for words in ("recorded 1.0: our choice's", "self-consistency", "do not trust the time", "measured: Triton's"):
        assert words in text
    assert "3 pairs  Spearman 1.000" in text
    assert "not compared with nvMatmulHeuristics" in "\n".join(model_quality.lines(quality.report(A100, None)))


def test_measured_a100_matmuls_are_predicted():
    column = quality.compare_column(PUBLISHED[0], A100, None)
    assert column.large is not None
    assert column.large.far == 0
    assert 0.9 <= column.large.low <= column.large.high <= 1.1
    assert column.large.rates > 0.9
    assert column.beyond_protocol is not None
    assert column.beyond_protocol.far == 0
    assert column.worst[0] == "256x256x256"  # the protocol's share is largest there


def test_command_without_the_estimator(monkeypatch):
    def absent(device):
        raise ImportError

    monkeypatch.setattr(model_quality, "NvEstimator", absent)
    result = CliRunner().invoke(model_quality.main, ["--device", "a100", "--json"])
    assert result.exit_code == 0
    (found,) = json.loads(result.stdout)
    assert (found["device"], found["rows"], found["agreement"]) == ("a100", [], None)
    assert len(found["columns"]) == 3


@needs_estimator
@pytest.mark.parametrize("device", ["a100", "h100-sxm"])
def test_ranks_agree_with_nvidias(device):
    result = CliRunner().invoke(model_quality.main, ["--device", device, "--json"])
    assert result.exit_code == 0
    (found,) = json.loads(result.stdout)
    assert found["estimator"].startswith("nvidia-matmul-heuristics 0.1.")
    assert len(found["rows"]) == len(SHAPES)
    assert found["agreement"]["spearman"] > 0.9
    assert found["agreement"]["kendall"] > 0.75
    assert sum(row["held"] for row in found["rows"]) > 4 * len(SHAPES)


@needs_estimator
def test_unknown_device():
    result = CliRunner().invoke(model_quality.main, ["--device", "l4"])
    assert result.exit_code == 2
    assert "l4 is not among the compared devices: a100, h100-sxm" in result.stderr
