"""Tensors beyond 2^31 elements: every offset that needs 64 bits has them.

The tensors are views of storage that is reserved but hardly touched, so that they cost address space, not memory.
"""

import torch
from conv_oracle import check_output, make_tensors, run_call
from far_apart import FAR, spread

from grouped_conv.kernels import ConvProblem, ImplicitGemmConfig
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.interpreting.interpreter import interpret_launch
from grouped_conv.kernels.launching.operands import Operand

CONFIG = ImplicitGemmConfig(block_m=32, block_n=16, block_k=16)


def run_with_strides(problem: ConvProblem, strides: dict[str, tuple[int, int, int, int]]) -> None:
    tensors = make_tensors(problem)
    tensors |= {name: spread(tensors[name], wanted) for name, wanted in strides.items()}
    call = plan_call(problem, CONFIG, {name: Operand(wanted) for name, wanted in strides.items()})
    run_call(call, tensors, interpret_launch)
    check_output(problem, tensors)


def test_images_far_apart() -> None:
    problem = ConvProblem.of((2, 32, 5, 4), (16, 16, 3, 3), padding=1, groups=2)
    run_with_strides(problem, {"input": (FAR, 1, 4 * 32, 32), "output": (FAR, 1, 4 * 16, 16)})


def test_rows_far_apart() -> None:
    """The window itself spans more than 2^31 elements."""
    problem = ConvProblem.of((1, 16, 4, 4), (16, 16, 3, 3), padding=1)
    run_with_strides(problem, {"input": (4 * FAR // 2, 1, FAR // 2, 16)})


def test_packing_a_far_image() -> None:
    problem = ConvProblem.of((2, 16, 4, 4), (16, 16, 3, 3), padding=1, channels_last=False, weight_channels_last=True)
    run_with_strides(problem, {"input": (FAR, 16, 4, 1)})


def test_more_than_two_to_the_31_output_pixels() -> None:
    """The last tile of 2.2 billion pixels; the programs before it are not run."""
    problem = ConvProblem.of((2**21, 1, 32, 33), (1, 1, 1, 1))
    config = ImplicitGemmConfig(block_m=64, block_n=16, block_k=16)
    x, y = (torch.empty(problem.input_shape, dtype=torch.float16) for _ in range(2))
    pixels = torch.arange(1, 65, dtype=torch.float16)
    x.view(-1)[-64:] = pixels
    y.view(-1)[-128:] = -1
    (launch,) = plan_call(problem, config).launches
    tensors = {"input": x, "weight": torch.full((1, 1, 1, 1), 2.0, dtype=torch.float16), "output": y}
    last = launch.grid[0] - 1
    assert problem.gemm[1] > 2**31
    interpret_launch(launch, tensors, iter([(last, 0, 0)]))
    assert torch.equal(y.view(-1)[-64:], 2 * pixels)
    assert (y.view(-1)[-128:-64] == -1).all()
