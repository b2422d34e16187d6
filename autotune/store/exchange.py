"""Records as text, to be kept elsewhere and read again: JSON lines, the same bytes for the same records.

The first line says what the file is, each other line is one record. Reading checks all of it before any is used. Starts
of trials and self-checks stay behind: they are about one machine.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

from grouped_conv.autotune.records.record import Record, canonical
from grouped_conv.autotune.store.schema import SCHEMA_VERSION
from grouped_conv.autotune.store.store import Store
from grouped_conv.kernels.families import CONFIGS, KernelConfig
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.problem import ConvProblem

FORMAT = "grouped-conv records"
_SQLITE = b"SQLite format 3\0"
_LARGEST = 2**63 - 1
_TYPES = {
    "int": "an integer",
    "bool": "true or false",
    "str": "a text",
    "float": "a number",
    "float | None": "a number or null",
    "str | None": "a text or null",
    "Mapping[str, Any]": "an object",
    "Pair": "a list of integers",
    "Sides": "a list of integers",
}


def dumps(records: Iterable[Record]) -> str:
    """The records as text, ordered by key; trials in flight are left out."""
    settled = sorted((record for record in records if record.status != "started"), key=lambda record: record.key)
    header = canonical({"format": FORMAT, "schema_version": SCHEMA_VERSION})
    return "".join(f"{line}\n" for line in (header, *(canonical(record.to_json()) for record in settled)))


def loads(text: str, name: str) -> list[Record]:
    """The records of a text that `dumps` wrote.

    Args:
        name: of the file, for messages.

    Raises:
        ValueError: at the first line that is not as it should be, with its number and the offending value.
    """
    lines = text.removesuffix("\n").split("\n")
    _check_header(lines[0], name)
    records = []
    for number, line in enumerate(lines[1:], 2):
        try:
            records.append(_record(_parsed(line)))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{name}, line {number}: {what}") from error
    return records


def read_file(path: str | Path) -> list[Record]:
    """The records of an export or of another store, which is read as a copy and not touched.

    Raises:
        ValueError: for a file that is neither, or not in order.
        OSError: for a file that cannot be read.
    """
    content = Path(path).read_bytes()
    if content.startswith(_SQLITE):
        return _of_store(Path(path))
    try:
        return loads(content.decode(), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: neither a tuning store nor an export of one ({error})") from error


def _of_store(path: Path) -> list[Record]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        try:
            source = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
            with closing(source), closing(sqlite3.connect(copy)) as target:
                source.backup(target)
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path}: {error}") from error
        store = Store(copy)
        try:
            return [record for record in store.trials() if record.status != "started"]
        finally:
            store.close()


def _check_header(line: str, name: str) -> None:
    try:
        header = _parsed(line)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT or type(header.get("schema_version")) is not int:
        raise ValueError(f"{name}, line 1: not an export of a tuning store, which begins with its format")
    version = header["schema_version"]
    if version > SCHEMA_VERSION:
        known = f"this grouped-conv knows {SCHEMA_VERSION}; upgrade it"
        raise ValueError(f"{name}, line 1: the export has schema version {version}, {known}")
    if version != SCHEMA_VERSION:
        raise ValueError(f"{name}, line 1: schema version {version} is unknown; accepted: {SCHEMA_VERSION}")


def _parsed(line: str) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON number")

    try:
        return json.loads(line, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error}): {line[:40]!r}") from error


def _record(data: Any) -> Record:
    if not isinstance(data, dict):
        raise ValueError(f"a record is an object, but got {data!r}")
    _check_types(Record, data)
    problem, config = data["problem"], data["config"]
    _check_types(ConvProblem, problem)
    _check_types(Epilogue, problem["epilogue"])
    family = CONFIGS.get(config["family"])
    if family is not None:
        _check_types(family, {name: value for name, value in config.items() if name != "family"})
    known, parsed = ConvProblem.from_json(problem), KernelConfig.from_json(config)
    for given, read in ((problem, known.to_json()), (config, parsed.to_json())):
        if canonical(given) != canonical(read):
            raise ValueError(f"{canonical(given)} would be read as {canonical(read)}")
    canonical(data["data"])  # refuses numbers that JSON has no word for
    numbers = {name: float(data[name]) for name in _float_fields() if data[name] is not None}
    return Record(**{**data, "problem": known, "config": parsed, **numbers})


def _float_fields() -> list[str]:
    return [field.name for field in fields(Record) if "float" in str(field.type)]


def _check_types(kind: type, data: Any) -> None:
    """Refuse missing and unknown fields, and values of another type than the class declares."""
    if not isinstance(data, dict):
        raise ValueError(f"expected an object for {kind.__name__}, but got {data!r}")
    declared = {field.name: str(field.type) for field in fields(kind)}
    unknown = sorted(set(data) - set(declared))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r} with value {data[unknown[0]]!r}")
    for name, declaration in declared.items():
        value = data[name]
        if declaration in _TYPES and not _fits(value, declaration):
            raise ValueError(f"{name} must be {_TYPES[declaration]}, but is {value!r}")


def _fits(value: Any, declaration: str) -> bool:
    kind = declaration.removesuffix(" | None")
    if value is None:
        return declaration != kind
    if kind == "int":
        return type(value) is int and abs(value) <= _LARGEST
    if kind == "float":
        return type(value) in (int, float)
    if kind in ("Pair", "Sides"):
        return isinstance(value, list) and all(type(number) is int for number in value)
    if kind == "str":
        return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)
    return isinstance(value, Mapping) if kind.startswith("Mapping") else type(value) is bool
