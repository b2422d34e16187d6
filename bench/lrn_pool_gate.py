"""Exact gate on the compiled LRN + pool kernel, without a GPU: AlexNet's two layers at their defaults.

`python -m grouped_conv.bench.lrn_pool_gate` prints what was found and exits with 1 if anything is worse than it may be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click
from triton.backends.compiler import GPUTarget

from grouped_conv.autotune import gcn, sass
from grouped_conv.autotune.instructions import Instruction
from grouped_conv.autotune.lrn_pool_model import choose
from grouped_conv.autotune.resources import Resources, read_resources
from grouped_conv.kernels.device import DeviceSpec
from grouped_conv.kernels.launch import compile_launch
from grouped_conv.kernels.lrn_pool import plan_lrn_pool
from grouped_conv.kernels.lrn_pool_problem import LrnPoolProblem
from grouped_conv.kernels.lrn_pool_rules import LrnPoolConfig
from grouped_conv.kernels.operands import Operand, channels_last_strides

EVERY_RUN = ("sm_80", "sm_90", "gfx942")
MAX_PER_OUTPUT = 136
"""Instructions per pooled value: the prototype of one output pixel per thread had 135."""
VECTOR_BYTES = 16


def layers(batch: int = 128, dtype: str = "float16") -> dict[str, LrnPoolProblem]:
    """AlexNet's two normalised and pooled layers in the paper's version, two towers."""
    shapes = {"norm1+pool1": (batch, 96, 55, 55), "norm2+pool2": (batch, 256, 27, 27)}
    return {
        name: LrnPoolProblem.of(shape, dtype=dtype, alpha=5e-4, k=2.0, groups=2, ceil_mode=True)
        for name, shape in shapes.items()
    }


@dataclass(frozen=True, slots=True)
class Finding:
    """One compiled kernel.

    Attributes:
        per_output: instructions that a thread executes in all / pooled values it stores.
        faults: one line per broken rule.
    """

    arch: str
    layer: str
    config: LrnPoolConfig
    resources: Resources
    per_output: float
    faults: tuple[str, ...]

    def __str__(self) -> str:
        resources = self.resources
        widths = [
            " ".join(f"{count}x{width}B" for width, count in mix.items())
            for mix in (resources.total.load_widths, resources.total.store_widths)
        ]
        return (
            f"{self.arch:7} {self.layer:12} {self.config!s:26} {resources.registers:3} registers, "
            f"{resources.spill_bytes} B spilled, {self.per_output:5.1f} instructions per pooled value "
            f"(<= {MAX_PER_OUTPUT}), loads {widths[0]}, stores {widths[1]}: {'; '.join(self.faults) or 'ok'}"
        )


def findings(archs: Sequence[str] = EVERY_RUN, dtype: str = "float16") -> Iterator[Finding]:
    """AlexNet's layers at the default configuration of each architecture."""
    for arch in archs:
        device = DeviceSpec.get(arch)
        for layer, problem in layers(dtype=dtype).items():
            yield judge(arch, layer, problem, choose(problem, device))


def judge(arch: str, layer: str, problem: LrnPoolProblem, config: LrnPoolConfig) -> Finding:
    """Compile `problem` with `config` for `arch` and look at the code."""
    device = DeviceSpec.get(arch)
    operands = {
        "input": Operand(channels_last_strides(problem.input_shape)),
        "output": Operand(channels_last_strides(problem.output_shape)),
    }
    target = GPUTarget(device.backend, device.arch, device.warp_size)
    kernel = compile_launch(plan_lrn_pool(problem, config, operands), target)
    code = sass.disassemble(kernel.asm["cubin"]) if "cubin" in kernel.asm else gcn.parse(kernel.asm["amdgcn"])
    resources, executed = read_resources(kernel), executed_instructions(code, problem, config)
    threads_work = config.block // (config.num_warps * device.warp_size)
    outputs = config.rows * config.strip * (VECTOR_BYTES // problem.item_size) * threads_work
    return Finding(arch, layer, config, resources, executed / outputs, tuple(_faults(resources, executed / outputs)))


def executed_instructions(code: Sequence[Instruction], problem: LrnPoolProblem, config: LrnPoolConfig) -> int:
    """Instructions that one warp executes: one trip of the loop per input row, and in it what finishes a pooled row."""
    loop = max(_spans(code, backward=True), key=len, default=[])
    finish = max(_spans(loop, backward=False), key=len, default=[])
    kernel, stride = problem.kernel_size[0], problem.stride[0]
    trips = config.rows * min(stride, kernel) + max(kernel - stride, 0)
    return len(code) - len(loop) + trips * (len(loop) - len(finish)) + config.rows * len(finish)


def _spans(code: Sequence[Instruction], *, backward: bool) -> Iterator[list[Instruction]]:
    """The instructions between each branch in `code` and its target, where that is in `code` too."""
    addresses = {instruction.address for instruction in code}
    for branch in code:
        if branch.target is None or (branch.target < branch.address) != backward:
            continue
        low, high = sorted((branch.target, branch.address))
        if backward or any(address >= high for address in addresses):
            yield [i for i in code if low <= i.address <= high and (backward or i.address not in (low, high))]


def _faults(resources: Resources, per_output: float) -> Iterator[str]:
    if resources.spill_bytes:
        yield f"spills {resources.spill_bytes} bytes per thread"
    if per_output > MAX_PER_OUTPUT:
        yield f"{per_output:.1f} instructions per pooled value, at most {MAX_PER_OUTPUT} allowed"
    if VECTOR_BYTES not in resources.total.load_widths:
        yield f"loads by width in bytes: {dict(resources.total.load_widths)}"
    if set(resources.total.store_widths) != {VECTOR_BYTES}:
        yield f"stores by width in bytes: {dict(resources.total.store_widths)}"


@click.command()
@click.option("--arch", "archs", multiple=True, help="sm_80, gfx942, ...; may be given more than once.")
def main(archs: tuple[str, ...]) -> None:
    """Compile AlexNet's LRN + pool layers at their defaults and judge the code; exit code 1 on a fault."""
    found = list(findings(archs or EVERY_RUN))
    for finding in found:
        click.echo(str(finding))
    raise SystemExit(1 if any(finding.faults for finding in found) else 0)


if __name__ == "__main__":
    main()
