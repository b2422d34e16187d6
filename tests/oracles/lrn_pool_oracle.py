"""The truth of LRN + pooling: tensors for a problem, torch's operations in float64, what error is allowed.

The rule is `conv_oracle`'s: at most twice torch's own error in the same dtype plus one machine epsilon. torch's own is
`grouped_conv.models.LocalResponseNorm` and `max_pool2d`, which round to the dtype between the steps.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from conv_oracle import EPSILON, memory_format, poisoned, relative_error
from torch import Tensor

from grouped_conv.kernels.launching.launch import Launch
from grouped_conv.kernels.launching.operands import Operand
from grouped_conv.kernels.lrn_pool.forward import plan_lrn_pool
from grouped_conv.kernels.lrn_pool.forward_rules import LrnPoolConfig
from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem
from grouped_conv.models import LocalResponseNorm


def make_tensors(problem: LrnPoolProblem, seed: int = 0, scale: float = 20.0) -> dict[str, Tensor]:
    """The input at random, so large that the normalisation matters, and a poisoned output."""
    generator = torch.Generator().manual_seed(seed)
    x = (scale * torch.randn(problem.input_shape, generator=generator)).to(getattr(torch, problem.dtype))
    return {
        "input": x.contiguous(memory_format=memory_format(problem.channels_last)),
        "output": poisoned(problem.output_shape, problem.dtype, problem.channels_last),
    }


def reference(problem: LrnPoolProblem, x: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """What torch computes for the problem, step by step in `dtype`."""
    y = x.to(dtype)
    for step in problem.steps:
        if step == "relu":
            y = F.relu(y)
        elif step == "lrn":
            y = LocalResponseNorm(problem.size, problem.alpha, problem.beta, problem.k, problem.groups)(y)
        else:
            y = F.max_pool2d(y, problem.kernel_size, problem.stride, problem.padding, ceil_mode=problem.ceil_mode)
    return y


def check_output(problem: LrnPoolProblem, tensors: Mapping[str, Tensor], what: str = "") -> float:
    """Assert that `tensors["output"]` is right; returns its error."""
    exact = reference(problem, tensors["input"])
    theirs = reference(problem, tensors["input"], getattr(torch, problem.dtype))
    error = relative_error(tensors["output"], exact)
    allowed = 2 * relative_error(theirs, exact) + EPSILON[problem.dtype]
    assert tensors["output"].shape == exact.shape
    assert error <= allowed, f"{what or problem}: error {error:.3g} is more than {allowed:.3g}"
    return error


def run_launch(
    problem: LrnPoolProblem,
    config: LrnPoolConfig,
    tensors: Mapping[str, Tensor],
    run: Callable[[Launch, Mapping[str, Tensor]], Any],
) -> tuple[Launch, Any]:
    """Run the problem, planned for the tensors' strides, with `run`; the launch, and what the run returned."""
    operands = {name: Operand(t.stride(), min(16, t.data_ptr() & -t.data_ptr())) for name, t in tensors.items()}
    launch = plan_lrn_pool(problem, config, operands)
    return launch, run(launch, tensors)
