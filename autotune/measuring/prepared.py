"""A call compiled and loaded in the measuring process, ready to run on tensors by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import triton
from torch import Tensor

from grouped_conv.kernels.call import plan
from grouped_conv.kernels.launching.launch import compile_launch
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.problem import ConvProblem


class Prepared:
    """The launches of one configuration, loaded through Triton's active driver.

    Raises:
        Exception: whatever the compiler or the driver raises; `failures.classify` knows what it means.
    """

    def __init__(self, problem: ConvProblem, config: KernelConfig, place: torch.device) -> None:
        call = plan(problem, config)
        target = triton.runtime.driver.active.get_current_target()
        self.place = place
        self.temporaries = call.temporaries
        self.tables = {name: torch.from_numpy(values).to(place) for name, values in call.tables.items()}
        self.kernels: list[tuple[Any, Any]] = []
        for launch in call.launches:
            kernel = compile_launch(launch, target)
            _ = kernel.run  # loads the module, so that what does not fit the device shows here
            self.kernels.append((launch, kernel))

    def bound(self, sets: list[Mapping[str, Tensor]]) -> Callable[[int], None]:
        """A function of a number that runs the call on that set of operands and outputs; temporaries begin as NaN."""
        temporaries = {
            item.name: torch.full(item.shape, float("nan"), dtype=getattr(torch, item.dtype), device=self.place)
            for item in self.temporaries
        }
        steps = [
            [
                (kernel[launch.grid], launch.positional({**tensors, **temporaries, **self.tables}))
                for launch, kernel in self.kernels
            ]
            for tensors in sets
        ]

        def run(index: int) -> None:
            for launcher, arguments in steps[index % len(steps)]:
                launcher(*arguments)

        return run
