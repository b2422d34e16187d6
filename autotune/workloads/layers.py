"""The convolutions of well-known networks on one 224-pixel image (AlexNet: 227), each shape once with its count.

Rows are made from the architectures' own numbers. BatchNorms count as folded: every convolution has a bias, and the
activation that follows it directly belongs to it. Linear layers are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Layer:
    """One shape of convolution in a network.

    Attributes:
        name: of the first layer of this shape.
        channels, height: the input is `(channels, height, height)`.
        filters, size: output channels, and rows and columns of the kernel.
        stride, padding, groups: as in `torch.nn.Conv2d`.
        activation: what follows directly, one of `kernels.ACTIVATIONS`.
        count: layers of this shape.
    """

    name: str
    channels: int
    height: int
    filters: int
    size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    activation: str = "relu"
    count: int = 1

    @property
    def out_height(self) -> int:
        """Rows of the output."""
        return (self.height + 2 * self.padding - self.size) // self.stride + 1


def alexnet() -> Iterator[Layer]:
    """Krizhevsky et al. 2012 with two groups, as Caffe's bvlc_alexnet; conv1 sees 224 pixels and 3 of zeros."""
    yield Layer("conv1", 3, 227, 96, 11, stride=4)
    yield Layer("conv2", 96, 27, 256, 5, padding=2, groups=2)
    yield Layer("conv3", 256, 13, 384, 3, padding=1)
    yield Layer("conv4", 384, 13, 384, 3, padding=1, groups=2)
    yield Layer("conv5", 384, 13, 256, 3, padding=1, groups=2)


def resnext50_32x4d() -> Iterator[Layer]:
    """ResNeXt-50 32x4d (arXiv 1611.05431); the last 1x1 of a block is followed by the sum, then by relu."""
    yield Layer("stem", 3, 224, 64, 7, 2, 3)
    c, height = 64, 56
    for stage, depth in enumerate((3, 4, 6, 3)):
        inner, k = 128 << stage, 256 << stage
        for block in range(depth):
            stride = 2 if stage and not block else 1
            yield from _bottleneck(f"stage{stage + 1}.{block}", c, height, inner, k, stride, 32)
            c, height = k, height // stride


def regnetx_400mf() -> Iterator[Layer]:
    """RegNetX-400MF (arXiv 2003.13678, the paper's widths; torchvision's last stage has 400 channels)."""
    yield from _regnet((1, 2, 7, 12), (32, 64, 160, 384), group_width=16, squeezes=False)


def regnety_16gf() -> Iterator[Layer]:
    """RegNetY-16GF (arXiv 2003.13678), squeeze and excitation included."""
    yield from _regnet((2, 4, 11, 1), (224, 448, 1232, 3024), group_width=112, squeezes=True)


def shufflenet_v1_g3() -> Iterator[Layer]:
    """ShuffleNet v1 1x with 3 groups (arXiv 1707.01083)."""
    yield Layer("stem", 3, 224, 24, 3, 2, 1)
    c, height = 24, 56
    for stage, (depth, k) in enumerate(((4, 240), (8, 480), (4, 960)), start=2):
        for unit in range(depth):
            name, inner, stride = f"stage{stage}.{unit}", k // 4, 1 if unit else 2
            yield Layer(f"{name}.narrow", c, height, inner, 1, groups=1 if c == 24 else 3)
            yield Layer(f"{name}.depthwise", inner, height, inner, 3, stride, 1, inner, "none")
            c, height, added = k, height // stride, 0 if unit else c
            yield Layer(f"{name}.widen", inner, height, k - added, 1, groups=3, activation="none")


def shufflenet_v2() -> Iterator[Layer]:
    """ShuffleNet v2 1.0x (arXiv 1807.11164)."""
    yield Layer("stem", 3, 224, 24, 3, 2, 1)
    c, height = 24, 56
    for stage, (depth, k) in enumerate(((4, 116), (8, 232), (4, 464)), start=2):
        inner = k // 2
        for unit in range(depth):
            name, stride = f"stage{stage}.{unit}", 1 if unit else 2
            if stride == 2:
                yield Layer(f"{name}.pass_by.depthwise", c, height, c, 3, 2, 1, c, "none")
                yield Layer(f"{name}.pass_by.pointwise", c, height // 2, inner, 1)
            yield Layer(f"{name}.first", c if stride == 2 else inner, height, inner, 1)
            yield Layer(f"{name}.depthwise", inner, height, inner, 3, stride, 1, inner, "none")
            c, height = k, height // stride
            yield Layer(f"{name}.last", inner, height, inner, 1)
    yield Layer("last", c, height, 1024, 1)


def mobilenet_v2() -> Iterator[Layer]:
    """MobileNetV2 1.0 (arXiv 1801.04381)."""
    yield Layer("stem", 3, 224, 32, 3, 2, 1, activation="relu6")
    c, height = 32, 112
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for stage, (expand, k, depth, first) in enumerate(stages, start=1):
        for block in range(depth):
            name, inner, stride = f"stage{stage}.{block}", c * expand, 1 if block else first
            if expand > 1:
                yield Layer(f"{name}.widen", c, height, inner, 1, activation="relu6")
            yield Layer(f"{name}.depthwise", inner, height, inner, 3, stride, 1, inner, "relu6")
            c, height = k, height // stride
            yield Layer(f"{name}.narrow", inner, height, k, 1, activation="none")
    yield Layer("last", c, height, 1280, 1, activation="relu6")


def convnext_t() -> Iterator[Layer]:
    """ConvNeXt-T (arXiv 2201.03545); the 1x1s of its blocks are linear layers."""
    c, height = 3, 224
    for stage, (depth, k) in enumerate(((3, 96), (3, 192), (9, 384), (3, 768)), start=1):
        size = 2 if stage > 1 else 4
        yield Layer(f"stage{stage}.reduce", c, height, k, size, size, activation="none")
        c, height = k, height // size
        for block in range(depth):
            yield Layer(f"stage{stage}.{block}.depthwise", c, height, c, 7, 1, 3, c, "none")


def _bottleneck(name: str, c: int, height: int, inner: int, k: int, stride: int, groups: int) -> Iterator[Layer]:
    yield Layer(f"{name}.narrow", c, height, inner, 1)
    yield Layer(f"{name}.grouped", inner, height, inner, 3, stride, 1, groups)
    yield Layer(f"{name}.widen", inner, height // stride, k, 1, activation="none")
    if c != k or stride > 1:
        yield Layer(f"{name}.shortcut", c, height, k, 1, stride, activation="none")


def _regnet(depths: tuple[int, ...], widths: tuple[int, ...], group_width: int, *, squeezes: bool) -> Iterator[Layer]:
    yield Layer("stem", 3, 224, 32, 3, 2, 1)
    c, height = 32, 112
    for stage, (depth, k) in enumerate(zip(depths, widths, strict=True), start=1):
        for block in range(depth):
            name, stride = f"stage{stage}.{block}", 1 if block else 2
            yield from _bottleneck(name, c, height, k, k, stride, k // group_width)
            if squeezes:
                yield Layer(f"{name}.squeeze", k, 1, c // 4, 1)
                yield Layer(f"{name}.excite", c // 4, 1, k, 1, activation="sigmoid")
            c, height = k, height // stride


def _distinct(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """Each shape once, in order of first appearance, counted."""
    found: dict[Layer, Layer] = {}
    for layer in layers:
        shape = replace(layer, name="")
        known = found.get(shape)
        found[shape] = layer if known is None else replace(known, count=known.count + 1)
    return tuple(found.values())


MODELS: dict[str, tuple[Layer, ...]] = {
    make.__name__: _distinct(make())
    for make in (
        alexnet,
        resnext50_32x4d,
        regnetx_400mf,
        regnety_16gf,
        shufflenet_v1_g3,
        shufflenet_v2,
        mobilenet_v2,
        convnext_t,
    )
}
"""The tables by the networks' names."""
