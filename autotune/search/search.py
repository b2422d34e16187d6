"""The search of one problem: what its strategy asks for, what is known already, and which row wins."""

from __future__ import annotations

import time
from dataclasses import replace

from grouped_conv.autotune.model import native_lane
from grouped_conv.autotune.model.heuristic import choose
from grouped_conv.autotune.model.shared.prediction import MODEL_VERSION
from grouped_conv.autotune.records.ranking import is_usable, pick
from grouped_conv.autotune.records.record import Record, canonical
from grouped_conv.autotune.search.efforts import Plan
from grouped_conv.autotune.search.judging import judged
from grouped_conv.autotune.search.runner import Outcome, Trial
from grouped_conv.autotune.search.search_space import search_space
from grouped_conv.autotune.search.strategies import make_strategy
from grouped_conv.autotune.store.store import Store, triton_version
from grouped_conv.kernels import ABI_VERSION
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

WIDENINGS = 2
"""How often the limit is doubled while nothing that was tried is usable."""
FINALISTS = 8
"""The best so far that are looked at again; the heuristic's choice comes on top."""


class Search:
    """One problem on one device.

    Attributes:
        rows: what is known of each configuration, by its canonical JSON.
        ran: trials that this search ran; what was known before is not among them.

    Raises:
        ValueError: when no configuration can run the problem, with each family's reason.
    """

    def __init__(
        self, name: str, problem: ConvProblem, device: DeviceSpec, store: Store, plan: Plan, *, measures: bool
    ) -> None:
        self.name, self.problem, self.device, self.measures = name, problem, device, measures
        self.default = default_config(problem, device)
        self.rows = known_rows(problem, device, store, plan.resume)
        self.ran = 0
        self.limit = plan.trials
        self._asked: set[KernelConfig] = set()
        self._untold: list[KernelConfig] = []
        self._widened = 0
        if self.limit != 0:
            self.space = search_space(problem, device)
            self._strategy = make_strategy(plan.strategy, self.space, plan.seed)
            self.limit = len(self.space.configs) if self.limit is None else self.limit

    @property
    def remaining(self) -> int:
        """Trials that are left."""
        return 0 if not self.limit else max(0, min(self.limit, len(self.space.configs)) - len(self._asked))

    def batch(self) -> list[Trial]:
        """The next trials that have to be run; what is known is told to the strategy, as if it had been run."""
        while True:
            self._tell()
            asked = self._ask()
            if not asked:
                return []
            self._untold = asked
            self._asked.update(asked)
            new = [Trial(self.problem, config) for config in asked if not self._is_settled(config)]
            if new:
                return new

    def settle(self, outcome: Outcome) -> Record:
        """Take an outcome; the row that it makes, which keeps the time of its first one as `tried`."""
        config = outcome.trial.config
        record = record_of(outcome, self.device, self.rows.get(key_of(config)))
        record = replace(record, data={"tried": round(time.time(), 3), **record.data})
        self.rows[key_of(config)] = record
        return record

    @property
    def tried(self) -> list[Record]:
        """Rows of this search's trials only, whatever else the store knows."""
        asked = set(map(key_of, self._asked))
        return [row for key, row in self.rows.items() if key in asked]

    @property
    def lacks_aten(self) -> bool:
        """Was something tried, but PyTorch's own convolution never timed, although no row could win without it?"""
        ended = [row for row in self.rows.values() if row.status != "started"]
        return any(row.failure for row in ended) and not any(row.measured_us or row.aten_us for row in ended)

    def settle_aten(self, us: float) -> Record:
        """Note the time of PyTorch's own convolution where nothing else has one: in the row of the first failure."""
        key = next(key for key, row in self.rows.items() if row.failure)
        self.rows[key] = replace(self.rows[key], aten_us=us)
        return self.rows[key]

    def best(self) -> Record | None:
        """The winner by `ranking.pick`, among what this search may believe."""
        return pick(self.rows.values())

    def finalists(self) -> list[Trial]:
        """The best measured trials and the heuristic's choice, best first."""
        measured = [row for row in self.rows.values() if is_usable(row) and row.measured_us is not None]
        measured.sort(key=lambda row: (row.measured_us, canonical(row.config.to_json())))
        chosen = measured[:FINALISTS] + [row for row in measured[FINALISTS:] if row.config == self.default]
        return [Trial(self.problem, row.config) for row in chosen]

    def _ask(self) -> list[KernelConfig]:
        """What the strategy wants next, the heuristic's choice first of all; nothing when the limit is used up."""
        if not self.limit:
            return []
        if not self._asked:
            asked = self._strategy.ask(self.limit)
            return list(dict.fromkeys([self.default, *asked]))[: self.limit]
        while True:
            while (most := self.limit - len(self._asked)) > 0:
                asked = self._strategy.ask(most)
                if not asked:
                    return []
                fresh = [config for config in asked if config not in self._asked]
                if fresh:
                    return fresh
            if self._widened == WIDENINGS or any(is_usable(row) for row in self.rows.values()):
                return []
            self._widened += 1
            self.limit *= 2

    def _tell(self) -> None:
        """Results go to the strategy in the order in which it asked: it must not see which job was quicker."""
        for config in self._untold:
            row = self.rows.get(key_of(config))
            if row is not None and config in self.space.rank:
                self._strategy.tell(config, time_of(row, self.measures) if is_usable(row) else None)
        self._untold = []

    def _is_settled(self, config: KernelConfig) -> bool:
        row = self.rows.get(key_of(config))
        if row is None or row.status == "started":
            return False
        return row.failure is not None or not self.measures or row.measured_us is not None


def time_of(row: Record, measures: bool) -> float | None:
    """The time by which a search compares rows: measured where it measures, else what predictions are ranked by."""
    return row.measured_us if measures else row.data.get("weighed_us", row.predicted_us)


def default_config(problem: ConvProblem, device: DeviceSpec) -> KernelConfig:
    """What runs without tuning: the heuristic's choice."""
    return native_lane.default(problem) if device.key == native_lane.KEY else choose(problem, device)


def key_of(config: KernelConfig) -> str:
    """The configuration as canonical JSON."""
    return canonical(config.to_json())


def known_rows(problem: ConvProblem, device: DeviceSpec, store: Store, resume: bool = True) -> dict[str, Record]:
    """Rows of this ABI and Triton by configuration; predictions of another model are made anew from their resources.

    Args:
        resume: False leaves out all but those that took their process down, which are not tried again lightly.
    """
    current, renewed = {}, []
    for record in store.trials(problem, device.key):
        if record.abi != ABI_VERSION or record.triton != triton_version():
            continue
        if not resume and record.failure != "crashed":
            continue
        stale = record.data.get("model") != MODEL_VERSION and "resources" in record.data
        if stale and record.failure in (None, "resources") and record.status != "started":
            record = renewed_prediction(record, device)
            renewed.append(record)
        current[key_of(record.config)] = record
    if renewed:
        store.put(renewed)
    return current


def renewed_prediction(record: Record, device: DeviceSpec) -> Record:
    """The record with what the model of today makes of its resources; a measured time stays."""
    outcome = judged(Trial(record.problem, record.config), device, record.data)
    known = replace(record, status="started", failure=None, detail="")
    made = record_of(outcome, device, known)
    if record.measured_us is not None and made.failure is None:
        return replace(made, status="measured")
    return made


def record_of(outcome: Outcome, device: DeviceSpec, known: Record | None) -> Record:
    """The known row with an outcome added: a measurement keeps the prediction, and data adds up."""
    config, problem = outcome.trial.config, outcome.trial.problem
    base = known or Record(problem, config, device.key, ABI_VERSION, triton_version(), "started")
    data = {**base.data, **outcome.data}
    predicted = data.pop("predicted_us", base.predicted_us)
    fresh = Record(problem, config, device.key, base.abi, base.triton, "started", predicted, data=data)
    if outcome.failure is not None:
        return replace(fresh, aten_us=base.aten_us).failed(outcome.failure, outcome.detail)
    if not outcome.protocol:
        measured = {name: getattr(base, name) for name in ("measured_us", "aten_us", "protocol", "samples")}
        return replace(fresh, status="predicted", low_us=base.low_us, high_us=base.high_us, **measured)
    return replace(
        fresh,
        status="measured",
        measured_us=outcome.us,
        aten_us=outcome.aten_us,
        protocol=outcome.protocol,
        low_us=outcome.low_us,
        high_us=outcome.high_us,
        samples=outcome.samples,
    )
