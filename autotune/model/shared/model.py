"""One kernel family as tuning sees it, `Model`, which judges its search space, and `variants`, which enumerates it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.model.shared.prediction import Prediction
from grouped_conv.autotune.model.shared.streaming import Work, predict_work
from grouped_conv.autotune.records.record import canonical
from grouped_conv.kernels.families import Problem, why_invalid
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec

Config = TypeVar("Config", bound=KernelConfig)

Space = Iterator[tuple[Any, str | None]]
"""Candidates, each with the reason that leaves it out, None for one worth compiling."""
SPILLS = "expected to spill"
"""Why a configuration is left out whose sums and operands are estimated not to fit the registers."""


def variants(starts: Iterable[Config], **axes: Any) -> Iterator[Config]:
    """Each start with every combination of the axes' values, the last axis varying fastest.

    Args:
        axes: by the name of a knob its values, or a function from the configuration with the axes before to them.
    """
    for start in starts:
        yield from _vary(start, {}, list(axes.items()))


def _vary(start: Config, chosen: dict[str, Any], axes: list[tuple[str, Any]]) -> Iterator[Config]:
    if not axes:
        yield replace(start, **chosen)
        return
    (name, values), *rest = axes
    for value in values(replace(start, **chosen)) if callable(values) else values:
        yield from _vary(start, {**chosen, name: value}, rest)


def best_first(
    problem: Problem, device: DeviceSpec, configs: Iterable[Config], predict: Callable[..., Prediction]
) -> list[Config]:
    """Distinct configurations by weighed prediction; equal ones by their canonical JSON."""
    scored = [
        (predict(problem, config, device).weighed_us, canonical(config.to_json()), config)
        for config in dict.fromkeys(configs)
    ]
    return [config for _, _, config in sorted(scored, key=lambda entry: entry[:2])]


def _no_reason(problem: Any, config: Any, device: DeviceSpec) -> str | None:
    return None


def _whole_config(config: Any) -> str:
    return str(config)


@dataclass(frozen=True, slots=True)
class Model:
    """One family as tuning sees it.

    Attributes:
        defaults: (problem, device) to the few configurations that the heuristic compares; some may be invalid.
        candidates: (problem, device) to every configuration that a search thinks of; by default the defaults.
        work: (problem, config, device) to what the call does, for `streaming` to predict its time.
        timed: (problem, config, device, resources or None) to the predicted time, for families whose model is not the
            streaming one.
        why_not: (problem, config, device) to the reason why a candidate that can run is not worth compiling, or None.
        beam: functions like `ranked` and `space`, for a family whose space is too large to predict every candidate.
        uses_tensor_cores: whether 16-bit and TF32 code without a tensor-core instruction is a fault.
        tile: the part of a configuration of which a shortlist holds few.
    """

    defaults: Callable[[Any, DeviceSpec], Iterable[Any]]
    candidates: Callable[[Any, DeviceSpec], Iterable[Any]] | None = None
    work: Callable[[Any, Any, DeviceSpec], Work] | None = None
    timed: Callable[[Any, Any, DeviceSpec, Resources | None], Prediction] | None = None
    why_not: Callable[[Any, Any, DeviceSpec], str | None] = _no_reason
    beam: tuple[Callable[[Any, DeviceSpec], list[Any]], Callable[[Any, DeviceSpec], Space]] | None = None
    uses_tensor_cores: bool = True
    tile: Callable[[Any], Any] = _whole_config

    def predict(self, problem: Any, config: Any, device: DeviceSpec, resources: Resources | None = None) -> Prediction:
        """The predicted time of one call.

        Args:
            resources: figures of the compiled main kernel; estimated when absent.
        """
        if self.timed is not None:
            return self.timed(problem, config, device, resources)
        assert self.work is not None
        return predict_work(problem, device, self.work(problem, config, device), resources)

    def space(self, problem: Any, device: DeviceSpec) -> Space:
        """Every candidate with the reason that leaves it out, None for one worth compiling."""
        if self.beam is not None:
            yield from self.beam[1](problem, device)
            return
        for config in (self.candidates or self.defaults)(problem, device):
            yield config, why_invalid(problem, config, device) or self.why_not(problem, config, device)

    def ranked(self, problem: Any, device: DeviceSpec) -> list[Any]:
        """The candidates worth compiling, best first by the model."""
        if self.beam is not None:
            return self.beam[0](problem, device)
        kept = (config for config, reason in self.space(problem, device) if reason is None)
        return best_first(problem, device, kept, self.predict)
