"""The gate on the fused kernel: MobileNetV2's blocks and Deep Roots' root modules, 128 pixels by 128 channels per tile.

No spills, shared memory within the device, matrix instructions in the loop over slices, 16-byte loads of the input and
the 1x1 weight there, 16-byte stores. Instructions are counted per intermediate value: those of one trip of the loop
over slices, the 1x1 convolution's part included, by a thread's share of the slice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from grouped_conv.autotune.compiling.offline import gpu_target
from grouped_conv.autotune.machine_code import gcn, sass
from grouped_conv.autotune.machine_code.instructions import Instruction, Mix
from grouped_conv.autotune.machine_code.resources import read_resources
from grouped_conv.bench.gates.findings import VECTOR_BYTES, Finding, figure_fault, resource_faults, width_fault
from grouped_conv.kernels.launching.launch import compile_launch
from grouped_conv.kernels.separable.forward import plan_separable_call
from grouped_conv.kernels.separable.forward_rules import SeparableConfig, slices_of, why_not_on
from grouped_conv.kernels.separable.problem import SeparableProblem
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.problem import ConvProblem


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


LIMITS = {"sm_80": 31.0, "sm_90": 28.0, "gfx942": 51.5}
"""Instructions per intermediate value at most, as counted with Triton 3.8: 24.6 to 30.3 on sm_80, 16.7 to 27.5 on
sm_90, 34.6 to 51.0 on gfx942 (whose vector instructions are of 64 threads)."""
UNIT = "intermediate value"


def wide_config(problem: SeparableProblem, device: DeviceSpec) -> SeparableConfig:
    """128 pixels by 128 output channels, or 64 where those do not fit, in slices that fit the groups best."""
    width = 64 if problem.first.c_per_group >= 64 else 32 if 1 < problem.first.c_per_group <= 32 else 16
    warps = 4 if device.backend == "hip" else 8
    wide = SeparableConfig(block_m=128, block_n=128, width=width, block_k=width, num_warps=warps, num_stages=2)
    return wide if why_not_on(problem, wide, device) is None else replace(wide, block_n=64)


def findings(archs: Sequence[str], names: Sequence[str] = ()) -> Iterator[Finding]:
    """Every problem at `wide_config`, on each architecture."""
    for arch in archs:
        device = DeviceSpec.get(arch)
        for name in names or PROBLEMS:
            yield judge(name, PROBLEMS[name], wide_config(PROBLEMS[name], device), device)


def judge(name: str, problem: SeparableProblem, config: SeparableConfig, device: DeviceSpec) -> Finding:
    """Compile one kernel and look at its code; the finding's loop is the one over slices."""
    kernel = compile_launch(plan_separable_call(problem, config)[0][-1], gpu_target(device))
    code = sass.disassemble(kernel.asm["cubin"]) if "cubin" in kernel.asm else gcn.parse(kernel.asm["amdgcn"])
    loop = Mix.of(slice_loop(code))
    resources = replace(read_resources(kernel), loop=loop)
    threads, arch = config.num_warps * device.warp_size, device.arch_name
    values = config.block_m * problem.mid_channels / slices_of(problem, config).count
    figure, limit = loop.instructions * threads / values, LIMITS.get(arch)
    faults = [*resource_faults(resources, device), *width_fault("stores", resources.total.store_widths)]
    faults += figure_fault(figure, limit, UNIT)
    if not loop.mma and config.method == "dot":
        faults.append("no matrix instruction in the loop over slices")
    expected, found = _wide_loads(problem, config, threads), loop.load_widths.get(VECTOR_BYTES, 0)
    if found < expected:
        faults.append(f"{found} loads of 16 bytes in a slice, at least {expected} expected")
    return Finding(arch, config.family, name, str(config), resources, figure, limit, UNIT, tuple(faults))


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
