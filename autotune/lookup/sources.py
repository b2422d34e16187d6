"""Where a configuration can come from, the surest place first: the store, presets, near relations, the heuristic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from grouped_conv.autotune.lookup import buckets
from grouped_conv.autotune.lookup.presets import shipped
from grouped_conv.autotune.model.heuristic import choose
from grouped_conv.autotune.records.ranking import best_of
from grouped_conv.autotune.records.record import Record
from grouped_conv.autotune.store.store import triton_version
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

NEARBY_PROCESSORS = 0.1
"""Relative difference in multiprocessors up to which devices of one architecture lend each other configurations."""

Allowed = Callable[[KernelConfig], bool]


@dataclass(frozen=True, slots=True)
class Found:
    """A configuration and how much it is worth.

    Attributes:
        config: the configuration.
        source: `measured` or `predicted` (in the store, for this very problem and device), `preset`, `nearby device`,
            `nearby batch` or `heuristic`.
        confidence: `measured` here; `predicted` for this problem and device from compiled code; `borrowed` from a near
            relation or another Triton; `guessed` by the model alone.
        words: where it comes from, for a sentence.
        record: the row it comes from, of this problem and device; None for what is borrowed or guessed.
    """

    config: KernelConfig
    source: str
    confidence: str
    words: str
    record: Record | None = None


def exact(problem: ConvProblem, device: DeviceSpec, related: Sequence[Record], allowed: Allowed) -> Found | None:
    """What the store knows of this problem on this device; for other epilogues see `ranking.best_of`."""
    rows = [record for record in related if record.problem.batch == problem.batch]
    record = best_of(_usable(rows, problem, device, device.key, allowed), problem)
    if record is None:
        return None
    time = f"measured {record.measured_us:.1f} us" if record.measured_us is not None else "predicted, not measured"
    return Found(record.config, record.source, record.source, f"configuration from the store ({time})", record)


def find(
    problem: ConvProblem,
    device: DeviceSpec,
    related: Sequence[Record],
    allowed: Allowed,
    families: frozenset[str] | None,
) -> Found:
    """The configuration from the surest place that has one.

    Args:
        related: the store's rows of this convolution, see `Store.related`.
        allowed: whether a configuration may run on this device.
        families: kernel families the heuristic may choose from; None for all.

    Raises:
        ValueError: when not even the heuristic has one, with the reasons.
    """
    for place in (exact, _preset, _nearby_device, _nearby_batch):
        found = place(problem, device, related, allowed)
        if found is not None:
            return found
    config = choose(problem, device, families)
    return Found(config, "heuristic", "guessed", "configuration from the heuristic (never tuned here)")


def _preset(problem: ConvProblem, device: DeviceSpec, related: Sequence[Record], allowed: Allowed) -> Found | None:
    record = best_of(_usable(shipped(device.key), problem, device, device.key, allowed), problem)
    if record is None:
        return None
    confidence = "predicted" if record.triton == triton_version() else "borrowed"
    words = f"configuration shipped with the package (predicted with Triton {record.triton})"
    return Found(record.config, "preset", confidence, words, record)


def _nearby_device(
    problem: ConvProblem, device: DeviceSpec, related: Sequence[Record], allowed: Allowed
) -> Found | None:
    for other in _relatives(device):
        record = best_of(_usable([*related, *shipped(other)], problem, device, other, allowed), problem)
        if record is not None:
            return Found(record.config, "nearby device", "borrowed", f"configuration of {other}, a device like this")
    return None


def _nearby_batch(
    problem: ConvProblem, device: DeviceSpec, related: Sequence[Record], allowed: Allowed
) -> Found | None:
    for rows in (related, shipped(device.key)):
        distances: dict[int, float] = {}
        usable = list(_usable(rows, problem, device, device.key, allowed))
        for record in usable:
            apart = buckets.distance(problem.batch, record.problem.batch)
            if apart is not None:
                distances[record.problem.batch] = apart
        for batch in sorted(distances, key=lambda batch: (distances[batch], abs(batch - problem.batch), batch)):
            record_there = best_of(usable, problem, batch)
            if record_there is not None:
                words = f"configuration tuned for a batch of {batch}"
                return Found(record_there.config, "nearby batch", "borrowed", words)
    return None


def _relatives(device: DeviceSpec) -> list[str]:
    """Keys of devices that lend this one configurations, the most alike first."""
    alike = [
        (abs(spec.sm_count - device.sm_count), spec.key)
        for spec in DeviceSpec.all()
        if spec.key != device.key and (spec.backend, spec.arch) == (device.backend, device.arch)
    ]
    return [key for apart, key in sorted(alike) if apart <= NEARBY_PROCESSORS * device.sm_count]


def _usable(
    records: Iterable[Record], problem: ConvProblem, device: DeviceSpec, key: str, allowed: Allowed
) -> Iterator[Record]:
    """Rows of device `key` whose configuration can run `problem` on `device`: they may be of an older space."""
    for record in records:
        if (
            record.device == key
            and _same_but_batch_and_epilogue(record.problem, problem)
            and allowed(record.config)
            and why_invalid(problem, record.config, device) is None
        ):
            yield record


def _same_but_batch_and_epilogue(one: ConvProblem, other: ConvProblem) -> bool:
    names = [name for name in ConvProblem.__slots__ if name not in ("batch", "epilogue")]
    return all(getattr(one, name) == getattr(other, name) for name in names)
