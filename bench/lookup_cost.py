"""Time of a look-up of a tuned configuration on this CPU: `python -m grouped_conv.bench.lookup_cost`.

The key is made anew for each look-up in the process's own store. A look-up in an empty dictionary is timed for
comparison. A miss reads the store, which has a thousand rows here. Exits with 1 when the median of a hit is above the
promised limit.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from unittest.mock import patch

import click

from grouped_conv.autotune import settings
from grouped_conv.autotune.lookup.resolve import resolve
from grouped_conv.autotune.records.record import Record
from grouped_conv.autotune.store.store import Store, triton_version
from grouped_conv.autotune.workloads.named import workload
from grouped_conv.kernels import ABI_VERSION, ConvProblem, DeviceSpec, GroupLayout, ImplicitGemmConfig

LIMIT_US = 5.0  # what a hit may cost
ROWS = 1000


def measure(rounds: int) -> dict[str, float]:
    """Median microseconds of each kind of look-up, `rounds` rounds of a thousand calls (ten for a miss)."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "tuning.sqlite3"))
        with patch.dict(os.environ, {settings.STORE_VARIABLE: path}):  # finding the default store is part of the cost
            return _measure(rounds)


def _measure(rounds: int) -> dict[str, float]:
    device, problem = DeviceSpec.get("h100"), workload("alexnet")["conv4"]
    ragged = replace(problem, layout=GroupLayout.log_series(256, 256, 5))
    equal, empty = replace(problem), dict[str, str]()
    batches = count(1000)
    _fill(problem, device)
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "empty dictionary": (lambda: empty.get("conv4"), 1000),
        "hit": (lambda: resolve(problem, device, "predicted"), 1000),
        "hit, unequal groups": (lambda: resolve(ragged, device, "predicted"), 1000),
        "hit, an equal problem": (lambda: resolve(replace(equal), device, "predicted"), 1000),
        "making that problem": (lambda: replace(equal), 1000),
        "miss": (lambda: resolve(replace(problem, batch=next(batches)), device, "predicted"), 10),
    }
    return {name: statistics.median(_once(call, times) for _ in range(rounds)) for name, (call, times) in calls.items()}


def _once(call: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return 1e6 * (time.perf_counter() - start) / times


def _fill(problem: ConvProblem, device: DeviceSpec) -> None:
    """A hundred configurations each of ten layers, the problem's among them."""
    store = Store()
    layers = [replace(problem, in_size=(13 + index, 13)) for index in range(ROWS // 100)]
    configs = [ImplicitGemmConfig(block_m=64, block_n=64, block_k=32, split_k=1 + index) for index in range(100)]
    store.put(
        [
            Record(layer, config, device.key, ABI_VERSION, triton_version(), "predicted", 9.0)
            for layer in layers
            for config in configs
        ]
    )
    store.record_self_check(device.key, "implicit_gemm", "forward", True)


@click.command()
@click.option("--rounds", default=21, show_default=True, type=click.IntRange(min=1), help="Rounds of a thousand calls.")
def main(rounds: int) -> None:
    """Print the median of each kind of look-up and its ratio to an empty dictionary's."""
    times = measure(rounds)
    base = times["empty dictionary"]
    for name, us in times.items():
        click.echo(f"{name:22}{us:10.3f} us{us / base:10.1f} of an empty dictionary's")
    click.echo(f"limit of a hit: {LIMIT_US:.1f} us")
    sys.exit(times["hit"] > LIMIT_US)


if __name__ == "__main__":
    main()
