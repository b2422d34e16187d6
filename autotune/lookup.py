"""Which path a convolution takes on a device, from the store alone: no tuning, no compiling, no GPU.

| policy      | a kernel runs when                                                                              |
|-------------|-------------------------------------------------------------------------------------------------|
| `measured`  | the self-check of this device, ABI and Triton passed, and the problem has a measured win over ATen |
| `predicted` | the self-check passed: measured, predicted or heuristic configuration, unless ATen measured faster |
| `kernels`   | always: measured, predicted or heuristic configuration                                            |
"""

from __future__ import annotations

import threading
import warnings
from dataclasses import dataclass

from grouped_conv.autotune.heuristic import choose
from grouped_conv.autotune.records import Record
from grouped_conv.autotune.store import Store, StoreError, default_store, triton_version
from grouped_conv.kernels import ABI_VERSION
from grouped_conv.kernels.config import KernelConfig
from grouped_conv.kernels.device import DeviceSpec
from grouped_conv.kernels.problem import ConvProblem
from grouped_conv.kernels.validity import why_invalid

POLICIES = ("measured", "predicted", "kernels")
CACHE_SIZE = 8192


@dataclass(frozen=True, slots=True)
class Choice:
    """The path and why.

    Attributes:
        path: `kernel` or `aten`.
        config: the kernel's configuration; `None` on ATen's path.
        source: where the configuration comes from: `measured`, `predicted` or `heuristic`; empty on ATen's path.
        reason: one sentence for a user; on ATen's path it ends with what would change the outcome.
    """

    path: str
    config: KernelConfig | None
    source: str
    reason: str


_lock = threading.Lock()
_cache: dict[tuple[ConvProblem, DeviceSpec, str, str, int], Choice] = {}
_warned: set[str] = set()


def resolve(problem: ConvProblem, device: DeviceSpec, policy: str, store: Store | None = None) -> Choice:
    """The choice for `problem` on `device` under `policy`; remembered until the store changes.

    Raises:
        ValueError: for an unknown policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}; accepted: {', '.join(POLICIES)}")
    known = default_store() if store is None else store
    try:
        key = (problem, device, policy, str(known.path), known.generation)
    except StoreError as error:
        _warn_once(f"the tuning store is not usable, nothing recorded is known: {error}")
        return _resolve(problem, device, policy, None, False)
    choice = _cache.get(key)
    if choice is None:
        record = _valid(known.best(problem, device.key), problem, device)
        choice = _resolve(problem, device, policy, record, known.self_checked(device.key))
        with _lock:
            if len(_cache) >= CACHE_SIZE:
                _cache.clear()
            _cache[key] = choice
    return choice


def _resolve(problem: ConvProblem, device: DeviceSpec, policy: str, record: Record | None, checked: bool) -> Choice:
    last_resort = 'run the kernels anyway with `grouped_conv.set_policy("kernels")`'
    if policy == "kernels":
        return _kernel(problem, device, record, "policy 'kernels' was asked for")
    if not checked:
        versions = f"kernel ABI {ABI_VERSION}, Triton {triton_version()}"
        return _aten(f"no self-check of the kernels is recorded for {device.name} ({versions}); {last_resort}")
    measured = record is not None and record.measured_us is not None
    if measured and record is not None and not record.trusted:
        aten = "was not timed" if record.aten_us is None else f"took {record.aten_us:.1f} us"
        return _aten(f"measured on {device.name}: our best {record.measured_us:.1f} us, ATen {aten}; {last_resort}")
    if measured or policy == "predicted":
        return _kernel(problem, device, record, f"the kernels passed their self-check on {device.name}")
    return _aten(
        f"this convolution has not been measured on {device.name}; run the predicted configuration with "
        '`grouped_conv.set_policy("predicted")`'
    )


def _kernel(problem: ConvProblem, device: DeviceSpec, record: Record | None, because: str) -> Choice:
    if record is not None:
        times = f"measured {record.measured_us:.1f} us" if record.measured_us is not None else "predicted, not measured"
        return Choice("kernel", record.config, record.source, f"{because}; configuration from the store ({times})")
    try:
        config = choose(problem, device)
    except ValueError as error:
        return _aten(str(error))
    return Choice("kernel", config, "heuristic", f"{because}; configuration from the heuristic (never tuned here)")


def _aten(reason: str) -> Choice:
    return Choice("aten", None, "", reason)


def _valid(record: Record | None, problem: ConvProblem, device: DeviceSpec) -> Record | None:
    """The record, unless its configuration cannot run: a store may hold rows of another machine or an older space."""
    return record if record is None or why_invalid(problem, record.config, device) is None else None


def _warn_once(message: str) -> None:
    with _lock:
        if message in _warned:
            return
        _warned.add(message)
    warnings.warn(message, stacklevel=3)
