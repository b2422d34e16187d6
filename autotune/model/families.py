"""What tuning knows of each kernel family, one row each, and the predicted time of a call of any of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.model.depthwise import forward as depthwise
from grouped_conv.autotune.model.depthwise import input_grad as depthwise_input_grad
from grouped_conv.autotune.model.depthwise import weight_grad as depthwise_weight_grad
from grouped_conv.autotune.model.implicit_gemm import forward as implicit_gemm
from grouped_conv.autotune.model.implicit_gemm import input_grad, weight_grad
from grouped_conv.autotune.model.lrn_pool import forward as lrn_pool
from grouped_conv.autotune.model.packed import forward as packed_groups
from grouped_conv.autotune.model.packed import input_grad as packed_input_grad
from grouped_conv.autotune.model.packed import weight_grad as packed_weight_grad
from grouped_conv.autotune.model.ragged import forward as ragged
from grouped_conv.autotune.model.ragged import input_grad as ragged_input_grad
from grouped_conv.autotune.model.ragged import weight_grad as ragged_weight_grad
from grouped_conv.autotune.model.separable import forward as separable
from grouped_conv.autotune.model.shared.model import Model
from grouped_conv.autotune.model.shared.prediction import Prediction
from grouped_conv.kernels.families import Problem, families_for
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec

MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "implicit_gemm": implicit_gemm.MODEL,
        "packed_groups": packed_groups.MODEL,
        "depthwise": depthwise.MODEL,
        "ragged": ragged.MODEL,
        "separable": separable.MODEL,
        "lrn_pool": lrn_pool.MODEL,
        "input_grad": input_grad.MODEL,
        "packed_input_grad": packed_input_grad.MODEL,
        "depthwise_input_grad": depthwise_input_grad.MODEL,
        "ragged_input_grad": ragged_input_grad.MODEL,
        "weight_grad": weight_grad.MODEL,
        "packed_weight_grad": packed_weight_grad.MODEL,
        "depthwise_weight_grad": depthwise_weight_grad.MODEL,
        "ragged_weight_grad": ragged_weight_grad.MODEL,
    }
)
"""By the family's name; the names are those of `kernels.families.FAMILIES`."""

PIPELINE = ("num_stages", "cache_a", "swizzle_m", "static_trips")
"""Knobs that change only how a kernel loads and walks: configurations that differ in nothing else are alike."""


def models_for(problem: Problem) -> dict[str, Model]:
    """The families that compute the problem, by name."""
    return {name: MODELS[name] for name in families_for(problem)}


def model_of(config: KernelConfig) -> Model:
    """What tuning knows of the configuration's family."""
    return MODELS[config.family]


def predict(
    problem: Problem, config: KernelConfig, device: DeviceSpec, resources: Resources | None = None
) -> Prediction:
    """Predict the call of `problem` with `config` on `device`; nothing is measured.

    Args:
        resources: figures of the compiled main kernel; estimated when absent.
    """
    return model_of(config).predict(problem, config, device, resources)
