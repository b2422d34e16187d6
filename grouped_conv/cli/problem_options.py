"""Where the commands take their convolutions from: a model by name, layers in words, a file, or a Python factory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any

import click

from grouped_conv.autotune.workloads.named import MODELS
from grouped_conv.kernels.values.problem import DIRECTIONS, ConvProblem, dtype_name


class _Dtype(click.ParamType):
    """A dtype the kernels compute."""

    name = "dtype"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return dtype_name(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Model(click.ParamType):
    """A model of the table of workloads."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value.lower() not in MODELS:
            self.fail(f"unknown model {value!r}; known: {', '.join(MODELS)}", param, ctx)
        return str(value.lower())


@dataclass(frozen=True, slots=True)
class Source:
    """What the command line said about its convolutions."""

    model: str | None
    layers: tuple[str, ...]
    from_json: Path | None
    from_module: str | None
    direction: str | None
    dtype: str
    batch: int

    def problems(self) -> dict[str, ConvProblem]:
        """The convolutions by name.

        Raises:
            UsageError: unless exactly one source is given.
            ValueError: for what the source holds and is no convolution.
        """
        from grouped_conv.cli import problem_sources as tune_sources

        if sum(bool(one) for one in (self.model, self.layers, self.from_json, self.from_module)) > 1:
            raise click.UsageError("give one of MODEL, --layer, --from-json and --from-module")
        if self.layers:
            return tune_sources.described_layers(self.layers, self.dtype, self.direction)
        if self.from_json:
            return tune_sources.listed_problems(self.from_json, self.direction)
        if self.from_module:
            return tune_sources.from_factory(self.from_module, self.direction)
        if self.model is None:
            raise click.UsageError("Missing argument 'MODEL' (or --layer, --from-json, --from-module)")
        return tune_sources.named_model(self.model, self.batch, self.dtype, self.direction)


def source_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of a `Source` to a command, which takes it as `source`."""

    @wraps(command)
    def called(**given: Any) -> None:
        named = {field.name: given.pop(field.name) for field in fields(Source)}
        command(source=Source(**named), **given)

    for option in reversed(
        (
            click.argument("model", type=_Model(), required=False),
            click.option(
                "--layer", "layers", multiple=True, help='A layer, "N=128 C=96 H=27 K=256 R=5 pad=2 groups=2".'
            ),
            click.option("--from-json", type=click.Path(path_type=Path), help="A file of problems."),
            click.option("--from-module", metavar="MODULE:FACTORY", help="Returns (model, example input)."),
            click.option(
                "--direction",
                type=click.Choice([*DIRECTIONS, "all"]),
                help="Default: forward; for --from-module what the model's mode implies.",
            ),
            click.option("--dtype", type=_Dtype(), default="fp16", show_default=True, help="fp16, bf16 or fp32."),
            click.option(
                "--batch", type=click.IntRange(min=1), default=128, show_default=True, help="Images per batch."
            ),
        )
    ):
        called = option(called)
    return called
