"""One row of the tuning store as a value, and the keys it is found by."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

from grouped_conv.kernels.families import KernelConfig
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.problem import ConvProblem

STATUSES = ("started", "predicted", "measured", "failed")
"""`started`: being tried now, by a living process as far as one knows. The others: how the trial ended."""
FAILURES = ("invalid", "compile", "timeout", "resources", "launch", "wrong", "crashed")
"""`invalid` for this problem, no `compile`, no end in time (`timeout`), spills or too much shared memory and the like
(`resources`), no `launch`, `wrong` results, or its process died (`crashed`)."""


@dataclass(frozen=True, slots=True)
class Record:
    """One configuration tried for one problem.

    Attributes:
        problem, config: what was tried.
        device: key of the device.
        abi, triton: kernel ABI and Triton version it was compiled with.
        status: one of `STATUSES`.
        predicted_us: the cost model's time, in microseconds.
        measured_us, aten_us: median times of the kernel and of PyTorch's own convolution; `None` if nobody measured.
        data: the prediction's terms and the compiled code's resources; plain JSON on which no decision rests.
        failure: one of `FAILURES` where the status is `failed`; a row that is tried again keeps its last one.
        detail: what went wrong, the configuration named.
        protocol: name of the recipe by which the time was measured; times of two recipes do not compare.
        low_us, high_us: bounds of the measured median's confidence interval.
        samples: timings that the median is of.
        updated: seconds since the epoch.
    """

    problem: ConvProblem
    config: KernelConfig
    device: str
    abi: int
    triton: str
    status: str
    predicted_us: float | None = None
    measured_us: float | None = None
    aten_us: float | None = None
    data: Mapping[str, Any] = field(default_factory=dict, hash=False)
    failure: str | None = None
    detail: str = ""
    protocol: str = ""
    low_us: float | None = None
    high_us: float | None = None
    samples: int = 0
    updated: float = field(default_factory=time.time, compare=False)

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"unknown status {self.status!r}; accepted: {', '.join(STATUSES)}")
        if self.failure is not None and self.failure not in FAILURES:
            raise ValueError(f"unknown failure {self.failure!r}; accepted: {', '.join(FAILURES)}")
        if self.status != "started" and (self.status == "failed") != (self.failure is not None):
            raise ValueError(f"status {self.status!r} does not go with failure {self.failure!r}")
        if self.status == "measured" and self.measured_us is None:
            raise ValueError("status 'measured' needs measured_us")
        for name in ("predicted_us", "measured_us", "aten_us", "low_us", "high_us", "updated"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and not negative, but got {value!r}")

    @property
    def source(self) -> str:
        """`measured` or `predicted`: what the record's best time is."""
        return "measured" if self.measured_us is not None else "predicted"

    @property
    def trusted(self) -> bool:
        """A measured win over PyTorch's own convolution."""
        return self.measured_us is not None and self.aten_us is not None and self.measured_us < self.aten_us

    @property
    def key(self) -> tuple[str, str, int, str, str]:
        """What the store has one row of: problem, device, ABI, Triton, configuration."""
        return problem_key(self.problem), self.device, self.abi, self.triton, canonical(self.config.to_json())

    def failed(self, failure: str, detail: str) -> Record:
        """The record of a trial that failed, its detail with the configuration's name in front."""
        return replace(self, status="failed", failure=failure, detail=failure_detail(self.config, detail))

    def row(self) -> dict[str, Any]:
        """Values of the table's columns, by name."""
        return {
            **dict(zip(("problem", "device", "abi", "triton", "config"), self.key, strict=True)),
            "base": base_key(self.problem),
            **{name: getattr(self, name) for name in PLAIN},
            "data": canonical(self.data),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Record:
        """The inverse of `row`."""
        values = {name: row[name] for name in (*PLAIN, "device", "abi", "triton")}
        problem, config = known_problem(row["problem"]), _known_config(row["config"])
        return cls(problem, config, data=json.loads(row["data"]), **values)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data of the whole record."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            **values,
            "problem": self.problem.to_json(),
            "config": self.config.to_json(),
            "data": dict(self.data),
        }


PLAIN = (
    "status", "predicted_us", "measured_us", "aten_us", "failure", "detail", "protocol", "low_us", "high_us", "samples",
    "updated",
)  # fmt: skip
"""Fields that are columns as they are; the measured figures, too: merging and comparing read them."""


def failure_detail(config: KernelConfig, detail: str) -> str:
    """What went wrong, with the configuration it happened to."""
    return f"{config.family} {config}: {detail}"


def canonical(data: Any) -> str:
    """The one JSON text of `data`: sorted keys, no blanks; refuses NaN and infinity."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def problem_key(problem: ConvProblem) -> str:
    """The problem as canonical JSON."""
    return canonical(problem.to_json())


def base_key(problem: ConvProblem) -> str:
    """What related problems share: the problem without its batch and its epilogue."""
    return problem_key(replace(problem, batch=0, epilogue=Epilogue()))


@lru_cache(maxsize=4096)
def known_problem(text: str) -> ConvProblem:
    """The problem of a key; one value for all rows that share it."""
    return ConvProblem.from_json(json.loads(text))


@lru_cache(maxsize=4096)
def _known_config(text: str) -> KernelConfig:
    return KernelConfig.from_json(json.loads(text))
