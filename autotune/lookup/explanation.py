"""Why a convolution runs as it does: the path, the configuration and its source, what bounds it, and what lost to it.

Everything comes from the store, the presets and the cost model; nothing is tuned, compiled or timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from grouped_conv.autotune.lookup.resolve import Choice, resolve
from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.model.families import PIPELINE, models_for, predict
from grouped_conv.autotune.model.shared.prediction import WASTE_LIMIT, Prediction
from grouped_conv.autotune.records.ranking import TIE, is_usable
from grouped_conv.autotune.records.record import canonical
from grouped_conv.autotune.store.store import Store, default_store, triton_version
from grouped_conv.kernels import ABI_VERSION
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem


@dataclass(frozen=True, slots=True)
class Candidate:
    """One configuration with what is known of its time.

    Attributes:
        config: the configuration.
        prediction: by the cost model, from compiled code where `compiled`.
        compiled: whether the figures of its compiled code are known.
        measured_us: microseconds; `None` if nobody measured.
    """

    config: KernelConfig
    prediction: Prediction
    compiled: bool = False
    measured_us: float | None = None

    @property
    def weighed_us(self) -> float:
        """What candidates are compared by."""
        return self.prediction.weighed_us if self.measured_us is None else self.measured_us

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; times are microseconds, all but `measured_us` predicted."""
        known = self.prediction
        return {
            "config": self.config.to_json(),
            "measured_us": self.measured_us,
            "predicted_us": known.us,
            "terms_us": dict(known.terms),
            "bound": known.bound,
            "padding_efficiency": known.padding_efficiency,
            "wave_efficiency": known.wave_efficiency,
            "compiled": self.compiled,
        }


@dataclass(frozen=True, slots=True)
class Explanation:
    """What runs, and why.

    Attributes:
        problem, device, policy: what was asked.
        choice: the path under `policy`.
        kernel: what a kernel would run with, whatever the path is.
        source: where that configuration comes from.
        floor_us: roofline floor in microseconds.
        runner_up: the best of the others; `None` where there is no other.
        why_it_lost: one sentence about the runner-up.
    """

    problem: ConvProblem
    device: DeviceSpec
    policy: str
    choice: Choice
    kernel: Candidate
    source: str
    floor_us: float
    runner_up: Candidate | None
    why_it_lost: str

    @property
    def roofline_fraction(self) -> float:
        """Roofline floor / time of the kernel; 1 for an empty problem, which takes no time."""
        us = self.kernel.measured_us or self.kernel.prediction.us
        return self.floor_us / us if us else 1.0

    def __str__(self) -> str:
        known = self.kernel
        measured = known.measured_us is not None
        time = f"measured {known.measured_us:.1f} us" if measured else f"predicted {known.prediction.us:.1f} us"
        terms = sorted(known.prediction.terms.items(), key=lambda item: -item[1])
        lines = [
            f"{self.problem} on {self.device.known_as}",
            f"  runs:      {_path(self.choice)}, under policy {self.policy!r}: {self.choice.reason}",
            f"  kernel:    {known.config.family} {known.config} (from: {self.source})",
            f"  time:      {time}, {self.roofline_fraction:.0%} of the roofline ({self.floor_us:.1f} us)",
            f"  bound by:  {known.prediction.bound} (predicted; " + _listed(terms) + ")",
        ]
        if self.runner_up is not None:
            lines.append(f"  runner-up: {self.runner_up.config.family} {self.runner_up.config}: {self.why_it_lost}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "problem": self.problem.to_json(),
            "device": self.device.key,
            "policy": self.policy,
            "path": self.choice.path,
            "reason": self.choice.reason,
            "source": self.source,
            "floor_us": self.floor_us,
            "roofline_fraction": self.roofline_fraction,
            "kernel": self.kernel.to_json(),
            "runner_up": self.runner_up.to_json() if self.runner_up else None,
            "why_it_lost": self.why_it_lost,
        }


def explain(
    problem: ConvProblem, device: DeviceSpec, policy: str = "measured", store: Store | None = None
) -> Explanation:
    """Explain the choice for `problem` on `device`.

    Raises:
        ValueError: for an unknown policy, or where no kernel can run the problem, with each family's reason.
        StoreError: when the store cannot be read.
    """
    known = default_store() if store is None else store
    choice, kernel = resolve(problem, device, policy, known), resolve(problem, device, "kernels", known)
    if kernel.config is None:
        raise ValueError(kernel.reason)
    candidates = {canonical(one.config.to_json()): one for one in _candidates(problem, device, known)}
    chosen = candidates.get(canonical(kernel.config.to_json()))
    chosen = chosen or Candidate(kernel.config, predict(problem, kernel.config, device))
    others = [one for one in candidates.values() if _shape(one.config) != _shape(chosen.config)]
    others.sort(key=lambda one: (one.measured_us is None, one.weighed_us))
    runner_up = others[0] if others else None
    why = why_it_lost(chosen, runner_up) if runner_up else ""
    floor = chosen.prediction.floor_us
    return Explanation(problem, device, policy, choice, chosen, kernel.source, floor, runner_up, why)


def _candidates(problem: ConvProblem, device: DeviceSpec, store: Store) -> Iterator[Candidate]:
    """Every family's defaults, then the usable rows of the store, which know more."""
    for model in models_for(problem).values():
        for config in model.defaults(problem, device):
            if why_invalid(problem, config, device) is None:
                yield Candidate(config, predict(problem, config, device))
    for record in store.trials(problem, device.key):
        current = is_usable(record) and record.abi == ABI_VERSION and record.triton == triton_version()
        if current and why_invalid(problem, record.config, device) is None:
            figures = record.data.get("resources")
            resources = None if figures is None else Resources.from_json(figures)
            prediction = predict(problem, record.config, device, resources)
            yield Candidate(record.config, prediction, resources is not None, record.measured_us)


def _shape(config: KernelConfig) -> str:
    """The configuration but for its pipeline: a runner-up that differs in less tells nothing."""
    return canonical({name: value for name, value in config.to_json().items() if name not in PIPELINE})


def why_it_lost(winner: Candidate, loser: Candidate) -> str:
    """One sentence: the times, and the term of the model that makes the difference."""
    if winner.measured_us is not None:
        if loser.measured_us is None:
            return f"never measured (predicted {loser.prediction.us:.1f} us)"
        unsure = "; not surely faster" if loser.measured_us <= winner.measured_us else ""
        return f"measured {loser.measured_us:.1f} us against {winner.measured_us:.1f} us{unsure}"
    mine, theirs = winner.prediction, loser.prediction
    times = f"predicted {theirs.us:.1f} us against {mine.us:.1f} us"
    if theirs.weighed_us < mine.weighed_us:
        known = "was compiled" if winner.compiled else "was preferred"
        return f"{times}, but the winner {known}, and this one was not"
    if theirs.weighed_us <= mine.weighed_us * (1 + TIE):
        return f"{times}, a tie: the cheaper configuration won"
    if theirs.us <= mine.us:
        useful = f"only {theirs.padding_efficiency:.0%} of its products are useful"
        return f"{times}, but {useful}, and below {WASTE_LIMIT:.0%} padding counts against a configuration"
    slower = {term: value - mine.terms.get(term, 0.0) for term, value in theirs.terms.items()}
    worst = max(slower, key=lambda term: slower[term])
    if slower[worst] < TIE * theirs.us:
        return f"{times}; no single term makes the difference"
    return f"{times}; its {worst} term takes {theirs.terms[worst]:.1f} us against {mine.terms.get(worst, 0.0):.1f} us"


def _path(choice: Choice) -> str:
    return "our kernel" if choice.path == "kernel" else "torch's own convolution"


def _listed(terms: list[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {value:.1f} us" for name, value in terms if value > 0)
