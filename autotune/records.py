"""One row of the tuning store as a value, and the keys it is found by."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from grouped_conv.kernels.config import KernelConfig
from grouped_conv.kernels.epilogue import Epilogue
from grouped_conv.kernels.problem import ConvProblem

STATUSES = ("predicted", "measured", "rejected", "failed", "wrong")
"""`rejected` compiled but may not win (it spills, say), `failed` did not compile, `wrong` gave bad results."""
USABLE = ("predicted", "measured")


@dataclass(frozen=True, slots=True)
class Record:
    """One configuration tried for one problem.

    Attributes:
        problem, config: what was tried.
        device: key of the device.
        abi, triton: kernel ABI and Triton version it was compiled with.
        status: one of `STATUSES`.
        predicted_us: the cost model's time, in microseconds.
        measured_us, aten_us: measured times of the kernel and of PyTorch's own convolution; `None` if nobody measured.
        data: the prediction's terms, the compiled code's resources, or what went wrong; plain JSON.
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
    updated: float = field(default_factory=time.time, compare=False)

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"unknown status {self.status!r}; accepted: {', '.join(STATUSES)}")

    @property
    def source(self) -> str:
        """`measured` or `predicted`: what the record's best time is."""
        return "measured" if self.measured_us is not None else "predicted"

    @property
    def trusted(self) -> bool:
        """A measured win over PyTorch's own convolution."""
        return self.measured_us is not None and self.aten_us is not None and self.measured_us < self.aten_us

    def row(self) -> tuple[Any, ...]:
        """Values of the table's columns."""
        return (
            problem_key(self.problem),
            self.device,
            self.abi,
            self.triton,
            canonical(self.config.to_json()),
            self.status,
            self.predicted_us,
            self.measured_us,
            self.aten_us,
            canonical(self.data),
            self.updated,
            base_key(self.problem),
        )

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Record:
        """The inverse of `row`."""
        problem, device, abi, triton, config, status, predicted, measured, aten, data, updated = row
        parsed = KernelConfig.from_json(json.loads(config))
        known = ConvProblem.from_json(json.loads(problem))
        return cls(known, parsed, device, abi, triton, status, predicted, measured, aten, json.loads(data), updated)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data of the whole record."""
        return {
            "problem": self.problem.to_json(),
            "config": self.config.to_json(),
            "device": self.device,
            "abi": self.abi,
            "triton": self.triton,
            "status": self.status,
            "predicted_us": self.predicted_us,
            "measured_us": self.measured_us,
            "aten_us": self.aten_us,
            "data": dict(self.data),
            "updated": self.updated,
        }


def canonical(data: Any) -> str:
    """The one JSON text of `data`: sorted keys, no blanks; refuses NaN and infinity."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def problem_key(problem: ConvProblem) -> str:
    """The problem as canonical JSON."""
    return canonical(problem.to_json())


def base_key(problem: ConvProblem) -> str:
    """The problem without its epilogue."""
    return problem_key(replace(problem, epilogue=Epilogue()))
