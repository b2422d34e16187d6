"""The exact command that tunes one convolution, for messages about untuned ones."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

from grouped_conv.autotune.workloads.named import MODELS, layer_problem
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem


def advised(problem: ConvProblem, device: DeviceSpec, place: str | None = None) -> str:
    """What to run, and whether that measures or predicts, which policy `measured` does not believe."""
    command = tune_command(problem, device, place)
    if place is not None:
        return f"run, to measure it on {place}: {command}"
    return f"run, to predict it (or to measure it where that is the GPU here): {command}"


def tune_command(problem: ConvProblem, device: DeviceSpec, place: str | None = None) -> str:
    """A line for a shell: `grouped-conv tune MODEL` where the layer is one of a known model, else a line of Python.

    A measurement counts for its own epilogue, a prediction for others, too: so for the former the model's must be it.

    Args:
        place: where the device is in this machine, such as `cuda:0`; None where it is known by its name alone.
    """
    known = {spec.key for spec in DeviceSpec.all()}
    name = place or (device.key if device.key in known else device.arch_name)
    for model, layers in MODELS.items():
        for layer in layers:
            candidate = layer_problem(layer, problem.batch, problem.dtype)
            if (candidate if place else replace(candidate, epilogue=problem.epilogue)) == problem:
                return f"grouped-conv tune {model} --device {name} --dtype {problem.dtype} --batch {problem.batch}"
    text = json.dumps(problem.to_json(), sort_keys=True)
    code = (
        "import json, grouped_conv; "
        f"layer = grouped_conv.ConvProblem.from_json(json.loads({text!r})); "
        f"print(grouped_conv.tune({{'layer': layer}}, device={name!r}))"
    )
    return f"python -c {shlex.quote(code)}"
