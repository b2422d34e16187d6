"""`grouped-conv run`: a network on real images, by our kernels and by plain torch, compared layer by layer.

torch and the package's modules are imported when the command runs, so that `--help` stays quick.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from grouped_conv.cli.run_report import Options, Outcome, as_json, print_report

if TYPE_CHECKING:
    import torch

    from grouped_conv.models import AlexNet

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_NATIVE_MODULE = "cpu_native"


@click.command()
@click.argument("model", type=click.Choice(["alexnet"]))
@click.argument("images", nargs=-1, metavar="[IMAGE]...", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--weights",
    type=click.Path(exists=True, dir_okay=False),
    help="A state_dict file, read with torch.load(weights_only=True). Without it the weights are untrained.",
)
@click.option(
    "--variant", default="paper", show_default=True, metavar="[paper|caffe|torchvision]", help="Which AlexNet."
)
@click.option(
    "--groups", type=int, metavar="[1|2|4]", help="Filter groups of conv2, conv4, conv5; by default the variant's."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the untrained weights.")
@click.option("--dtype", type=click.Choice(list(_DTYPES)), default="fp32", show_default=True)
@click.option(
    "--via",
    type=click.Choice(["auto", "gpu", "native", "interpret"]),
    default="auto",
    show_default=True,
    help="Where the kernels run: a GPU, a lane that compiles them for this CPU (a Python module cpu_native), or "
    "Triton's interpreter. auto takes the first that is there.",
)
@click.option("--json", "json_wanted", is_flag=True, help="Print JSON instead of tables.")
def run(model: str, images: tuple[str, ...], json_wanted: bool, **options: Any) -> None:
    """Run MODEL on image files (or on a bundled photo) with our kernels and with plain torch, and compare each layer.

    Exits with 1 when they differ by more than rounding explains.
    """
    chosen = Options(images=images, **options)
    outcome = _run(chosen)
    if json_wanted:
        click.echo(json.dumps(as_json(model, chosen, outcome), indent=2))
    else:
        print_report(chosen, outcome)
    if not outcome.agrees:
        click.get_current_context().exit(1)


def _run(options: Options) -> Outcome:
    import torch

    from grouped_conv.cli.run_comparison import compare, observe, plain_copy
    from grouped_conv.cli.run_images import PREPROCESSING, load_images
    from grouped_conv.models.alexnet import CONVOLUTIONS, LAYERS

    model = _build(options)
    images = load_images(options.images, PREPROCESSING[options.variant], model.input_size[-1])
    place = _place(options.via)
    dtype = getattr(torch, _DTYPES[options.dtype])
    device = "cuda" if place == "gpu" else "cpu"
    model, images = model.to(device, dtype), images.to(device, dtype)
    with _progress(len(CONVOLUTIONS)) as progress:
        progress("plain torch")
        plain = observe(plain_copy(model), images, LAYERS, lambda name: None)
        with _entered(place):
            ours = observe(model, images, LAYERS, lambda name: progress(name) if name in CONVOLUTIONS else None)
    layers = compare(ours, plain)
    return Outcome(
        model=model,
        via=place,
        layers=layers,
        logits=ours[LAYERS[-1]].output.float().cpu(),
        plain_logits=plain[LAYERS[-1]].output.float().cpu(),
    )


def _build(options: Options) -> AlexNet:
    import torch

    from grouped_conv.models import AlexNet

    if options.weights is None:
        torch.manual_seed(options.seed)
        return AlexNet(variant=options.variant, groups=options.groups).eval()
    state = _read_weights(options.weights)
    last = next((state[name] for name in ("fc8.weight", "classifier.6.weight") if name in state), None)
    if last is None or last.dim() != 2:
        raise ValueError(
            f"{options.weights} holds no matrix fc8.weight, it is no AlexNet, but {', '.join(list(state)[:4])} ..."
        )
    model = AlexNet(len(last), variant=options.variant, groups=options.groups)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        first_fault = str(error).splitlines()[1].strip()
        raise ValueError(
            f"{options.weights} does not fit the {options.variant} AlexNet with groups={model.groups}: {first_fault}"
        ) from None
    return model.eval()


def _read_weights(path: str) -> dict[str, torch.Tensor]:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged or hostile pickle raises nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read by torch.load(weights_only=True): {reason}") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a state_dict (names to tensors)")
    return state


def _place(via: str) -> str:
    """The place that `--via` means here (`gpu`, `native` or `interpret`), ready to use."""
    import torch

    if via in ("auto", "gpu") and torch.cuda.is_available():
        return "gpu"
    if via == "gpu":
        raise ValueError("--via gpu: torch finds no GPU here; --via interpret needs none")
    if via in ("auto", "native") and all(importlib.util.find_spec(name) for name in (_NATIVE_MODULE, "pyopencl")):
        importlib.import_module(_NATIVE_MODULE)  # makes itself Triton's active driver
        return "native"
    if via == "native":
        raise ValueError(f"--via native: the modules {_NATIVE_MODULE} and pyopencl are not both importable")
    return "interpret"


def _entered(place: str) -> AbstractContextManager[None]:
    """The block in which kernels run there."""
    import grouped_conv
    from grouped_conv.planning.interpreting import through_driver

    if place == "gpu":
        return grouped_conv.policy("kernels")
    return through_driver() if place == "native" else grouped_conv.interpret()


@contextmanager
def _progress(steps: int) -> Iterator[Any]:
    """Gives a function that says on stderr what starts now; the first of `steps` comes after the preparation."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        begun = 0

        def say(name: str) -> None:
            nonlocal begun
            bar.update(task, description=f"{name} ({begun}/{steps})" if begun else name)
            begun += 1

        yield say
