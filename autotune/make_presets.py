"""Makes the presets that ship with the package: `python -m grouped_conv.autotune.make_presets`, a maintainer's command.

The same versions of the kernels, the cost model and Triton give the same bytes. Nothing is measured: configurations are
compiled, and ranked by the model.
"""

from __future__ import annotations

import difflib
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import click

from grouped_conv.autotune import data
from grouped_conv.autotune.lookup.preset_problems import DEVICES, preset_problems
from grouped_conv.autotune.lookup.presets import checked, preset_text, read_presets
from grouped_conv.autotune.model.shared.prediction import MODEL_VERSION
from grouped_conv.autotune.search.efforts import plan_effort
from grouped_conv.autotune.search.predicted_runner import PredictedRunner
from grouped_conv.autotune.search.progress import progress_bar
from grouped_conv.autotune.search.tuned_table import Tuned
from grouped_conv.autotune.search.tuner import tune_with
from grouped_conv.autotune.store.store import Store, triton_version
from grouped_conv.kernels import ABI_VERSION
from grouped_conv.kernels.values.device import DeviceSpec

FOLDER = Path(next(iter(data.__path__)))
TRIALS = plan_effort("quick", measures=False).trials or 1
"""Configurations compiled per problem, the heuristic's choice among them."""
BY_CHANCE = ("timeout", "crashed")
"""Failures for which the machine may be to blame."""
_FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)


class _Failed(click.ClickException):
    exit_code = 2  # 1 says that something differs


@click.command()
@click.option("--device", "devices", multiple=True, default=DEVICES, show_default=True, help="May be given repeatedly.")
@click.option("--limit", type=click.IntRange(min=1), default=TRIALS, show_default=True, help="Trials per problem.")
@click.option("--jobs", type=click.IntRange(min=1), help="Compile processes; by default one per core.")
@click.option("--store", type=click.Path(path_type=Path), help="Keep trials in this file and go on from those in it.")
@click.option("--folder", type=_FOLDER, default=FOLDER, help="Where the files are; by default in the package.")
@click.option("--check", is_flag=True, help="Write nothing: exit with 1 and a diff where FOLDER has something else.")
def main(devices: tuple[str, ...], limit: int, jobs: int | None, store: Path | None, folder: Path, check: bool) -> None:
    """Compile, predict and write `<device>.json` for each device, in the package's own folder unless told otherwise."""
    differing = False
    with tempfile.TemporaryDirectory() as scratch:
        kept = Store(store or Path(scratch, "presets.sqlite3"))
        try:
            for device in [DeviceSpec.get(name) for name in devices]:
                file, make = folder / f"{device.key}.json", partial(made_presets, device, limit, jobs, kept)
                if check:
                    found = why_stale(file, limit) or what_differs(file.read_text(encoding="utf-8"), make())
                    differing |= bool(found)
                    click.echo(f"{file}: {found or 'as generated'}")
                else:
                    file.write_text(make(), encoding="utf-8", newline="\n")
                    click.echo(f"{file}: {_counted(file)}")
        except (ValueError, RuntimeError, OSError) as error:
            raise _Failed(str(error)) from error
        finally:
            kept.close()
    sys.exit(1 if differing else 0)


def made_presets(device: DeviceSpec, trials: int, jobs: int | None, store: Store) -> str:
    """The preset file of a device, from what this run tries and nothing else that `store` may know.

    Raises:
        RuntimeError: when no configuration of a problem can be used.
        KeyboardInterrupt: after Ctrl-C; trials that had ended by then are in the store.
    """
    problems, plan = preset_problems(), plan_effort("quick", measures=False, limit=trials)
    click.echo(f"{device.key}: {len(problems)} problems, {trials} trials each", err=True)
    with PredictedRunner(device, jobs) as runner, progress_bar(f"compiling for {device.key}") as report:
        tuned = tune_with(runner, problems, device, store, plan, report)
    if tuned.interrupted:
        raise KeyboardInterrupt
    rows = [row for search in tuned.searches for row in search.tried]
    _warn_of_chance(tuned)
    text = preset_text(rows, trials)
    lacking = {search.problem: search.name for search in tuned.searches}
    for row in read_presets(text):
        del lacking[row.problem]
    if lacking:
        names = ", ".join(lacking.values())
        raise RuntimeError(f"no configuration that was tried can be used on {device.known_as}: {names}")
    return text


def why_stale(file: Path, trials: int) -> str:
    """Why a file cannot be what would be generated now, without generating it; empty when it may be."""
    if not file.is_file():
        return "is missing"
    content = checked(file.read_text(encoding="utf-8"))
    now = {"abi": ABI_VERSION, "model": MODEL_VERSION, "triton": triton_version(), "trials": trials}
    old = {name: value for name, value in now.items() if content[name] != value}
    return ", ".join(f"made with {name} {content[name]}, not {value}" for name, value in old.items())


def what_differs(shipped: str, made: str) -> str:
    """A diff of the rows in words; empty for the same bytes."""
    if shipped == made:
        return ""
    lines = difflib.unified_diff(_in_words(shipped), _in_words(made), "shipped", "generated", n=0, lineterm="")
    return "\n".join(["differs", *lines]) if _in_words(shipped) != _in_words(made) else "differs in its form alone"


def _in_words(text: str) -> list[str]:
    return [f"{row.problem}: {row.config.family} {row.config}, {row.predicted_us} us" for row in read_presets(text)]


def _counted(file: Path) -> str:
    content = checked(file.read_text(encoding="utf-8"))
    size = file.stat().st_size / 1e3
    return f"{len(content['rows'])} presets, {size:.0f} kB, {content['trials']} trials each; predicted, not measured"


def _warn_of_chance(tuned: Tuned) -> None:
    failures = Counter(row.failure for search in tuned.searches for row in search.tried if row.failure in BY_CHANCE)
    if failures:
        counted = ", ".join(f"{kind} {count}" for kind, count in sorted(failures.items()))
        click.echo(f"trials that another run may end otherwise: {counted}", err=True)


if __name__ == "__main__":
    main()
