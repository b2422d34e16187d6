"""Whether a GPU runs slower than it could while it is measured: throttle reasons and clocks, read through NVML.

NVML's Python module comes with the extra `nvml`; without it nothing is known and nothing is discarded.
"""

from __future__ import annotations

import statistics
from importlib import import_module
from typing import Any

SLOW_CLOCK = 0.9
"""Share of the session's median SM clock below which samples are taken again."""
REASONS = {0x8: "hardware slowdown", 0x20: "thermal, software", 0x40: "thermal, hardware", 0x80: "power brake"}
"""Bits of NVML's clocks-event reasons that make times incomparable; being at the power cap is normal under load."""


class Clocks:
    """Reads one GPU's clocks.

    Args:
        nvml: the module `pynvml`, or a stand-in in tests; None where it is missing.
        handle: NVML's handle of the GPU.
    """

    def __init__(self, nvml: Any = None, handle: Any = None) -> None:
        self._nvml, self._handle = nvml, handle
        self._seen: list[int] = []

    @classmethod
    def of_gpu(cls, uuid: str) -> Clocks:
        """The clocks of the GPU with this UUID; blind where NVML cannot be used."""
        try:
            nvml = import_module("pynvml")
        except ImportError:
            return cls()
        try:
            nvml.nvmlInit()
            return cls(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid))
        except nvml.NVMLError:  # no driver, or a container without NVML: nothing is known
            return cls()

    def why_slow(self) -> str:
        """Why what was timed just now should be timed again; empty when nothing speaks against it."""
        if self._nvml is None:
            return ""
        bits = int(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._handle))
        named = [text for bit, text in REASONS.items() if bits & bit]
        if named:
            return f"throttled: {', '.join(named)}"
        clock = int(self._nvml.nvmlDeviceGetClockInfo(self._handle, 1))  # 1: the multiprocessors' clock, in MHz
        self._seen.append(clock)
        usual = statistics.median(self._seen)
        return f"clock of {clock} MHz, usually {usual:.0f}" if clock < SLOW_CLOCK * usual else ""
