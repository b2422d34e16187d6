"""Networks' grouped layers at true channels and groups, by the public call in the interpreter, against float64."""

from collections import Counter
from typing import Any

import pytest
import torch
from conv_oracle import check_output, convolve, make_tensors, relative_error
from layer_cases import NETWORKS, LayerCase, grouped_layers, layer_cases, ragged_cases
from networks import SMALL, prepared
from torch import nn

import grouped_conv
from grouped_conv.autotune.workloads.named import MODELS
from grouped_conv.kernels.families import FAMILIES
from grouped_conv.planning.plan import cudnn_precision

CASES = [case for network in NETWORKS for case in layer_cases(network)]


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
    for network in NETWORKS:
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


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_small_network_equals_itself_when_converted(name: str) -> None:
    """In fp32, every convolution by a kernel; twice torch's own error is allowed, and one epsilon of each layer."""
    model = prepared(SMALL[name](), 32)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    exact = model.double()(x.double())
    theirs = model.float()(x)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    grouped_conv.convert(model)
    with cudnn_precision("ieee"), grouped_conv.interpret(), grouped_conv.trace() as calls:
        ours = model(x)
    assert len(calls) == convolutions
    assert all(call.path in FAMILIES for call in calls), [str(call) for call in calls]
    error, theirs_error = relative_error(ours, exact), relative_error(theirs, exact)
    assert error <= 2 * theirs_error + 2.0**-23, f"error {error:.3g}, torch's {theirs_error:.3g}"
