"""`warmup`: run a model once so that every convolution has its plan and kernels before a CUDA graph is captured."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from grouped_conv.context.tracing import CallRecord, trace
from grouped_conv.kernels.separable.problem import SeparableProblem
from grouped_conv.kernels.values.problem import ConvProblem
from grouped_conv.nn.conv import FusedLayer
from grouped_conv.nn.lrn_pool import LrnMaxPool2d
from grouped_conv.nn.ragged import RaggedConv2d
from grouped_conv.nn.separable import ChainedConv2d

if TYPE_CHECKING:
    import pandas

COLUMNS = ("layer", "direction", "path", "reason", "config", "source", "launches", "problem")
LAYERS = (FusedLayer, RaggedConv2d, ChainedConv2d, LrnMaxPool2d)
OUTSIDE = "call"
"""The name of a call outside of these layers."""


def warmup(
    model: nn.Module,
    example_input: Any,
    *,
    kwargs: Mapping[str, Any] | None = None,
    backward: bool | None = None,
    loss: Callable[[Any], Tensor] | None = None,
) -> pandas.DataFrame:
    """Prepare every convolution that the model computes through this package for the capture of a CUDA graph.

    Nothing is compiled during a capture. A call that has no plan yet runs ATen's convolution, or is an error if a
    kernel is required. This function runs the model once, on the current stream, and so makes those plans: it looks up
    records, compiles and loads kernels, and moves index tables and frozen weights to the device. Call it under the
    conditions of the capture: the same policy, configuration, autocast, grad mode and torch flags, and inputs of the
    same shapes, strides and alignment. Tune first, because later changes of the tuning store, of flags or of weights'
    memory formats need new plans.

    The model does not change. Its buffers (statistics of BatchNorm), gradients and training mode are restored, and so
    are the random generators of torch, numpy and Python. Gradients come from `torch.autograd.grad`, so nothing is
    accumulated, and hooks on accumulation do not run. Other hooks run as in any call; their side effects remain.

    Args:
        model: the module that will be captured; for a `DistributedDataParallel`, its `module`.
        example_input: what the model is called with; a tuple holds several arguments.
        kwargs: what it is called with by name.
        backward: whether to prepare the backward pass, too; by default, whether grad mode is on.
        loss: reduces the model's output to a scalar; by default each output's gradient is all ones, with its strides.

    Returns:
        One row per call in the order of execution: `layer` (of a gradient by its shapes; `call` outside of our layers
        and in compiled modules), `direction`, `path` (a kernel family, `aten`, ...) and the `reason` for it,
        configuration, source, launches and problem, as in `trace()`.

    Raises:
        ValueError: if `model` is not a module, or is one that synchronises gradients.
        RuntimeError: during a capture, or if `backward=True` and nothing requires a gradient.
    """
    import pandas

    if not isinstance(model, nn.Module):
        raise ValueError(f"warmup runs a torch.nn.Module, but got {type(model).__name__}")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError("DistributedDataParallel counts its backward passes: give warmup its .module")
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("warmup compiles, which cannot be done during a capture: call it before")
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    with _unchanged(model, [*arguments, *(kwargs or {}).values()]), trace() as calls:
        with _Naming(model, calls) as naming:
            output = model(*arguments, **(kwargs or {}))
        names = naming.named
        if torch.is_grad_enabled() if backward is None else backward:
            _differentiate(output, loss, required=bool(backward))
            names += list(_named_gradients(calls, names))
    if not names:
        what = f"{type(model).__name__} computes no convolution through grouped_conv"
        warnings.warn(f"{what}; call grouped_conv.convert(model) first", stacklevel=2)
    return pandas.DataFrame([_row(name, call) for name, call in names], columns=list(COLUMNS))


def _differentiate(output: Any, loss: Callable[[Any], Tensor] | None, required: bool) -> None:
    """Compute the gradient of every leaf that the output depends on, and drop it."""
    results = [output if loss is None else loss(output)]
    roots = [tensor for tensor in _tensors(results) if tensor.grad_fn is not None]
    if not roots:
        if required:
            raise RuntimeError(
                f"backward=True, but no output requires a gradient (grad mode is {torch.is_grad_enabled()})"
            )
        return
    ones = [torch.ones_like(root) for root in roots]
    torch.autograd.grad(roots, _leaves(roots), ones, allow_unused=True)


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in lists, tuples, dictionaries and objects with fields."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)
    elif hasattr(value, "__dataclass_fields__"):
        yield from _tensors([getattr(value, name) for name in value.__dataclass_fields__])


def _leaves(roots: list[Tensor]) -> list[Tensor]:
    """Everything whose gradient `backward()` would accumulate."""
    waiting: list[Any] = [root.grad_fn for root in roots]
    seen, found = set(waiting), []
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            found.append(node.variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                waiting.append(following)
    return found


@contextmanager
def _unchanged(model: nn.Module, arguments: list[Any]) -> Iterator[None]:
    """Put back, at the end of the block, what a training step changes in a model and in random generators."""
    modules = list(model.modules())
    modes = [module.training for module in modules]
    buffers = [(module._buffers, name, tensor) for module in modules for name, tensor in module._buffers.items()]
    values = [None if tensor is None else tensor.detach().clone() for _, _, tensor in buffers]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    python, numpy = random.getstate(), np.random.get_state()
    placed = [*model.parameters(), *model.buffers(), *_tensors(arguments)]
    devices = {tensor.device for tensor in placed if tensor.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            for parameter, _ in gradients:
                parameter.grad = None
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        with torch.no_grad():
            for (owner, name, tensor), value in zip(buffers, values, strict=True):
                owner[name] = tensor if tensor is None or value is None else tensor.copy_(value)


class _Naming:
    """Gives each record the name of the layer that was being called, by hooks that are gone after the block.

    A block that fuses its children calls them one by one where they have hooks, so it is the block that gets one.
    Compiled modules get none: Dynamo would trace the hooks, and compile again without them.
    """

    def __init__(self, model: nn.Module, calls: list[CallRecord]) -> None:
        self.calls, self.named = calls, list[tuple[str, CallRecord]]()
        self._layers = [] if any(map(_is_compiled, model.modules())) else list(_layers_of(model))

    def __enter__(self) -> Self:
        self._hooks = ExitStack()
        for name, module in self._layers:
            label = name or type(module).__name__
            self._hooks.callback(module.register_forward_pre_hook(lambda *_: self.take(OUTSIDE)).remove)
            self._hooks.callback(module.register_forward_hook(lambda *_, label=label: self.take(label)).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()
        self.take(OUTSIDE)

    def take(self, name: str) -> None:
        """The calls since the last time belong to `name`."""
        self.named.extend((name, call) for call in self.calls)
        self.calls.clear()


def _layers_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Our layers by name, those inside of another one left out."""
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module not in inside and isinstance(module, LAYERS):
            inside.update(module.modules())
            yield name, module


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None


def _named_gradients(
    calls: Sequence[CallRecord], forward: Sequence[tuple[str, CallRecord]]
) -> Iterator[tuple[str, CallRecord]]:
    """Calls of the backward pass with the layer of their shapes; it goes from the last to the first of equal ones."""
    layers: dict[Any, list[str]] = {}
    for name, call in forward:
        whole = call.problem
        for problem in (whole.first, whole.second) if isinstance(whole, SeparableProblem) else (whole,):
            if isinstance(problem, ConvProblem):
                layers.setdefault(_shapes(problem), []).append(name)
    seen: Counter[Any] = Counter()
    for call in calls:
        if not isinstance(call.problem, ConvProblem):
            yield OUTSIDE, call
            continue
        shapes = _shapes(call.problem)
        names = layers.get(shapes, [OUTSIDE])
        seen[call.problem.direction, shapes] += 1
        yield names[max(0, len(names) - seen[call.problem.direction, shapes])], call


def _shapes(problem: ConvProblem) -> tuple[Any, ...]:
    window = problem.kernel_size, problem.stride, problem.padding, problem.dilation
    return problem.batch, problem.layout, problem.in_size, *window, problem.dtype


def _row(name: str, call: CallRecord) -> dict[str, Any]:
    direction = call.problem.direction if isinstance(call.problem, ConvProblem) else "forward"
    values = name, direction, call.path, call.reason, call.config, call.source, call.launches, call.problem
    return dict(zip(COLUMNS, values, strict=True))
