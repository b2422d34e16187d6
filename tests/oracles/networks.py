"""Networks with every kind of grouped convolution, in plain torch.nn: true channels, groups and strides by default.

Widths, depths and classes can be shrunk by arguments, images by the caller. `prepared` gives weights and running
statistics under which activations stay of order one, so that errors can be compared between layers and networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_conv import GroupedConv2d, LrnMaxPool2d

Act = Callable[[], nn.Module]


def conv_bn(
    c: int, k: int, size: int = 1, stride: int = 1, groups: int = 1, act: Act | None = nn.ReLU
) -> nn.Sequential:
    """Convolution of `size` with padding that keeps the image at stride 1, BatchNorm, activation."""
    layers = [nn.Conv2d(c, k, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(k)]
    return nn.Sequential(*layers, *([act()] if act else []))


def head(c: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, classes))


class Residual(nn.Module):
    """relu(body(x) + shortcut(x)); the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, body: nn.Sequential, c: int, k: int, stride: int) -> None:
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if c == k and stride == 1 else conv_bn(c, k, 1, stride, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def resnext50(
    depths: Sequence[int] = (3, 4, 6, 3), width: int = 64, groups: int = 32, group_width: int = 4, classes: int = 1000
) -> nn.Sequential:
    """ResNeXt-50 32x4d (Xie et al., arXiv 1611.05431): bottlenecks of 32 groups, 4 to 32 channels wide."""
    layers: list[nn.Module] = [conv_bn(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)]
    c = width
    for stage, depth in enumerate(depths):
        inner, k = groups * group_width << stage, 4 * width << stage
        for block in range(depth):
            stride = 2 if stage and not block else 1
            middle = conv_bn(inner, inner, 3, stride, groups)
            body = nn.Sequential(conv_bn(c, inner), middle, conv_bn(inner, k, act=None))
            layers.append(Residual(body, c, k, stride))
            c = k
    return nn.Sequential(*layers, head(c, classes))


class SqueezeExcite(nn.Module):
    """x times a gate per channel: mean, 1x1, relu, 1x1, sigmoid (Hu et al., arXiv 1709.01507)."""

    def __init__(self, c: int, inner: int) -> None:
        super().__init__()
        layers = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, inner, 1), nn.ReLU(), nn.Conv2d(inner, c, 1), nn.Sigmoid())
        self.gate = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


def regnet(
    depths: Sequence[int], widths: Sequence[int], group_width: int, squeeze: float = 0.0, classes: int = 1000
) -> nn.Sequential:
    """RegNet (Radosavovic et al., arXiv 2003.13678): X blocks, bottleneck ratio 1; Y blocks with `squeeze` > 0."""
    layers: list[nn.Module] = [conv_bn(3, 32, 3, 2)]
    c = 32
    for depth, k in zip(depths, widths, strict=True):
        for block in range(depth):
            stride = 1 if block else 2
            excite = [SqueezeExcite(k, round(squeeze * c))] if squeeze else []
            body = [conv_bn(c, k), conv_bn(k, k, 3, stride, k // group_width), *excite, conv_bn(k, k, act=None)]
            layers.append(Residual(nn.Sequential(*body), c, k, stride))
            c = k
    return nn.Sequential(*layers, head(c, classes))


def regnetx_400mf(
    depths: Sequence[int] = (1, 2, 7, 12), widths: Sequence[int] = (32, 64, 160, 384), classes: int = 1000
) -> nn.Sequential:
    """RegNetX-400MF: groups of 16 channels. The paper's last stage has 384 channels, torchvision's has 400."""
    return regnet(depths, widths, 16, classes=classes)


def regnety_16gf(
    depths: Sequence[int] = (2, 4, 11, 1), widths: Sequence[int] = (224, 448, 1232, 3024), classes: int = 1000
) -> nn.Sequential:
    """RegNetY-16GF: groups of 112 channels, squeeze and excitation of a quarter of the block's input."""
    return regnet(depths, widths, 112, 0.25, classes)


class Shuffle(nn.Module):
    """Channel i * (C / groups) + j goes to j * groups + i."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleUnit1(nn.Module):
    """ShuffleNet v1's unit (Zhang et al., arXiv 1707.01083): grouped 1x1, shuffle, depthwise 3x3, grouped 1x1.

    At stride 2 the input, averaged, is put beside the result instead of added. `first_groups` is 1 in the first unit.
    """

    def __init__(self, c: int, k: int, stride: int, groups: int, first_groups: int) -> None:
        super().__init__()
        inner, self.stride = k // 4, stride
        self.body = nn.Sequential(
            conv_bn(c, inner, groups=first_groups),
            Shuffle(groups),
            conv_bn(inner, inner, 3, stride, inner, act=None),
            conv_bn(inner, k - c if stride == 2 else k, groups=groups, act=None),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1) if self.stride == 2 else x + y)


def shufflenet_v1(
    depths: Sequence[int] = (4, 8, 4), widths: Sequence[int] = (240, 480, 960), groups: int = 3, classes: int = 1000
) -> nn.Sequential:
    """ShuffleNet v1 1x: 3 groups; the first grouped 1x1 of all is dense, as in the paper's section 3.3."""
    layers: list[nn.Module] = [conv_bn(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1)]
    c = 24
    for depth, k in zip(depths, widths, strict=True):
        for unit in range(depth):
            layers.append(ShuffleUnit1(c, k, 1 if unit else 2, groups, 1 if c == 24 else groups))
            c = k
    return nn.Sequential(*layers, head(c, classes))


class ShuffleUnit2(nn.Module):
    """ShuffleNet v2's unit (Ma et al., arXiv 1807.11164): half the channels pass, or both halves at stride 2."""

    def __init__(self, c: int, k: int, stride: int) -> None:
        super().__init__()
        inner, self.stride = k // 2, stride
        entering = c if stride == 2 else c // 2
        middle = conv_bn(inner, inner, 3, stride, inner, act=None)
        self.body = nn.Sequential(conv_bn(entering, inner), middle, conv_bn(inner, inner))
        self.pass_by = nn.Sequential(conv_bn(c, c, 3, 2, c, act=None), conv_bn(c, inner)) if stride == 2 else None
        self.shuffle = Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        if self.pass_by is not None:
            return self.shuffle(torch.cat([self.pass_by(x), self.body(x)], 1))
        left, right = x.chunk(2, 1)
        return self.shuffle(torch.cat([left, self.body(right)], 1))


def shufflenet_v2(
    depths: Sequence[int] = (4, 8, 4), widths: Sequence[int] = (116, 232, 464), last: int = 1024, classes: int = 1000
) -> nn.Sequential:
    """ShuffleNet v2 1.0x."""
    layers: list[nn.Module] = [conv_bn(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1)]
    c = 24
    for depth, k in zip(depths, widths, strict=True):
        for unit in range(depth):
            layers.append(ShuffleUnit2(c, k, 1 if unit else 2))
            c = k
    return nn.Sequential(*layers, conv_bn(c, last), head(last, classes))


class InvertedResidual(nn.Module):
    """MobileNetV2's block (Sandler et al., arXiv 1801.04381): widen, depthwise 3x3, narrow without activation."""

    def __init__(self, c: int, k: int, stride: int, expand: int) -> None:
        super().__init__()
        inner, self.adds = c * expand, stride == 1 and c == k
        widen = [conv_bn(c, inner, act=nn.ReLU6)] if expand > 1 else []
        depthwise = conv_bn(inner, inner, 3, stride, inner, nn.ReLU6)
        self.body = nn.Sequential(*widen, depthwise, conv_bn(inner, k, act=None))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


MOBILENET_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(
    stages: Sequence[tuple[int, int, int, int]] = MOBILENET_STAGES, last: int = 1280, classes: int = 1000
) -> nn.Sequential:
    """MobileNetV2 1.0; a stage is (expansion, channels, blocks, stride of the first), the paper's table 2."""
    layers: list[nn.Module] = [conv_bn(3, 32, 3, 2, act=nn.ReLU6)]
    c = 32
    for expand, k, depth, first in stages:
        for block in range(depth):
            layers.append(InvertedResidual(c, k, 1 if block else first, expand))
            c = k
    return nn.Sequential(*layers, conv_bn(c, last, act=nn.ReLU6), head(last, classes))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of every pixel of an NCHW tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """x + gamma * mlp(norm(depthwise 7x7(x))) (Liu et al., arXiv 2201.03545); the 1x1s are linear layers."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(c, c, 7, padding=3, groups=c)
        self.mlp = nn.Sequential(nn.LayerNorm(c, 1e-6), nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c))
        self.gamma = nn.Parameter(torch.full((c,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.depthwise(x).permute(0, 2, 3, 1)) * self.gamma
        return x + y.permute(0, 3, 1, 2)


def convnext_t(
    depths: Sequence[int] = (3, 3, 9, 3), widths: Sequence[int] = (96, 192, 384, 768), classes: int = 1000
) -> nn.Sequential:
    """ConvNeXt-T."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 4), ChannelNorm(widths[0], 1e-6)]
    for stage, (depth, k) in enumerate(zip(depths, widths, strict=True)):
        if stage:
            layers += [ChannelNorm(widths[stage - 1], 1e-6), nn.Conv2d(widths[stage - 1], k, 2, 2)]
        layers += [ConvNeXtBlock(k) for _ in range(depth)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(widths[-1], 1e-6), nn.Linear(widths[-1], classes)]
    return nn.Sequential(*layers)


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "resnext50_32x4d": resnext50,
    "regnetx_400mf": regnetx_400mf,
    "regnety_16gf": regnety_16gf,
    "shufflenet_v1_g3": shufflenet_v1,
    "shufflenet_v2": shufflenet_v2,
    "mobilenet_v2": mobilenet_v2,
    "convnext_t": convnext_t,
}
"""At full size, by the names of `autotune.workloads`."""

SMALL: dict[str, Callable[[], nn.Sequential]] = {
    "resnext50_32x4d": lambda: resnext50((1, 1, 1), 16, 8, 4, classes=10),
    "regnetx_400mf": lambda: regnetx_400mf((1, 1), (32, 64), classes=10),
    "regnety_16gf": lambda: regnety_16gf((1, 1), (112, 224), classes=10),
    "shufflenet_v1_g3": lambda: shufflenet_v1((2, 1), (48, 96), classes=10),
    "shufflenet_v2": lambda: shufflenet_v2((2, 1), (48, 96), 64, classes=10),
    "mobilenet_v2": lambda: mobilenet_v2(((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 1, 2)), 64, classes=10),
    "convnext_t": lambda: convnext_t((1, 1), (16, 32), classes=10),
}
"""The same kinds of layers, few and narrow."""


@torch.no_grad()
def prepared(model: nn.Module, image: int = 64, seed: int = 0) -> nn.Module:
    """`model` in eval mode, initialised at random.

    Weights have variance 2 / fan-in, BatchNorms the statistics of a random batch of square images of `image` pixels.
    """
    torch.manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
            if module.bias is not None:
                nn.init.uniform_(module.bias, -0.1, 0.1)
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.0)
        nn.init.uniform_(norm.bias, -0.2, 0.2)
        norm.momentum = 1.0  # the statistics of the next batch, whole
    model.train()(torch.randn(4, 3, image, image))
    return model.eval()


class SmallAlexNet(nn.Module):
    """AlexNet's kinds of layers, narrow: 11x11 at stride 4, LRN and pooling, groups of two, 5x5 and 3x3."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            GroupedConv2d(3, 16, 11, stride=4, padding=2, activation="relu"),
            LrnMaxPool2d(5, 5e-4, 0.75, 2.0),
            GroupedConv2d(16, 32, 5, padding=2, groups=2, activation="relu"),
            nn.MaxPool2d(3, 2),
            GroupedConv2d(32, 48, 3, padding=1, activation="relu"),
            GroupedConv2d(48, 48, 3, padding=1, groups=2, activation="relu"),
        )
        self.classify = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x).mean((2, 3)))
