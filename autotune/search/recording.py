"""A recorded sweep: every configuration of some problems for one device with its time or failure, as JSON.

Strategies are judged on it without the device; see `replay_runner` and `bench.regret`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grouped_conv.autotune.records.record import FAILURES, Record
from grouped_conv.autotune.search.runner import Outcome, Trial
from grouped_conv.kernels.families import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

FORMAT = 1


@dataclass(frozen=True)
class Sweep:
    """One problem's trials.

    Attributes:
        name: the problem's name, `conv4`.
        aten_us: PyTorch's own convolution, where it was timed.
        outcomes: by configuration.
    """

    name: str
    problem: ConvProblem
    aten_us: float | None
    outcomes: Mapping[KernelConfig, Outcome]

    @property
    def best_us(self) -> float:
        """The time of the fastest configuration.

        Raises:
            ValueError: when every configuration failed.
        """
        times = [outcome.us for outcome in self.outcomes.values() if outcome.us is not None]
        if not times:
            raise ValueError(f"no configuration of {self.name} ran")
        return min(times)


@dataclass(frozen=True)
class Recording:
    """Sweeps of one device whose times came about in one way.

    Attributes:
        times: `measured`, or `predicted` by the cost model from compiled code.
        protocol: the recipe of the measurement, or the model's version.
        triton: version that compiled the kernels.
    """

    device: DeviceSpec
    times: str
    protocol: str
    triton: str
    sweeps: tuple[Sweep, ...]

    @classmethod
    def of(
        cls,
        device: DeviceSpec,
        problems: Mapping[str, ConvProblem],
        records: Sequence[Record],
        times: str = "measured",
    ) -> Recording:
        """What the store holds of these problems with such times, and the failures.

        Raises:
            ValueError: when there are no such times.
        """
        chosen = [record for record in records if record.device == device.key and record.status in (times, "failed")]
        first = next((record for record in chosen if record.status == times), None)
        if first is None:
            raise ValueError(f"nothing was {times} on {device.key}")
        sweeps = []
        for name, problem in problems.items():
            rows = [record for record in chosen if record.problem == problem]
            aten = next((record.aten_us for record in rows if record.aten_us is not None), None)
            sweeps.append(Sweep(name, problem, aten, {record.config: _outcome(record) for record in rows}))
        protocol = first.protocol or f"model {first.data.get('model')}"
        return cls(device, times, protocol, first.triton, tuple(sweeps))

    @classmethod
    def load(cls, path: Path) -> Recording:
        """The recording in a file.

        Raises:
            ValueError: for a file that holds something else.
            OSError: when it cannot be read.
        """
        try:
            data = json.loads(path.read_text())
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']}, known is {FORMAT}")
            sweeps = tuple(_sweep(item) for item in data["sweeps"])
            device, times = DeviceSpec.from_json(data["device"]), data.get("times", "measured")
            return cls(device, times, data["protocol"], data["triton"], sweeps)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no recorded sweep: {type(error).__name__}: {error}") from error

    def save(self, path: Path) -> None:
        """Write it as JSON with sorted keys, a line per trial, so that a change shows as one."""
        head = {
            "format": FORMAT,
            "device": self.device.to_json(),
            "times": self.times,
            "protocol": self.protocol,
            "triton": self.triton,
        }
        lines = [json.dumps(head, sort_keys=True)[:-1] + ', "sweeps": [']
        for index, sweep in enumerate(self.sweeps):
            about = {"name": sweep.name, "problem": sweep.problem.to_json(), "aten_us": sweep.aten_us}
            lines.append(json.dumps(about, sort_keys=True)[:-1] + ', "trials": [')
            trials = [json.dumps(_trial_json(outcome), sort_keys=True) for outcome in sweep.outcomes.values()]
            lines.append(",\n".join(trials))
            lines.append("]}" + ("," if index + 1 < len(self.sweeps) else ""))
        path.write_text("\n".join([*lines, "]}"]) + "\n")


def _outcome(record: Record) -> Outcome:
    trial = Trial(record.problem, record.config)
    if record.failure is None:
        return Outcome(trial, record.measured_us if record.status == "measured" else record.predicted_us)
    return Outcome(trial, failure=record.failure, detail=record.detail[:200])


def _trial_json(outcome: Outcome) -> dict[str, Any]:
    config = outcome.trial.config.to_json()
    if outcome.failure is not None:
        return {"config": config, "failure": outcome.failure, "detail": outcome.detail}
    assert outcome.us is not None
    return {"config": config, "us": round(outcome.us, 2)}


def _sweep(data: Mapping[str, Any]) -> Sweep:
    problem = ConvProblem.from_json(data["problem"])
    outcomes = {}
    for item in data["trials"]:
        config = KernelConfig.from_json(item["config"])
        failure = item.get("failure")
        if failure is not None and failure not in FAILURES:
            raise ValueError(f"unknown failure {failure!r}")
        us = None if failure else float(item["us"])
        outcomes[config] = Outcome(Trial(problem, config), us, failure, item.get("detail", ""))
    return Sweep(data["name"], problem, data["aten_us"], outcomes)
