"""Which path a convolution takes on a device, from the store alone: no tuning, no compiling, no GPU.

| policy      | a kernel runs when                                                                              |
|-------------|-------------------------------------------------------------------------------------------------|
| `measured`  | its family's self-check on this device, ABI and Triton passed, and the problem a measured win |
| `predicted` | its self-check passed: measured, predicted or heuristic configuration, unless ATen measured faster |
| `kernels`   | always: measured, predicted or heuristic configuration                                            |
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grouped_conv.autotune.heuristic import choose
from grouped_conv.autotune.records import Record
from grouped_conv.autotune.store import SelfCheck, Store, StoreError, best_of, default_store, triton_version
from grouped_conv.kernels import ABI_VERSION
from grouped_conv.kernels.config import KernelConfig
from grouped_conv.kernels.device import DeviceSpec
from grouped_conv.kernels.problem import ConvProblem
from grouped_conv.kernels.validity import why_invalid

POLICIES = ("measured", "predicted", "kernels")
CACHE_SIZE = 8192
LAST_RESORT = 'run the kernels anyway with `grouped_conv.set_policy("kernels")`'

Checks = Mapping[tuple[str, str], SelfCheck]
"""Self-checks of a device by kernel family and direction."""


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
    key = (problem, device, policy, str(known.path), known.generation)
    choice = _cache.get(key)
    if choice is None:
        try:
            related, checks = known.related(problem), known.self_checks(device.key)
        except StoreError as error:
            _warn_once(f"the tuning store is not usable, nothing recorded is known: {error}")
            related, checks = [], {}
        choice = _resolve(problem, device, policy, related, checks)
        if len(_cache) >= CACHE_SIZE:
            _cache.clear()
        _cache[key] = choice
    return choice


def _resolve(
    problem: ConvProblem, device: DeviceSpec, policy: str, related: Sequence[Record], checks: Checks
) -> Choice:
    passed = {key for key, check in checks.items() if check.passed}
    runnable = [
        record
        for record in related
        if record.device == device.key and why_invalid(problem, record.config, device) is None
    ]
    if policy == "kernels":
        return _kernel(problem, device, best_of(runnable, problem), None, "policy 'kernels' was asked for")
    checked = [record for record in runnable if (record.config.family, record.config.direction) in passed]
    families = frozenset(family for family, direction in passed if direction == problem.direction)
    record = best_of(checked, problem)
    measured = record is not None and record.measured_us is not None
    if measured and record is not None and not record.trusted:
        aten = "was not timed" if record.aten_us is None else f"took {record.aten_us:.1f} us"
        return _aten(f"measured on {device.name}: our best {record.measured_us:.1f} us, ATen {aten}; {LAST_RESORT}")
    if measured or (policy == "predicted" and families):
        return _kernel(problem, device, record, families, f"the kernels passed their self-check on {device.name}")
    unchecked = best_of(runnable, problem)
    missing = _why_unchecked(problem, device, checks, families, unchecked if policy == "measured" else None)
    return _aten(
        missing
        or f"this convolution has not been measured on {device.name}; run the predicted configuration with "
        '`grouped_conv.set_policy("predicted")`'
    )


def _why_unchecked(
    problem: ConvProblem, device: DeviceSpec, checks: Checks, families: frozenset[str], measured: Record | None
) -> str | None:
    """What keeps the kernels from running; None when their self-checks do not."""
    where = f"{device.name} (kernel ABI {ABI_VERSION}, Triton {triton_version()})"
    failed = {family: check.detail for (family, direction), check in checks.items() if direction == problem.direction}
    if measured is not None and measured.measured_us is not None and measured.config.family not in families:
        wanted, failed = (
            measured.config.family,
            {family: detail for family, detail in failed.items() if family == measured.config.family},
        )
    elif families:
        return None
    else:
        wanted = "the kernels"
    if failed:
        words = ", ".join(f"{family}: {detail or 'wrong results'}" for family, detail in sorted(failed.items()))
        return f"the {problem.direction} self-check failed on {where} ({words}); {LAST_RESORT}"
    return f"no {problem.direction} self-check of {wanted} is recorded for {where}; {LAST_RESORT}"


def _kernel(
    problem: ConvProblem, device: DeviceSpec, record: Record | None, families: frozenset[str] | None, because: str
) -> Choice:
    if record is not None:
        times = f"measured {record.measured_us:.1f} us" if record.measured_us is not None else "predicted, not measured"
        return Choice("kernel", record.config, record.source, f"{because}; configuration from the store ({times})")
    try:
        config = choose(problem, device, families)
    except ValueError as error:
        return _aten(str(error))
    return Choice("kernel", config, "heuristic", f"{because}; configuration from the heuristic (never tuned here)")


def _aten(reason: str) -> Choice:
    return Choice("aten", None, "", reason)


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=3)
