"""Time that importing the package adds to `import torch, triton`: `python -m grouped_conv.bench.import_time`.

Each round starts a new interpreter; the median of the rounds counts. Exits with 1 above the promised limit.
"""

import json
import statistics
import subprocess
import sys

import click

LIMIT_MS = 200.0  # what `import grouped_conv, grouped_conv.kernels` may add

_STEPS = {
    "torch, triton": "import torch, triton",
    "grouped_conv": "import grouped_conv",
    "grouped_conv.kernels": "import grouped_conv.kernels",
    "every public name": "[getattr(grouped_conv, name) for name in grouped_conv.__all__]",
}

_ROUND = """
import json, sys, time
times = {}
for name, code in json.loads(sys.argv[1]).items():
    start = time.perf_counter()
    exec(code)
    times[name] = 1e3 * (time.perf_counter() - start)
print(json.dumps(times))
"""


def measure(rounds: int) -> dict[str, float]:
    """Median milliseconds of each step, in a fresh interpreter per round, after one round to warm the file cache."""
    command = [sys.executable, "-c", _ROUND, json.dumps(_STEPS)]
    samples = []
    for _ in range(rounds + 1):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        samples.append(json.loads(done.stdout))
    return {name: statistics.median(sample[name] for sample in samples[1:]) for name in _STEPS}


@click.command()
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1), help="New interpreters.")
def main(rounds: int) -> None:
    """Print the time of each import step and its share of importing torch and triton."""
    times = measure(rounds)
    base = times["torch, triton"]
    for name, ms in times.items():
        click.echo(f"{name:22}{ms:9.1f} ms{ms / base:8.3f} of torch, triton")
    added = times["grouped_conv"] + times["grouped_conv.kernels"]
    click.echo(f"{'added':22}{added:9.1f} ms{added / base:8.3f} of torch, triton (limit {LIMIT_MS:.0f} ms)")
    sys.exit(added > LIMIT_MS)


if __name__ == "__main__":
    main()
