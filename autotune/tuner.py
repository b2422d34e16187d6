"""Tuning without a GPU: rank the space by the cost model, compile the best, rank again by what the compiler made.

Everything stored and returned is predicted. Only shortlisted configurations without a row in the store are compiled,
so a search that was interrupted goes on, and a finished one costs nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from grouped_conv.autotune import compile_job
from grouped_conv.autotune.cost import predict
from grouped_conv.autotune.families import model_of
from grouped_conv.autotune.prediction import MODEL_VERSION, Prediction
from grouped_conv.autotune.ranking import pick
from grouped_conv.autotune.records import Record, canonical
from grouped_conv.autotune.resources import Resources
from grouped_conv.autotune.shortlist import shortlist
from grouped_conv.autotune.store import Store, default_store, triton_version
from grouped_conv.autotune.workers import Outcome, WorkerPool
from grouped_conv.kernels import ABI_VERSION
from grouped_conv.kernels.config import KernelConfig
from grouped_conv.kernels.device import DeviceSpec
from grouped_conv.kernels.problem import ConvProblem

if TYPE_CHECKING:
    import pandas

LIMIT = 10
"""Configurations compiled per problem. On two cores five layers take about a minute at 1 to 2 s each."""
ROUNDS = 3
"""How often the shortlist of a problem is doubled while nothing on it is usable."""
COMPILE_SECONDS = 60.0

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class _Trial:
    name: str
    problem: ConvProblem
    config: KernelConfig


def tune_offline(
    problems: Mapping[str, ConvProblem],
    device: DeviceSpec,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
    store: Store | None = None,
    limit: int = LIMIT,
) -> pandas.DataFrame:
    """Find a configuration for every problem without a GPU, and keep it in the store as predicted.

    Args:
        problems: convolutions by name.
        device: what to tune for.
        jobs: worker processes; by default as many as cores and memory allow.
        progress: called with (compilations done, compilations needed, what was done last).
        limit: configurations to compile per problem, the heuristic's choice among them.

    Returns:
        One row per problem: configuration, exact resources of its compiled code, and the prediction. Times are
        microseconds, `*_bytes` bytes, all predicted.

    Raises:
        ValueError: when no configuration can run a problem, with the reason.
        StoreError: when the store cannot be written, before anything is compiled.
        RuntimeError: when every configuration of a problem failed to compile, with the first failure.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, but got {limit}")
    store = default_store() if store is None else store
    store.ready()
    search = _Search(problems, device, store, jobs, progress)
    pending = list(problems)
    for widened in range(ROUNDS):
        search.compile_best(pending, limit << widened)
        pending = [name for name in pending if pick(list(search.rows[name].values())) is None]
        if not pending:
            break
    table = [
        _table_row(name, problem, device, list(search.rows[name].values()), search.compiled[name])
        for name, problem in problems.items()
    ]
    import pandas

    return pandas.DataFrame(table)


class _Search:
    """The rows of every problem so far, and how to get more."""

    def __init__(
        self,
        problems: Mapping[str, ConvProblem],
        device: DeviceSpec,
        store: Store,
        jobs: int | None,
        progress: Progress | None,
    ) -> None:
        self.problems, self.device, self.store, self.jobs, self.progress = problems, device, store, jobs, progress
        self.rows = {name: _rows(problem, device, store) for name, problem in problems.items()}
        self.compiled: Counter[str] = Counter()

    def compile_best(self, names: Sequence[str], limit: int) -> None:
        """Compile what has no row yet of the shortlists of `limit` configurations."""
        trials = []
        for name in names:
            listed = shortlist(self.problems[name], self.device, self.store, limit)
            new = [config for config in listed if _key(config) not in self.rows[name]]
            trials += [_Trial(name, self.problems[name], config) for config in new]
        if self.progress is not None:
            self.progress(0, len(trials), "")
        for done, (trial, outcome) in enumerate(_compiled(trials, self.device, self.jobs), 1):
            record = _record(trial.problem, trial.config, self.device, outcome)
            self.store.put([record])
            self.rows[trial.name][_key(trial.config)] = record
            self.compiled[trial.name] += 1
            if self.progress is not None:
                self.progress(done, len(trials), f"{trial.name} {trial.config}")


def _key(config: KernelConfig) -> str:
    return canonical(config.to_json())


def _rows(problem: ConvProblem, device: DeviceSpec, store: Store) -> dict[str, Record]:
    """Rows of this ABI and Triton by configuration; predictions of another model are made anew from their resources."""
    current = {}
    for record in store.trials(problem, device.key):
        if record.abi == ABI_VERSION and record.triton == triton_version():
            stale = record.data.get("model") != MODEL_VERSION and "resources" in record.data
            stale = stale and record.failure in (None, "resources")
            fresh = _judged(record, device) if stale else record
            if stale:
                store.put([fresh])
            current[_key(record.config)] = fresh
    return current


def _compiled(trials: Sequence[_Trial], device: DeviceSpec, jobs: int | None) -> Iterator[tuple[_Trial, Outcome]]:
    """Every trial with its outcome, as they finish."""
    if not trials:
        return
    payloads = [compile_job.payload(trial.problem, trial.config, device) for trial in trials]
    with WorkerPool(compile_job.FUNCTION, jobs, COMPILE_SECONDS) as pool:
        for outcome in pool.run(payloads):
            yield trials[outcome.index], outcome


def _record(problem: ConvProblem, config: KernelConfig, device: DeviceSpec, outcome: Outcome) -> Record:
    """The outcome of one compilation as a row."""
    base = Record(problem, config, device.key, ABI_VERSION, triton_version(), "started")
    if outcome.status != "ok":
        return base.failed("compile" if outcome.status == "error" else outcome.status, outcome.detail)
    main = next(launch for launch in outcome.value if launch["kernel"] == config.family)
    data = {"resources": main["resources"], "launches": [launch["kernel"] for launch in outcome.value]}
    return _judged(_with(base, "predicted", None, {**data, "compile_seconds": round(outcome.seconds, 2)}), device)


def _judged(record: Record, device: DeviceSpec) -> Record:
    """The record with the prediction that its resources lead to, failed where they rule it out."""
    resources = Resources.from_json(record.data["resources"])
    prediction = predict(record.problem, record.config, device, resources)
    reason = why_rejected(record.problem, record.config, resources, device)
    data = {**record.data, **_prediction_json(prediction), "model": MODEL_VERSION}
    status = "measured" if record.measured_us is not None else "predicted"
    judged = _with(record, status, prediction.us, data)
    return judged if reason is None else judged.failed("resources", reason)


def why_rejected(problem: ConvProblem, config: KernelConfig, resources: Resources, device: DeviceSpec) -> str | None:
    """Why compiled code may not be chosen; `None` when it may."""
    if resources.spill_bytes:
        return f"spills {resources.spill_bytes} bytes per thread"
    if resources.shared_bytes > device.shared_per_block:
        return f"needs {resources.shared_bytes} bytes of shared memory, {device.key} has {device.shared_per_block}"
    tensor_cores = problem.dtype != "float32" or problem.precision == "tf32"
    if tensor_cores and model_of(config).uses_tensor_cores and not resources.total.mma:
        return "has no tensor-core instruction"
    return None


def _with(record: Record, status: str, predicted_us: float | None, data: dict[str, Any]) -> Record:
    return replace(
        record, status=status, predicted_us=predicted_us, data=data, failure=None, detail="", updated=time.time()
    )


def _prediction_json(prediction: Prediction) -> dict[str, Any]:
    return {
        "weighed_us": prediction.weighed_us,
        "floor_us": prediction.floor_us,
        "padding_efficiency": prediction.padding_efficiency,
        "wave_efficiency": prediction.wave_efficiency,
        "bound": prediction.bound,
        "terms_us": {name: round(value, 3) for name, value in prediction.terms.items()},
    }


def _table_row(
    name: str, problem: ConvProblem, device: DeviceSpec, records: list[Record], compiled: int
) -> dict[str, Any]:
    """The winner's figures; all times predicted."""
    best = pick([record for record in records if record.predicted_us is not None])
    if best is None or best.predicted_us is None:
        reasons = [record.detail for record in records]
        raise RuntimeError(f"no configuration of {name} ({problem}) can be used on {device.known_as}: {reasons[0]}")
    resources = Resources.from_json(best.data["resources"])
    return {
        "layer": name,
        "config": str(best.config),
        "registers": resources.registers,
        "spill_bytes": resources.spill_bytes,
        "shared_bytes": resources.shared_bytes,
        "padding_efficiency": best.data["padding_efficiency"],
        "wave_efficiency": best.data["wave_efficiency"],
        "predicted_us": best.predicted_us,
        "floor_us": best.data["floor_us"],
        "floor_over_predicted": best.data["floor_us"] / best.predicted_us,
        "bound": best.data["bound"],
        "candidates": len(records),
        "unusable": sum(record.failure is not None for record in records),
        "compiled_now": compiled,
        "source": "predicted",
    }
