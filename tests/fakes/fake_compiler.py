"""Compilation replaced by invented figures; the fixture `compiled` puts it in force."""

import math

from grouped_conv.autotune.machine_code.instructions import Mix
from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.search.efforts import COMPILED_SHARE, EFFORTS
from grouped_conv.autotune.search.predicted_runner import PredictedRunner, compiled_outcome
from grouped_conv.autotune.workers.pool import JobResult


def fake_resources(config, spill=0):
    blocks = [getattr(config, name, 16) for name in ("block_m", "block_n", "block_k")]
    mma = max(1, math.prod(blocks) // 2048 // config.num_warps)
    loop = Mix(3 * mma, {"mma": mma}, {16: 8})
    return Resources(200, spill, 40_000, Mix(3 * mma + 1000, {"mma": mma}, {16: 8}, {16: 8}), loop)


COMPILED = round(EFFORTS["standard"] * COMPILED_SHARE)
"""Configurations that the default effort compiles for each problem."""


def compiling(monkeypatch, result, reverse=False):
    """Compilation replaced by a function of the trial that returns a job's result."""

    def instead(self, trials, starting):
        for trial in list(trials)[::-1] if reverse else trials:
            yield compiled_outcome(trial, self.device, result(trial))

    monkeypatch.setattr(PredictedRunner, "measure", instead)


def compiled_to(trial, spill=0):
    resources = fake_resources(trial.config, spill).to_json()
    return JobResult(0, "ok", {"launches": [{"kernel": trial.config.family, "resources": resources}]}, "", 1.0)


def failing_at(number, failure):
    """Compilation's result, except for the trial of this number; and the trials so far, in their order."""
    trials = []

    def result(trial):
        trials.append(trial)
        return failure() if len(trials) == number else compiled_to(trial)

    return result, trials


def interrupt():
    """What Ctrl-C does."""
    raise KeyboardInterrupt


def spilling_when_large(trial):
    return compiled_to(trial, 8 if getattr(trial.config, "block_m", 0) == 256 else 0)


def compiling_all(monkeypatch):
    """Everything compiles, large tiles spill; the list holds every configuration that was compiled."""
    calls = []

    def result(trial):
        calls.append(trial.config)
        return spilling_when_large(trial)

    compiling(monkeypatch, result)
    return calls
