"""AlexNet in the versions people mean by that name, with 1, 2 or 4 filter groups.

What differs between them is one frozen value per variant, with a note of its source; the network is written once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from grouped_conv.models.cost import count_macs
from grouped_conv.nn.conv import GroupedConv2d
from grouped_conv.nn.lrn_pool import LocalResponseNorm, normalise_and_pool


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Initial values: weights from N(0, std), a constant bias."""

    std: float
    bias: float


@dataclass(frozen=True, slots=True)
class Variant:
    """What separates one AlexNet from another.

    Attributes:
        crop: side of the square input, pixels.
        widths: output channels of conv1 to conv5.
        groups: groups of conv2, conv4 and conv5 unless the caller says otherwise.
        conv1_padding: zeros on every side of the image.
        overhang: whether zeros are added right and bottom until conv1's last window fits (the crop rule of 2012).
        ceil_pooling: whether a last, partial pooling window counts.
        lrn: (alpha, k) of torch's formula, which divides alpha by the window of 5; None for no normalisation.
        lrn_per_tower: whether the normalisation stays inside a tower unless the caller says otherwise.
        dropout_first: dropout before fc6 and fc7 instead of after them.
        init: initial values of conv1 to conv5, fc6, fc7, fc8; None for PyTorch's own.
    """

    crop: int
    widths: tuple[int, int, int, int, int]
    groups: int
    conv1_padding: int
    overhang: bool
    ceil_pooling: bool
    lrn: tuple[float, float] | None
    lrn_per_tower: bool
    dropout_first: bool
    init: tuple[Gaussian, ...] | None


_BIASED, _UNBIASED = Gaussian(0.01, 1.0), Gaussian(0.01, 0.0)

VARIANTS: dict[str, Variant] = {
    "paper": Variant(
        crop=224,
        widths=(96, 256, 384, 384, 256),
        groups=2,
        conv1_padding=0,
        overhang=True,
        ceil_pooling=True,
        lrn=(5e-4, 2.0),
        lrn_per_tower=True,
        dropout_first=False,
        init=(_UNBIASED, _BIASED, _UNBIASED, _BIASED, _BIASED, _BIASED, _BIASED, _UNBIASED),
    ),
    "caffe": Variant(
        crop=227,
        widths=(96, 256, 384, 384, 256),
        groups=2,
        conv1_padding=0,
        overhang=False,
        ceil_pooling=True,
        lrn=(1e-4, 1.0),
        lrn_per_tower=False,
        dropout_first=False,
        init=(
            _UNBIASED,
            Gaussian(0.01, 0.1),
            _UNBIASED,
            Gaussian(0.01, 0.1),
            Gaussian(0.01, 0.1),
            Gaussian(0.005, 0.1),
            Gaussian(0.005, 0.1),
            _UNBIASED,
        ),
    ),
    "torchvision": Variant(
        crop=224,
        widths=(64, 192, 384, 256, 256),
        groups=1,
        conv1_padding=2,
        overhang=False,
        ceil_pooling=False,
        lrn=None,
        lrn_per_tower=False,
        dropout_first=True,
        init=None,
    ),
}
GROUPS = (1, 2, 4)
CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")
LAYERS = (*CONVOLUTIONS, "fc6", "fc7", "fc8")
"""The layers with parameters, in order; Caffe's names."""

_TORCHVISION_LAYERS = (
    *(f"features.{index}" for index in (0, 3, 6, 8, 10)),
    *(f"classifier.{index}" for index in (1, 4, 6)),
)


class AlexNet(nn.Module):
    """AlexNet for `(N, 3, crop, crop)` images; returns `(N, num_classes)` logits.

    - `paper`: the published text of Krizhevsky, Sutskever and Hinton, NIPS 2012. 224 px, 96-256-384-384-256 channels,
      order conv ReLU LRN pool, LRN per tower with k=2, beta=0.75 and alpha=1e-4 times the *sum* over 5 channels.
    - `caffe`: BVLC Caffe's `models/bvlc_alexnet/train_val.prototxt`. 227 px, the same channels and order, LRN across
      all channels with k=1, beta=0.75 and alpha=1e-4 times the *mean* over 5 channels (a fifth of the paper's).
    - `torchvision`: `torchvision.models.alexnet`, after "One weird trick" (arXiv 1404.5997). 224 px,
      64-192-384-256-256 channels, order conv ReLU pool, no LRN, an adaptive 6x6 average pool before fc6.

    All pool with overlap, 3x3 at stride 2, after conv1, conv2 and conv5. conv2, conv4 and conv5 have `groups` groups;
    conv3 always mixes all channels. The paper's sum is `alpha=5e-4` in torch, which divides alpha by the window of 5.
    The code that made the paper's results (cuda-convnet, layers-145.cfg) departs from its text: there conv1's LRN comes
    before its ReLU, alpha is divided by 5, and conv2 has a second, spatial normalisation. The text is followed here.

    **224 and 55.** In 2012 the output of an 11x11, stride 4 convolution was rounded up: the last window hangs over the
    right and bottom edge by 3 pixels, read as zeros. `paper` pads so: 55x55 maps of a 224 crop. `caffe` rounds
    down and takes 227.

    **Initial weights.** `paper`: N(0, 0.01), bias 1 in conv2, conv4, conv5, fc6, fc7, else 0 (section 5 of the paper).
    `caffe`: N(0, 0.01), fc6 and fc7 N(0, 0.005), bias 0.1 in the same layers, else 0 (train_val.prototxt).
    `torchvision`: PyTorch's defaults.

    **LRN and pooling.** `pool1(norm1(x))` and `pool2(norm2(x))` are one call of `grouped_conv.lrn_max_pool2d` as
    long as neither layer has hooks or was replaced by another kind of layer.

    **Names.** Parameters are named as Caffe's layers: conv1..conv5, fc6, fc7, fc8, each `.weight` and `.bias`. Caffe's
    blobs have these shapes, grouped layers included; they were trained on BGR (for RGB flip `conv1.weight` on dim 1).
    With `variant="torchvision"` a state_dict with torchvision's names loads too.

    Args:
        num_classes: logits per image.
        groups: filter groups of conv2, conv4 and conv5: 1, 2 or 4; None takes the variant's own (2, torchvision 1).
        variant: `paper`, `caffe` or `torchvision`.
        lrn_groups: towers whose LRN windows stay apart; None takes the variant's own (paper: `groups`, caffe: 1).
        dropout: probability of a zero, after fc6 and fc7 (torchvision: before them).
        device, dtype: of the parameters.

    Raises:
        ValueError: for an unknown variant or groups, for `lrn_groups` that do not divide the channels or have nothing
            to act on, and on a call for an image whose last maps are not 6x6.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        groups: int | None = None,
        variant: str = "paper",
        lrn_groups: int | None = None,
        dropout: float = 0.5,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.variant = variant
        spec = self._spec = _checked_variant(variant)
        self.num_classes = num_classes
        self.groups = spec.groups if groups is None else groups
        if self.groups not in GROUPS:
            raise ValueError(f"groups={groups} is not an AlexNet; accepted: {', '.join(map(str, GROUPS))}")
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, but got {num_classes}")
        self.lrn_groups = _checked_lrn_groups(spec, variant, self.groups, lrn_groups)

        made = {"device": device, "dtype": dtype}
        relu: dict[str, Any] = {"activation": "relu", **made}
        c1, c2, c3, c4, c5 = spec.widths
        self.conv1 = GroupedConv2d(3, c1, 11, stride=4, padding=spec.conv1_padding, **relu)
        self.norm1 = self._norm()
        self.pool1 = self._pool()
        self.conv2 = GroupedConv2d(c1, c2, 5, padding=2, groups=self.groups, **relu)
        self.norm2 = self._norm()
        self.pool2 = self._pool()
        self.conv3 = GroupedConv2d(c2, c3, 3, padding=1, **relu)
        self.conv4 = GroupedConv2d(c3, c4, 3, padding=1, groups=self.groups, **relu)
        self.conv5 = GroupedConv2d(c4, c5, 3, padding=1, groups=self.groups, **relu)
        self.pool5 = self._pool()
        # `paper` and `caffe` take one image size; torchvision takes any and averages to 6x6.
        self.avgpool = nn.AdaptiveAvgPool2d(6) if variant == "torchvision" else nn.Identity()
        self.fc6 = nn.Linear(c5 * 6 * 6, 4096, **made)
        self.drop6 = nn.Dropout(dropout)
        self.fc7 = nn.Linear(4096, 4096, **made)
        self.drop7 = nn.Dropout(dropout)
        self.fc8 = nn.Linear(4096, num_classes, **made)
        self.reset_parameters()
        if variant == "torchvision":
            self.register_load_state_dict_pre_hook(_rename_from_torchvision)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Channels, height and width of one image of this variant."""
        return (3, self._spec.crop, self._spec.crop)

    def macs(self, input_shape: Sequence[int] | None = None) -> int:
        """Multiply-accumulates of convolutions and linear layers, for one image of the variant's size by default."""
        return count_macs(self, input_shape or (1, *self.input_size))

    def reset_parameters(self) -> None:
        """Draw the variant's initial weights again, from torch's global generator."""
        for index, name in enumerate(LAYERS):
            layer = self.get_submodule(name)
            if self._spec.init is None:
                layer.reset_parameters()  # type: ignore[operator]
                continue
            values = self._spec.init[index]
            nn.init.normal_(layer.weight, std=values.std)  # type: ignore[arg-type]
            nn.init.constant_(layer.bias, values.bias)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        """Logits `(N, num_classes)` of images `(N, 3, H, W)`, prepared as the variant's training data was."""
        x = self.avgpool(self.features(input))
        if x.shape[-2:] != (6, 6):
            raise ValueError(
                f"the {self.variant} AlexNet takes {self._spec.crop}x{self._spec.crop} images: one of "
                f"{input.shape[-2]}x{input.shape[-1]} ends in {x.shape[-2]}x{x.shape[-1]} maps, not 6x6"
            )
        x = x.flatten(1)  # columns of fc6 in (channel, row, column) order in either memory format
        for layer, dropout in ((self.fc6, self.drop6), (self.fc7, self.drop7)):
            if self._spec.dropout_first:
                x = functional.relu(layer(dropout(x)))
            else:
                x = dropout(functional.relu(layer(x)))
        return self.fc8(x)

    def features(self, input: Tensor) -> Tensor:
        """The output of `pool5`: `(N, channels, 6, 6)` for images of the variant's size; other sizes also work."""
        x = self._overhang(input) if self._spec.overhang else input
        x = normalise_and_pool(self.norm1, self.pool1, self.conv1(x))
        x = normalise_and_pool(self.norm2, self.pool2, self.conv2(x))
        return self.pool5(self.conv5(self.conv4(self.conv3(x))))

    def _overhang(self, image: Tensor) -> Tensor:
        bottom, right = (-(size - 11) % 4 for size in image.shape[-2:])
        return functional.pad(image, (0, right, 0, bottom))

    def _norm(self) -> nn.Module:
        if self._spec.lrn is None:
            return nn.Identity()
        alpha, k = self._spec.lrn
        return LocalResponseNorm(5, alpha=alpha, beta=0.75, k=k, groups=self.lrn_groups)

    def _pool(self) -> nn.Module:
        return nn.MaxPool2d(3, stride=2, ceil_mode=self._spec.ceil_pooling)

    def extra_repr(self) -> str:
        """The choices that the layers below do not show."""
        return f"variant={self.variant!r}, groups={self.groups}"


def _checked_variant(variant: str) -> Variant:
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is unknown; accepted: {', '.join(VARIANTS)}")
    return VARIANTS[variant]


def _checked_lrn_groups(spec: Variant, variant: str, groups: int, lrn_groups: int | None) -> int:
    if spec.lrn is None:
        if lrn_groups is not None:
            raise ValueError(f"lrn_groups={lrn_groups}: the {variant} AlexNet has no LRN; leave lrn_groups out")
        return 1
    if lrn_groups is None:
        return groups if spec.lrn_per_tower else 1
    if lrn_groups < 1 or any(width % lrn_groups for width in spec.widths[:2]):
        channels = " and ".join(map(str, spec.widths[:2]))
        raise ValueError(f"lrn_groups={lrn_groups} must be at least 1 and divide the normalised {channels} channels")
    return lrn_groups


def _rename_from_torchvision(_module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for theirs, ours in zip(_TORCHVISION_LAYERS, LAYERS, strict=True):
        for kind in ("weight", "bias"):
            if f"{prefix}{theirs}.{kind}" in state_dict:
                state_dict[f"{prefix}{ours}.{kind}"] = state_dict.pop(f"{prefix}{theirs}.{kind}")
