"""Networks converted, and their grouped layers at true channels and groups: by kernels, against float64."""

from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from conv_oracle import EPSILON, check_output, convolve, make_tensors, relative_error
from layer_cases import NETWORKS as LAYERED
from layer_cases import LayerCase, grouped_layers, layer_cases, ragged_cases
from networks import NETWORKS, SMALL, prepared
from torch import nn

import grouped_conv
from grouped_conv.autotune.workloads.named import MODELS
from grouped_conv.kernels import ConvProblem, KernelConfig, PackedGroupsConfig
from grouped_conv.kernels.families import FAMILIES
from grouped_conv.planning import executors
from grouped_conv.planning.interpreting import through_driver
from grouped_conv.planning.plan import cudnn_precision

CASES = [case for network in LAYERED for case in layer_cases(network)]


LONG = 10**8
"""Multiply-accumulates beyond which a layer takes the interpreter more than 20 s."""


def _marked(case: LayerCase) -> Any:
    return pytest.param(case, id=case.id, marks=[pytest.mark.sweep] if case.problem.macs > LONG else [])


@pytest.mark.parametrize("case", map(_marked, CASES))
def test_layer_agrees_with_float64(case: LayerCase) -> None:
    """By the family and configuration that the heuristic chooses."""
    tensors = make_tensors(case.problem)
    with grouped_conv.interpret(), grouped_conv.trace() as calls:
        tensors["output"] = convolve(case.problem, tensors)
    (call,) = calls
    assert call.path in FAMILIES, call
    check_output(case.problem, tensors, case.id)


def test_every_grouped_layer_dtype_and_format_is_met() -> None:
    for network in LAYERED:
        met = {
            (*case.problem.weight_shape, case.problem.groups, case.problem.stride[0])
            for case in layer_cases(network)
        }  # fmt: skip
        wanted = {
            (row.filters, row.channels // row.groups, row.size, row.size, row.groups, row.stride)
            for row in MODELS[network]
            if row.groups > 1
        }
        assert met == wanted
        assert len(grouped_layers(network)) >= 3
    problems = [case.problem for case in CASES]
    assert all(7 <= size <= 12 for problem in problems for size in problem.in_size)
    kinds = Counter((p.dtype, p.input_channels_last, p.weight_channels_last) for p in problems)
    assert len(kinds) == 12


def test_unequal_layouts_are_of_every_kind() -> None:
    problems = [case.problem for case in ragged_cases()]
    assert len(problems) >= 12
    assert not any(problem.layout.is_uniform for problem in problems)
    read = [[c for g in range(p.groups) for c in p.layout.inputs_of(g)] for p in problems]
    assert all(set(channels) == set(range(p.in_channels)) for channels, p in zip(read, problems, strict=True))
    assert any(len(channels) > p.in_channels for channels, p in zip(read, problems, strict=True))


def check_network(model: nn.Module, x: torch.Tensor, place: AbstractContextManager[object]) -> None:
    """In fp32, every convolution by a kernel; twice torch's own error is allowed, and one epsilon of each layer."""
    exact = model.double()(x.double())
    theirs = model.float()(x)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    grouped_conv.convert(model)
    with cudnn_precision("ieee"), place, grouped_conv.trace() as calls:
        ours = model(x)
    assert len(calls) == convolutions
    assert all(call.path in FAMILIES for call in calls), [str(call) for call in calls]
    error, theirs_error = relative_error(ours, exact), relative_error(theirs, exact)
    print(f"error {error:.3g}, torch's {theirs_error:.3g}, calls {len(calls)}")
    assert error <= 2 * theirs_error + EPSILON["float32"], f"error {error:.3g}, torch's {theirs_error:.3g}"


def images(count: int, size: int) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_small_network_equals_itself_when_converted(name: str) -> None:
    check_network(prepared(SMALL[name](), 32), images(1, 32), grouped_conv.interpret())


def without_cold_branch(problem: ConvProblem) -> KernelConfig:
    """As the lane chooses, but packed groups do not recompute non-finite tiles: that branch takes minutes to build."""
    config = native_config(problem)
    return replace(config, isolate=False) if isinstance(config, PackedGroupsConfig) else config


native_config = executors.native_config


@pytest.mark.native
@pytest.mark.sweep
@pytest.mark.parametrize("name", ["resnext50_32x4d", "mobilenet_v2", "convnext_t", "shufflenet_v1_g3"])
@torch.no_grad()
def test_whole_network(name: str, native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """At full size, compiled for this CPU."""
    monkeypatch.setattr(executors, "native_config", without_cold_branch)
    check_network(prepared(NETWORKS[name]()), images(2, 224), through_driver())
