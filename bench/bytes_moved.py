"""Bytes that the kernels move, counted from the real addresses of interpreted launches, beside what they must move.

`python -m grouped_conv.bench.bytes_moved` prints, for each kernel family and problem: bytes requested by all lanes;
distinct bytes of each program, summed (what leaves L1 if a program's own re-reads hit there); the same in whole 32-byte
sectors; what the stored outputs of each program need (the tile walk's compulsory bytes); how much of that is input that
programs read besides others (halos); and what the whole call must move once. The counts are exact and use no GPU.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
import torch

from grouped_conv import functional
from grouped_conv.autotune.cost import predict
from grouped_conv.autotune.families import MODELS
from grouped_conv.bench.compulsory import ConvNeeds, total
from grouped_conv.interpreting import interpret
from grouped_conv.kernels.config import KernelConfig
from grouped_conv.kernels.device import DeviceSpec
from grouped_conv.kernels.epilogue import Epilogue
from grouped_conv.kernels.interpreter_counting import WRITE, LaunchTraffic, counting
from grouped_conv.kernels.problem import ConvProblem
from grouped_conv.kernels.validity import why_invalid
from grouped_conv.tracing import trace

LIMIT = 1.15
"""Times the compulsory bytes of its tile walk that a memory-bound kernel may move."""
MEMORY_BOUND = ("packed_groups", "depthwise")
DEVICE = "h100"


@dataclass(frozen=True, slots=True)
class Case:
    """A problem whose bytes are counted."""

    name: str
    problem: ConvProblem


def _case(name: str, c: int, k: int, size: int, groups: int, image: int = 14, **keywords: Any) -> Case:
    values = {"padding": size // 2, "epilogue": Epilogue("relu", bias=True), **keywords}
    return Case(name, ConvProblem.of((1, c, image, image), (k, c // groups, size, size), groups=groups, **values))


CASES = (
    _case("ResNeXt 3x3, 4 wide", 128, 128, 3, 32),
    _case("ResNeXt 3x3, 8 wide, stride 2", 256, 256, 3, 32, stride=2),
    _case("ShuffleNet 1x1, 20 wide", 60, 240, 1, 3),
    _case("MobileNet 3x3 depthwise", 96, 96, 3, 96),
    _case("MobileNet 3x3 depthwise, stride 2", 96, 96, 3, 96, stride=2),
    _case("5x5 depthwise", 96, 96, 5, 96),
    _case("ConvNeXt 7x7 depthwise", 96, 96, 7, 96),
)


@dataclass(frozen=True, slots=True)
class Moved:
    """What one launch moved, in bytes.

    Attributes:
        family, case, config, launch: which kernel on which problem.
        programs: of its grid.
        requested: by all lanes that are not masked.
        moved: distinct bytes of each program, summed.
        sectors: the same in whole 32-byte sectors.
        needed: what the outputs of each program depend on, summed, and the outputs: the tile walk's compulsory bytes.
        halo: the part of `needed` that is input needed by more than one program, beyond its first reading.
        compulsory: what all outputs together depend on, and the outputs.
    """

    family: str
    case: str
    config: str
    launch: str
    programs: int
    requested: int
    moved: int
    sectors: int
    needed: int
    halo: int
    compulsory: int

    @property
    def ratio(self) -> float:
        """Moved to needed: at most `LIMIT` for a memory-bound family."""
        return self.moved / self.needed

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {name: getattr(self, name) for name in self.__slots__} | {"ratio": self.ratio}


def judge(traffic: LaunchTraffic, needs: ConvNeeds | None, family: str = "", case: str = "") -> Moved:
    """Compare a launch's traffic with what its stores need.

    Args:
        needs: what outputs depend on; without it, as for a pass that copies, every byte is needed once.
    """
    if needs is None:
        needed, halo, compulsory = traffic.distinct(), 0, traffic.distinct()
    else:
        parts = [needs(access.offsets) for access in traffic.accesses(WRITE, "output")]
        whole = needs.whole_call()
        needed = sum(map(total, parts))
        halo = sum(part["input"] for part in parts) - whole["input"]
        compulsory = total(whole)
    return Moved(
        family=family,
        case=case,
        config=str(traffic.launch.config),
        launch=traffic.launch.name,
        programs=len(traffic.programs),
        requested=traffic.requested(),
        moved=traffic.moved(),
        sectors=traffic.sectors(),
        needed=needed,
        halo=halo,
        compulsory=compulsory,
    )


def count_call(problem: ConvProblem, config: KernelConfig, case: str = "") -> list[Moved]:
    """Every launch of one public call of `problem` with `config`, interpreted; values are zeros.

    Raises:
        ValueError: when the configuration cannot run the problem.
    """
    tensors = zeros(problem)
    with interpret(config), counting() as launches, trace() as calls:
        convolve(problem, tensors)
    rows = []
    for traffic in launches:
        stores = any(access.buffer == "output" for access in traffic.accesses(WRITE))
        needs = ConvNeeds(problem, traffic.tensors["output"]) if stores else None
        rows.append(judge(traffic, needs, calls[0].path, case))
    return rows


def zeros(problem: ConvProblem) -> dict[str, torch.Tensor]:
    """Operands of a problem with equal groups, in its memory formats."""
    dtype, epilogue = getattr(torch, problem.dtype), problem.epilogue

    def four(shape: Sequence[int], channels_last: bool) -> torch.Tensor:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return torch.zeros(*shape, dtype=dtype).contiguous(memory_format=layout)

    tensors = {
        "input": four(problem.input_shape, problem.input_channels_last),
        "weight": four(problem.weight_shape, problem.weight_channels_last),
    }
    tensors |= {
        name: torch.zeros(problem.out_channels, dtype=dtype) for name in ("bias", "scale") if getattr(epilogue, name)
    }
    if epilogue.residual:
        tensors["residual"] = four(problem.output_shape, problem.output_channels_last)
    return tensors


def convolve(problem: ConvProblem, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A problem with equal groups as a call of the public function."""
    epilogue = problem.epilogue
    return functional.grouped_conv2d(
        tensors["input"],
        tensors["weight"],
        tensors.get("bias"),
        problem.stride,
        problem.padding,
        problem.dilation,
        problem.groups,
        activation=epilogue.activation,
        negative_slope=epilogue.negative_slope,
        scale=tensors.get("scale"),
        residual=tensors.get("residual"),
        precision=problem.precision if problem.dtype == "float32" else None,
        input_shuffle=problem.input_shuffle,
        output_shuffle=epilogue.shuffle,
    )


def best(family: str, problem: ConvProblem, device: DeviceSpec) -> KernelConfig | None:
    """The family's default for a problem by the cost model, or None where it has none."""
    valid = [c for c in MODELS[family].defaults(problem, device) if why_invalid(problem, c, device) is None]
    return min(valid, key=lambda config: predict(problem, config, device).weighed_us, default=None)


def rows(families: Sequence[str], cases: Sequence[Case] = CASES) -> Iterator[Moved]:
    """Every launch of every case by every family that has a configuration for it."""
    device = DeviceSpec.get(DEVICE)
    for family in families:
        for case in cases:
            config = best(family, case.problem, device)
            if config is not None:
                yield from count_call(case.problem, config, case.name)


@click.command()
@click.option("--family", "families", multiple=True, help="Kernel family; may be given more than once.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(families: tuple[str, ...], as_json: bool) -> None:
    """Count the bytes of every family on small problems; exit code 1 if a memory-bound kernel moves too many."""
    unknown = set(families) - set(MODELS)
    if unknown:
        raise click.BadParameter(f"{', '.join(sorted(unknown))}; known: {', '.join(MODELS)}", param_hint="--family")
    found = list(rows(families or tuple(MODELS)))
    too_many = [row for row in found if row.family in MEMORY_BOUND and row.ratio > LIMIT]
    if as_json:
        click.echo(json.dumps([row.to_json() for row in found], indent=2))
    else:
        _print(found)
    click.echo(f"{len(found)} launches counted, {len(too_many)} beyond {LIMIT}x of their tile walk", err=True)
    raise SystemExit(1 if too_many else 0)


def _print(found: Sequence[Moved]) -> None:
    titles = ("requested", "moved", "sectors", "needed", "of it halo", "whole call")
    click.echo(f"{'family':14} {'problem':34} {'launch':20} {'programs':>8} " + " ".join(f"{t:>10}" for t in titles))
    for row in found:
        counts = (row.requested, row.moved, row.sectors, row.needed, row.halo, row.compulsory)
        click.echo(
            f"{row.family:14} {row.case:34} {row.launch:20} {row.programs:8} "
            + " ".join(f"{count:10}" for count in counts)
            + f"  moved/needed {row.ratio:.3f}  requested/moved {row.requested / row.moved:.2f}  [{row.config}]"
        )


if __name__ == "__main__":
    main()
