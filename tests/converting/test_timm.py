"""timm's own networks, converted, equal themselves. Runs where timm is installed; it is no dependency of ours."""

import copy

import pytest
import torch
from conv_oracle import EPSILON, relative_error
from networks import prepared
from torch import nn

import grouped_conv
from grouped_conv.kernels.families import FAMILIES
from grouped_conv.planning.plan import cudnn_precision

timm = pytest.importorskip("timm", reason="timm is not installed; it is no dependency")

SMALL = {
    # name in timm: what makes it small; groups stay those of the architecture
    "resnext50_32x4d": dict(layers=(1, 1, 1, 1), cardinality=8, base_width=4),
    "mobilenetv2_035": {},
    "regnetx_002": {},
    "regnety_002": {},
    "convnext_atto": dict(depths=(1, 1, 1, 1), dims=(16, 32, 64, 64)),
    "efficientnet_lite0": {},
}
"""ResNeXt, inverted residuals, RegNet with and without squeeze and excitation, ConvNeXt, MBConv with 5x5 kernels."""


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_converted_network_equals_itself(name: str) -> None:
    """The path that a user without a GPU takes, and in the interpreter the first grouped layers of each kind."""
    model = prepared(timm.create_model(name, pretrained=False, num_classes=10, **SMALL[name]), 64)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    exact = model.double()(x.double())
    theirs = model.float()(x)
    inputs = grouped_inputs(model, x)
    grouped_conv.convert(model)
    assert all(
        note.status == "converted" for note in grouped_conv.conversion_report(model) if note.kind == "GroupedConv2d"
    )
    assert relative_error(model(x), exact) <= 2 * relative_error(theirs, exact) + EPSILON["float32"]
    assert inputs
    for layer, value in inputs.values():
        exact, theirs = copy.deepcopy(layer).double()(value.double()), layer(value)
        with cudnn_precision("ieee"), grouped_conv.interpret(), grouped_conv.trace() as calls:
            ours = layer(value)
        assert calls[0].path in FAMILIES
        assert relative_error(ours, exact) <= 2 * relative_error(theirs, exact) + EPSILON["float32"], calls[0]


def grouped_inputs(model: nn.Module, x: torch.Tensor) -> dict[tuple[int, ...], tuple[nn.Conv2d, torch.Tensor]]:
    """One grouped convolution of each (kernel, stride, channels per group), with a small part of what it is given."""
    found: dict[tuple[int, ...], tuple[nn.Conv2d, torch.Tensor]] = {}

    def look(layer: nn.Conv2d, inputs: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
        key = (*layer.kernel_size, *layer.stride, layer.weight.shape[1])
        if layer.groups > 1 and layer.in_channels <= 64:
            found.setdefault(key, (layer, inputs[0][:1, :, :7, :7].contiguous()))

    handles = [m.register_forward_hook(look) for m in model.modules() if type(m) is nn.Conv2d]
    model(x)
    for handle in handles:
        handle.remove()
    return found
