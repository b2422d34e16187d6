"""Which tiles of the ragged gradients are expected to fit NVIDIA's registers; in tuning, compiled spills decide."""

from __future__ import annotations

from grouped_conv.kernels.ragged.forward_rules import traits
from grouped_conv.kernels.ragged.input_grad_rules import RaggedInputGradConfig
from grouped_conv.kernels.ragged.weight_grad_rules import RaggedWeightGradConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

MOST_INPUT_LOADS = 16
"""Loads of the layer's input per thread and step of the weight's gradient: 32 spilled 56 to 3,120 bytes."""
MOST_SUMS = 32
"""fp32 sums per thread of the input's gradient where loads are of 2 bytes: 64 spilled 330 to 750 bytes."""
MOST_LOADS = {4: 24, 8: 24, 16: 16}
"""Its loads per thread and step by their width in bytes: 36 of 4 bytes, and 20 of 16, spilled 16 to 48 bytes."""


def fits_registers(
    problem: ConvProblem, config: RaggedInputGradConfig | RaggedWeightGradConfig, device: DeviceSpec
) -> bool:
    """Is the code expected not to spill? The limits are of layers compiled for sm_80 and sm_90."""
    if device.backend != "cuda":
        return True
    threads = config.num_warps * device.warp_size
    known = traits(problem.layout)
    run = min(known.in_align, known.out_align, 16 // problem.item_size)
    if isinstance(config, RaggedWeightGradConfig):
        return config.block_n * config.block_k <= MOST_INPUT_LOADS * run * threads
    width = run * problem.item_size
    if width < 4:
        return config.block_m * config.block_n <= MOST_SUMS * threads
    gradients = config.block_m * (1 if problem.epilogue.activation == "none" else 2)  # with what is known
    return (gradients + config.block_n) * config.block_k <= MOST_LOADS[width] * run * threads
