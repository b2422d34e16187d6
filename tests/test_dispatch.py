"""Finding, making and keeping plans: policies, threads, forks, capture, warnings, and what a plan holds."""

import os
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from conv_cases import alexnet_layers
from conv_oracle import make_tensors

import grouped_conv
from grouped_conv import decisions, dispatch, executors, records
from grouped_conv.autotune.lookup import Choice
from grouped_conv.decisions import Conditions, decide
from grouped_conv.executors import InterpreterExecutor
from grouped_conv.kernels import DeviceSpec, ImplicitGemmConfig
from grouped_conv.overrides import using_config
from grouped_conv.plan import AtenPlan, KernelPlan

SMALL = ImplicitGemmConfig(block_m=32, block_n=16, block_k=16)
PROBLEM = alexnet_layers(2)["conv4"]
ON_GPU = Conditions("measured", "auto", InterpreterExecutor("h100-sxm"), None)


@pytest.fixture(autouse=True)
def no_plans() -> Iterator[None]:
    dispatch.forget_plans()
    yield
    dispatch.forget_plans()


def operands() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(1, 8, 6, 6), torch.randn(8, 4, 3, 3)


def test_policies_are_scoped_and_checked() -> None:
    assert grouped_conv.get_policy() == "measured"
    with grouped_conv.policy("kernels"):
        assert grouped_conv.get_policy() == "kernels"
        with grouped_conv.policy("predicted"):
            assert grouped_conv.get_policy() == "predicted"
    assert grouped_conv.get_policy() == "measured"
    with pytest.raises(ValueError, match=r"'fastest'.*measured.*predicted.*kernels"):
        grouped_conv.set_policy("fastest")


def test_cpu_tensors_take_aten_and_say_why() -> None:
    x, w = operands()
    with grouped_conv.trace() as calls:
        grouped_conv.grouped_conv2d(x, w, groups=2)
    assert (calls[0].path, "outside grouped_conv.interpret()" in calls[0].reason) == ("aten", True)
    for insist in (dict(backend="kernel"), dict()):
        with (
            grouped_conv.policy("measured" if insist else "kernels"),
            pytest.raises(RuntimeError, match=r"cannot run a kernel on a CPU tensor; use `with grouped_conv.interpret"),
        ):
            grouped_conv.grouped_conv2d(x, w, groups=2, **insist)  # type: ignore[arg-type]


def test_the_decision_follows_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the look-up says about this device is what happens: a kernel with its configuration, or ATen."""
    monkeypatch.setattr(records, "consult", lambda problem, policy, device: (SMALL, f"{policy} row", "measured"))
    assert decide(PROBLEM, ON_GPU, 0).config == SMALL
    monkeypatch.setattr(records, "consult", lambda problem, policy, device: (None, "no row", ""))
    assert decide(PROBLEM, ON_GPU, 0) == decisions.Decision(None, "no row")
    assert decide(PROBLEM, replace(ON_GPU, backend="aten"), 0).reason == "backend='aten' was asked for"
    assert decide("the kernels do not compute float64", ON_GPU, 0).config is None


def test_one_warning_per_problem_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from grouped_conv.autotune import lookup

    choice = Choice("aten", None, "", "this device has no self-check; run: grouped-conv tune alexnet")
    monkeypatch.setattr(lookup, "resolve", lambda *a, **k: choice)
    monkeypatch.setattr(records, "live_device", lambda device: DeviceSpec.get("h100"))
    monkeypatch.setattr(records, "_is_measured", lambda problem, device: False)
    monkeypatch.setattr(records, "_warned", set())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert records.consult(PROBLEM, "measured", 0) == (None, choice.reason, "")
        records.consult(PROBLEM, "predicted", 0)
    assert sum("grouped-conv tune" in str(w.message) for w in caught) == 1


def test_nothing_is_compiled_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    barred = decisions.why_nothing_compiles()
    assert "run it once before the capture" in barred
    assert decide(PROBLEM, replace(ON_GPU, barred=barred), 0) == decisions.Decision(None, barred)
    with pytest.raises(RuntimeError, match="cannot compile a kernel now"):
        decide(PROBLEM, replace(ON_GPU, barred=barred, backend="kernel"), 0)


def test_a_given_configuration_that_cannot_run_is_an_error() -> None:
    x, w = operands()
    wrong = replace(SMALL, loop_order="taps_inner")
    with grouped_conv.interpret(wrong), pytest.raises(ValueError, match="C_PER_GROUP=4 divisible by block_k=16"):
        grouped_conv.grouped_conv2d(x, w, groups=2)
    with using_config(None), grouped_conv.interpret(), grouped_conv.trace() as calls:
        grouped_conv.grouped_conv2d(x, w, groups=2)
    assert calls[0].source == "heuristic"


def test_plans_are_reused_and_keyed_by_what_matters() -> None:
    x, w = operands()
    with grouped_conv.interpret(SMALL):
        for _ in range(2):
            grouped_conv.grouped_conv2d(x, w, groups=2)
        assert len(dispatch._plans) == 1
        grouped_conv.grouped_conv2d(x.contiguous(memory_format=torch.channels_last), w, groups=2)
        grouped_conv.grouped_conv2d(x.half(), w.half(), groups=2)
        grouped_conv.grouped_conv2d(torch.randn(2, 8, 6, 6)[1:], w, groups=2, stride=2)
        unaligned = torch.randn(8 * 36 + 1)[1:].view(1, 8, 6, 6)
        grouped_conv.grouped_conv2d(unaligned, w, groups=2)
    assert len(dispatch._plans) == 5
    grouped_conv.grouped_conv2d(x, w, groups=2)
    assert sorted({type(plan) for plan in dispatch._plans.values()}, key=str) == [AtenPlan, KernelPlan]


def held(value: Any, depth: int = 6) -> Iterator[Any]:
    yield value
    if depth and not isinstance(value, (str, bytes, type)):
        children = value if isinstance(value, (list, tuple, set)) else getattr(value, "__dict__", {}).values()
        for child in children:
            yield from held(child, depth - 1)


def test_plans_hold_no_tensors() -> None:
    x, w = operands()
    grouped_conv.grouped_conv2d(x, w, groups=2, scale=2.0)
    with grouped_conv.interpret(replace(SMALL, split_k=2)):
        grouped_conv.grouped_conv2d(x, torch.randn(8, 8, 3, 3))
    assert len(dispatch._plans) == 2
    for plan in dispatch._plans.values():
        assert not any(isinstance(item, torch.Tensor) for item in held(plan))


def test_threads_racing_on_the_first_miss_make_one_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make = dispatch._make

    def counted(*arguments: Any) -> Any:
        made.append(threading.get_ident())
        return make(*arguments)

    monkeypatch.setattr(dispatch, "_make", counted)
    x, w = operands()
    expected = torch.nn.functional.conv2d(x, w, groups=2)
    start, results = threading.Barrier(8), []

    def work() -> None:
        start.wait()
        results.append(grouped_conv.grouped_conv2d(x, w, groups=2))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert all(torch.equal(y, expected) for y in results)


def test_a_forked_child_starts_with_no_plans_and_no_compiled_kernels() -> None:
    x, w = operands()
    grouped_conv.grouped_conv2d(x, w, groups=2)
    assert dispatch._plans
    child = os.fork()
    if child == 0:
        empty = not dispatch._plans and not executors._kernels
        with grouped_conv.interpret(SMALL), grouped_conv.trace() as calls:
            grouped_conv.grouped_conv2d(x, w, groups=2)
        os._exit(0 if empty and calls[0].path == "implicit_gemm" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert dispatch._plans


def test_traces_nest_and_name_every_launch() -> None:
    tensors = make_tensors(replace(PROBLEM, in_size=(4, 4), input_channels_last=False))
    with grouped_conv.interpret(replace(SMALL, split_k=2)), grouped_conv.trace() as outer:
        with grouped_conv.trace() as inner:
            grouped_conv.grouped_conv2d(tensors["input"], tensors["weight"], tensors["bias"], padding=1, groups=2)
        grouped_conv.grouped_conv2d(tensors["input"], tensors["weight"], padding=1, groups=2, backend="aten")
    assert [call.path for call in outer] == ["implicit_gemm", "aten"]
    assert inner == outer[:1]
    assert inner[0].launches == ("pack_channels_last", "implicit_gemm", "split_reduce")
    assert "implicit_gemm" in str(inner[0])
