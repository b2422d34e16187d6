"""Which problems the package's presets answer: the grouped layers of AlexNet and ResNeXt-50, and their gradients.

A look-up takes a forward preset whatever follows the convolution (see `ranking.best_of`), so a forward pass has one,
with the bias and the activation that follow the layer in the network, as folded for inference. Gradient presets have no
activation in two cases: ResNeXt, where a BatchNorm follows, and kernels that read a written gradient. AlexNet's layers
have a second preset with the activation in their loads.
"""

from __future__ import annotations

from grouped_conv.autotune.workloads.named import in_directions, workload
from grouped_conv.kernels.gradient_call import written_problem
from grouped_conv.kernels.values.problem import DIRECTIONS, ConvProblem

DEVICES = ("a100", "h100-sxm", "h100-pcie")
"""Keys of the devices: every A100 is one, H200 and H100 NVL are near the H100 SXM and borrow from it."""
ACTIVATED = {"alexnet": True, "resnext50_32x4d": False}
"""The models, and whether an activation follows their grouped layers directly when they train."""
BATCHES = (1, 128)
DTYPES = ("float16", "bfloat16")


def preset_problems() -> dict[str, ConvProblem]:
    """The problems by name, each once, as channels_last layers ask for them."""
    found: dict[ConvProblem, str] = {}
    for model, activated in ACTIVATED.items():
        for batch in BATCHES:
            for dtype in DTYPES:
                layers = workload(model, batch, dtype)
                grouped = {name: problem for name, problem in layers.items() if problem.groups > 1}
                for name, problem in in_directions(grouped, DIRECTIONS).items():
                    title = f"{model} {name}, batch {batch}, {dtype}"
                    if problem.direction == "forward" or activated:
                        found.setdefault(problem, title)
                    if problem.direction != "forward":
                        found.setdefault(written_problem(problem), f"{title}, no activation")
    return {title: problem for problem, title in found.items()}
