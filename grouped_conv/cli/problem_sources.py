"""The convolutions that `grouped-conv tune` was told of: a named model, layers in words, a JSON file, a factory."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from grouped_conv.autotune.workloads.named import in_directions, workload
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.problem import DIRECTIONS, ConvProblem

NUMBERS = {"N": 1, "C": 0, "H": 0, "W": 0, "K": 0, "R": 0, "S": 0, "stride": 1, "pad": 0, "dil": 1, "groups": 1}
"""Names of a layer's numbers and what they are by default; 0 for those that have to be given. W is H and S is R unless
they are given."""
FORWARD = ("forward",)
"""What is tuned unless `--direction` says otherwise: everybody who runs a network needs it, and gradients would make
the search three times as long. A model from a factory tells by its mode whether it is about to be trained."""


def chosen_directions(direction: str | None) -> tuple[str, ...] | None:
    """The directions that `--direction` means; None when it was not given."""
    if direction is None:
        return None
    return DIRECTIONS if direction == "all" else (direction,)


def named_model(model: str, batch: int, dtype: str, direction: str | None) -> dict[str, ConvProblem]:
    """The layers of a model of the table."""
    return in_directions(workload(model, batch, dtype), chosen_directions(direction) or FORWARD)


def described_layers(texts: Sequence[str], dtype: str, direction: str | None) -> dict[str, ConvProblem]:
    """Layers such as `N=128 C=96 H=27 W=27 K=256 R=5 S=5 pad=2 groups=2`.

    Raises:
        ValueError: for an unknown name, a missing number, or numbers that make no convolution.
    """
    problems = {f"layer {number}": described_layer(text, dtype) for number, text in enumerate(texts, 1)}
    return in_directions(problems, chosen_directions(direction) or FORWARD)


def described_layer(text: str, dtype: str) -> ConvProblem:
    """One layer in words: numbers, and optionally `act=relu` and `bias=1`."""
    words = re.findall(r"(\S+?)=(\S+)", text)
    if not words or len(words) != len(text.split()):
        raise ValueError(f"a layer is written as NAME=NUMBER ..., but got {text!r}")
    given = dict(words)
    unknown = sorted(set(given) - {*NUMBERS, "act", "bias"})
    if unknown:
        raise ValueError(f"unknown names {unknown} in {text!r}; accepted: {', '.join(NUMBERS)}, act, bias")
    given.setdefault("W", given.get("H", ""))
    given.setdefault("S", given.get("R", ""))
    numbers = {name: _number(name, given.get(name, ""), default, text) for name, default in NUMBERS.items()}
    epilogue = Epilogue(given.get("act", "none"), bias=given.get("bias", "0") not in ("0", "false"))
    if numbers["C"] % numbers["groups"]:
        raise ValueError(f"groups={numbers['groups']} must divide C={numbers['C']} in {text!r}")
    return ConvProblem.of(
        (numbers["N"], numbers["C"], numbers["H"], numbers["W"]),
        (numbers["K"], numbers["C"] // numbers["groups"], numbers["R"], numbers["S"]),
        numbers["stride"],
        numbers["pad"],
        numbers["dil"],
        numbers["groups"],
        dtype,
        epilogue=epilogue,
    )


def _number(name: str, text: str, default: int, layer: str) -> int:
    if not text and not default and name not in ("pad",):
        raise ValueError(f"{name} is missing in {layer!r}")
    if not text:
        return default
    if not text.isdigit() or (not int(text) and name != "pad"):
        raise ValueError(f"{name} must be a positive integer, but got {text!r}")
    return int(text)


def listed_problems(path: Path, direction: str | None) -> dict[str, ConvProblem]:
    """The problems of a JSON file: an object of problems by name, or a list of them, as `ConvProblem.to_json` writes.

    Raises:
        ValueError: for a file that holds something else, with the place.
        OSError: when it cannot be read.
    """
    try:
        data = json.loads(path.read_text())
        named = data if isinstance(data, Mapping) else {f"problem {n}": item for n, item in enumerate(data, 1)}
        problems = {str(name): ConvProblem.from_json(item) for name, item in named.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} holds no problems: {type(error).__name__}: {error}") from error
    return in_directions(problems, chosen_directions(direction) or FORWARD)


def from_factory(text: str, direction: str | None) -> dict[str, ConvProblem]:
    """The convolutions of what `package.module:factory` returns when it is called: a model and an example input.

    Raises:
        ValueError: when there is no such factory, or it returns something else.
    """
    from torch import nn

    from grouped_conv.preparing.traced_problems import problems_of

    module, _, name = text.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory: Any = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"no factory {text!r}: {error}") from error
    made = factory()
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], nn.Module):
        raise ValueError(f"{text} must return (model, example_input), but returned {type(made).__name__}")
    return problems_of(made[0], made[1], chosen_directions(direction))
