"""One strided layer with every operand, as training calls it, and the same by torch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from grouped_conv import grouped_conv2d

NAMES = ("input", "weight", "bias", "scale", "residual")
GROUPS = 2


def operands(dtype: torch.dtype = torch.float32, last: bool = True) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 40, 7, 6), (48, 20, 3, 3), (48,), (48,), (2, 48, 4, 3)
    made = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    layout = torch.channels_last if last else torch.contiguous_format
    return [t.contiguous(memory_format=layout).requires_grad_() if t.dim() == 4 else t.requires_grad_() for t in made]


def ours(input, weight, bias, scale, residual, activation="relu", **more) -> Tensor:
    arguments = dict(stride=2, padding=1, groups=GROUPS, scale=scale, residual=residual, activation=activation)
    return grouped_conv2d(input, weight, bias, **arguments, **more)


def torchs(input, weight, bias, scale, residual, activation="relu") -> Tensor:
    value = F.conv2d(input, weight, None, 2, 1, 1, GROUPS)
    value = value * scale[:, None, None] + bias[:, None, None] + residual
    return value if activation == "none" else getattr(F, activation)(value)


def directions(calls) -> list[tuple[str, str]]:
    return [(call.problem.direction, call.path) for call in calls]


BY_KERNEL = [("forward", "implicit_gemm"), ("input_grad", "input_grad"), ("weight_grad", "weight_grad")]
