"""The pack passes before a kernel: each brings one operand into the order in which the kernel reads it."""

from __future__ import annotations

from dataclasses import replace

from grouped_conv.kernels.launching.calls import Temporary
from grouped_conv.kernels.launching.launch import Launch
from grouped_conv.kernels.launching.operands import Operand, Shape4, channels_last_strides, is_krsc
from grouped_conv.kernels.passes.pack import plan_pack


class Packing:
    """The pack passes of one call. Each replaces an operand in `operands` by the buffer that it fills."""

    def __init__(self, dtype: str, operands: dict[str, Operand]) -> None:
        self.dtype, self.operands = dtype, operands
        self.launches: list[Launch] = []
        self.temporaries: list[Temporary] = []

    def pack(self, name: str, shape: Shape4) -> None:
        """Move the channels of operand `name`, of `shape` (N, C, H, W), innermost."""
        self._add(name, self.operands[name], shape, channels_last_strides(shape))

    def pack_weight(self, shape: Shape4, order: str, k_per_group: int) -> None:
        """Bring the weight, of `shape` (K, C / groups, R, S), into the order that the kernel reads."""
        if order == "krsc" and not is_krsc(self.operands["weight"], shape):
            self.pack("weight", shape)
        if order == "taps":
            self.pack_taps(shape, k_per_group)

    def pack_taps(self, shape: Shape4, multiplier: int) -> None:
        """Bring a weight (C * multiplier, 1, R, S) to [multiplier, R, S, C] in fp32."""
        out_channels, _, kernel_h, kernel_w = shape
        stride_k, _, stride_r, stride_s = self.operands["weight"].strides
        as_images = replace(self.operands["weight"], strides=(stride_k, multiplier * stride_k, stride_r, stride_s))
        images = (multiplier, out_channels // multiplier, kernel_h, kernel_w)
        self._add("weight", as_images, images, channels_last_strides(images), "float32")

    def _add(self, name: str, source: Operand, shape: Shape4, strides: Shape4, dtype: str = "") -> None:
        target = f"packed_{name}"
        self.launches.append(plan_pack(source, target, shape, self.dtype, dtype))
        self.temporaries.append(Temporary(target, (shape[0], shape[2], shape[3], shape[1]), dtype or self.dtype))
        self.operands[name] = Operand(strides, 16, target)
