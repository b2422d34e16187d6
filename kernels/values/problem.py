"""One convolution, described completely: the value `ConvProblem` and how users' arguments become it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.layout import GroupLayout

DIRECTIONS = ("forward", "input_grad", "weight_grad")
ITEM_SIZE = {"float16": 2, "bfloat16": 2, "float32": 4}
"""Bytes per element of the dtypes the kernels know."""
PRECISIONS = ("ieee", "tf32")

_DTYPE_ALIASES = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "float": "float32"}

Pair = tuple[int, int]
Sides = tuple[int, int, int, int]


def dtype_name(dtype: Any) -> str:
    """Canonical name of a dtype: accepts `"fp16"`, `"float16"`, `torch.float16` and their like."""
    text = str(dtype).removeprefix("torch.")
    name = _DTYPE_ALIASES.get(text, text)
    if name not in ITEM_SIZE:
        raise ValueError(
            f"dtype {text!r} is not supported by the kernels; accepted: {', '.join(ITEM_SIZE)} (or fp16, bf16, fp32)"
        )
    return name


def pair(value: int | Sequence[int], name: str) -> Pair:
    """`value` or `(value, value)`, as torch's `_pair`, checked to be one or two integers."""
    values = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) == 1:
        values = values * 2
    if len(values) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{name} must be an integer or two integers, but got {value!r}")
    return values[0], values[1]


def sides(padding: int | str | Sequence[Any], kernel_size: Pair, stride: Pair, dilation: Pair) -> Sides:
    """Padding per side `(top, bottom, left, right)` from every way to write it.

    Accepts an integer, `(height, width)`, `(top, bottom, left, right)`, `((top, bottom), (left, right))`, and
    `"valid"` or `"same"` with `torch.nn.functional.conv2d`'s meaning (the odd row or column goes to the end).
    """
    if isinstance(padding, str):
        return _named_sides(padding, kernel_size, stride, dilation)
    if isinstance(padding, int):
        return (padding,) * 4
    values = tuple(padding)
    if len(values) == 2 and all(isinstance(v, Sequence) for v in values):
        values = (*values[0], *values[1])
    if len(values) == 1:
        values = values * 4
    elif len(values) == 2:
        values = (values[0], values[0], values[1], values[1])
    if len(values) != 4 or not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise ValueError(
            "padding must be an integer, (height, width), (top, bottom, left, right), 'same' or 'valid', "
            f"but got {padding!r}"
        )
    return values[0], values[1], values[2], values[3]


def _named_sides(padding: str, kernel_size: Pair, stride: Pair, dilation: Pair) -> Sides:
    if padding == "valid":
        return (0, 0, 0, 0)
    if padding != "same":
        raise ValueError(f"Invalid padding string {padding!r}, should be one of 'valid', 'same'")
    if stride != (1, 1):
        raise ValueError(f"padding='same' is not supported for strided convolutions, but got stride={stride}")
    total_h, total_w = (d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True))
    return (total_h // 2, total_h - total_h // 2, total_w // 2, total_w - total_w // 2)


@dataclass(frozen=True, slots=True)
class ConvProblem:
    """A 2-D grouped convolution: everything that changes its result, its cost or its kernel.

    Sizes are `(height, width)`, padding is `(top, bottom, left, right)`. A problem is hashable and goes to
    JSON and back. Use `ConvProblem.of` to build one from tensor shapes.

    Attributes:
        batch: images N.
        layout: input channels, output channels and their groups.
        in_size, kernel_size, stride, dilation: `(height, width)` each.
        padding: zeros added at `(top, bottom, left, right)`.
        dtype: `float16`, `bfloat16` or `float32`, of input, weight and output; sums are kept in fp32.
        precision: how float32 products are taken, `ieee` or `tf32`; always `ieee` for 16-bit dtypes (exact products).
        input_channels_last, weight_channels_last: whether the tensors' channels are innermost in memory.
        direction: `forward`, `input_grad` or `weight_grad`.
        epilogue: what follows the convolution in the same kernel.
        input_shuffle: groups of a channel shuffle that the input goes through as it is read: the convolution's channel
            `j * input_shuffle + i` is channel `i * (in_channels / input_shuffle) + j` in memory. With
            `input_shuffle = C / groups` each group reads channels `groups` apart. 1 shuffles nothing.
    """

    batch: int
    layout: GroupLayout
    in_size: Pair
    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Sides = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    dtype: str = "float16"
    precision: str = "ieee"
    input_channels_last: bool = True
    weight_channels_last: bool = True
    direction: str = "forward"
    epilogue: Epilogue = field(default_factory=Epilogue)
    input_shuffle: int = 1

    def __post_init__(self) -> None:
        if self.batch < 0:
            raise ValueError(f"batch must not be negative, but got {self.batch}")
        for name, least in (("in_size", 0), ("kernel_size", 1), ("stride", 1), ("dilation", 1), ("padding", 0)):
            values = getattr(self, name)
            if len(values) != (4 if name == "padding" else 2) or any(v < least for v in values):
                raise ValueError(f"{name}={values} must hold integers of at least {least}")
        _one_of("dtype", self.dtype, tuple(ITEM_SIZE))
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("direction", self.direction, DIRECTIONS)
        if self.dtype != "float32":
            object.__setattr__(self, "precision", "ieee")  # equal problems compare equal
        for name, shuffle, channels in (
            ("input_shuffle", self.input_shuffle, self.layout.in_channels),
            ("shuffle", self.epilogue.shuffle, self.layout.out_channels),
        ):
            if shuffle < 1 or channels % shuffle:
                raise ValueError(f"{name}={shuffle} must be at least 1 and divide the {channels} channels")
        self._check_window()

    def _check_window(self) -> None:
        top, bottom, left, right = self.padding
        padded = (self.in_size[0] + top + bottom, self.in_size[1] + left + right)
        window = tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        if padded[0] < window[0] or padded[1] < window[1]:
            raise ValueError(
                f"Calculated padded input size per channel: ({padded[0]} x {padded[1]}). "
                f"Kernel size: ({window[0]} x {window[1]}). Kernel size can't be greater than actual input size"
            )

    @classmethod
    def of(
        cls,
        input_shape: Sequence[int],
        weight_shape: Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[Any] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        dtype: Any = "float16",
        channels_last: bool = True,
        direction: str = "forward",
        epilogue: Epilogue | None = None,
        *,
        precision: str = "tf32",
        weight_channels_last: bool | None = None,
        input_shuffle: int = 1,
    ) -> ConvProblem:
        """The problem of `conv2d(input, weight, None, stride, padding, dilation, groups)`.

        Args:
            input_shape: `(N, C, H, W)`.
            weight_shape: `(K, C/groups, R, S)`.
            stride, dilation: integer or pair.
            padding: integer, pair, `(top, bottom, left, right)`, `"same"` or `"valid"`.
            groups: number of equal groups; divides C and K.
            dtype: name or torch dtype.
            channels_last: memory format of the input, and of the weight unless `weight_channels_last` says otherwise.
            direction: `forward`, `input_grad` or `weight_grad`.
            epilogue: what follows the convolution; nothing by default.
            precision: `tf32` (torch's default for float32 convolutions) or `ieee`; float32 only.
            input_shuffle: groups of a channel shuffle of the input.

        Raises:
            ValueError: with the offending numbers, when the arguments do not describe a convolution.
        """
        if len(input_shape) != 4 or len(weight_shape) != 4:
            raise ValueError(
                "input_shape and weight_shape need four numbers each, "
                f"but got {tuple(input_shape)} and {tuple(weight_shape)}"
            )
        batch, in_channels, height, width = (int(v) for v in input_shape)
        out_channels, c_per_group, kernel_h, kernel_w = (int(v) for v in weight_shape)
        layout = GroupLayout.uniform(in_channels, out_channels, groups)
        if c_per_group != layout.c_per_group:
            raise ValueError(
                f"Given groups={groups}, weight of size {list(weight_shape)}, expected input{list(input_shape)} "
                f"to have {c_per_group * groups} channels, but got {in_channels} channels instead"
            )
        kernel_size, strides, dilations = (kernel_h, kernel_w), pair(stride, "stride"), pair(dilation, "dilation")
        return cls(
            batch=batch,
            layout=layout,
            in_size=(height, width),
            kernel_size=kernel_size,
            stride=strides,
            padding=sides(padding, kernel_size, strides, dilations),
            dilation=dilations,
            dtype=dtype_name(dtype),
            precision=precision,
            input_channels_last=channels_last,
            weight_channels_last=channels_last if weight_channels_last is None else weight_channels_last,
            direction=direction,
            epilogue=epilogue or Epilogue(),
            input_shuffle=input_shuffle,
        )

    @property
    def in_channels(self) -> int:
        """C."""
        return self.layout.in_channels

    @property
    def out_channels(self) -> int:
        """K."""
        return self.layout.out_channels

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.layout.groups

    @property
    def c_per_group(self) -> int:
        """C / groups, for equal groups."""
        return self.layout.c_per_group

    @property
    def k_per_group(self) -> int:
        """K / groups, for equal groups."""
        return self.layout.k_per_group

    @property
    def taps(self) -> int:
        """Kernel positions R * S."""
        return self.kernel_size[0] * self.kernel_size[1]

    @property
    def out_size(self) -> Pair:
        """`(height, width)` of the output: `floor((in + pads - dilation*(kernel-1) - 1) / stride) + 1`."""
        top, bottom, left, right = self.padding
        padded = (self.in_size[0] + top + bottom, self.in_size[1] + left + right)
        high, wide = (
            (size - d * (k - 1) - 1) // s + 1
            for size, d, k, s in zip(padded, self.dilation, self.kernel_size, self.stride, strict=True)
        )
        return high, wide

    @property
    def output_channels_last(self) -> bool:
        """ATen's rule: a channels_last input or weight gives a channels_last output."""
        return self.input_channels_last or self.weight_channels_last

    @property
    def item_size(self) -> int:
        """Bytes per element."""
        return ITEM_SIZE[self.dtype]

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """`(N, C, H, W)`."""
        return (self.batch, self.in_channels, *self.in_size)

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """`(N, K, OUT_H, OUT_W)`."""
        return (self.batch, self.out_channels, *self.out_size)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """`(K, C/groups, R, S)`, for equal groups."""
        return (self.out_channels, self.c_per_group, *self.kernel_size)

    @property
    def gemm(self) -> tuple[int, int, int, int]:
        """The convolution as a batched GEMM: `(groups, M, N, K)` = groups, output pixels, K/groups, taps * C/groups."""
        return (self.groups, self.batch * math.prod(self.out_size), self.k_per_group, self.taps * self.c_per_group)

    @property
    def macs(self) -> int:
        """Multiply-accumulates: connected weights times output pixels, padding counted, bias not."""
        return self.layout.connections() * self.taps * self.batch * math.prod(self.out_size)

    @property
    def min_bytes(self) -> int:
        """Bytes that must cross DRAM: input, weight, epilogue operands and outputs, once each."""
        output = math.prod(self.output_shape)
        epilogue = self.epilogue
        elements = math.prod(self.input_shape) + self.layout.connections() * self.taps
        elements += output * (1 + epilogue.residual + epilogue.save_preactivation)
        elements += self.out_channels * (epilogue.bias + epilogue.scale)
        return elements * self.item_size

    @property
    def arithmetic_intensity(self) -> float:
        """FLOP per compulsory byte: `2 * macs / min_bytes`."""
        return 2 * self.macs / self.min_bytes if self.min_bytes else 0.0

    def __str__(self) -> str:
        words = [
            self.direction,
            f"N={self.batch} C={self.in_channels} H={self.in_size[0]} W={self.in_size[1]}",
            f"K={self.out_channels} R={self.kernel_size[0]} S={self.kernel_size[1]}",
            f"stride={_short(self.stride)} pad={_short(self.padding)} dil={_short(self.dilation)} groups={self.groups}",
            self.dtype + (f"/{self.precision}" if self.dtype == "float32" else ""),
            f"{'NHWC' if self.input_channels_last else 'NCHW'}/{'KRSC' if self.weight_channels_last else 'KCRS'}",
            str(self.epilogue),
            *([f"input shuffle({self.input_shuffle})"] if self.input_shuffle > 1 else []),
        ]
        return " ".join(words) + ("" if self.layout.is_uniform else f" ragged({self.layout})")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; `from_json` gives the value back."""
        data: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        for name, value in data.items():
            if isinstance(value, tuple):
                data[name] = list(value)
        data["layout"] = self.layout.to_json()
        data["epilogue"] = self.epilogue.to_json()
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ConvProblem:
        """The inverse of `to_json`."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        values["layout"] = GroupLayout.from_json(data["layout"])
        values["epilogue"] = Epilogue.from_json(data["epilogue"])
        return cls(**values)


def _one_of(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name} {value!r} is unknown; accepted: {', '.join(accepted)}")


def _short(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))
