"""The job that tuning sends to its workers: compile one configuration, return the resources of its launches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grouped_conv.autotune.offline import compile_offline
from grouped_conv.kernels.config import KernelConfig
from grouped_conv.kernels.device import DeviceSpec
from grouped_conv.kernels.problem import ConvProblem

FUNCTION = f"{__name__}:compile_job"


def payload(problem: ConvProblem, config: KernelConfig, device: DeviceSpec) -> dict[str, Any]:
    """The job as plain JSON."""
    return {"problem": problem.to_json(), "config": config.to_json(), "device": device.to_json()}


def compile_job(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Compile the payload; one entry per launch with its kernel's name and resources, in launch order."""
    config = KernelConfig.from_json(job["config"])
    problem, device = ConvProblem.from_json(job["problem"]), DeviceSpec.from_json(job["device"])
    return [
        {"kernel": launch.name, "resources": launch.resources.to_json()}
        for launch in compile_offline(problem, device, config)
    ]
