"""What `grouped-conv run` tells the user: the values it hands over, as text for people and as JSON for programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from torch import Tensor

    from grouped_conv.cli.run_comparison import LayerComparison
    from grouped_conv.models import AlexNet


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for, as given."""

    images: tuple[str, ...]
    weights: str | None
    variant: str
    groups: int | None
    seed: int
    dtype: str
    via: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What `run` found: the layers side by side, and both networks' logits `(N, classes)` in float32."""

    model: AlexNet
    via: str
    layers: list[LayerComparison]
    logits: Tensor
    plain_logits: Tensor

    @property
    def agrees(self) -> bool:
        """True when rounding explains every difference."""
        return all(layer.agrees for layer in self.layers)


_PLACES = {
    "gpu": "the GPU",
    "native": "compiled for this CPU, no GPU; says nothing about a GPU's speed",
    "interpret": "Triton's interpreter on this CPU, no GPU; the configurations are an H100's",
}


def print_report(options: Options, outcome: Outcome) -> None:
    """Print the tables on stdout."""
    from grouped_conv.cli.run_images import BUNDLED_PHOTO, PREPROCESSING

    console, model = Console(), outcome.model
    if not console.is_terminal:
        console.width = 110  # a pipe has no width: rich's 80 would fold the table
    parameters = sum(parameter.numel() for parameter in model.parameters())
    names = ", ".join(options.images) or f"{BUNDLED_PHOTO} (bundled photo, CC0)"
    console.print(
        f"AlexNet [bold]{model.variant}[/], groups={model.groups}, {options.dtype}: {parameters:,} parameters, "
        f"{model.macs():,} MACs per image",
        f"weights: {escape(_weights_text(options))}",
        f"input: {escape(names)}; {escape(str(PREPROCESSING[model.variant]))}",
        f"kernels run by: {_PLACES[outcome.via]}",
        sep="\n",
        highlight=False,
    )
    console.print(_layer_table(outcome))
    console.print(_verdict(outcome), highlight=False)
    console.print(_logit_table(options, outcome))


def _verdict(outcome: Outcome) -> str:
    worst = max(outcome.layers, key=lambda layer: (not layer.agrees, layer.relative_difference / layer.allowance))
    precisions = {layer.call.problem.precision for layer in outcome.layers if layer.call and layer.call.problem}
    tf32 = ", with fp32 products in TF32 as torch's default has it," if "tf32" in precisions else ""
    return (
        f"The nearest to its limit is {worst.name}: {worst.relative_difference:.1e} of its largest value, where "
        f"rounding{tf32} explains up to {worst.allowance:.1e}. "
        + ("[green]They agree.[/]" if outcome.agrees else "[red]They do NOT agree.[/]")
    )


def _weights_text(options: Options) -> str:
    if options.weights:
        return options.weights
    return f"untrained, seed {options.seed}: the classes below mean nothing, only the agreement does"


def _layer_table(outcome: Outcome) -> Table:
    table = Table("layer", "path and configuration", title="our kernels against plain torch", box=SIMPLE)
    for title in ("max |difference|", "max |value|"):
        table.add_column(title, justify="right")
    for layer in outcome.layers:
        table.add_row(
            f"[bold]{layer.name}[/]\n{'x'.join(map(str, layer.output_shape))}",
            escape(_path_text(layer)),
            f"{layer.largest_difference:.2e}",
            f"{layer.largest_value:.4g}",
        )
    return table


def _path_text(layer: LayerComparison) -> str:
    """What ran, and below it with which configuration."""
    call = layer.call
    if call is None:
        return "torch (linear)"
    if not call.launches:
        return f"{call.path}: {call.reason}"
    return f"{' + '.join(call.launches)}\n{call.config} ({call.source})"


def _logit_table(options: Options, outcome: Outcome) -> Table:
    title = "top-5 logits" if options.weights else "top-5 logits (untrained weights)"
    table = Table("image", "class", title=title, box=SIMPLE)
    table.add_column("our kernels", justify="right")
    table.add_column("plain torch", justify="right")
    for name, best in zip(_image_names(options), _top5(outcome), strict=True):
        for rank, entry in enumerate(best):
            values = (f"{entry['logit']:.5g}", f"{entry['plain_logit']:.5g}")
            table.add_row("" if rank else escape(name), str(entry["class"]), *values)
    return table


def _image_names(options: Options) -> list[str]:
    from grouped_conv.cli.run_images import BUNDLED_PHOTO

    return [Path(image).name for image in options.images] or [BUNDLED_PHOTO]


def _top5(outcome: Outcome) -> list[list[dict[str, Any]]]:
    """For each image its five largest logits, with plain torch's value of the same class."""
    classes = outcome.logits.topk(min(5, outcome.logits.shape[1])).indices  # [N, 5]
    return [
        [{"class": c, "logit": float(ours[c]), "plain_logit": float(plain[c])} for c in best.tolist()]
        for best, ours, plain in zip(classes, outcome.logits, outcome.plain_logits, strict=True)
    ]


def as_json(name: str, options: Options, outcome: Outcome) -> dict[str, Any]:
    """Plain JSON data; numbers that JSON lacks become None."""
    from grouped_conv.cli.run_comparison import finite_or_none

    model = outcome.model
    return {
        "model": name,
        "variant": model.variant,
        "groups": model.groups,
        "dtype": options.dtype,
        "weights": options.weights,
        "untrained": options.weights is None,
        "seed": options.seed if options.weights is None else None,
        "via": outcome.via,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs_per_image": model.macs(),
        "layers": [layer.to_json() for layer in outcome.layers],
        "agrees": outcome.agrees,
        "top5": [
            {
                "image": image,
                "classes": [{key: finite_or_none(value) for key, value in entry.items()} for entry in best],
            }
            for image, best in zip(_image_names(options), _top5(outcome), strict=True)
        ],
    }
