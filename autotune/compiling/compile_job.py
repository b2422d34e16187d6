"""The job that tuning sends to its workers: compile one configuration, return the resources of its launches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grouped_conv.autotune.compiling.offline import compiled_launches
from grouped_conv.autotune.machine_code.failures import classify
from grouped_conv.kernels.families import KernelConfig, why_invalid
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

FUNCTION = f"{__name__}:compile_job"


def payload(problem: ConvProblem, config: KernelConfig, device: DeviceSpec) -> dict[str, Any]:
    """The job as plain JSON."""
    return {"problem": problem.to_json(), "config": config.to_json(), "device": device.to_json()}


def compile_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """Compile the payload: `launches`, each with its kernel's name and resources, or `failure` and `detail`."""
    config = KernelConfig.from_json(job["config"])
    problem, device = ConvProblem.from_json(job["problem"]), DeviceSpec.from_json(job["device"])
    reason = why_invalid(problem, config, device)
    if reason is not None:
        return {"failure": "invalid", "detail": reason}
    try:
        launches = compiled_launches(problem, config, device)
        return {
            "launches": [{"kernel": launch.name, "resources": launch.resources.to_json()} for launch in launches],
        }
    except Exception as error:
        kind = classify(error, compiling=True)
        if kind is None:
            raise
        return {"failure": kind, "detail": f"{type(error).__name__}: {error}"[:2000]}
