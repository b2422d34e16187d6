"""What tuning must know of each family that computes a gradient, one row each, as `families.py` has them."""

from __future__ import annotations

from grouped_conv.autotune import (
    depthwise_input_grad_model,
    depthwise_weight_grad_model,
    input_grad_model,
    packed_input_grad_model,
    packed_weight_grad_model,
    ragged_input_grad_model,
    ragged_weight_grad_model,
    weight_grad_model,
)
from grouped_conv.autotune.families import Model
from grouped_conv.kernels.depthwise_input_grad_rules import DepthwiseInputGradConfig
from grouped_conv.kernels.depthwise_weight_grad_rules import DepthwiseWeightGradConfig
from grouped_conv.kernels.input_grad_rules import InputGradConfig
from grouped_conv.kernels.packed_input_grad_rules import PackedInputGradConfig
from grouped_conv.kernels.packed_weight_grad_rules import PackedWeightGradConfig
from grouped_conv.kernels.ragged_input_grad_rules import RaggedInputGradConfig
from grouped_conv.kernels.ragged_weight_grad_rules import RaggedWeightGradConfig
from grouped_conv.kernels.weight_grad_rules import WeightGradConfig

GRADIENT_MODELS: dict[str, Model] = {
    InputGradConfig.family: Model(
        input_grad_model.predict,
        input_grad_model.defaults,
        input_grad_model.ranked,
        input_grad_model.space,
        tile=lambda config: (config.block_m, config.block_n, config.pack),
    ),
    WeightGradConfig.family: Model(
        weight_grad_model.predict,
        weight_grad_model.defaults,
        weight_grad_model.ranked,
        weight_grad_model.space,
        tile=lambda config: (config.block_m, config.block_n),
    ),
    PackedInputGradConfig.family: Model(
        packed_input_grad_model.predict,
        packed_input_grad_model.defaults,
        packed_input_grad_model.ranked,
        packed_input_grad_model.space,
    ),
    PackedWeightGradConfig.family: Model(
        packed_weight_grad_model.predict,
        packed_weight_grad_model.defaults,
        packed_weight_grad_model.ranked,
        packed_weight_grad_model.space,
    ),
    DepthwiseInputGradConfig.family: Model(
        depthwise_input_grad_model.predict,
        depthwise_input_grad_model.defaults,
        depthwise_input_grad_model.ranked,
        depthwise_input_grad_model.space,
        uses_tensor_cores=False,
    ),
    DepthwiseWeightGradConfig.family: Model(
        depthwise_weight_grad_model.predict,
        depthwise_weight_grad_model.defaults,
        depthwise_weight_grad_model.ranked,
        depthwise_weight_grad_model.space,
        uses_tensor_cores=False,
    ),
    RaggedInputGradConfig.family: Model(
        ragged_input_grad_model.predict,
        ragged_input_grad_model.defaults,
        ragged_input_grad_model.ranked,
        ragged_input_grad_model.space,
    ),
    RaggedWeightGradConfig.family: Model(
        ragged_weight_grad_model.predict,
        ragged_weight_grad_model.defaults,
        ragged_weight_grad_model.ranked,
        ragged_weight_grad_model.space,
    ),
}
"""By the family's name; `kernels.gradient_families.GRADIENT_FAMILIES` has the same names."""
