"""Configurations that ship with the package: one canonical JSON file per device in `data/`, read on first use.

A preset is a prediction of the tuner's, never a measurement, for the kernel ABI in its header; a file of another ABI is
as none. Files are written by `python -m grouped_conv.autotune.make_presets` and reviewed, never at run time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from functools import lru_cache
from importlib import resources
from typing import Any

from grouped_conv.autotune.model.shared.prediction import MODEL_VERSION
from grouped_conv.autotune.records.ranking import pick
from grouped_conv.autotune.records.record import Record, canonical
from grouped_conv.kernels import ABI_VERSION
from grouped_conv.kernels.families import KernelConfig
from grouped_conv.kernels.values.problem import ConvProblem

FORMAT = "grouped-conv presets"
FORMAT_VERSION = 1
_HEADER = {"format": FORMAT, "version": FORMAT_VERSION, "times": "predicted"}
_ROW = {"problem", "config", "predicted_us"}
_log = logging.getLogger(__name__)


def preset_text(records: Iterable[Record], trials: int) -> str:
    """A preset file of the winners among `records`, a line each: the same text for the same rows.

    Args:
        trials: configurations that were compiled for each problem; they stand in the header.

    Raises:
        ValueError: when none can be used, or they are not of one device and Triton and of this ABI and model.
    """
    wins: dict[ConvProblem, list[Record]] = {}
    origins = set()
    for record in records:
        if record.failure is None and record.predicted_us is not None:
            wins.setdefault(record.problem, []).append(record)
            origins.add((record.device, record.abi, record.triton, record.data.get("model")))
    if len(origins) != 1:
        raise ValueError(
            f"presets are of one device, ABI, Triton and model version, but got {sorted(origins, key=str)}"
        )
    device, abi, triton, model = origins.pop()
    if (abi, model) != (ABI_VERSION, MODEL_VERSION):
        raise ValueError(f"presets are of ABI {ABI_VERSION} and model {MODEL_VERSION}, but got {abi} and {model}")
    header = {**_HEADER, "device": device, "abi": abi, "triton": triton, "model": model, "trials": trials}
    best = [record for record in map(pick, wins.values()) if record is not None]
    rows = sorted(canonical(_row(record)) for record in best)
    return canonical(header)[:-1] + ',"rows":[\n' + ",\n".join(rows) + "\n]}\n"


def read_presets(text: str) -> tuple[Record, ...]:
    """The rows of a preset file as predicted records.

    Raises:
        ValueError: when the text is no preset file, naming what is wrong.
    """
    content = checked(text)
    data = {"model": content["model"]}
    return tuple(_record(row, content["device"], content["abi"], content["triton"], data) for row in content["rows"])


def checked(text: str) -> dict[str, Any]:
    """The content of a preset file, its header checked and its rows as plain JSON.

    Raises:
        ValueError: when it has other fields, or is of another format.
    """
    content = json.loads(text)
    wanted = {*_HEADER, "device", "abi", "triton", "model", "trials", "rows"}
    if not isinstance(content, dict) or set(content) != wanted:
        raise ValueError(f"a preset file has the fields {sorted(wanted)}")
    for name, value in _HEADER.items():
        if content[name] != value:
            raise ValueError(f"{name} {content[name]!r} is unknown; accepted: {value!r}")
    return content


@lru_cache(maxsize=64)
def shipped(device_key: str) -> tuple[Record, ...]:
    """The presets of a device for this kernel ABI; none where there is no file, or one of another ABI."""
    file = resources.files("grouped_conv.autotune.data").joinpath(f"{device_key}.json")
    if not file.is_file():
        return ()
    text = file.read_text(encoding="utf-8")
    abi = checked(text)["abi"]
    if abi != ABI_VERSION:  # rows of another ABI may have no meaning here: not even read
        _log.debug("presets of %s are for kernel ABI %s, not %s: ignored", device_key, abi, ABI_VERSION)
        return ()
    return read_presets(text)


def _row(record: Record) -> dict[str, Any]:
    """One line as plain JSON; the last digits of a time may differ with the machine's mathematical library."""
    us = None if record.predicted_us is None else round(record.predicted_us, 3)
    return {"problem": record.problem.to_json(), "config": record.config.to_json(), "predicted_us": us}


def _record(row: dict[str, Any], device: str, abi: int, triton: str, data: dict[str, Any]) -> Record:
    if set(row) != _ROW:
        raise ValueError(f"a preset has the fields {sorted(_ROW)}, but got {sorted(row)}")
    problem, config = ConvProblem.from_json(row["problem"]), KernelConfig.from_json(row["config"])
    return Record(problem, config, device, abi, triton, "predicted", row["predicted_us"], data=data, updated=0.0)
