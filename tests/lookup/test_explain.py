"""`explain` says what runs, from where, what bounds it and what lost: checked against the parts it is made of."""

import json

import pytest
import torch
from command_line import in_json, invoke
from store_cases import measured

import grouped_conv
from grouped_conv.autotune.lookup.explanation import Candidate, explain, why_it_lost
from grouped_conv.autotune.model.families import predict
from grouped_conv.autotune.model.heuristic import choose
from grouped_conv.autotune.model.shared.prediction import Prediction
from grouped_conv.autotune.records.record import Record
from grouped_conv.autotune.store.store import Store
from grouped_conv.autotune.workloads.named import workload
from grouped_conv.kernels import DeviceSpec
from grouped_conv.kernels.gradient_call import gradient_problem
from grouped_conv.kernels.implicit_gemm.forward_rules import ImplicitGemmConfig

H100 = DeviceSpec.get("h100")
CONV2 = workload("alexnet")["conv2"]
SMALL = ImplicitGemmConfig(block_m=64, block_n=64, block_k=32, num_warps=4)
pytestmark = pytest.mark.usefixtures("no_presets")


def timed(config: ImplicitGemmConfig, us: float) -> Record:
    return measured(config, us, problem=CONV2, device=H100.key, aten_us=200.0)


@pytest.mark.parametrize("direction", ["forward", "input_grad", "weight_grad"])
def test_without_records_the_heuristic_speaks(kept: Store, direction: str) -> None:
    problem = CONV2 if direction == "forward" else gradient_problem(CONV2, direction)
    found = explain(problem, H100, store=kept)
    config = choose(problem, H100)
    assert (found.choice.path, found.kernel.config, found.source) == ("aten", config, "heuristic")
    assert found.kernel.prediction == predict(problem, config, H100)
    assert found.roofline_fraction == pytest.approx(found.floor_us / found.kernel.prediction.us)
    assert found.runner_up is not None
    assert found.runner_up.weighed_us >= found.kernel.weighed_us
    text = str(found)
    assert f"no {direction} self-check of the kernels is recorded" in text
    assert f"predicted {found.kernel.prediction.us:.1f} us" in text
    assert "measured" not in text.replace("policy 'measured'", "")
    json.dumps(found.to_json(), allow_nan=False)


def test_measured_times_outrank_predictions(kept: Store) -> None:
    other = ImplicitGemmConfig(block_m=128, block_n=64, block_k=32, num_warps=4)
    kept.put([timed(SMALL, 50.0), timed(other, 60.0)])
    found = explain(CONV2, H100, store=kept)
    assert (found.kernel.config, found.kernel.measured_us, found.source) == (SMALL, 50.0, "measured")
    assert found.runner_up is not None
    assert found.runner_up.config == other
    assert found.why_it_lost == "measured 60.0 us against 50.0 us"
    assert "measured 50.0 us" in str(found)


def test_a_runner_up_differs_in_more_than_its_pipeline(kept: Store) -> None:
    deeper = ImplicitGemmConfig(block_m=64, block_n=64, block_k=32, num_warps=4, num_stages=SMALL.num_stages + 1)
    kept.put([timed(SMALL, 50.0), timed(deeper, 50.5)])
    found = explain(CONV2, H100, store=kept)
    assert found.runner_up is not None
    assert found.runner_up.measured_us is None
    assert found.why_it_lost.startswith("never measured (predicted ")


def test_a_model_is_explained_layer_by_layer(kept: Store) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3, groups=2), torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 1))
    found = grouped_conv.explain(model.eval(), torch.randn(2, 8, 9, 9), device="a100", store=kept)
    assert len(found) == 2
    for one in found.values():
        assert (one.device.key, one.policy, one.problem.direction) == ("a100", "measured", "forward")
    with pytest.raises(ValueError, match="unknown device 'a1000'"):
        grouped_conv.explain(model, torch.randn(2, 8, 9, 9), device="a1000", store=kept)


def test_the_command_prints_text_or_json() -> None:
    layer = ["explain", "--layer", "N=2 C=8 H=9 K=16 R=3 pad=1 groups=2", "--device", "a100", "--direction", "all"]
    text = invoke(*layer)
    assert text.exit_code == 0
    assert text.output.count("runner-up:") == 3
    data = in_json(*layer, "--policy", "kernels")
    assert [one["path"] for one in data.values()] == ["kernel"] * 3
    assert all(one["kernel"]["measured_us"] is None for one in data.values())


def test_why_names_what_makes_the_difference() -> None:
    def candidate(us: float, padding: float = 1.0, compiled: bool = False, **terms: float) -> Candidate:
        return Candidate(SMALL, Prediction(us, 1.0, padding, 1.0, "l2", terms), compiled)

    winner = candidate(10.0, tensor=8.0, l2=2.0)
    assert why_it_lost(winner, candidate(20.0, tensor=8.0, l2=19.0)).endswith(
        "its l2 term takes 19.0 us against 2.0 us"
    )
    assert why_it_lost(winner, candidate(10.05, tensor=8.0)).endswith("a tie: the cheaper configuration won")
    assert why_it_lost(winner, candidate(9.5, 0.5, tensor=8.0)).endswith("padding counts against a configuration")
    assert why_it_lost(winner, candidate(12.0, tensor=8.0, l2=2.0)).endswith("no single term makes the difference")
    assert "was compiled" in why_it_lost(candidate(10.0, compiled=True), candidate(5.0))
