"""The exact command that tunes one convolution, for messages about untuned ones."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

from grouped_conv.autotune.workloads import MODELS, layer_problem
from grouped_conv.kernels.device import DeviceSpec
from grouped_conv.kernels.problem import ConvProblem


def tune_command(problem: ConvProblem, device: DeviceSpec) -> str:
    """A line for a shell: `grouped-conv tune MODEL` where the layer is one of a known model, else a line of Python."""
    known = {spec.key for spec in DeviceSpec.all()}
    name = device.key if device.key in known else device.arch_name
    for model, layers in MODELS.items():
        for layer in layers:
            candidate = layer_problem(layer, problem.batch, problem.dtype)
            if replace(candidate, epilogue=problem.epilogue) == problem:
                return f"grouped-conv tune {model} --device {name} --dtype {problem.dtype} --batch {problem.batch}"
    text = json.dumps(problem.to_json(), sort_keys=True)
    code = (
        "import json; from grouped_conv.autotune import tune_offline; "
        "from grouped_conv.kernels import ConvProblem, DeviceSpec; "
        f"print(tune_offline({{'layer': ConvProblem.from_json(json.loads({text!r}))}}, DeviceSpec.get({name!r})))"
    )
    return f"python -c {shlex.quote(code)}"
