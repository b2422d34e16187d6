"""Digests of machine code, to show that a change to the kernels' source left their code as it was; needs no GPU.

    git stash; python -m grouped_conv.bench.code_digest --write before.json; git stash pop
    python -m grouped_conv.bench.code_digest --compare before.json

Every family compiles the layers of its gate at their defaults, with three epilogues, in fp16 and fp32, passes included.
The digest is of PTX or of AMD's assembly without comments, debug lines and labels made for them, so a renamed local
variable or a moved line keeps it. Code that differs may still be as good: instructions and registers are listed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click

from grouped_conv.autotune.compiling.offline import gpu_target
from grouped_conv.autotune.machine_code.resources import read_resources
from grouped_conv.bench.gates.families import GATES
from grouped_conv.bench.gates.findings import EVERY_RUN
from grouped_conv.kernels.call import plan
from grouped_conv.kernels.families import FAMILIES
from grouped_conv.kernels.launching.launch import Launch, compile_launch, compile_options
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.problem import ConvProblem

DTYPES = ("float16", "float32")
EPILOGUES = (
    Epilogue(),
    Epilogue("relu", bias=True),
    Epilogue("silu", bias=True, scale=True, residual=True),
)
NOTHING = re.compile(r"\s*(\.loc|\.file|\.ident|\.p2align)\b|(\$L__|\.L)(tmp|func_begin|func_end|cfi)\w*:|\s*$")
"""Lines that hold no code, once comments are gone."""


@dataclass(frozen=True, slots=True)
class Digest:
    """One compiled kernel: a hash of its code, and figures to judge a difference by."""

    code: str
    lines: int
    instructions: int
    registers: int
    spill_bytes: int
    shared_bytes: int


def normalised(asm: Mapping[str, str]) -> str:
    """The code of a compiled kernel's `asm` without what depends on names and places in the source."""
    text, comment = (asm["ptx"], "//") if "ptx" in asm else (asm["amdgcn"], ";")
    code = re.split(r"\t?\.section\s+\.debug", text)[0]
    lines = (line.split(comment)[0].rstrip() for line in code.splitlines())
    return "\n".join(line for line in lines if not NOTHING.match(line))


def digest(launch: Launch, device: DeviceSpec) -> Digest:
    """Compile one launch for a device and digest its code."""
    kernel = compile_launch(launch, gpu_target(device))
    code, found = normalised(kernel.asm), read_resources(kernel)
    counts = (code.count("\n") + 1, found.total.instructions, found.registers, found.spill_bytes, found.shared_bytes)
    return Digest(hashlib.sha256(code.encode()).hexdigest(), *counts)


def launches(family: str, device: DeviceSpec) -> Iterator[tuple[str, Launch]]:
    """Every launch of the family's layers at their defaults, by a name that says what it computes."""
    gate = replace(GATES[family][0], rivals=False)
    for layer, plain in gate.layers.items():
        for dtype in DTYPES:
            for epilogue in EPILOGUES:
                problem = gate.varied(plain, dtype, epilogue)
                try:
                    config = gate.default(problem, device)
                except ValueError:  # the family cannot run the problem on this device
                    continue
                whole = FAMILIES[family].problem is ConvProblem
                planned = plan(problem, config).launches if whole else gate.launches(problem, config)
                for index, launch in enumerate(planned):
                    yield f"{layer} {dtype} {epilogue}, {config}, {index} {launch.name}", launch


def digests(families: Sequence[str], archs: Sequence[str]) -> dict[str, dict[str, Digest]]:
    """By architecture and family, the digest of every launch by name; code that launches share is compiled once."""
    found: dict[str, dict[str, Digest]] = {}
    for arch in archs:
        device, done = DeviceSpec.get(arch), dict[str, Digest]()
        for family in families:
            part = found.setdefault(f"{arch} {family}", {})
            for name, launch in launches(family, device):
                same = f"{launch.source().hash()} {compile_options(launch, gpu_target(device))}"
                part[name] = done.get(same) or done.setdefault(same, digest(launch, device))
    return found


def differences(before: Mapping[str, Digest], after: Mapping[str, Digest]) -> Iterator[str]:
    """One line for each launch whose code changed, or that only one side has."""
    for name in {**before, **after}:
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            yield f"{name}: only {'after' if old is None else 'before'}"
        elif old.code != new.code:
            was, now = asdict(old), asdict(new)
            changed = [f"{figure} {was[figure]} -> {now[figure]}" for figure in was if figure != "code"]
            yield f"{name}: {', '.join(changed)}"


@click.command()
@click.option("--family", "families", multiple=True, type=click.Choice(list(GATES)), help="Only these families.")
@click.option("--arch", "archs", multiple=True, help=f"Only these architectures; by default {', '.join(EVERY_RUN)}.")
@click.option("--write", type=click.Path(path_type=Path, dir_okay=False), help="Save the digests in this file.")
@click.option("--compare", type=click.Path(path_type=Path, exists=True), help="Compare with the digests in this file.")
def main(families: tuple[str, ...], archs: tuple[str, ...], write: Path | None, compare: Path | None) -> None:
    """Digest the code of every kernel at its defaults; exit code 1 if it differs from the file to compare with.

    All families and architectures take about an hour on two cores; what Triton's cache holds is not compiled again.
    """
    found = digests(families or tuple(GATES), archs or EVERY_RUN)
    codes = [one.code for part in found.values() for one in part.values()]
    click.echo(f"{len(codes)} launches, {len(set(codes))} different kernels")
    if write:
        rows = {key: {name: asdict(one) for name, one in part.items()} for key, part in found.items()}
        write.write_text(json.dumps(rows, indent=1))
    if compare:
        saved = json.loads(compare.read_text())
        different = [
            f"{key}, {line}"
            for key, part in found.items()
            for line in differences({name: Digest(**row) for name, row in saved.get(key, {}).items()}, part)
        ]
        click.echo("\n".join([*different, f"{len(different)} launches differ"]))
        raise SystemExit(bool(different))


if __name__ == "__main__":
    main()
