"""What compiled code says about a configuration: why it may not be chosen, or how long it is predicted to take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.model.families import model_of, predict
from grouped_conv.autotune.model.shared.prediction import MODEL_VERSION, Prediction
from grouped_conv.autotune.search.runner import Outcome, Trial
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem


def judged(trial: Trial, device: DeviceSpec, data: Mapping[str, Any]) -> Outcome:
    """The prediction that the resources in `data` lead to, a failure where they rule the configuration out."""
    resources = Resources.from_json(data["resources"])
    prediction = predict(trial.problem, trial.config, device, resources)
    reason = why_rejected(trial.problem, trial.config, resources, device)
    data = {**data, **prediction_json(prediction), "model": MODEL_VERSION}
    if reason is not None:
        return Outcome(trial, failure="resources", detail=reason, data=data)
    return Outcome(trial, prediction.weighed_us, data=data)


def why_rejected(problem: ConvProblem, config: KernelConfig, resources: Resources, device: DeviceSpec) -> str | None:
    """Why compiled code may not be chosen; `None` when it may."""
    if resources.spill_bytes:
        return f"spills {resources.spill_bytes} bytes per thread"
    if resources.shared_bytes > device.shared_per_block:
        return f"needs {resources.shared_bytes} bytes of shared memory, {device.key} has {device.shared_per_block}"
    tensor_cores = problem.dtype != "float32" or problem.precision == "tf32"
    if tensor_cores and model_of(config).uses_tensor_cores and not resources.total.mma:
        return "has no tensor-core instruction"
    return None


def prediction_json(prediction: Prediction) -> dict[str, Any]:
    """The prediction as plain JSON, as a row's data holds it."""
    return {
        "predicted_us": prediction.us,
        "weighed_us": prediction.weighed_us,
        "floor_us": prediction.floor_us,
        "padding_efficiency": prediction.padding_efficiency,
        "wave_efficiency": prediction.wave_efficiency,
        "bound": prediction.bound,
        "terms_us": {name: round(value, 3) for name, value in prediction.terms.items()},
    }
