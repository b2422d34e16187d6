"""Which path a convolution takes on a device, from what is recorded alone: no tuning, no compiling, no GPU.

| policy      | a kernel runs when                                                                             |
|-------------|------------------------------------------------------------------------------------------------|
| `measured`  | its family's self-check on this device, ABI and Triton passed, and the problem a measured win  |
| `predicted` | its self-check passed: a configuration from any source, unless ATen measured faster            |
| `kernels`   | always: a configuration from any source                                                        |

Sources in their order: the store, presets, a nearby device, a nearby batch, the heuristic; see `sources.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grouped_conv.autotune.lookup import sources
from grouped_conv.autotune.lookup.advice import advised
from grouped_conv.autotune.lookup.sources import Found
from grouped_conv.autotune.records.ranking import is_usable
from grouped_conv.autotune.records.record import Record
from grouped_conv.autotune.store.store import SelfCheck, Store, StoreError, default_store, triton_version
from grouped_conv.kernels import ABI_VERSION
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

POLICIES = ("measured", "predicted", "kernels")
CACHE_SIZE = 8192
LAST_RESORT = 'run the kernels anyway with `grouped_conv.set_policy("kernels")`'

Checks = Mapping[tuple[str, str], SelfCheck]
"""Self-checks of a device by kernel family and direction."""


class UntunedError(RuntimeError):
    """Strict mode met a convolution that nobody tuned; the message has the command that does."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The path and why.

    Attributes:
        path: `kernel` or `aten`.
        config: the kernel's configuration; `None` on ATen's path.
        source: where the configuration comes from, a source of `sources.Found`; empty on ATen's path.
        reason: one sentence for a user; on ATen's path it ends with what would change the outcome.
        confidence: what the configuration is worth, a confidence of `sources.Found`; empty on ATen's path.
        is_tuned: whether what decided is recorded for this very problem and device: under `measured` a measurement,
            else a prediction, too.
    """

    path: str
    config: KernelConfig | None
    source: str
    reason: str
    confidence: str = ""
    is_tuned: bool = False


# A hit must cost next to nothing, but hashing a problem takes microseconds, for unequal groups as many as it has
# channels. So the first table goes by identity: the objects it names are kept beside the choice, and live as long.
_by_identity: dict[tuple[int, int, str, Store], tuple[int, Choice, Any]] = {}
_by_value: dict[tuple[ConvProblem, DeviceSpec, str, Store], tuple[int, Choice]] = {}
_warned: set[str] = set()


def resolve(
    problem: ConvProblem,
    device: DeviceSpec,
    policy: str,
    store: Store | None = None,
    *,
    strict: bool = False,
    place: str | None = None,
) -> Choice:
    """The choice for `problem` on `device` under `policy`; remembered until the store changes.

    Args:
        store: by default the one of `settings.store_path()`.
        strict: refuse what is not tuned.
        place: where the device is in this machine, such as `cuda:0`, for the command in the error.

    Raises:
        ValueError: for an unknown policy.
        UntunedError: in strict mode, with the command that tunes the problem.
    """
    known = default_store() if store is None else store
    key = (id(problem), id(device), policy, known)
    hit = _by_identity.get(key)
    if hit is None or hit[0] != known.generation:
        hit = _remembered(problem, device, policy, known)
        _keep(_by_identity, key, hit)
    choice = hit[1]
    if strict and not choice.is_tuned:
        what = f"strict mode: {problem} is not tuned for {device.name}: {choice.reason}"
        raise UntunedError(f"{what}; {advised(problem, device, place)}")
    return choice


def _remembered(problem: ConvProblem, device: DeviceSpec, policy: str, store: Store) -> tuple[int, Choice, Any]:
    if policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}; accepted: {', '.join(POLICIES)}")
    generation = store.generation  # before the rows are read: a change in between is seen next time
    key = (problem, device, policy, store)
    hit = _by_value.get(key)
    if hit is None or hit[0] != generation:
        try:
            related, checks = store.related(problem), store.self_checks(device.key)
        except StoreError as error:
            _warn_once(f"the tuning store is not usable, nothing recorded is known: {error}")
            related, checks, generation = [], {}, store.generation  # until the store can be used again
        hit = generation, _resolve(problem, device, policy, related, checks)
        _keep(_by_value, key, hit)
    return *hit, (problem, device)


def _keep(table: dict[Any, Any], key: Any, value: Any) -> None:
    if len(table) >= CACHE_SIZE:
        table.clear()
    table[key] = value


def _resolve(
    problem: ConvProblem, device: DeviceSpec, policy: str, related: Sequence[Record], checks: Checks
) -> Choice:
    if policy == "kernels":
        return _kernel(problem, device, related, None, "policy 'kernels' was asked for")
    passed = frozenset(family for (family, way), check in checks.items() if way == problem.direction and check.passed)
    known = sources.exact(problem, device, related, lambda config: config.family in passed)
    record = None if known is None else known.record
    if record is not None and record.measured_us is not None and not record.trusted:
        aten = "was not timed" if record.aten_us is None else f"took {record.aten_us:.1f} us"
        times = f"our best {record.measured_us:.1f} us, ATen {aten}"
        return _aten(f"measured on {device.name}: {times}; {LAST_RESORT}", is_tuned=True)
    failed = _failed_beside_aten(problem, device, related) if known is None else []
    if failed:
        times = f"all {len(failed)} configurations that were tried failed, ATen took {failed[0].aten_us:.1f} us"
        return _aten(f"measured on {device.name}: {times}; {LAST_RESORT}", is_tuned=True)
    because = f"the kernels passed their self-check on {device.name}"
    if policy == "predicted" and passed:
        return _kernel(problem, device, related, passed, because)
    if known is not None and record is not None and record.measured_us is not None:
        return _ours(known, because)
    anyway = sources.exact(problem, device, related, lambda config: True)
    winner = anyway.config.family if anyway is not None and anyway.source == "measured" else None
    return _aten(
        _why_unchecked(problem, device, checks, passed, winner)
        or f"this convolution has not been measured on {device.name}; run the predicted configuration with "
        '`grouped_conv.set_policy("predicted")`'
    )


def _failed_beside_aten(problem: ConvProblem, device: DeviceSpec, related: Sequence[Record]) -> list[Record]:
    """The problem's rows where all that was tried failed and ATen was timed, one with its time first; else nothing."""
    rows = [record for record in related if record.problem == problem and record.device == device.key]
    if any(is_usable(record) for record in rows) or all(record.aten_us is None for record in rows):
        return []
    return sorted((record for record in rows if record.failure), key=lambda record: record.aten_us is None)


def _why_unchecked(
    problem: ConvProblem, device: DeviceSpec, checks: Checks, passed: frozenset[str], winner: str | None
) -> str | None:
    """Which self-check keeps the kernels from running; None when none does.

    Args:
        winner: the family of the best measured configuration, if there is one.
    """
    if winner in passed or (winner is None and passed):
        return None
    where = f"{device.name} (kernel ABI {ABI_VERSION}, Triton {triton_version()})"
    failed = [
        f"{family}: {check.detail or 'wrong results'}"
        for (family, way), check in sorted(checks.items(), key=lambda item: item[0])
        if way == problem.direction and not check.passed and winner in (None, family)
    ]
    if failed:
        return f"the {problem.direction} self-check failed on {where} ({', '.join(failed)}); {LAST_RESORT}"
    return f"no {problem.direction} self-check of {winner or 'the kernels'} is recorded for {where}; {LAST_RESORT}"


def _kernel(
    problem: ConvProblem, device: DeviceSpec, related: Sequence[Record], families: frozenset[str] | None, because: str
) -> Choice:
    """A kernel with the surest configuration of these families (None: all); ATen when there is none."""

    def allowed(config: KernelConfig) -> bool:
        return families is None or config.family in families

    try:
        return _ours(sources.find(problem, device, related, allowed, families), because)
    except ValueError as error:
        return _aten(f"{error}")


def _ours(found: Found, because: str) -> Choice:
    reason = f"{because}; {found.words}"
    return Choice("kernel", found.config, found.source, reason, found.confidence, found.record is not None)


def _aten(reason: str, is_tuned: bool = False) -> Choice:
    return Choice("aten", None, "", reason, is_tuned=is_tuned)


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=4)
