"""The bytes that the outputs of one program depend on: what counted traffic is compared with.

A kernel divides the outputs among programs. Given the outputs that a program stores, the problem alone says which
inputs, weights and epilogue operands they depend on; whatever else the program reads is overhead.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grouped_conv.kernels.interpreting.counting import Offsets
from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem
from grouped_conv.kernels.separable.problem import SeparableProblem
from grouped_conv.kernels.values.problem import ConvProblem, Pair

Table = npt.NDArray[np.int64]


class Needs(ABC):
    """What outputs depend on.

    Args:
        output: the tensor that programs store to, for its strides.
    """

    def __init__(self, output: Tensor) -> None:
        self.index = logical_index(output)

    @abstractmethod
    def __call__(self, stored: Offsets) -> dict[str, int]:
        """Bytes of each operand that the outputs at these offsets need, the outputs' own included."""

    def whole_call(self) -> dict[str, int]:
        """The same for all outputs together."""
        return self(np.flatnonzero(self.index >= 0))


def logical_index(tensor: Tensor) -> Table:
    """By memory offset, in elements, the index of the element there in the contiguous tensor; -1 in gaps."""
    strides = torch.tensor(tensor.stride())
    places = sum(
        (torch.arange(size).mul(stride).view(-1, *(1,) * (tensor.dim() - axis - 1)))
        for axis, (size, stride) in enumerate(zip(tensor.shape, strides.tolist(), strict=True))
    )
    offsets = torch.as_tensor(places).reshape(-1).numpy()
    table = np.full(int(offsets.max(initial=-1)) + 1, -1, np.int64)
    table[offsets] = np.arange(len(offsets))
    return table


class ConvNeeds(Needs):
    """What outputs of a convolution depend on, with any layout of groups and with shuffles."""

    def __init__(self, problem: ConvProblem, output: Tensor) -> None:
        super().__init__(output)
        self.problem = problem
        layout = problem.layout
        inputs = [np.array(layout.inputs_of(group), np.int64) for group in range(layout.groups)]
        per_group = [group.outputs for group in layout.ragged] if layout.ragged else None
        self.group_of = np.repeat(np.arange(layout.groups), per_group or layout.k_per_group)
        self.inputs, self.widths = inputs, np.array([len(channels) for channels in inputs])
        self.overlaps = len(np.unique(np.concatenate(inputs))) < self.widths.sum()

    def __call__(self, stored: Offsets) -> dict[str, int]:
        """Bytes of each operand that the outputs at these offsets need, the outputs' own included."""
        problem = self.problem
        channels, height, width = problem.output_shape[1:]
        flat = self.index[stored]
        pixel = flat // (channels * height * width) * (height * width) + flat % (height * width)
        channel = flat // (height * width) % channels
        if problem.epilogue.shuffle > 1:
            groups = problem.epilogue.shuffle
            channel = channel % groups * (channels // groups) + channel // groups
        made = np.unique(channel)
        epilogue = problem.epilogue
        elements = {
            "input": self._inputs(self.group_of[channel], pixel),
            "weight": int(self.widths[self.group_of[made]].sum()) * problem.taps,
            "bias": epilogue.bias * len(made),
            "scale": epilogue.scale * len(made),
            "residual": epilogue.residual * len(flat),
            "preactivation": epilogue.save_preactivation * len(flat),
            "output": len(flat),
        }
        return {name: count * problem.item_size for name, count in elements.items()}

    def _inputs(self, group: Table, pixel: Table) -> int:
        """Input elements under the windows of output pixels, each with the channels its group sees."""
        pairs = np.unique(group * (self.problem.batch * math.prod(self.problem.out_size)) + pixel)
        group, pixel = np.divmod(pairs, self.problem.batch * math.prod(self.problem.out_size))
        groups, pixels = np.unique(group), np.unique(pixel)
        if len(pairs) == len(groups) * len(pixels):  # every group at every pixel
            read = np.unique(np.concatenate([self.inputs[g] for g in groups]))
            return len(read) * len(self._under(pixels))
        parts = [(self.inputs[g], self._under(pixel[group == g])) for g in groups]
        if not self.overlaps:
            return sum(len(channels) * len(places) for channels, places in parts)
        every = [(places[:, None] * self.problem.in_channels + channels).reshape(-1) for channels, places in parts]
        return len(np.unique(np.concatenate(every)))

    def _under(self, pixels: Table) -> Table:
        """Distinct input pixels inside the image under the windows of distinct output pixels."""
        top, _, left, _ = self.problem.padding
        return np.unique(windows(self.problem, pixels, (top, left), self.problem.dilation)[1])


def windows(problem: ConvProblem | LrnPoolProblem, pixels: Table, before: Pair, dilation: Pair) -> tuple[Table, Table]:
    """(for each tap inside the image the position in `pixels`, its input pixel) of the windows of output pixels.

    Args:
        before: padding above and left.
    """
    (out_h, out_w), (in_h, in_w) = problem.out_size, problem.in_size
    image, row, column = pixels // (out_h * out_w), pixels // out_w % out_h, pixels % out_w
    (kernel_h, kernel_w), (stride_h, stride_w) = problem.kernel_size, problem.stride
    rows = row[:, None] * stride_h - before[0] + np.arange(kernel_h) * dilation[0]
    columns = column[:, None] * stride_w - before[1] + np.arange(kernel_w) * dilation[1]
    inside = ((rows >= 0) & (rows < in_h))[:, :, None] & ((columns >= 0) & (columns < in_w))[:, None, :]
    places = (image[:, None, None] * in_h + rows[:, :, None]) * in_w + columns[:, None, :]
    return np.nonzero(inside)[0], places[inside]


class LrnPoolNeeds(Needs):
    """What outputs of local response normalisation and pooling depend on."""

    def __init__(self, problem: LrnPoolProblem, output: Tensor) -> None:
        super().__init__(output)
        self.problem = problem

    def __call__(self, stored: Offsets) -> dict[str, int]:
        """Bytes of the input that the outputs at these offsets need, and the outputs'."""
        problem = self.problem
        area, tower = math.prod(problem.out_size), problem.channels // problem.groups
        flat = self.index[stored]
        pixel = flat // (problem.channels * area) * area + flat % area
        which, place = windows(problem, pixel, problem.padding, (1, 1))
        channel = (flat // area % problem.channels)[which]
        down, up = problem.reach
        reached = channel[:, None] + np.arange(-down, up + 1)
        inside = (reached >= 0) & (reached // tower == (channel // tower)[:, None])
        read = np.unique((place[:, None] * problem.channels + reached)[inside])
        return {"input": len(read) * problem.item_size, "output": len(flat) * problem.item_size}


class SeparableNeeds(Needs):
    """What outputs of a grouped convolution followed by a 1x1 convolution depend on."""

    def __init__(self, problem: SeparableProblem, output: Tensor) -> None:
        super().__init__(output)
        self.problem = problem
        self.second = ConvNeeds(problem.second, output)
        hidden = torch.empty(problem.first.output_shape, device="meta")
        self.first = ConvNeeds(problem.first, hidden)

    def __call__(self, stored: Offsets) -> dict[str, int]:
        """Bytes of each operand that the outputs at these offsets need; nothing for the values between the two."""
        hidden, area = self.problem.first.output_shape[1], math.prod(self.problem.first.out_size)
        flat = self.index[stored]
        pixel = np.unique(flat // (self.problem.out_channels * area) * area + flat % area)
        image, place = np.divmod(pixel, area)
        made = (image[:, None] * hidden + np.arange(hidden)) * area + place[:, None]
        first, second = self.first(np.sort(made.reshape(-1))), self.second(stored)
        del first["output"], second["input"]
        return first | {name if name in ("output", "residual") else f"second {name}": n for name, n in second.items()}


def total(parts: Mapping[str, int]) -> int:
    """Bytes of all operands."""
    return sum(parts.values())
