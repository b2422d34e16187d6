"""Which convolutions a model computes for an input: its layers as problems, forward and, where it trains, gradients."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from grouped_conv.autotune.workloads.named import in_directions
from grouped_conv.context.tracing import CallRecord, trace
from grouped_conv.converting.conversion import convert
from grouped_conv.kernels.values.problem import ConvProblem
from grouped_conv.nn.conv import FusedLayer
from grouped_conv.nn.ragged import RaggedConv2d
from grouped_conv.nn.separable import ChainedConv2d


def problems_of(
    model: nn.Module, example_input: Any, directions: Sequence[str] | None = None
) -> dict[str, ConvProblem]:
    """The convolutions of one forward pass by layer name, as they run after `grouped_conv.convert`.

    A copy of the model runs once; the model itself stays as it is. Layers with the same problem are named once.

    Args:
        example_input: what the model is called with; a tuple holds several arguments.
        directions: by default what the model's mode implies: in eval mode the forward pass, in training mode also the
            gradient of each weight that requires one and of each input that does (the first layer's does not).

    Raises:
        ValueError: when the model computes no convolution that the kernels support, or for an unknown direction.
    """
    runner = convert(deepcopy(model))
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    watch = _Watch()
    with ExitStack() as stack, torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing was tuned yet is why we are here
        watch.calls = stack.enter_context(trace())
        for name, module in runner.named_modules():
            if isinstance(module, (FusedLayer, RaggedConv2d, ChainedConv2d)):
                watch.attach(stack, name, module)
        runner(*arguments)
        watch.take("call", ("weight_grad", "input_grad"))
    found: dict[str, ConvProblem] = {}
    for name, problem, gradients in watch.seen:
        wanted = directions if directions is not None else ("forward", *(gradients if model.training else ()))
        for label, made in in_directions({name: problem}, wanted).items():
            if made not in found.values():
                found[_fresh(label, found)] = made
    if not found:
        raise ValueError(f"{type(model).__name__} computes no convolution in a dtype that the kernels know")
    return found


class _Watch:
    """Hooks on layers that compute convolutions; calls outside of them are numbered."""

    def __init__(self) -> None:
        self.calls: list[CallRecord] = []
        self.seen: list[tuple[str, ConvProblem, tuple[str, ...]]] = []
        self._inside = 0

    def attach(self, stack: ExitStack, name: str, module: nn.Module) -> None:
        """Take the records of every call of `module` until the stack unwinds."""
        gradients: list[str] = []

        def before(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if not self._inside:
                self.take("call", ("weight_grad", "input_grad"))
            self._inside += 1
            gradients.clear()
            if any(parameter.requires_grad and parameter.dim() > 1 for parameter in module.parameters()):
                gradients.append("weight_grad")
            if any(isinstance(value, Tensor) and value.requires_grad for value in inputs):
                gradients.append("input_grad")

        def after(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            self._inside -= 1
            if not self._inside:
                self.take(name or type(module).__name__, gradients)

        stack.callback(module.register_forward_pre_hook(before).remove)
        stack.callback(module.register_forward_hook(after).remove)

    def take(self, name: str, gradients: Iterable[str]) -> None:
        """The calls since the last time belong to `name`."""
        for call in self.calls:
            if isinstance(call.problem, ConvProblem) and call.problem.direction == "forward":
                self.seen.append((name, call.problem, tuple(sorted(gradients))))
        self.calls.clear()


def _fresh(name: str, taken: Iterable[str]) -> str:
    """The name, numbered where another problem has it: a layer may be called with several shapes."""
    names, number, fresh = set(taken), 1, name
    while fresh in names:
        number += 1
        fresh = f"{name} #{number}"
    return fresh
