"""Live tuning for real: kernels compiled for this CPU, verified, timed beside torch's own; the wrong ones rejected."""

import os

import pytest
from checkout import HELPERS
from command_line import invoke
from conftest import TOOLS

import grouped_conv
from grouped_conv.autotune.measuring.live_runner import LiveRunner
from grouped_conv.autotune.measuring.self_check import check_kernels, families
from grouped_conv.autotune.model import native_lane
from grouped_conv.autotune.search.efforts import plan_effort
from grouped_conv.autotune.search.runner import Trial
from grouped_conv.autotune.search.search_space import search_space
from grouped_conv.autotune.search.tuner import tune_with
from grouped_conv.autotune.workloads.named import workload
from grouped_conv.kernels import ConvProblem, Epilogue, ImplicitGemmConfig

pytestmark = pytest.mark.native
CPU = native_lane.DEVICE
SMALL = ConvProblem.of(
    (1, 32, 9, 11), (32, 16, 3, 3), padding=1, groups=2, dtype="float32", precision="ieee",
    epilogue=Epilogue("relu", bias=True),
)  # fmt: skip
WRONG = ImplicitGemmConfig(block_m=32, block_n=128, block_k=16, num_warps=1, num_stages=1)
TUNED = ("conv2", "conv4", "conv5")


@pytest.fixture(autouse=True)
def lane_for_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measuring process finds the lane's module, and breaks of tests beside this file."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TOOLS / "cpu_native"), HELPERS]))


def test_a_small_layer(kept) -> None:  # type: ignore[no-untyped-def]
    plan = plan_effort("quick", measures=True, limit=3)
    with LiveRunner(CPU) as runner:
        (search,) = tune_with(runner, {"small": SMALL}, CPU, kept, plan).searches
    best = search.best()
    assert len(kept.trials()) == 3
    assert (best.status, best.device, best.source) == ("measured", "cpu-native", "measured")
    assert best.low_us <= best.measured_us <= best.high_us
    assert best.aten_us > 0
    assert best.protocol.startswith("cpu-")
    assert kept.best(SMALL, "h100-sxm") is None  # never mistaken for a GPU's


def test_a_known_miscompile_is_rejected() -> None:
    problem = ConvProblem.of((1, 32, 8, 8), (128, 32, 1, 1), dtype="float32", precision="ieee")
    assert WRONG in search_space(problem, CPU).configs
    with LiveRunner(CPU) as runner:
        (outcome,) = runner.measure([Trial(problem, WRONG)], lambda trial: None)
    assert (outcome.failure, outcome.us) == ("wrong", None)
    assert "differs from float64 by" in outcome.detail


def test_a_self_check_passes_and_a_broken_kernel_fails_it(kept) -> None:  # type: ignore[no-untyped-def]
    pair = ("implicit_gemm", "forward")
    assert check_kernels(CPU, kept, [pair])[0].passed
    assert kept.self_checked("cpu-native", *pair)
    with LiveRunner(CPU, function="broken_kernels:job") as runner:
        (check,) = check_kernels(CPU, kept, [pair], runner=runner)
    assert (check.passed, kept.self_checked("cpu-native", *pair)) == (False, False)
    assert "wrong on implicit_gemm" in kept.self_checks("cpu-native")[pair].detail


def test_verify_is_a_command(kept) -> None:  # type: ignore[no-untyped-def]
    result = invoke("verify", "--device", "cpu-native", "--family", "weight_grad")
    assert result.exit_code == 0, result.output
    assert "passed" in result.stdout
    assert kept.self_checked("cpu-native", "weight_grad", "weight_grad")


@pytest.mark.sweep
def test_every_family_passes_its_self_check(kept) -> None:  # type: ignore[no-untyped-def]
    checks = check_kernels(CPU, kept)
    assert [(check.family, check.direction) for check in checks] == list(families())
    assert [check for check in checks if not check.passed] == []


@pytest.mark.sweep
def test_alexnets_grouped_layers(kept) -> None:  # type: ignore[no-untyped-def]
    problems = {name: problem for name, problem in workload("alexnet", 1, "float32").items() if name in TUNED}
    table = grouped_conv.tune(problems, device="cpu-native", effort="full", budget_seconds=1500)
    print(table.to_string())
    assert list(table["layer"]) == list(TUNED)
    assert set(table["source"]) == {"measured"}
    assert (table["measured_us"] <= table["default_us"] * 1.05).all()
    assert kept.self_checked("cpu-native", "implicit_gemm", "forward")
