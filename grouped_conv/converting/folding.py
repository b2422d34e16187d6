"""Folding BatchNorm into the convolution before it, for inference: `fold_batchnorm`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import TypeGuard

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from grouped_conv.by_torch.ragged import routes
from grouped_conv.nn.conv import FusedLayer, GroupedConv1d, GroupedConv2d
from grouped_conv.nn.frozen_weights import forget_packed_weight
from grouped_conv.nn.ragged import RaggedConv2d

Convolution = nn.Conv2d | nn.Conv1d | RaggedConv2d


def fold_batchnorm(model: nn.Module, *, verbose: bool = False) -> nn.Module:
    """Fold each BatchNorm into the convolution before it, in place, and return the model. This ends training.

    `weight' = weight * gamma / sqrt(var + eps)`, `bias' = beta + (bias - mean) * gamma / sqrt(var + eps)`, computed in
    float64. The BatchNorm becomes `nn.Identity`; the convolution gets new, frozen Parameters, always with a bias.

    A pair is folded when the convolution is exactly torch's or ours, 1-D, 2-D or ragged, without activation and
    shuffle, the BatchNorm exactly a `BatchNorm1d`, `BatchNorm2d` or `SyncBatchNorm` with running statistics, nothing
    else reads the convolution's output, and neither has hooks or parametrizations. If `torch.fx` can trace the model,
    its graph says what follows what; otherwise only neighbours inside an `nn.Sequential` are pairs, which assumes that
    no code indexes into it.

    Args:
        verbose: print what is folded, which BatchNorms remain, and why.

    Raises:
        ValueError: when the model, or a BatchNorm in it, is in training mode.
    """
    training = [name for name, module in model.named_modules() if _is_batchnorm(module) and module.training]
    if model.training or training:
        culprits = ", ".join(training) or "the model"
        raise ValueError(f"fold_batchnorm ends training; call model.eval() first (in training mode: {culprits})")
    names = {module: name for name, module in model.named_modules()}
    pairs = dict(_pairs(model))
    for batchnorm, convolution in pairs.items():
        reason = _why_not(convolution, batchnorm)
        if not reason:
            _fold(convolution, batchnorm)
            _replace(model, batchnorm, nn.Identity())
        if verbose:
            print(f"{names[batchnorm]}: {f'left, {reason}' if reason else f'folded into {names[convolution]}'}")
    if verbose:
        for module, name in names.items():
            if _is_batchnorm(module) and module not in pairs:
                print(f"{name}: left, no convolution is known to feed it alone")
    return model


def _is_batchnorm(module: object) -> TypeGuard[_BatchNorm]:
    return type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)


def _is_convolution(module: object) -> TypeGuard[Convolution]:
    return type(module) in (nn.Conv2d, GroupedConv2d, nn.Conv1d, GroupedConv1d, RaggedConv2d)


def _pairs(model: nn.Module) -> Iterator[tuple[_BatchNorm, Convolution]]:
    """(BatchNorm, the convolution that feeds it and nothing else)."""
    try:
        graph = _Tracer().trace(model)
    except Exception:  # a model's own Python may raise anything when it is traced
        yield from _neighbours(model)
        return
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = Counter(modules[str(node.target)] for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        batchnorm, convolution = modules[str(node.target)], modules[str(before.target)]
        if _is_batchnorm(batchnorm) and _is_convolution(convolution) and calls[batchnorm] == calls[convolution] == 1:
            yield batchnorm, convolution


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, FusedLayer | RaggedConv2d) or super().is_leaf_module(m, module_qualified_name)


def _neighbours(model: nn.Module) -> Iterator[tuple[_BatchNorm, Convolution]]:
    uses = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    for container in model.modules():
        if type(container) is nn.Sequential:
            for convolution, batchnorm in pairwise(container):
                once = uses[convolution] == uses[batchnorm] == 1
                if once and _is_convolution(convolution) and _is_batchnorm(batchnorm):
                    yield batchnorm, convolution


def _why_not(convolution: Convolution, batchnorm: _BatchNorm) -> str:
    if getattr(convolution, "activation", None) is not None:
        return f"an activation, {convolution.activation}, lies between"
    if getattr(convolution, "output_shuffle", 1) > 1:
        return f"a channel shuffle in {convolution.output_shuffle} groups lies between"
    if batchnorm.running_mean is None or batchnorm.running_var is None:
        return "it keeps no running statistics"
    for module in (convolution, batchnorm):
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return f"hooks on the {type(module).__name__} would see other values"
    if batchnorm.num_features != convolution.out_channels:
        return f"it has {batchnorm.num_features} features for {convolution.out_channels} channels"
    return ""


def _fold(convolution: Convolution, batchnorm: _BatchNorm) -> None:
    dtype = next(convolution.parameters()).dtype
    with torch.no_grad():
        mean, variance = batchnorm.running_mean, batchnorm.running_var
        gain = torch.rsqrt(_float64(variance) + batchnorm.eps)
        if batchnorm.affine:
            gain = gain * _float64(batchnorm.weight)
        shift = (_float64(convolution.bias) - _float64(mean)) * gain
        if batchnorm.affine:
            shift = shift + _float64(batchnorm.bias)
    if isinstance(convolution, RaggedConv2d):
        for index, (weight, route) in enumerate(zip(convolution.weights, routes(convolution.layout), strict=True)):
            setattr(convolution, f"weight_{index}", _scaled(weight, gain[list(route.outputs)]))
        convolution.flatten_weights()
    else:
        convolution.weight = _scaled(convolution.weight, gain)
        forget_packed_weight(convolution)
    convolution.bias = nn.Parameter(shift.to(dtype), requires_grad=False)


def _scaled(weight: torch.Tensor, gain: torch.Tensor) -> nn.Parameter:
    """Each filter times its gain, in the weight's memory format; frozen."""
    with torch.no_grad():
        product = weight.double() * gain.view(-1, *[1] * (weight.dim() - 1))
        return nn.Parameter(torch.empty_like(weight.detach()).copy_(product), requires_grad=False)


def _float64(tensor: torch.Tensor | None) -> torch.Tensor:
    return torch.zeros(()) if tensor is None else tensor.double()


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    new.training = old.training
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
