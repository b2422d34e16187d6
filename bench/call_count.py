"""How many Python calls of this package one warm call makes: forward passes and a weight gradient, no GPU needed.

`python -m grouped_conv.bench.call_count` runs each call on the no-op driver until its plan exists, then once more under
`sys.setprofile`. Functions of torch and Triton are not counted, nor is the driver that replaces the GPU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click
import torch

import grouped_conv
from grouped_conv.bench.noop_driver import noop_driver
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.layout import Group, GroupLayout
from grouped_conv.planning.interpreting import through_driver

MOST_CALLS, MOST_FILES = 45, 10
"""Limits for the forward pass of equal groups; `tests/planning/test_call_count.py` holds them."""

WARM_UP = 3
_HERE = Path(__file__).resolve().parent
_ROOTS = tuple(str(Path(path).resolve()) for path in (grouped_conv.__path__[0], f"{grouped_conv.__path__[0]}/kernels"))


@dataclass(frozen=True, slots=True)
class CallCount:
    """What one warm call costs in Python calls.

    Attributes:
        name: which call.
        calls: Python functions of this package entered, each entry counted.
        files: source files they are in.
        depth: most of them on the stack at once.
    """

    name: str
    calls: int
    files: int
    depth: int


class _Counter:
    """A `sys.setprofile` function that counts the package's own frames."""

    def __init__(self) -> None:
        self.calls, self.depth, self.deepest = 0, 0, 0
        self.files: dict[str, bool] = {}
        self.seen: list[str] = []

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event not in ("call", "return"):
            return
        path = frame.f_code.co_filename
        if path not in self.files:
            self.files[path] = _is_ours(path)
        if not self.files[path]:
            return
        if event == "return":
            self.depth -= 1
            return
        self.calls += 1
        self.depth += 1
        self.deepest = max(self.deepest, self.depth)
        self.seen.append(f"{Path(path).name}:{frame.f_code.co_qualname}")


def _is_ours(path: str) -> bool:
    resolved = Path(path).resolve()
    return _HERE not in resolved.parents and any(str(resolved).startswith(f"{root}/") for root in _ROOTS)


def count(name: str, call: Callable[[], Any]) -> tuple[CallCount, list[str]]:
    """Count one call after `WARM_UP` others; also the functions entered, in order."""
    for _ in range(WARM_UP):
        call()
    counter = _Counter()
    before = sys.getprofile()
    sys.setprofile(counter)
    try:
        call()
    finally:
        sys.setprofile(before)
    files = sum(counter.files.values())
    return CallCount(name, counter.calls, files, counter.deepest), counter.seen


def sample_calls() -> dict[str, Callable[[], Any]]:
    """The calls that are counted, by name, on fp16 channels_last CPU tensors."""

    def half(*shape: int) -> torch.Tensor:
        value = torch.randn(shape).half()
        return value.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else value

    input, weight, bias = half(1, 96, 27, 27), half(256, 48, 5, 5), half(256)
    pointwise, depthwise = half(64, 96, 1, 1), half(96, 1, 3, 3)
    layout = GroupLayout(96, 64, 2, (Group(tuple(range(32)), 16), Group(tuple(range(32, 96)), 48)))
    ragged = grouped_conv.RaggedConv2d(layout, 3, padding=1).half()
    packed = half(64, 4, 3, 3).requires_grad_()
    images = half(2, 64, 14, 14)
    output = grouped_conv.grouped_conv2d(images, packed, padding=1, groups=16)
    grad = torch.randn_like(output)
    return {
        "forward": lambda: grouped_conv.grouped_conv2d(input, weight, bias, padding=2, groups=2),
        "ragged": lambda: ragged(input),
        "separable": lambda: grouped_conv.separable_conv2d(input, depthwise, pointwise, padding=1),
        "lrn_pool": lambda: grouped_conv.lrn_max_pool2d(input),
        "packed weight_grad": lambda: torch.autograd.grad(output, packed, grad, retain_graph=True),
    }


def count_all(device: DeviceSpec) -> list[tuple[CallCount, list[str]]]:
    """Count every sample call on the no-op driver for `device`."""
    with noop_driver(device), through_driver():
        return [
            count(name, call if name.endswith("grad") else torch.no_grad()(call))
            for name, call in sample_calls().items()
        ]


@click.command()
@click.option("--device", default="h100-sxm", show_default=True, help="GPU to compile for; none is needed.")
@click.option("--show", "show", is_flag=True, help="List the functions in the order they are entered.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(device: str, show: bool, as_json: bool) -> None:
    """Count the Python calls of a warm call, with no GPU."""
    found = count_all(DeviceSpec.get(device))
    if as_json:
        click.echo(json.dumps([asdict(one) for one, _ in found]))
        return
    for one, functions in found:
        click.echo(f"{one.name:20} {one.calls:4} calls in {one.files:3} files, depth {one.depth}")
        if show:
            click.echo("".join(f"  {function}\n" for function in functions), nl=False)


if __name__ == "__main__":
    main()
