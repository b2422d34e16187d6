"""Which configuration a convolution should run with: search space, cost model, offline compilation, store, look-up.

Nothing here imports torch. Names are resolved on first use (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grouped_conv.autotune.compiling.offline import CompiledLaunch, compile_offline
    from grouped_conv.autotune.lookup.resolve import Choice, UntunedError, resolve
    from grouped_conv.autotune.machine_code.resources import Resources, read_resources
    from grouped_conv.autotune.measuring.self_check import check_kernels
    from grouped_conv.autotune.model.families import predict
    from grouped_conv.autotune.model.heuristic import choose
    from grouped_conv.autotune.model.implicit_gemm.forward_axes import candidates
    from grouped_conv.autotune.model.shared.prediction import Prediction
    from grouped_conv.autotune.records.record import Record
    from grouped_conv.autotune.search.tuner import tune_offline
    from grouped_conv.autotune.store.store import Store
    from grouped_conv.autotune.workloads.named import workload

_HOMES = {
    "Choice": "lookup.resolve",
    "CompiledLaunch": "compiling.offline",
    "Prediction": "model.shared.prediction",
    "Record": "records.record",
    "Resources": "machine_code.resources",
    "Store": "store.store",
    "UntunedError": "lookup.resolve",
    "candidates": "model.implicit_gemm.forward_axes",
    "check_kernels": "measuring.self_check",
    "choose": "model.heuristic",
    "compile_offline": "compiling.offline",
    "predict": "model.families",
    "read_resources": "machine_code.resources",
    "resolve": "lookup.resolve",
    "tune_offline": "search.tuner",
    "workload": "workloads.named",
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
