"""Exact gate on the fused kernel's compiled code, without a GPU: MobileNetV2's blocks and Deep Roots' root modules.

`python -m grouped_conv.bench.separable_gate` prints what was found and exits with 1 if anything is worse than it may
be: no spills, shared memory within the device, matrix instructions in the loop over slices, 16-byte loads of the input
and the 1x1 weight there and 16-byte stores. Instructions are counted per intermediate value: those of one trip of the
loop over slices, the 1x1 convolution's part included, by a thread's share of the slice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click

from grouped_conv.autotune import gcn, sass
from grouped_conv.autotune.instructions import Instruction, Mix
from grouped_conv.autotune.offline import gpu_target
from grouped_conv.autotune.resources import read_resources
from grouped_conv.kernels.device import DeviceSpec
from grouped_conv.kernels.epilogue import Epilogue
from grouped_conv.kernels.launch import compile_launch
from grouped_conv.kernels.problem import ConvProblem
from grouped_conv.kernels.separable import plan_separable_call
from grouped_conv.kernels.separable_rules import SeparableConfig, SeparableProblem, slices_of

EVERY_RUN = ("sm_80", "sm_90", "gfx942")
VECTOR_BYTES = 16


def _block(
    channels: int, groups: int, out_channels: int, size: int, activation: str, stride: int = 1
) -> SeparableProblem:
    between = Epilogue(activation, bias=True)
    first = ConvProblem.of(
        (8, channels, size, size), (channels, channels // groups, 3, 3), stride, 1, 1, groups, epilogue=between
    )
    return SeparableProblem(first, out_channels, Epilogue(bias=True))


PROBLEMS = {
    "mobilenetv2 32-16": _block(32, 32, 16, 112, "relu6"),
    "mobilenetv2 96-24": _block(96, 96, 24, 112, "relu6", 2),
    "mobilenetv2 144-32": _block(144, 144, 32, 56, "relu6", 2),
    "mobilenetv2 192-64": _block(192, 192, 64, 28, "relu6", 2),
    "mobilenetv2 576-96": _block(576, 576, 96, 14, "relu6"),
    "resnet50 res2 g64": _block(64, 64, 256, 56, "relu"),
    "resnet50 res2 g16": _block(64, 16, 256, 56, "relu"),
    "resnet50 res2 g2": _block(64, 2, 256, 56, "relu"),
    "resnet50 res3 g32": _block(128, 32, 512, 28, "relu"),
    "resnet50 res4 g16": _block(256, 16, 1024, 14, "relu"),
    "resnet50 res5 g8": _block(512, 8, 2048, 7, "relu"),
}
"""fp16, batch 8, channels_last; root modules as Deep Roots' ResNet-50 has them, with its widest groupings."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One compiled kernel.

    Attributes:
        arch, name, config: what was compiled.
        registers, spill_bytes, shared_bytes: of the kernel.
        slice_mix: what one trip of the loop over slices consists of.
        per_value: its instructions per intermediate value and thread.
        store_widths: global stores of the kernel by width in bytes.
        faults: one line per broken rule.
    """

    arch: str
    name: str
    config: SeparableConfig
    registers: int
    spill_bytes: int
    shared_bytes: int
    slice_mix: Mix
    per_value: float
    store_widths: dict[int, int]
    faults: tuple[str, ...]

    def __str__(self) -> str:
        loads = " ".join(f"{count}x{width}B" for width, count in self.slice_mix.load_widths.items())
        stores = " ".join(f"{count}x{width}B" for width, count in self.store_widths.items())
        return (
            f"{self.arch:7} {self.name:19} {self.config!s:27} {self.registers:3} registers, "
            f"{self.spill_bytes} B spilled, "
            f"{self.shared_bytes / 1024:3.0f} KiB shared, slice {self.slice_mix.instructions:4} with "
            f"{self.slice_mix.mma:3} MMA, {self.per_value:5.1f} per intermediate value, "
            f"loads {loads}, stores {stores}: " + ("; ".join(self.faults) or "ok")
        )


def wide_config(problem: SeparableProblem, device: DeviceSpec) -> SeparableConfig:
    """128 pixels by 128 output channels, what the tile's width and depth fit the groups best."""
    width = 64 if problem.first.c_per_group >= 64 else 32 if 1 < problem.first.c_per_group <= 32 else 16
    warps = 4 if device.backend == "hip" else 8
    return SeparableConfig(block_m=128, block_n=128, width=width, block_k=width, num_warps=warps, num_stages=2)


def findings(archs: Sequence[str], names: Sequence[str] = ()) -> Iterator[Finding]:
    """Every problem at `wide_config`, on each architecture."""
    for arch in archs:
        device = DeviceSpec.get(arch)
        for name in names or PROBLEMS:
            yield judge(name, PROBLEMS[name], wide_config(PROBLEMS[name], device), device)


def judge(name: str, problem: SeparableProblem, config: SeparableConfig, device: DeviceSpec) -> Finding:
    """Compile one kernel and look at its code."""
    kernel = compile_launch(plan_separable_call(problem, config)[0][-1], gpu_target(device))
    resources, cut = read_resources(kernel), slices_of(problem, config)
    code = sass.disassemble(kernel.asm["cubin"]) if "cubin" in kernel.asm else gcn.parse(kernel.asm["amdgcn"])
    mix = Mix.of(slice_loop(code))
    threads = config.num_warps * device.warp_size
    faults = []
    if resources.spill_bytes:
        faults.append(f"spills {resources.spill_bytes} bytes per thread")
    if resources.shared_bytes > device.shared_per_block:
        faults.append(f"{resources.shared_bytes} bytes of shared memory, the device has {device.shared_per_block}")
    if not mix.mma and config.method == "dot":
        faults.append("no matrix instruction in the loop over slices")
    expected = _wide_loads(problem, config, threads)
    found = mix.load_widths.get(VECTOR_BYTES, 0)
    if found < expected:
        faults.append(f"{found} loads of 16 bytes in a slice, at least {expected} expected")
    if set(resources.total.store_widths) != {VECTOR_BYTES}:
        faults.append(f"stores by width in bytes: {dict(resources.total.store_widths)}")
    values = config.block_m * problem.mid_channels / cut.count
    return Finding(
        device.arch_name,
        name,
        config,
        resources.registers,
        resources.spill_bytes,
        resources.shared_bytes,
        mix,
        mix.instructions * threads / values,
        dict(resources.total.store_widths),
        tuple(faults),
    )


def slice_loop(code: Sequence[Instruction]) -> list[Instruction]:
    """The first loop of the code that holds a matrix instruction and lies in no other: the cold branch comes later."""
    ends: dict[int, int] = {}
    for instruction in code:
        if instruction.target is not None and instruction.target < instruction.address:
            ends[instruction.target] = max(ends.get(instruction.target, 0), instruction.address)
    loops = [[one for one in code if start <= one.address <= end] for start, end in sorted(ends.items())]
    return next((loop for loop in loops if any(one.kind == "mma" for one in loop)), [])


def _wide_loads(problem: SeparableProblem, config: SeparableConfig, threads: int) -> int:
    """16-byte loads a thread must make for the input of one slice, if its share of a tile is as wide as that.

    Steps in a loop are counted once, and the 1x1 weight's tile where a thread's share of it is 16 bytes or more.
    """
    cut = slices_of(problem, config)
    depth = cut.tile if config.method == "direct" else cut.depth
    share = config.block_m * depth * problem.item_size / VECTOR_BYTES / threads
    weight = config.block_n * cut.tile * problem.item_size / VECTOR_BYTES / threads
    return math.floor(share) + math.floor(weight)


@click.command()
@click.option("--arch", "archs", multiple=True, help="sm_80, gfx942, ...; may be given more than once.")
def main(archs: tuple[str, ...]) -> None:
    """Compile separable blocks and root modules for each architecture and judge the code; exit code 1 on a fault."""
    faulty = 0
    for finding in findings(archs or EVERY_RUN):
        click.echo(str(finding))
        faulty += bool(finding.faults)
    click.echo(f"{faulty} kernels with faults", err=True)
    raise SystemExit(1 if faulty else 0)


if __name__ == "__main__":
    main()
