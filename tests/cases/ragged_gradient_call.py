"""Which launches compute a gradient of unequal groups, given the tensors of a call. Nothing is run here."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from grouped_conv.kernels.gradient_call import gradient_problem, plan_gradient
from grouped_conv.kernels.launching.calls import Call
from grouped_conv.kernels.ragged.input_grad_rules import RaggedInputGradConfig
from grouped_conv.kernels.ragged.weight_grad_rules import RaggedWeightGradConfig
from grouped_conv.kernels.values.problem import ConvProblem
from grouped_conv.planning.steps import operand_of


def plan_ragged_gradient(
    problem: ConvProblem,
    config: RaggedInputGradConfig | RaggedWeightGradConfig,
    tensors: Mapping[str, Tensor],
    *,
    grad_scale: bool = False,
) -> Call:
    """The launches, temporaries and tables of one gradient.

    Args:
        problem: the forward problem.
        config: says which gradient.
        tensors: as the operands of `gradient_call.plan_gradient`; `weight` and `grad_weight` are flat storages
            (`ragged_weights.flat_storage`), whose views per bucket are `ragged_weights.views`.
        grad_scale: also write `grad_scale`; with the weight's gradient only.

    Raises:
        ValueError: when the configuration or the tensors' memory layout cannot be run, with the reason.
    """
    direction = "input_grad" if isinstance(config, RaggedInputGradConfig) else "weight_grad"
    operands = {name: operand_of(tensor) for name, tensor in tensors.items()}
    return plan_gradient(gradient_problem(problem, direction), config, operands, grad_scale=grad_scale)
