"""What tuning must know of each kernel family, one row each: its defaults, its search space, its cost model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from grouped_conv.autotune.model.depthwise import forward as depthwise_model
from grouped_conv.autotune.model.implicit_gemm import forward as implicit_gemm_cost
from grouped_conv.autotune.model.implicit_gemm import forward_defaults as implicit_gemm_defaults
from grouped_conv.autotune.model.implicit_gemm import forward_space as implicit_gemm_search
from grouped_conv.autotune.model.packed import forward as packed_groups_model
from grouped_conv.autotune.model.ragged import forward as ragged_model
from grouped_conv.autotune.model.shared.prediction import Prediction
from grouped_conv.kernels.depthwise.forward_rules import DepthwiseConfig
from grouped_conv.kernels.implicit_gemm.forward_rules import ImplicitGemmConfig
from grouped_conv.kernels.packed.forward_rules import PackedGroupsConfig
from grouped_conv.kernels.ragged.forward_rules import RaggedConfig
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem


@dataclass(frozen=True, slots=True)
class Model:
    """One family as tuning sees it.

    Attributes:
        predict: (problem, configuration, device, resources or None) to the predicted time.
        defaults: (problem, device) to the few configurations that the heuristic compares; some may be invalid.
        ranked: (problem, device) to the valid configurations worth compiling, best first by the model.
        space: (problem, device) to all configurations that were thought of, each with the reason that leaves it out, or
            None.
        uses_tensor_cores: whether compiled code without a tensor-core instruction is a fault, for 16-bit and TF32.
        tile: the part of a configuration of which a shortlist holds few.
    """

    predict: Callable[..., Prediction]
    defaults: Callable[[ConvProblem, DeviceSpec], Iterable[KernelConfig]]
    ranked: Callable[[ConvProblem, DeviceSpec], Iterable[KernelConfig]]
    space: Callable[[ConvProblem, DeviceSpec], Iterable[tuple[KernelConfig, str | None]]]
    uses_tensor_cores: bool = True
    tile: Callable[[Any], Any] = str


MODELS: dict[str, Model] = {
    ImplicitGemmConfig.family: Model(
        implicit_gemm_cost.predict,
        implicit_gemm_defaults.defaults,
        implicit_gemm_search.ranked,
        implicit_gemm_search.space,
        tile=lambda config: (config.block_m, config.block_n),
    ),
    RaggedConfig.family: Model(
        ragged_model.predict,
        ragged_model.defaults,
        ragged_model.ranked,
        ragged_model.space,
        tile=lambda config: (config.block_m, config.block_n),
    ),
    PackedGroupsConfig.family: Model(
        packed_groups_model.predict,
        packed_groups_model.defaults,
        packed_groups_model.ranked,
        packed_groups_model.space,
        tile=lambda config: (config.pack, config.strip),
    ),
    DepthwiseConfig.family: Model(
        depthwise_model.predict,
        depthwise_model.defaults,
        depthwise_model.ranked,
        depthwise_model.space,
        uses_tensor_cores=False,
        tile=lambda config: (config.tile_h, config.tile_w, config.block_c),
    ),
}
"""By the family's name; `kernels.families.FAMILIES` has the same names."""
