"""The bytes that the outputs of one program cannot do without: what counted traffic is compared with.

A kernel divides the outputs among programs. Given the outputs that a program stores, the problem alone says which
inputs, weights and epilogue operands they depend on; whatever else the program reads is overhead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from grouped_conv.kernels.interpreter_counting import Offsets
from grouped_conv.kernels.problem import ConvProblem

Table = npt.NDArray[np.int64]


def logical_index(tensor: Tensor) -> Table:
    """By memory offset, in elements, which element of the contiguous tensor lies there; -1 in gaps."""
    strides = torch.tensor(tensor.stride())
    places = sum(
        (torch.arange(size).mul(stride).view(-1, *(1,) * (tensor.dim() - axis - 1)))
        for axis, (size, stride) in enumerate(zip(tensor.shape, strides.tolist(), strict=True))
    )
    offsets = torch.as_tensor(places).reshape(-1).numpy()
    table = np.full(int(offsets.max(initial=-1)) + 1, -1, np.int64)
    table[offsets] = np.arange(len(offsets))
    return table


class ConvNeeds:
    """What outputs of a convolution depend on.

    Args:
        problem: any layout of groups, shuffles included.
        output: the tensor that programs store to, for its strides.
    """

    def __init__(self, problem: ConvProblem, output: Tensor) -> None:
        self.problem, self.index = problem, logical_index(output)
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

    def whole_call(self) -> dict[str, int]:
        """The same for all outputs together."""
        return self(np.flatnonzero(self.index >= 0))

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
        problem = self.problem
        (out_h, out_w), (in_h, in_w) = problem.out_size, problem.in_size
        image, row, column = pixels // (out_h * out_w), pixels // out_w % out_h, pixels % out_w
        top, _, left, _ = problem.padding
        rows = row[:, None] * problem.stride[0] - top + np.arange(problem.kernel_size[0]) * problem.dilation[0]
        columns = column[:, None] * problem.stride[1] - left + np.arange(problem.kernel_size[1]) * problem.dilation[1]
        inside = ((rows >= 0) & (rows < in_h))[:, :, None] & ((columns >= 0) & (columns < in_w))[:, None, :]
        places = (image[:, None, None] * in_h + rows[:, :, None]) * in_w + columns[:, None, :]
        return np.unique(places[inside])


def total(parts: Mapping[str, int]) -> int:
    """Bytes of all operands."""
    return sum(parts.values())
