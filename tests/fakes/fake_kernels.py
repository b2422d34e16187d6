"""A measuring job without kernels: what a configuration does (run, hang, die, lie) is in the table of its tiles.

Loaded by name in the measuring process. Every execution leaves a line in the file that FAKE_KERNELS_LOG names.
"""

import json
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

FUNCTION = "fake_kernels:job"
LOG = "FAKE_KERNELS_LOG"
PROTOCOL = "fake-1"
TRIAL_SECONDS = 0.02
FATES = {
    (32, 128, 1): "wrong",
    (64, 64, 1): "abort",
    (64, 16, 2): "segfault",
    (16, 64, 2): "hang",
    (16, 32, 2): "compile",
    (16, 16, 2): "launch",
    (32, 16, 1): "wrong when odd",
}
"""By (block_m, block_n, num_warps); other tiles run."""
FAILURES = {
    "wrong": "wrong",
    "abort": "crashed",
    "segfault": "crashed",
    "hang": "timeout",
    "compile": "compile",
    "launch": "launch",
}
ATEN_US = 50.0


def fate(config: Mapping[str, Any]) -> str:
    return FATES.get((config.get("block_m", 0), config.get("block_n", 0), config["num_warps"]), "")


def time_us(config: Mapping[str, Any] | None) -> float:
    """Larger tiles are faster; the one that is wrong at odd shapes would be the fastest."""
    if config is None:
        return ATEN_US
    if fate(config) == "wrong when odd":
        return 1.0
    return 10.0 + 1e5 / (config.get("block_m", 8) * config.get("block_n", 8)) + config["num_warps"]


def job(payload: Mapping[str, Any]) -> dict[str, Any]:
    if payload["op"] == "open":
        return {"protocol": PROTOCOL}
    config = payload["config"]
    if payload["op"] == "sample":
        return {"failure": None, "us": [time_us(config)] * payload["count"], "protocol": PROTOCOL}
    note(payload)
    time.sleep(TRIAL_SECONDS)
    return verify(config, odd=payload["problem"]["batch"] == 3)


def broken(payload: Mapping[str, Any]) -> dict[str, Any]:
    if payload["op"] == "open":
        return {"protocol": PROTOCOL}
    raise KeyError("a fault of the measuring code")


def hopeless(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing is right; PyTorch's own convolution can be timed."""
    if payload["op"] == "verify":
        return {"failure": "wrong", "detail": "hopeless"}
    return job(payload)


def hopeless_when_odd(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing is right at an odd shape, which is tried last."""
    if payload["op"] == "verify":
        return {"failure": "wrong" if payload["problem"]["batch"] == 3 else None, "detail": "hopeless"}
    return job(payload)


def verify(config: Mapping[str, Any], odd: bool) -> dict[str, Any]:
    kind = fate(config)
    if kind == "abort":
        os.abort()
    if kind == "segfault":
        signal.raise_signal(signal.SIGSEGV)
    if kind == "hang":
        time.sleep(1000)
    if kind in ("wrong", "compile", "launch") or (kind == "wrong when odd" and odd):
        return {"failure": FAILURES.get(kind, "wrong"), "detail": f"as the table says: {kind}"}
    return {"failure": None, "error": 0.0, "seconds": TRIAL_SECONDS}


def note(payload: Mapping[str, Any]) -> None:
    """One line per execution, in one write, so that it survives whatever happens next."""
    path = os.environ.get(LOG)
    if path is None:
        return
    line = json.dumps([payload["problem"]["layout"], payload["config"], payload["seed"], payload["problem"]["batch"]])
    with open(path, "ab", buffering=0) as log:
        log.write(line.encode() + b"\n")
