"""Fused grouped convolutions: kernels, an autotuner for them, and the torch modules that use both.

Public names are listed here and loaded on first use. So `import grouped_conv` costs nothing, and a compile worker that
needs only `grouped_conv.kernels` does not load torch's operators.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from grouped_conv import _source_tree

# Type checkers need static imports and names: a test compares these and `__all__` with `_HOMES`.
if TYPE_CHECKING:
    from grouped_conv import autotune, bench, kernels, models
    from grouped_conv.context.overrides import using_config
    from grouped_conv.context.policies import get_policy, is_strict, policy, set_policy, set_strict, strict
    from grouped_conv.context.tracing import trace
    from grouped_conv.context.workspace import max_workspace, set_max_workspace
    from grouped_conv.converting.conversion import conversion_report, convert, fold_batchnorm, unconvert
    from grouped_conv.functional.conv1d import grouped_conv1d
    from grouped_conv.functional.conv2d import grouped_conv2d
    from grouped_conv.functional.lrn_pool import lrn_max_pool2d
    from grouped_conv.functional.ragged import ragged_conv2d
    from grouped_conv.functional.separable import separable_conv2d
    from grouped_conv.kernels import ConvProblem, DeviceSpec, Epilogue, GroupLayout, KernelConfig
    from grouped_conv.nn.conv import ChannelShuffle, GroupedConv1d, GroupedConv2d
    from grouped_conv.nn.lrn_pool import LrnMaxPool2d
    from grouped_conv.nn.ragged import RaggedConv2d
    from grouped_conv.nn.separable import RootModule, SeparableConv2d
    from grouped_conv.planning.interpreting import interpret
    from grouped_conv.preparing.explaining import explain
    from grouped_conv.preparing.tuning import tune
    from grouped_conv.preparing.warming import warmup

__version__ = "0.1.0"

__all__ = [
    "ChannelShuffle",
    "ConvProblem",
    "DeviceSpec",
    "Epilogue",
    "GroupLayout",
    "GroupedConv1d",
    "GroupedConv2d",
    "KernelConfig",
    "LrnMaxPool2d",
    "RaggedConv2d",
    "RootModule",
    "SeparableConv2d",
    "__version__",
    "autotune",
    "bench",
    "conversion_report",
    "convert",
    "explain",
    "fold_batchnorm",
    "get_policy",
    "grouped_conv1d",
    "grouped_conv2d",
    "interpret",
    "is_strict",
    "kernels",
    "lrn_max_pool2d",
    "max_workspace",
    "models",
    "policy",
    "ragged_conv2d",
    "separable_conv2d",
    "set_max_workspace",
    "set_policy",
    "set_strict",
    "strict",
    "trace",
    "tune",
    "unconvert",
    "using_config",
    "warmup",
]

# The public names of each module. No module is named like a function it holds (`interpreting` has `interpret`):
# loading the module would hide the function.
_HOMES = {
    name: f"{__name__}.{module}"
    for module, names in {
        "context.overrides": "using_config",
        "context.policies": "get_policy is_strict policy set_policy set_strict strict",
        "context.tracing": "trace",
        "context.workspace": "max_workspace set_max_workspace",
        "converting.conversion": "conversion_report convert fold_batchnorm unconvert",
        "functional.conv1d": "grouped_conv1d",
        "functional.conv2d": "grouped_conv2d",
        "functional.lrn_pool": "lrn_max_pool2d",
        "functional.ragged": "ragged_conv2d",
        "functional.separable": "separable_conv2d",
        "kernels": "ConvProblem DeviceSpec Epilogue GroupLayout KernelConfig",
        "nn.conv": "ChannelShuffle GroupedConv1d GroupedConv2d",
        "nn.lrn_pool": "LrnMaxPool2d",
        "nn.ragged": "RaggedConv2d",
        "nn.separable": "RootModule SeparableConv2d",
        "planning.interpreting": "interpret",
        "preparing.explaining": "explain",
        "preparing.tuning": "tune",
        "preparing.warming": "warmup",
    }.items()
    for name in names.split()
}
_SUBPACKAGES = frozenset({"autotune", "bench", "kernels", "models"})

_source_tree.find_folders_beside(__path__[0])


def __getattr__(name: str) -> object:
    if name in _SUBPACKAGES:
        return _import_module(f"{__name__}.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(_import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
