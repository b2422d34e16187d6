"""Policies, what a caller may insist on, and what `trace()` shows of the outcome."""

import pytest
import torch
import torch.nn.functional as F
from dispatch_calls import CONFIG, SPLIT, call, operands
from processes import in_threads

import grouped_conv
from grouped_conv.autotune.lookup import resolve as lookup
from grouped_conv.autotune.model.heuristic import choose
from grouped_conv.context import policies
from grouped_conv.context.overrides import using_config
from grouped_conv.kernels import ConvProblem, DeviceSpec, ImplicitGemmConfig


def test_policies_are_scoped_and_have_a_process_default() -> None:
    assert grouped_conv.get_policy() == "measured"
    with grouped_conv.policy("kernels"):
        assert grouped_conv.get_policy() == "kernels"
        with grouped_conv.policy("predicted"):
            assert grouped_conv.get_policy() == "predicted"
        elsewhere = in_threads(lambda _: grouped_conv.get_policy(), 1)
        assert (grouped_conv.get_policy(), elsewhere) == ("kernels", ["measured"])
    try:
        grouped_conv.set_policy("predicted")
        assert grouped_conv.get_policy() == "predicted"
    finally:
        grouped_conv.set_policy("measured")
    for use in (grouped_conv.set_policy, lambda name: grouped_conv.policy(name).__enter__()):
        with pytest.raises(ValueError, match="unknown policy 'fastest'; accepted: measured, predicted, kernels"):
            use("fastest")
    assert policies.POLICIES == lookup.POLICIES


@pytest.mark.parametrize("insist", ["policy", "backend"])
def test_insisting_on_kernels_for_cpu_tensors_says_what_to_do(insist: str) -> None:
    tensors = operands()
    words = r"cannot run a kernel on a CPU tensor; use `with grouped_conv.interpret\(\):`"
    policy, backend = ("kernels", None) if insist == "policy" else ("measured", "kernel")
    with grouped_conv.policy(policy), pytest.raises(RuntimeError, match=words):
        call(*tensors, backend=backend)
    with grouped_conv.policy("kernels"), grouped_conv.trace() as calls:
        call(*tensors, backend="aten")
        call(*(t.double() for t in tensors))
    assert [c.path for c in calls] == ["aten", "aten"]
    assert [c.reason for c in calls] == ["backend='aten' was asked for", "the kernels do not compute float64"]


@pytest.mark.parametrize("policy", policies.POLICIES)
def test_interpret_runs_kernels_under_every_policy_unless_aten_is_asked_for(policy: str) -> None:
    tensors = operands()
    with grouped_conv.policy(policy), grouped_conv.interpret(CONFIG), grouped_conv.trace() as calls:
        ours = call(*tensors)
        call(*tensors, backend="kernel")
        call(*tensors, backend="aten")
    assert [c.path for c in calls] == ["implicit_gemm", "implicit_gemm", "aten"]
    torch.testing.assert_close(ours, F.conv2d(*tensors, padding=1, groups=2), rtol=1e-2, atol=1e-2)


LAUNCHES = {
    (True, True): ["implicit_gemm"],
    (True, False): ["pack_channels_last", "implicit_gemm"],
    (False, True): ["pack_channels_last", "implicit_gemm"],
    (False, False): ["pack_channels_last", "pack_channels_last", "implicit_gemm"],
}


@pytest.mark.parametrize(("input_nhwc", "weight_nhwc"), LAUNCHES)
@pytest.mark.parametrize("config", [CONFIG, SPLIT], ids=str)
def test_the_trace_shows_every_launch(input_nhwc: bool, weight_nhwc: bool, config: ImplicitGemmConfig) -> None:
    input, weight, bias = operands(nhwc=input_nhwc)[0], operands(nhwc=weight_nhwc)[1], operands()[2]
    with grouped_conv.interpret(config), grouped_conv.trace() as calls:
        call(input, weight, bias, activation="relu")
    (record,) = calls
    reduce = ["split_reduce"] if config.split_k > 1 else []
    assert list(record.launches) == LAUNCHES[input_nhwc, weight_nhwc] + reduce
    assert (record.path, record.config, record.source) == ("implicit_gemm", config, "given")
    problem = record.problem
    assert (problem.input_channels_last, problem.weight_channels_last) == (input_nhwc, weight_nhwc)
    assert (problem.groups, problem.epilogue.activation, problem.epilogue.bias) == (2, "relu", True)
    assert "implicit_gemm" in str(record)
    assert str(config) in str(record)


def test_traces_nest_and_stay_in_their_thread() -> None:
    tensors = operands()
    with grouped_conv.trace() as outer:
        call(*tensors)
        with grouped_conv.trace() as inner:
            call(*tensors)
            in_threads(lambda _: call(*tensors), 1)
    call(*tensors)
    assert (len(outer), len(inner)) == (2, 1)
    assert outer[0].problem == ConvProblem.of(
        (2, 16, 6, 6), (8, 8, 3, 3), padding=1, groups=2, epilogue=outer[0].problem.epilogue
    )


def test_the_heuristic_chooses_when_nothing_is_given() -> None:
    tensors = operands()
    with grouped_conv.trace() as calls:
        with grouped_conv.interpret():
            call(*tensors)
        with grouped_conv.interpret(device="a100"):
            call(*tensors)
    assert [c.source for c in calls] == ["heuristic", "heuristic"]
    assert [c.config for c in calls] == [
        choose(c.problem, DeviceSpec.get(d)) for c, d in zip(calls, ("h100", "a100"), strict=True)
    ]
    with pytest.raises(ValueError, match="unknown device 'b9000'"), grouped_conv.interpret(device="b9000"):
        pass


def test_a_given_configuration_that_cannot_run_is_refused_with_the_reason() -> None:
    wrong = ImplicitGemmConfig(block_m=64, block_n=16, block_k=16, num_warps=4, loop_order="taps_inner")
    with grouped_conv.interpret(), using_config(wrong), pytest.raises(ValueError, match="C_PER_GROUP=8"):
        call(*operands())
    with using_config(wrong), grouped_conv.trace() as calls:
        call(*operands())
    assert calls[0].path == "aten"
