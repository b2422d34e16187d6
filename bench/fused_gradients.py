"""What the gates of gradients share: a family's own default, and epilogues whose gradients are fused into loads."""

from __future__ import annotations

from typing import Any

from grouped_conv.autotune.gradient_families import GRADIENT_MODELS
from grouped_conv.kernels.device import DeviceSpec
from grouped_conv.kernels.epilogue import Epilogue
from grouped_conv.kernels.problem import ConvProblem
from grouped_conv.kernels.validity import why_invalid

PLAIN, RELU = Epilogue(), Epilogue("relu")
EPILOGUES = (PLAIN, RELU, Epilogue("silu"), Epilogue(scale=True))
"""A load alone, a choice, a derivative in fp32, a product in fp32."""


def family_default(family: str, problem: ConvProblem, device: DeviceSpec) -> Any:
    """The family's own default: other families may be predicted to be faster where groups are narrow."""
    model = GRADIENT_MODELS[family]
    valid = [config for config in model.defaults(problem, device) if why_invalid(problem, config, device) is None]
    return min(valid, key=lambda config: model.predict(problem, config, device).weighed_us)
