"""One way to make a torch operator of a planned call: schema, implementations, fake and FLOP formula.

Torch's schemas allow flat arguments only: tensors first, then attributes. `Operator` turns them into one tuple of
operands and one request, and back. An eager call on plain tensors goes to its plan directly, because the dispatcher
would only flatten it and arrive at the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from grouped_conv.call_values.geometry import Geometry
from grouped_conv.planning.plan_cache import OperandsT, Planner, RequestT, Results

library = torch.library.Library("grouped_conv", "DEF")
# Real strides must reach the implementation, because the output's memory format follows from them.
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

_C = torch._C
_PLAIN_TYPES = (Tensor, torch.nn.Parameter)
_NOTHING_ON_TOP = frozenset(
    keys.raw_repr()
    for keys in (
        _C.DispatchKeySet(_C.DispatchKey.BackendSelect),  # inside torch.inference_mode()
        _C.DispatchKeySet(_C.DispatchKey.BackendSelect).add(_C.DispatchKey.ADInplaceOrView),
    )
)
"""What this thread adds to every call's dispatch keys where no mode, transform or tracer is active."""


class Operator(Generic[OperandsT, RequestT]):
    """The operator `grouped_conv::name`.

    Args:
        name: of the operator.
        schema: arguments and results, `(Tensor input, ...) -> Tensor`; tensors come before attributes.
        planner: runs the calls.
        operands: makes the operands of the tensors.
        request: makes the request of the attributes, lists among them.
        attributes: the attributes of a request, in the schema's order.
        fake: the results without values.
        wanted: of an operator with several results, which of them a request wants; torch gets empty tensors for the
            others.
        flops: from the shapes of all arguments and `out_shape`; none are counted without it.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        planner: Planner[OperandsT, RequestT],
        *,
        operands: Callable[..., OperandsT],
        request: Callable[..., RequestT],
        attributes: Callable[[RequestT], Sequence[Any]],
        fake: Callable[[OperandsT, RequestT], Results],
        wanted: Callable[[RequestT], Sequence[bool]] | None = None,
        flops: Callable[..., int] | None = None,
    ) -> None:
        library.define(f"{name}{schema}", tags=TAGS)
        self.name = f"grouped_conv::{name}"
        self.run: Callable[[OperandsT, RequestT], Results] = partial(run_eagerly, planner, self.dispatch)
        self.packet = getattr(torch.ops.grouped_conv, name)
        self.overload = self.packet.default
        arguments = self.overload._schema.arguments
        self.tensors = sum("Tensor" in str(argument.type) for argument in arguments)
        self.others = len(arguments) - self.tensors
        self._operands, self._request, self._attributes, self._wanted = operands, request, attributes, wanted
        for key in ("CPU", "CUDA"):
            library.impl(name, self._implementation(planner.run), key)
        torch.library.register_fake(self.name, self._implementation(fake), lib=library)
        if flops is not None:
            register_flop_formula(self.packet)(flops)

    def dispatch(self, operands: OperandsT, request: RequestT) -> Results:
        """Call the operator through torch's dispatcher, as compilers and transforms need it."""
        return self.wanted(self.overload(*map(_as_argument, operands), *self._attributes(request)), request)

    def wanted(self, results: Any, request: RequestT) -> Results:
        """What torch returned as a tuple, None for results that are not wanted."""
        if self._wanted is None:
            return (results,)
        return tuple(result if want else None for result, want in zip(results, self._wanted(request), strict=True))

    def read(self, arguments: Sequence[Any]) -> tuple[OperandsT, RequestT]:
        """The operands and the request of flat arguments."""
        return self._operands(*arguments[: self.tensors]), self._request(*arguments[self.tensors :])

    def _implementation(self, compute: Callable[[OperandsT, RequestT], Results]) -> Callable[..., Any]:
        single = len(self.overload._schema.returns) == 1

        def implementation(*arguments: Any) -> Any:
            operands, request = self.read(arguments)
            results = compute(operands, request)
            if single:
                return results[0]
            return tuple(operands[0].new_empty(0) if result is None else result for result in results)

        return implementation


def run_eagerly(
    planner: Planner[OperandsT, RequestT],
    dispatch: Callable[[OperandsT, RequestT], Results],
    operands: OperandsT,
    request: RequestT,
) -> Results:
    """Run an eager call below autograd; None for results that are not wanted.

    Args:
        dispatch: takes the call through torch's dispatcher, where something has to see it there.
    """
    if goes_straight(operands):
        return planner.run(operands, request)
    with _C._AutoDispatchBelowAutograd():
        return dispatch(operands, request)


def goes_straight(operands: Sequence[Any]) -> bool:
    """Would the dispatcher take a call on these to the CPU's or CUDA's implementation, and nothing else?

    False for tensors that are more than data in memory, and where a mode, a transform, a tracer or a profiler watches.
    """
    if _C._dispatch_tls_local_include_set().raw_repr() not in _NOTHING_ON_TOP or _C._len_torch_function_stack():
        return False
    if _C._autograd._profiler_enabled() or operands[0].device.type == "meta":
        return False
    for one in operands:
        if type(one) is tuple:
            if not all(map(_is_plain, one)):
                return False
        elif one is not None and (type(one) not in _PLAIN_TYPES or one.is_neg() or one._is_zerotensor()):
            return False
    return True


def wants_gradient(operands: Sequence[Any]) -> bool:
    """Will autograd record a call on these?"""
    return torch.is_grad_enabled() and _any_requires_grad(operands)


def _any_requires_grad(operands: Sequence[Any]) -> bool:
    for one in operands:
        if one is None:
            continue
        if _any_requires_grad(one) if isinstance(one, tuple) else one.requires_grad:
            return True
    return False


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in _PLAIN_TYPES and not tensor.is_neg() and not tensor._is_zerotensor()


def _as_argument(operand: Any) -> Any:
    return list(operand) if type(operand) is tuple else operand


def geometry_of(stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> Geometry:
    """The geometry of an operator's arguments, which torch hands over as lists."""
    return Geometry(tuple(stride), tuple(padding), tuple(dilation))  # type: ignore[arg-type]
