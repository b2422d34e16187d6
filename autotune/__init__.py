"""Which configuration a convolution should run with: search space, cost model, offline compilation, store, look-up.

Nothing here imports torch. Names are resolved on first use (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grouped_conv.autotune.cost import predict
    from grouped_conv.autotune.heuristic import choose
    from grouped_conv.autotune.lookup import Choice, UntunedError, resolve
    from grouped_conv.autotune.offline import CompiledLaunch, compile_offline
    from grouped_conv.autotune.prediction import Prediction
    from grouped_conv.autotune.records import Record
    from grouped_conv.autotune.resources import Resources, read_resources
    from grouped_conv.autotune.self_check import check_kernels
    from grouped_conv.autotune.space import candidates
    from grouped_conv.autotune.store import Store
    from grouped_conv.autotune.tuner import tune_offline
    from grouped_conv.autotune.workloads import workload

_HOMES = {
    "Choice": "lookup",
    "CompiledLaunch": "offline",
    "Prediction": "prediction",
    "Record": "records",
    "Resources": "resources",
    "Store": "store",
    "UntunedError": "lookup",
    "candidates": "space",
    "check_kernels": "self_check",
    "choose": "heuristic",
    "compile_offline": "offline",
    "predict": "cost",
    "read_resources": "resources",
    "resolve": "lookup",
    "tune_offline": "tuner",
    "workload": "workloads",
}

__all__ = [
    "Choice",
    "CompiledLaunch",
    "Prediction",
    "Record",
    "Resources",
    "Store",
    "UntunedError",
    "candidates",
    "check_kernels",
    "choose",
    "compile_offline",
    "predict",
    "read_resources",
    "resolve",
    "tune_offline",
    "workload",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
