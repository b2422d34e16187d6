"""Which path a call takes and why: the policy, the tuner's records of this device, and what the caller insists on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grouped_conv.by_torch.gradients import float32_flag
from grouped_conv.call_values.memory_formats import is_channels_last
from grouped_conv.call_values.ragged_checks import RaggedOperands
from grouped_conv.call_values.request import Operands, Request
from grouped_conv.context import overrides
from grouped_conv.context.policies import get_policy, is_strict
from grouped_conv.kernels.families import family_of, why_invalid
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.layout import GroupLayout
from grouped_conv.kernels.values.problem import ITEM_SIZE, ConvProblem
from grouped_conv.planning.executors import DriverExecutor, Executor, Place

ON_CPU = "the tensors are on the CPU, outside grouped_conv.interpret()"
NO_ELEMENTS = "the output has no elements"
UNKNOWN_GPU = "no device of this GPU's architecture is known (see grouped_conv.DeviceSpec.all())"


@dataclass(frozen=True, slots=True)
class Conditions:
    """What decides the path, besides the operands.

    Attributes:
        place: where the tensors are and what can run kernels there.
        policy: `measured`, `predicted` or `kernels`.
        backend: `auto`, `aten` or `kernel`.
        given: the configuration that `using_config` asks for.
    """

    place: Place
    policy: str
    backend: str
    given: KernelConfig | None = None

    @classmethod
    def of(cls, place: Place, backend: str, direction: str = "forward") -> Conditions:
        """The conditions here and now, for a kernel of this direction."""
        return cls(place, get_policy(), backend, overrides.given_config(direction))

    @property
    def insists(self) -> str:
        """Who insists on the kernels, in the words of an error message; empty when nobody does."""
        if self.backend == "kernel":
            return "backend='kernel'"
        return "policy 'kernels'" if self.policy == "kernels" and self.backend == "auto" else ""


@dataclass(frozen=True, slots=True)
class Decision:
    """The path of a call: a kernel when `config` is there, otherwise torch's operations."""

    config: KernelConfig | None
    reason: str
    source: str = ""


class Kind(NamedTuple):
    """What differs between convolutions, separable blocks and LRN with pooling when a path is chosen.

    Attributes:
        takes_all: is every configuration that `using_config` gave meant for these calls, and an error if it cannot run
            them? Otherwise only those of a family that computes such problems.
        refuse: raises where kernels are insisted on and the second argument keeps them from running.
        choose: the path where nothing has decided before.
    """

    takes_all: bool
    refuse: Callable[[Conditions, str], None]
    choose: Callable[[Any, Conditions, Executor], Decision]


def decide(problem: Any, conditions: Conditions, kind: Kind) -> Decision:
    """The path of a call.

    Args:
        problem: of this kind, or the reason why the call is none.

    Raises:
        RuntimeError: when kernels are insisted on and cannot run here, with what to do about it.
        ValueError: when the given configuration cannot run the problem, with the reason.
    """
    place = conditions.place
    if conditions.backend == "aten":
        return Decision(None, "backend='aten' was asked for")
    if isinstance(problem, str):
        if conditions.backend == "kernel":
            raise RuntimeError(f"backend='kernel' was asked for, but {problem}")
        return Decision(None, problem)
    if place.executor is None or place.barred:
        obstacle = place.barred or ON_CPU
        kind.refuse(conditions, obstacle)
        return Decision(None, obstacle)
    given = conditions.given
    if given is not None and (kind.takes_all or family_of(given).problem is type(problem)):
        reason = why_invalid(problem, given)
        if reason is not None:
            raise ValueError(f"configuration {given} cannot run {problem}: {reason}")
        return Decision(given, "a configuration was given", "given")
    return kind.choose(problem, conditions, place.executor)


def _refuse_convolution(conditions: Conditions, obstacle: str) -> None:
    if not conditions.insists:
        return
    if conditions.place.executor is None:
        raise RuntimeError(
            f"{conditions.insists} cannot run a kernel on a CPU tensor; use `with grouped_conv.interpret():` "
            "to run it in Triton's interpreter, or move the tensors to a GPU"
        )
    raise RuntimeError(f"{conditions.insists} cannot compile a kernel now: {obstacle}")


def _choose_convolution(problem: ConvProblem, conditions: Conditions, executor: Executor) -> Decision:
    if not executor.follows_records:
        return Decision(executor.choose(problem), f"run by {executor.name}", "heuristic")
    return consult(problem, "kernels" if conditions.insists else conditions.policy, conditions.place)


CONVOLUTION = Kind(True, _refuse_convolution, _choose_convolution)
"""A convolution or one of its gradients."""


_warned: set[ConvProblem] = set()


def consult(problem: ConvProblem, policy: str, place: Place) -> Decision:
    """What the tuner's records say of a convolution on a GPU of this machine; a look-up, nothing is tuned.

    Raises:
        UntunedError: in strict mode, for a convolution that is not tuned for this GPU.
    """
    from grouped_conv.autotune.lookup import resolve as lookup

    spec: DeviceSpec | None = place.spec
    if spec is None:
        if is_strict():
            raise lookup.UntunedError(f"strict mode: {problem} cannot be tuned: {UNKNOWN_GPU}")
        return Decision(None, UNKNOWN_GPU)
    choice = lookup.resolve(problem, spec, policy, strict=is_strict(), place=f"cuda:{place.device}")
    if policy == "measured" and not choice.is_tuned and problem not in _warned:
        _warned.add(problem)
        warnings.warn(f"torch's own convolution runs {problem}: {choice.reason}", stacklevel=2)
    return Decision(choice.config, choice.reason, choice.source)


def describe(operands: Operands | RaggedOperands, request: Request, layout: GroupLayout | None = None) -> Any:
    """The call as a `ConvProblem`, or as a `str` that says why it is none.

    Args:
        layout: the groups, where they are unequal; otherwise they follow from the shapes.
    """
    input, bias, scale, residual = operands.input, operands.bias, operands.scale, operands.residual
    weights = (operands.weight,) if isinstance(operands, Operands) else operands.weights
    dtype = dtype_name(input)
    if dtype not in ITEM_SIZE:
        return f"the kernels do not compute {dtype}"
    geometry = request.geometry
    epilogue = Epilogue(
        request.activation,
        request.negative_slope,
        bias is not None,
        scale is not None,
        residual is not None,
        request.save_preactivation,
        request.output_shuffle,
    )
    try:
        if isinstance(operands, Operands):
            layout = GroupLayout.uniform(input.shape[1], operands.weight.shape[0], operands.groups)
        assert layout is not None
        return ConvProblem(
            batch=input.shape[0],
            layout=layout,
            in_size=(input.shape[2], input.shape[3]),
            kernel_size=(weights[0].shape[2], weights[0].shape[3]),
            stride=geometry.stride,
            padding=geometry.padding,
            dilation=geometry.dilation,
            dtype=dtype,
            precision=request.precision,
            input_channels_last=is_channels_last(input.shape, input.stride()),
            weight_channels_last=any(is_channels_last(weight.shape, weight.stride()) for weight in weights),
            epilogue=epilogue,
            input_shuffle=request.input_shuffle,
        )
    except ValueError as error:
        return str(error)


def dtype_name(tensor: Tensor) -> str:
    """`float16` for `torch.float16`."""
    return str(tensor.dtype).removeprefix("torch.")


def adapted(problem: ConvProblem, executor: Executor) -> ConvProblem:
    """The problem as its executor can compute it."""
    native = isinstance(executor, DriverExecutor) and executor.is_native
    return replace(problem, precision="ieee") if native else problem


def with_settled_precision(request: Request, dtype: torch.dtype) -> Request:
    """The request with `default` replaced by what torch's flag says now; torch's other settings all mean ieee."""
    if request.precision != "default":
        return request
    tf32 = dtype == torch.float32 and float32_flag() == "tf32"
    return request._replace(precision="tf32" if tf32 else "ieee")
