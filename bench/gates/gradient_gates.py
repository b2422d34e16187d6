"""What the gates of gradients share: defaults of a family, epilogues that are fused into loads, the width of loads."""

from __future__ import annotations

from typing import Any

from grouped_conv.autotune.model.families import MODELS
from grouped_conv.bench.gates.findings import VECTOR_BYTES
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.problem import ConvProblem

PLAIN, RELU = Epilogue(), Epilogue("relu")
EPILOGUES = (PLAIN, RELU, Epilogue("silu"), Epilogue(scale=True))
"""A load alone, a choice, a derivative in fp32, a product in fp32."""


def family_default(family: str, problem: ConvProblem, device: DeviceSpec) -> Any:
    """The family's own default: other families may be predicted to be faster where groups are narrow."""
    model = MODELS[family]
    valid = [config for config in model.defaults(problem, device) if why_invalid(problem, config, device) is None]
    return min(valid, key=lambda config: model.predict(problem, config, device).weighed_us)


def least_width(config: Any, problem: ConvProblem, device: DeviceSpec) -> int:
    """Bytes of a load of the smaller operand's tile: fewer than 16 where there are fewer for each thread."""
    smaller = min(config.block_m, config.block_n) * config.block_k * problem.item_size
    return min(VECTOR_BYTES, smaller // (config.num_warps * device.warp_size))
