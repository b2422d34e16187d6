"""Named models as tables of convolutions, for tuning and for gates on compiled code."""

from __future__ import annotations

from dataclasses import dataclass

from grouped_conv.kernels.epilogue import Epilogue
from grouped_conv.kernels.problem import ConvProblem

BIAS_RELU = Epilogue(activation="relu", bias=True)


@dataclass(frozen=True, slots=True)
class Layer:
    """One row of a model's table: `(C, H, W)` in, `K` filters of `size` x `size`."""

    name: str
    channels: int
    height: int
    filters: int
    size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1


MODELS: dict[str, tuple[Layer, ...]] = {
    # Krizhevsky et al. 2012 with two groups, as Caffe's bvlc_alexnet; conv1 sees 224 pixels and 3 of zeros
    "alexnet": (
        Layer("conv1", 3, 227, 96, 11, stride=4),
        Layer("conv2", 96, 27, 256, 5, padding=2, groups=2),
        Layer("conv3", 256, 13, 384, 3, padding=1),
        Layer("conv4", 384, 13, 384, 3, padding=1, groups=2),
        Layer("conv5", 384, 13, 256, 3, padding=1, groups=2),
    ),
}


def workload(
    model: str, batch: int = 128, dtype: str = "float16", *, epilogue: Epilogue = BIAS_RELU, channels_last: bool = True
) -> dict[str, ConvProblem]:
    """The convolutions of `model` by layer name.

    Raises:
        ValueError: for an unknown model, naming the known ones, and for a bad batch or dtype.
    """
    layers = MODELS.get(model.lower())
    if layers is None:
        raise ValueError(f"unknown model {model!r}; known: {', '.join(MODELS)}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, but got {batch}")
    return {
        layer.name: ConvProblem.of(
            (batch, layer.channels, layer.height, layer.height),
            (layer.filters, layer.channels // layer.groups, layer.size, layer.size),
            layer.stride,
            layer.padding,
            groups=layer.groups,
            dtype=dtype,
            channels_last=channels_last,
            epilogue=epilogue,
        )
        for layer in layers
    }
