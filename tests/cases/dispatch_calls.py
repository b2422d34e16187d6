"""The small convolution that the tests of dispatch call."""

import torch
from torch import Tensor

from grouped_conv import grouped_conv2d
from grouped_conv.kernels import ImplicitGemmConfig

CONFIG = ImplicitGemmConfig(block_m=64, block_n=16, block_k=32, num_warps=4)
SPLIT = ImplicitGemmConfig(block_m=64, block_n=16, block_k=16, num_warps=4, split_k=2)


def operands(*, nhwc: bool = True, dtype: torch.dtype = torch.float16, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    layout = torch.channels_last if nhwc else torch.contiguous_format
    input = torch.randn(batch, 16, 6, 6).to(dtype).contiguous(memory_format=layout)
    weight = torch.randn(8, 8, 3, 3).to(dtype).contiguous(memory_format=layout)
    return input, weight, torch.randn(8).to(dtype)


def call(*tensors: Tensor, **arguments) -> Tensor:
    return grouped_conv2d(*tensors, padding=1, groups=2, **arguments)
