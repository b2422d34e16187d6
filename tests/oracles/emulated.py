"""Compiled PTX, executed instruction by instruction."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from case import Case
from torch import Tensor
from triton.backends.compiler import GPUTarget
from truth import Run, judge

from grouped_conv.kernels.launching.launch import Launch, compile_launch


def emulator(arch: int, **options: Any) -> Run:
    """A runner of launches that compiles for `arch` and executes the PTX; out-of-bounds accesses raise inside."""
    import ptxemu

    def run(launch: Launch, tensors: Mapping[str, Tensor]) -> Any:
        compiled = compile_launch(launch, GPUTarget("cuda", arch, 32))
        types, values = launch.signature(), launch.arguments(tensors)
        arguments = [values[name] for name in launch.kernel.arg_names if types[name] != "constexpr"]
        return ptxemu.Machine(compiled, **options).launch(launch.grid, arguments)

    return run


def varied(cases: Iterable[Case]) -> list[tuple[int, Case]]:
    """The cases on both architectures in turn, with 1 to 4 stages, 4 and 8 warps, small and wgmma-sized tiles."""
    variants = itertools.cycle(itertools.product((80, 90), (1, 2, 3, 4), (4, 8)))
    found = []
    for case, (arch, stages, warps) in zip(cases, variants, strict=False):
        block_m = 64 if arch == 90 else case.config.block_m
        config = replace(case.config, num_stages=stages, num_warps=warps, block_m=block_m)
        found.append((arch, replace(case, config=config)))
    return found


def assert_sound(runs: Iterable[Any], what: str = "") -> None:
    """No launch has a race, none writes an address twice."""
    for number, run in enumerate(runs):
        assert not run.races, f"{what}, launch {number}: {run.races[:3]}"
        assert not any(buffer["rewritten"] for buffer in run.buffers.values()), (
            f"{what}, launch {number} writes an address twice"
        )


def check_compiled(arch: int, case: Case) -> list[Any]:
    """The code compiled for `arch` gives the case's results and is sound; what was counted in each launch."""
    _, runs = judge(case.problem, case.config, emulator(arch), case.id)
    assert_sound(runs, case.id)
    return runs
