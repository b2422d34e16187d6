"""Local response normalisation, max-pooling and ReLU in one of their orders, described completely: `LrnPoolProblem`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from grouped_conv.kernels.values.problem import ITEM_SIZE, Pair, dtype_name, pair

STEPS = ("relu", "lrn", "pool")
LRN_POOL = "lrn-pool"
"""AlexNet's order after a convolution that ends in its ReLU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LrnPoolProblem:
    """`order` says what happens to an activation `(N, C, H, W)`: everything that changes its result or its kernel.

    Local response normalisation is `torch.nn.LocalResponseNorm`'s, `y = x / (k + alpha / size * sum of x^2) ** beta`
    over `size` neighbouring channels of the same tower, computed in fp32. Pooling is `torch.nn.MaxPool2d`'s without
    dilation. What a step that is not in `order` would need has the values of no step, so that equal problems are equal.

    Attributes:
        batch, channels: N and C.
        in_size: `(height, width)` of the input.
        order: the steps, each at most once, joined by dashes in the order they run: `lrn-pool` and `relu-lrn-pool`
            (AlexNet's paper, Caffe), `lrn-relu-pool` (cuda-convnet's layers-145.cfg), `pool-lrn` (CaffeNet), ...
        size, alpha, beta, k: of the normalisation; an even window reaches one channel further down than up.
        groups: towers that are normalised apart; divides C.
        kernel_size, stride, padding: of the pool, `(height, width)` each; padding never wins.
        ceil_mode: whether a last window that hangs over the edge counts.
        dtype: `float16`, `bfloat16` or `float32`, of input and output.
        channels_last: whether the input's channels are innermost in memory.
    """

    direction: ClassVar[str] = "forward"

    batch: int
    channels: int
    in_size: Pair
    order: str = LRN_POOL
    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0
    groups: int = 1
    kernel_size: Pair = (3, 3)
    stride: Pair = (2, 2)
    padding: Pair = (0, 0)
    ceil_mode: bool = False
    dtype: str = "float16"
    channels_last: bool = True

    def __post_init__(self) -> None:
        steps = self.steps
        if len(set(steps)) != len(steps) or not set(steps) <= set(STEPS) or not set(steps) & {"lrn", "pool"}:
            raise ValueError(
                f"order {self.order!r} must join some of {', '.join(STEPS)} by dashes, each once, with lrn or pool"
            )
        unused: dict[str, Any] = {}
        if "lrn" not in steps:
            unused |= {"size": 1, "alpha": 0.0, "beta": 0.0, "k": 1.0, "groups": 1}
        if "pool" not in steps:
            unused |= {"kernel_size": (1, 1), "stride": (1, 1), "padding": (0, 0), "ceil_mode": False}
        for name, value in unused.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        if self.dtype not in ITEM_SIZE:
            raise ValueError(f"dtype {self.dtype!r} is unknown; accepted: {', '.join(ITEM_SIZE)}")
        if self.batch < 0 or self.channels < 1 or min(self.in_size) < 1:
            raise ValueError(
                f"no maps to compute: batch={self.batch}, channels={self.channels}, in_size={self.in_size}"
            )
        if self.size < 1 or self.groups < 1 or self.channels % self.groups:
            raise ValueError(
                f"size={self.size} must be at least 1 and groups={self.groups} divide channels={self.channels}"
            )
        if not all(math.isfinite(value) for value in (self.alpha, self.beta, self.k)):
            raise ValueError(f"alpha={self.alpha}, beta={self.beta} and k={self.k} must be finite")
        if min(self.kernel_size) < 1 or min(self.stride) < 1:
            raise ValueError(f"kernel_size={self.kernel_size} and stride={self.stride} must be at least 1")
        if any(not 0 <= p <= size // 2 for p, size in zip(self.padding, self.kernel_size, strict=True)):
            raise ValueError(f"padding={self.padding} must be at least 0 and at most half of {self.kernel_size}")
        if min(self.out_size) < 1:
            raise ValueError(
                f"a window of {self.kernel_size} with padding {self.padding} does not fit maps of {self.in_size}"
            )

    @classmethod
    def of(cls, input_shape: Sequence[int], order: str = LRN_POOL, *, dtype: Any = "float16", **values: Any) -> Any:
        """The problem of an input `(N, C, H, W)`; a pair may be given as one integer, a stride of None is the kernel.

        Raises:
            ValueError: with the offending values.
        """
        batch, channels, height, width = (int(size) for size in input_shape)
        for name in ("kernel_size", "stride", "padding"):
            if values.get(name) is not None:
                values[name] = pair(values[name], name)
        if "stride" in values and values["stride"] is None:
            values["stride"] = values.get("kernel_size", cls.__dataclass_fields__["kernel_size"].default)
        return cls(
            batch=batch, channels=channels, in_size=(height, width), order=order, dtype=dtype_name(dtype), **values
        )

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps in the order they run."""
        return tuple(self.order.split("-"))

    @property
    def lrn_place(self) -> str:
        """Where the normalisation is relative to the pool: `before` (also without a pool), `after`, or `none`."""
        steps = self.steps
        if "lrn" not in steps:
            return "none"
        return "after" if "pool" in steps and steps.index("pool") < steps.index("lrn") else "before"

    @property
    def relu_before_lrn(self) -> bool:
        """Is the normalisation's input rectified?"""
        steps = self.steps
        return {"relu", "lrn"} <= set(steps) and steps.index("relu") < steps.index("lrn")

    @property
    def relu_last(self) -> bool:
        """Is the result rectified? A maximum of rectified values is the rectified maximum."""
        return "relu" in self.steps and not self.relu_before_lrn

    @property
    def reach(self) -> Pair:
        """Channels that the window reaches down and up."""
        return self.size // 2, (self.size - 1) // 2

    @property
    def out_size(self) -> Pair:
        """`(height, width)` of the output, by torch's rule: the last window starts inside the image or its padding."""
        high, wide = (
            _pooled(*sizes, self.ceil_mode)
            for sizes in zip(self.in_size, self.kernel_size, self.stride, self.padding, strict=True)
        )
        return high, wide

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """`(N, C, H, W)`."""
        return (self.batch, self.channels, *self.in_size)

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """`(N, C, OUT_H, OUT_W)`."""
        return (self.batch, self.channels, *self.out_size)

    @property
    def item_size(self) -> int:
        """Bytes per element."""
        return ITEM_SIZE[self.dtype]

    @property
    def precision(self) -> str:
        """How float32 products are taken: always exactly."""
        return "ieee"

    @property
    def min_bytes(self) -> int:
        """Bytes that must cross DRAM: input and output, once each."""
        return (math.prod(self.input_shape) + math.prod(self.output_shape)) * self.item_size

    def __str__(self) -> str:
        words = [self.order, f"N={self.batch} C={self.channels} H={self.in_size[0]} W={self.in_size[1]}"]
        if "lrn" in self.steps:
            words.append(f"size={self.size} alpha={self.alpha:g} beta={self.beta:g} k={self.k:g} groups={self.groups}")
        if "pool" in self.steps:
            (r, s), (down, right), (top, left) = self.kernel_size, self.stride, self.padding
            words.append(f"pool={r}x{s}/{down}x{right} pad={top}x{left}{' ceil' if self.ceil_mode else ''}")
        return " ".join([*words, self.dtype, "NHWC" if self.channels_last else "NCHW"])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; `from_json` gives the value back."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LrnPoolProblem:
        """The inverse of `to_json`."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(**values)


def _pooled(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    room = size + 2 * padding - kernel
    if room < 0 and not ceil_mode:
        return 0
    count = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= size + padding else count
