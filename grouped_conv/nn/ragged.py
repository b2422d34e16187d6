"""`RaggedConv2d`: a convolution layer whose groups are unequal, overlap, or list the channels they read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouped_conv.call_values.geometry import parse_geometry
from grouped_conv.call_values.layout_text import write_layout
from grouped_conv.call_values.ragged_checks import RaggedOperands
from grouped_conv.call_values.ragged_weights import flat_storage, make_flat, views
from grouped_conv.functional.conv2d import as_tuple, make_request
from grouped_conv.functional.ragged import ragged_conv2d, run_request
from grouped_conv.kernels.values.layout import GroupLayout
from grouped_conv.kernels.values.problem import pair
from grouped_conv.nn.conv import checked_activation

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class RaggedConv2d(nn.Module):
    """`torch.nn.Conv2d` for a `GroupLayout` of any kind; all groups in one launch of the kernel.

    The state_dict has `weight_0`, `weight_1`, ... and `bias`. There is one weight per size of groups, in the order in
    which each size first appears in the layout: `(n * k, c, R, S)` for the n groups that read c channels and make k, in
    group order. They are views of one flat storage, which the kernel reads. Moving, casting, loading, copying and
    unpickling the layer keeps it flat. If you replace a weight, every call copies the weights until `flatten_weights`
    is called. `bias` is `(K,)` in the order of the output channels. Each group is initialised as `torch.nn.Conv2d`
    initialises a layer of its size.

    Args:
        layout: which input channels feed which output channels.
        kernel_size, stride, padding, dilation, bias, padding_mode, device, dtype: as `torch.nn.Conv2d`; padding may
            also be `(top, bottom, left, right)`.
        activation: name of an activation fused after the convolution (`grouped_conv.kernels.ACTIVATIONS`), or None.

    Raises:
        ValueError: for unknown sizes, padding modes and activations, naming what is accepted.
    """

    layout: GroupLayout
    bias: nn.Parameter | None

    def __init__(
        self,
        layout: GroupLayout,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        padding_mode: Literal["zeros", "reflect", "replicate", "circular"] = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(layout, GroupLayout):
            raise ValueError(f"layout must be a GroupLayout, but got {type(layout).__name__}")
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode {padding_mode!r} must be one of {', '.join(PADDING_MODES)}")
        self.layout = layout
        self.in_channels, self.out_channels, self.groups = layout.in_channels, layout.out_channels, layout.groups
        self.kernel_size = pair(kernel_size, "kernel_size")
        self.stride, self.dilation = pair(stride, "stride"), pair(dilation, "dilation")
        for name in ("kernel_size", "stride", "dilation"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, but got {getattr(self, name)}")
        self.padding = as_tuple(padding)
        geometry = parse_geometry(self.stride, self.padding, self.dilation, self.kernel_size)
        self.padding_mode = padding_mode
        top, bottom, left, right = geometry.padding
        self._pads = (left, right, top, bottom)  # as `torch.nn.functional.pad` takes them
        self.activation = checked_activation(activation)
        self._layout_text = write_layout(layout)
        flat = flat_storage(layout, self.kernel_size, dtype or torch.get_default_dtype(), device)
        self._names = tuple(f"weight_{index}" for index in range(len(layout.buckets)))
        for name, view in zip(self._names, views(flat, layout, self.kernel_size), strict=True):
            self.register_parameter(name, nn.Parameter(view))
        vector = torch.empty(layout.out_channels, device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", None if vector is None else nn.Parameter(vector))
        self.register_load_state_dict_post_hook(_flatten_after_loading)
        self.reset_parameters()

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """`weight_0`, `weight_1`, ..."""
        return tuple(getattr(self, name) for name in self._names)

    def reset_parameters(self) -> None:
        """Initialise each group as `torch.nn.Conv2d` initialises a layer of its size."""
        for weight in self.weights:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        if self.bias is None:
            return
        taps = math.prod(self.kernel_size)
        with torch.no_grad():
            for group, part in enumerate(self.bias.split(list(self.layout.outputs))):
                bound = 1 / math.sqrt(taps * len(self.layout.inputs_of(group)))
                part.uniform_(-bound, bound)

    def flatten_weights(self) -> None:
        """Move the weights into one flat storage, unless they are in one; they stay the same Parameters."""
        with torch.no_grad():
            make_flat(self.weights, self.layout)

    def forward(self, input: Tensor) -> Tensor:
        """`(N, C, H, W)` or `(C, H, W)` to `(N, K, OUT_H, OUT_W)` or `(K, OUT_H, OUT_W)`."""
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._pads, mode=self.padding_mode), 0
        if self.layout.is_uniform:
            return ragged_conv2d(
                input,
                self.weights,
                self.layout,
                self.bias,
                self.stride,
                padding,
                self.dilation,
                activation=self.activation,
            )
        operands = RaggedOperands(input, self.weights, self.bias)
        choices = self.activation, 0.01, False, None, None
        request = make_request(self.stride, padding, self.dilation, self.kernel_size, *choices)
        return run_request(operands, None, self.layout, self._layout_text, request)

    def extra_repr(self) -> str:
        """The layout, then what `torch.nn.Conv2d` would print."""
        words = [str(self.layout), f"kernel_size={self.kernel_size}", f"stride={self.stride}"]
        words += [f"padding={self.padding}"] if self.padding != 0 else []
        words += [f"dilation={self.dilation}"] if self.dilation != (1, 1) else []
        words += ["bias=False"] if self.bias is None else []
        words += [f"padding_mode={self.padding_mode}"] if self.padding_mode != "zeros" else []
        words += [f"activation={self.activation}"] if self.activation is not None else []
        return ", ".join(words)

    def group_weight(self, group: int) -> Tensor:
        """The filters of one group, `(k, c, R, S)`: a view of its weight."""
        if not 0 <= group < self.groups:
            raise IndexError(f"group {group} is outside 0..{self.groups - 1}")
        for bucket, weight in zip(self.layout.buckets, self.weights, strict=True):
            if group in bucket.groups:
                return weight.narrow(0, bucket.groups.index(group) * bucket.outputs, bucket.outputs)
        raise AssertionError(f"no weight holds group {group}")

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        self.flatten_weights()
        return result

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Put unpickled and copied weights, which come one by one, into one flat storage again."""
        super().__setstate__(state)
        self.flatten_weights()


def _flatten_after_loading(module: nn.Module, incompatible_keys: Any) -> None:
    assert isinstance(module, RaggedConv2d)
    module.flatten_weights()
