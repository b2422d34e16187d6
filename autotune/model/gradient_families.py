"""What tuning must know of each family that computes a gradient, one row each, as `families.py` has them."""

from __future__ import annotations

from grouped_conv.autotune.model.depthwise import input_grad as depthwise_input_grad_model
from grouped_conv.autotune.model.depthwise import weight_grad as depthwise_weight_grad_model
from grouped_conv.autotune.model.families import Model
from grouped_conv.autotune.model.implicit_gemm import input_grad as input_grad_model
from grouped_conv.autotune.model.implicit_gemm import weight_grad as weight_grad_model
from grouped_conv.autotune.model.packed import input_grad as packed_input_grad_model
from grouped_conv.autotune.model.packed import weight_grad as packed_weight_grad_model
from grouped_conv.autotune.model.ragged import input_grad as ragged_input_grad_model
from grouped_conv.autotune.model.ragged import weight_grad as ragged_weight_grad_model
from grouped_conv.kernels.depthwise.input_grad_rules import DepthwiseInputGradConfig
from grouped_conv.kernels.depthwise.weight_grad_rules import DepthwiseWeightGradConfig
from grouped_conv.kernels.implicit_gemm.input_grad_rules import InputGradConfig
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import WeightGradConfig
from grouped_conv.kernels.packed.input_grad_rules import PackedInputGradConfig
from grouped_conv.kernels.packed.weight_grad_rules import PackedWeightGradConfig
from grouped_conv.kernels.ragged.input_grad_rules import RaggedInputGradConfig
from grouped_conv.kernels.ragged.weight_grad_rules import RaggedWeightGradConfig

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
"""By the family's name; `kernels.families.FAMILIES` has the same names."""
