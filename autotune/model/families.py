"""What tuning must know of each kernel family, one row each: its defaults, its search space, its cost model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from grouped_conv.autotune import (
    depthwise_model,
    implicit_gemm_cost,
    implicit_gemm_defaults,
    implicit_gemm_search,
    packed_groups_model,
    ragged_model,
)
from grouped_conv.autotune.prediction import Prediction
from grouped_conv.kernels.config import ImplicitGemmConfig, KernelConfig
from grouped_conv.kernels.depthwise_rules import DepthwiseConfig
from grouped_conv.kernels.device import DeviceSpec
from grouped_conv.kernels.packed_groups_rules import PackedGroupsConfig
from grouped_conv.kernels.problem import ConvProblem
from grouped_conv.kernels.ragged_rules import RaggedConfig


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
