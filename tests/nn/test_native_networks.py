"""Whole networks at full size on compiled kernels: converted, run on this CPU, equal to plain torch."""

from dataclasses import replace
from types import ModuleType

import pytest
import torch
from conv_oracle import EPSILON, relative_error
from networks import NETWORKS, prepared
from torch import nn

import grouped_conv
from grouped_conv.kernels import ConvProblem, KernelConfig, PackedGroupsConfig
from grouped_conv.planning import executors
from grouped_conv.planning.interpreting import through_driver

pytestmark = pytest.mark.native


def without_cold_branch(problem: ConvProblem) -> KernelConfig:
    """As the lane chooses, but packed groups do not recompute non-finite tiles: that branch takes minutes to build."""
    config = native_config(problem)
    return replace(config, isolate=False) if isinstance(config, PackedGroupsConfig) else config


native_config = executors.native_config


@pytest.mark.sweep
@pytest.mark.parametrize("name", ["resnext50_32x4d", "mobilenet_v2", "convnext_t", "shufflenet_v1_g3"])
@torch.no_grad()
def test_whole_network(name: str, native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """224 pixels, batch 2, fp32: every convolution by a kernel, and no more error than twice torch's own."""
    model = prepared(NETWORKS[name]())
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    exact = model.double()(x.double())
    theirs = model.float()(x)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    grouped_conv.convert(model)
    monkeypatch.setattr(executors, "native_config", without_cold_branch)
    with through_driver(), grouped_conv.trace() as calls:
        ours = model(x)
    assert len(calls) == convolutions
    assert all(call.path in grouped_conv.kernels.families.FAMILIES for call in calls), [str(call) for call in calls]
    error, allowed = relative_error(ours, exact), 2 * relative_error(theirs, exact) + EPSILON["float32"]
    assert error <= allowed, f"error {error:.3g} is more than {allowed:.3g}"
    print(f"{name}: error {error:.3g}, torch's {relative_error(theirs, exact):.3g}, calls {len(calls)}")
