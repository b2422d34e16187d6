"""The host's time to launch a convolution, from our cached plan and by `kernel[grid](...)`, with a no-op driver.

`python -m grouped_conv.bench.dispatch_overhead` needs no GPU: everything up to the driver's launch function is real,
and the arguments are CPU tensors. The command exits with 1 if the plan is not at least `LEAST_RATIO` times cheaper.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import click
import torch
import triton

from grouped_conv.bench.noop_driver import NoopLauncher, noop_driver
from grouped_conv.call_values.geometry import Geometry
from grouped_conv.call_values.request import Operands, Request
from grouped_conv.functional.conv2d import grouped_conv2d
from grouped_conv.kernels.launching.launch import Launch
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem
from grouped_conv.ops import conv2d as ops
from grouped_conv.planning.forward import UNIFORM
from grouped_conv.planning.interpreting import through_driver
from grouped_conv.planning.plan import KernelPlan, plan_operands

LEAST_RATIO = 3.0
"""How many times cheaper than `kernel[grid](...)` a launch from a plan must be."""

REQUEST = Request(Geometry((1, 1), (2, 2, 2, 2), (1, 1)))


@dataclass(frozen=True, slots=True)
class Overhead:
    """Host time per launch in microseconds, measured on this machine's CPU; no kernel runs.

    Attributes:
        jit_us: `kernel[grid](...)`: bind, specialise, look up, launch.
        plan_us: build the key, look the plan up, launch.
        launch_us: the plan's launch alone.
        operator_us: the whole operator: dispatcher, key, look-up, allocation of the output, launch.
        call_us: `grouped_conv2d`, without gradients.
        ratio: `jit_us / plan_us`.
    """

    jit_us: float
    plan_us: float
    launch_us: float
    operator_us: float
    call_us: float
    ratio: float


def measure(device: DeviceSpec, calls: int = 1000, repeats: int = 7) -> Overhead:
    """Time AlexNet's conv2 in fp16, one image, channels_last: the fastest of `repeats` averages over `calls`."""
    torch.set_num_threads(1)
    input = torch.randn(1, 96, 27, 27).half().contiguous(memory_format=torch.channels_last)
    weight = torch.randn(256, 48, 5, 5).half().contiguous(memory_format=torch.channels_last)
    operands = Operands(input, weight, torch.randn(256).half())

    def look_up() -> KernelPlan:
        plan = UNIFORM.find(operands, REQUEST)
        assert isinstance(plan, KernelPlan)
        return plan

    with noop_driver(device), through_driver(), torch.no_grad():
        NoopLauncher.log = None
        plan = look_up()
        buffers = plan.allocate(operands)
        (record,) = plan.records
        problem, config = record.problem, record.config
        assert isinstance(problem, ConvProblem)
        assert config is not None
        launches = plan_operands(problem, config, operands).launches
        jit = _jit_call(launches, dict(zip(plan.steps.names, buffers, strict=True)))
        timed: list[Callable[[], Any]] = [
            jit,
            lambda: look_up().steps.launch(buffers),
            lambda: plan.steps.launch(buffers),
            lambda: ops.PLAIN.overload(*operands[:3], *REQUEST.geometry, "default", "auto"),
            lambda: grouped_conv2d(*operands[:3], padding=2, groups=2),
        ]
        jit_us, plan_us, launch_us, operator_us, call_us = (_fastest(call, calls, repeats) for call in timed)
    return Overhead(jit_us, plan_us, launch_us, operator_us, call_us, jit_us / plan_us)


def _jit_call(launches: tuple[Launch, ...], tensors: dict[str, Any]) -> Callable[[], None]:
    """The same launches by Triton's own `kernel[grid](...)`, jitted anew so that no cache is shared."""
    prepared = [
        (triton.jit(launch.kernel.fn)[launch.grid], launch.positional(tensors), launch.config) for launch in launches
    ]

    def call() -> None:
        for kernel, arguments, config in prepared:
            kernel(*arguments, num_warps=config.num_warps, num_stages=config.num_stages, enable_fp_fusion=True)

    return call


def _fastest(call: Callable[[], Any], calls: int, repeats: int) -> float:
    for _ in range(20):
        call()
    averages = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        averages.append((time.perf_counter() - begin) / calls)
    return min(averages) * 1e6


@click.command()
@click.option("--device", default="h100-sxm", show_default=True, help="GPU to compile for; none is needed.")
@click.option("--calls", type=click.IntRange(min=1), default=1000, show_default=True, help="Launches per average.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def main(device: str, calls: int, as_json: bool) -> None:
    """Measure the host's cost of a launch, with no GPU."""
    overhead = measure(DeviceSpec.get(device), calls)
    if as_json:
        versions = {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__}
        click.echo(json.dumps({**asdict(overhead), **versions, "measured": "host time, no-op driver, no GPU"}))
    else:
        click.echo(f"host time per launch of AlexNet conv2 (no-op driver, nothing runs; Triton {triton.__version__})")
        click.echo(f"  kernel[grid](...)             {overhead.jit_us:6.1f} us")
        click.echo(f"  plan: key, look-up, launch    {overhead.plan_us:6.1f} us, {overhead.ratio:.1f} times cheaper")
        click.echo(f"  plan: launch alone            {overhead.launch_us:6.1f} us")
        click.echo(f"  torch operator with output    {overhead.operator_us:6.1f} us")
        click.echo(f"  grouped_conv2d                {overhead.call_us:6.1f} us")
    sys.exit(0 if overhead.ratio >= LEAST_RATIO else 1)


if __name__ == "__main__":
    main()
