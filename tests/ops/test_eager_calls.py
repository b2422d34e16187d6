"""Eager calls go to their plan without torch's dispatcher, except where something has to see them there."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import grouped_conv
from grouped_conv.ops import conv2d as ops
from grouped_conv.ops import operator
from grouped_conv.planning import plan_cache
from grouped_conv.planning.forward import UNIFORM

LAYOUT = grouped_conv.GroupLayout.sizes([5, 3], [8, 8])
CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "conv2d": lambda x: grouped_conv.grouped_conv2d(x, torch.ones(8, 4, 3, 3), groups=2),
    "conv2d_fused": lambda x: grouped_conv.grouped_conv2d(x, torch.ones(8, 4, 3, 3), groups=2, activation="relu"),
    "ragged_conv2d": lambda x: grouped_conv.ragged_conv2d(x, [torch.ones(8, 5, 1, 1), torch.ones(8, 3, 1, 1)], LAYOUT),
    "separable_conv2d": lambda x: grouped_conv.separable_conv2d(x, torch.ones(8, 1, 3, 3), torch.ones(4, 8, 1, 1)),
    "lrn_max_pool2d": lambda x: grouped_conv.lrn_max_pool2d(x),
}


class Watching:
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def note(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Dispatches(Watching, TorchDispatchMode):
    __torch_dispatch__ = Watching.note


class Functions(Watching, TorchFunctionMode):
    __torch_function__ = Watching.note


@pytest.fixture
def dispatched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls that enter torch's dispatcher."""
    seen: list[str] = []

    def dispatch(self, operands, request):
        seen.append(self.name)
        return original(self, operands, request)

    original = operator.Operator.dispatch
    monkeypatch.setattr(operator.Operator, "dispatch", dispatch)
    return seen


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("mode", [Dispatches, Functions])
def test_modes_see_the_operator(name: str, mode: type) -> None:
    with mode() as watching:
        watched = CALLS[name](torch.ones(1, 8, 5, 5))
    assert f"grouped_conv.{name}.default" in watching.seen
    assert torch.equal(watched, CALLS[name](torch.ones(1, 8, 5, 5)))


@pytest.mark.parametrize("name", CALLS)
def test_profilers_see_the_operator(name: str) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        CALLS[name](torch.ones(1, 8, 5, 5))
    assert f"grouped_conv::{name}" in {event.name for event in profile.events()}


def test_gradients_are_seen_too() -> None:
    weight = torch.ones(8, 4, 3, 3, requires_grad=True)
    with grouped_conv.interpret():
        output = grouped_conv.grouped_conv2d(torch.ones(1, 8, 5, 5), weight, groups=2)
        with Dispatches() as watching:
            output.sum().backward()
    assert "grouped_conv.conv2d_backward.default" in watching.seen


@pytest.mark.parametrize("name", ["ragged_conv2d", "separable_conv2d", "lrn_max_pool2d"])
def test_plain_tensors_need_no_dispatcher(name: str, dispatched: list[str]) -> None:
    x = torch.ones(1, 8, 5, 5, requires_grad=True)
    CALLS[name](x).sum().backward()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        CALLS[name](x)
    with torch.inference_mode():
        CALLS[name](torch.ones(1, 8, 5, 5))
    assert dispatched == []


class Subclass(Tensor):
    pass


def test_tensors_that_are_more_than_data_in_memory(dispatched: list[str]) -> None:
    x, weight = torch.randn(1, 8, 5, 5), torch.randn(8, 4, 3, 3)
    minus = torch._neg_view(x)
    torch.testing.assert_close(grouped_conv.grouped_conv2d(minus, weight, groups=2), F.conv2d(-x, weight, groups=2))
    assert type(grouped_conv.grouped_conv2d(x.as_subclass(Subclass), weight, groups=2)) is Subclass
    assert grouped_conv.grouped_conv2d(x.to("meta"), weight.to("meta"), groups=2).device.type == "meta"
    zero = torch._efficientzerotensor((1, 8, 5, 5))
    assert torch.equal(grouped_conv.grouped_conv2d(zero, weight, groups=2), torch.zeros(1, 8, 3, 3))
    assert dispatched == ["grouped_conv::conv2d"] * 4


def test_both_ways_share_plans_and_results(monkeypatch: pytest.MonkeyPatch) -> None:
    operands = ops.Operands(torch.randn(1, 8, 5, 5), torch.randn(8, 4, 3, 3))
    request = ops.plain_request((1, 1), (0, 0, 0, 0), (1, 1), "default", "auto")
    straight = UNIFORM.run(operands, request)
    monkeypatch.setattr(plan_cache, "find_or_make", lambda *arguments: pytest.fail("another plan"))
    through = ops.dispatch(operands, request)
    assert torch.equal(straight[0], through[0])
    assert straight[1] is through[1] is None
