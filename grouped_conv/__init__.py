"""Fused grouped convolutions: kernels, an autotuner for them, and the torch modules that use both.

What a user imports is named here and loaded on first use, so that `import grouped_conv` costs nothing and a compile
worker that needs `grouped_conv.kernels` alone does not load torch's operators.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from grouped_conv import _source_tree

if TYPE_CHECKING:
    from grouped_conv import autotune, bench, kernels, models
    from grouped_conv.context.overrides import using_config
    from grouped_conv.context.policies import get_policy, is_strict, policy, set_policy, set_strict, strict
    from grouped_conv.context.tracing import trace
    from grouped_conv.context.workspace import max_workspace, set_max_workspace
    from grouped_conv.converting.conversion import conversion_report, convert, fold_batchnorm, unconvert
    from grouped_conv.functional.conv1d import GroupedConv1d, grouped_conv1d
    from grouped_conv.functional.conv2d import grouped_conv2d
    from grouped_conv.functional.lrn_pool import LrnMaxPool2d, lrn_max_pool2d
    from grouped_conv.functional.ragged import ragged_conv2d
    from grouped_conv.functional.separable import separable_conv2d
    from grouped_conv.kernels import ConvProblem, DeviceSpec, Epilogue, GroupLayout, KernelConfig
    from grouped_conv.nn.conv import ChannelShuffle, GroupedConv2d
    from grouped_conv.nn.ragged import RaggedConv2d
    from grouped_conv.nn.separable import RootModule, SeparableConv2d
    from grouped_conv.planning.interpreting import interpret
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

# Where each public name is defined. The modules are not called like the functions they hold (`interpreting` has
# `interpret`), or loading the module would hide the function.
_HOMES = {
    "ChannelShuffle": "grouped_conv.nn.conv",
    "ConvProblem": "grouped_conv.kernels",
    "DeviceSpec": "grouped_conv.kernels",
    "Epilogue": "grouped_conv.kernels",
    "GroupLayout": "grouped_conv.kernels",
    "GroupedConv1d": "grouped_conv.functional.conv1d",
    "GroupedConv2d": "grouped_conv.nn.conv",
    "KernelConfig": "grouped_conv.kernels",
    "RaggedConv2d": "grouped_conv.nn.ragged",
    "RootModule": "grouped_conv.nn.separable",
    "SeparableConv2d": "grouped_conv.nn.separable",
    "LrnMaxPool2d": "grouped_conv.functional.lrn_pool",
    "conversion_report": "grouped_conv.converting.conversion",
    "convert": "grouped_conv.converting.conversion",
    "explain": "grouped_conv.preparing.explaining",
    "fold_batchnorm": "grouped_conv.converting.conversion",
    "get_policy": "grouped_conv.context.policies",
    "grouped_conv1d": "grouped_conv.functional.conv1d",
    "grouped_conv2d": "grouped_conv.functional.conv2d",
    "interpret": "grouped_conv.planning.interpreting",
    "is_strict": "grouped_conv.context.policies",
    "lrn_max_pool2d": "grouped_conv.functional.lrn_pool",
    "max_workspace": "grouped_conv.context.workspace",
    "policy": "grouped_conv.context.policies",
    "ragged_conv2d": "grouped_conv.functional.ragged",
    "separable_conv2d": "grouped_conv.functional.separable",
    "set_max_workspace": "grouped_conv.context.workspace",
    "set_policy": "grouped_conv.context.policies",
    "set_strict": "grouped_conv.context.policies",
    "strict": "grouped_conv.context.policies",
    "trace": "grouped_conv.context.tracing",
    "tune": "grouped_conv.preparing.tuning",
    "unconvert": "grouped_conv.converting.conversion",
    "using_config": "grouped_conv.context.overrides",
    "warmup": "grouped_conv.preparing.warming",
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
