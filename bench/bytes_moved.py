"""Bytes that the kernels move, counted from the addresses of interpreted launches, and the bytes that they must move.

`python -m grouped_conv.bench.bytes_moved` prints for each kernel family and problem, without a GPU and exactly:

- bytes requested by all lanes;
- distinct bytes of each program, summed: what leaves L1 if a program's repeated reads hit there;
- the same in whole 32-byte sectors;
- bytes that the stored outputs of each program need, summed: the compulsory bytes of the tile walk;
- the part of them that is input read by several programs (halos);
- bytes that the whole call must move once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click

from grouped_conv.autotune.model.families import MODELS
from grouped_conv.autotune.model.heuristic import choose
from grouped_conv.autotune.model.lrn_pool import forward as lrn_pool
from grouped_conv.bench.traffic.compulsory import Needs, total
from grouped_conv.bench.traffic.sample_calls import sample_call
from grouped_conv.context.tracing import trace
from grouped_conv.kernels.families import FAMILIES, Problem, families_for
from grouped_conv.kernels.interpreting.counting import WRITE, LaunchTraffic, counting
from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem
from grouped_conv.kernels.separable.problem import SeparableProblem
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.layout import GroupLayout
from grouped_conv.kernels.values.problem import ConvProblem
from grouped_conv.planning.interpreting import interpret

LIMIT = 1.15
"""A memory-bound kernel may move this many times the compulsory bytes of its tile walk."""
MEMORY_BOUND = ("packed_groups", "depthwise", "lrn_pool")
FORWARD = tuple(name for name, family in FAMILIES.items() if family.direction == "forward")
DEVICE = "h100"
OWN_CHOICE: dict[str, Callable[[Any, DeviceSpec], KernelConfig | None]] = {
    "separable": lambda problem, device: next(iter(MODELS["separable"].ranked(problem, device)), None),
    "lrn_pool": lrn_pool.choose,
}
"""Families whose calls do not take the heuristic's choice."""


@dataclass(frozen=True, slots=True)
class Case:
    """A problem whose bytes are counted."""

    name: str
    problem: Problem


def _case(name: str, c: int, k: int, size: int, groups: int, image: int = 14, **keywords: Any) -> Case:
    values = {"padding": size // 2, "epilogue": Epilogue("relu", bias=True), **keywords}
    return Case(name, ConvProblem.of((1, c, image, image), (k, c // groups, size, size), groups=groups, **values))


def _unequal(layout: GroupLayout) -> ConvProblem:
    return ConvProblem(1, layout, (14, 14), (3, 3), padding=(1, 1, 1, 1), epilogue=Epilogue("relu", bias=True))


def _block(channels: int, out_channels: int, groups: int) -> SeparableProblem:
    first = _case("", channels, channels, 3, groups).problem
    assert isinstance(first, ConvProblem)
    return SeparableProblem(first, out_channels, Epilogue(bias=True))


CASES = (
    _case("ResNeXt 3x3, 4 wide", 128, 128, 3, 32),
    _case("ResNeXt 3x3, 8 wide, stride 2", 256, 256, 3, 32, stride=2),
    _case("ShuffleNet 1x1, 20 wide", 60, 240, 1, 3),
    _case("MobileNet 3x3 depthwise", 96, 96, 3, 96),
    _case("MobileNet 3x3 depthwise, stride 2", 96, 96, 3, 96, stride=2),
    _case("5x5 depthwise", 96, 96, 5, 96),
    _case("ConvNeXt 7x7 depthwise", 96, 96, 7, 96),
    Case("log series, 3x3", _unequal(GroupLayout.sizes([64, 32, 16, 16], [64, 32, 16, 16]))),
    Case("overlap of a half, 3x3", _unequal(GroupLayout.overlapping(64, 64, groups=4, width=32))),
    Case("MobileNet block, 32 to 16", _block(32, 16, groups=32)),
    Case("root module, 4 groups", _block(64, 64, groups=4)),
    Case("AlexNet norm1+pool1, towers", LrnPoolProblem.of((1, 96, 55, 55), alpha=5e-4, k=2.0, groups=2)),
    Case("AlexNet norm2+pool2", LrnPoolProblem.of((1, 256, 27, 27), alpha=5e-4, k=2.0)),
    Case("pool1+norm1", LrnPoolProblem.of((1, 96, 55, 55), "pool-lrn")),
)


@dataclass(frozen=True, slots=True)
class Moved:
    """What one launch moved, in bytes.

    Attributes:
        family, case, config, launch: the kernel and its problem.
        programs: the size of its grid.
        requested: bytes accessed by all lanes that are not masked.
        moved: distinct bytes of each program, summed.
        sectors: the same in whole 32-byte sectors.
        needed: bytes of the outputs of each program and of what they depend on, summed over programs.
        halo: the part of `needed` that is input read again by further programs.
        compulsory: bytes of all outputs and of what they depend on, each once.
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
        """`moved / needed`: at most `LIMIT` for a memory-bound family."""
        return self.moved / self.needed

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {name: getattr(self, name) for name in self.__slots__} | {"ratio": self.ratio}


def judge(traffic: LaunchTraffic, needs: Needs | None, family: str = "", case: str = "") -> Moved:
    """Compare a launch's traffic with what its stores need.

    Args:
        needs: what outputs depend on; `None` for a pass that copies, which needs every byte once.
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


def count_call(problem: Problem, config: KernelConfig, case: str = "") -> list[Moved]:
    """Every launch of one public call of `problem` with `config`, interpreted on zeros.

    Raises:
        ValueError: when the configuration cannot run the problem.
    """
    call = sample_call(problem)
    with interpret(config), counting() as launches, trace() as calls:
        call.run()
    rows = []
    for traffic in launches:
        stores = any(access.buffer == "output" for access in traffic.accesses(WRITE))
        needs = call.needs(traffic.tensors["output"]) if stores else None
        rows.append(judge(traffic, needs, calls[0].path, case))
    return rows


def best(family: str, problem: Problem, device: DeviceSpec) -> KernelConfig | None:
    """The configuration that a call of this family uses where nothing was tuned; `None` where it has none."""
    if family not in families_for(problem):
        return None
    if family in OWN_CHOICE:
        return OWN_CHOICE[family](problem, device)
    try:
        return choose(problem, device, frozenset({family}))
    except ValueError:
        return None


def rows(families: Sequence[str], cases: Sequence[Case] = CASES) -> Iterator[Moved]:
    """Every launch of every case by every family that can run it."""
    device = DeviceSpec.get(DEVICE)
    for family in families:
        for case in cases:
            config = best(family, case.problem, device)
            if config is not None:
                yield from count_call(case.problem, config, case.name)


@click.command()
@click.option("--family", "families", multiple=True, type=click.Choice(FORWARD), help="Only these families.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(families: tuple[str, ...], as_json: bool) -> None:
    """Count the bytes of every family on small problems; exit code 1 if a memory-bound kernel moves too many."""
    found = list(rows(families or FORWARD))
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
