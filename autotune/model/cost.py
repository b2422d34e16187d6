"""Predicts how long a call takes, whatever its family: `predict`. Nothing here was measured."""

from __future__ import annotations

from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.model.directions import model_of
from grouped_conv.autotune.model.shared.prediction import Prediction
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem


def predict(
    problem: ConvProblem, config: KernelConfig, device: DeviceSpec, resources: Resources | None = None
) -> Prediction:
    """Predict the call of `problem` with `config` on `device` by the model of the configuration's family.

    Args:
        resources: figures of the compiled main kernel; estimated when absent.
    """
    return model_of(config).predict(problem, config, device, resources)
