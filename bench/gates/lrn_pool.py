"""The LRN + pool kernel's gate: AlexNet's two layers at their defaults and the other orders, in instructions per value.

A thread's executed instructions are counted: one trip of the loop per input row, and in it what finishes a pooled row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from triton.backends.compiler import GPUTarget

from grouped_conv.autotune.machine_code import gcn, sass
from grouped_conv.autotune.machine_code.instructions import Instruction
from grouped_conv.autotune.machine_code.resources import read_resources
from grouped_conv.autotune.model.lrn_pool.forward import choose
from grouped_conv.bench.gates.findings import VECTOR_BYTES, Finding, figure_fault, resource_faults, width_fault
from grouped_conv.kernels.launching.launch import compile_launch
from grouped_conv.kernels.launching.operands import Operand, channels_last_strides
from grouped_conv.kernels.lrn_pool.forward import plan_lrn_pool
from grouped_conv.kernels.lrn_pool.forward_rules import LrnPoolConfig
from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem
from grouped_conv.kernels.values.device import DeviceSpec

MAX_PER_OUTPUT = 136
"""Instructions per pooled value: the prototype of one output pixel per thread had 135."""
UNIT = "pooled value"
ORDERS = ("relu-lrn-pool", "lrn-relu-pool", "pool-lrn")
NEIGHBOURS = "loads narrower than 16 bytes are the neighbouring channels of a vector, which hit L1"


def layers(batch: int = 128, dtype: str = "float16") -> dict[str, LrnPoolProblem]:
    """AlexNet's two normalised and pooled layers in the paper's version, two towers."""
    shapes = {"norm1+pool1": (batch, 96, 55, 55), "norm2+pool2": (batch, 256, 27, 27)}
    return {
        name: LrnPoolProblem.of(shape, dtype=dtype, alpha=5e-4, k=2.0, groups=2, ceil_mode=True)
        for name, shape in shapes.items()
    }


def findings(archs: Sequence[str], dtype: str = "float16") -> Iterator[Finding]:
    """AlexNet's layers at the default configuration of each architecture, the first in every other order too."""
    for arch in archs:
        device = DeviceSpec.get(arch)
        for layer, problem in layers(dtype=dtype).items():
            yield judge(arch, layer, problem, choose(problem, device))
        for order in ORDERS:
            problem = replace(layers(dtype=dtype)["norm1+pool1"], order=order)
            yield judge(arch, order, problem, choose(problem, device))


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
    resources = read_resources(kernel)
    strips = config.block // (config.num_warps * device.warp_size)  # of one thread
    outputs = config.rows * config.strip * (VECTOR_BYTES // problem.item_size) * strips
    figure = executed_instructions(code, problem, config) / outputs
    loads = resources.total.load_widths
    faults = [
        *resource_faults(resources, device),
        *figure_fault(figure, MAX_PER_OUTPUT, UNIT),
        *([] if VECTOR_BYTES in loads else [f"loads by width in bytes: {dict(loads)}"]),
        *width_fault("stores", resources.total.store_widths),
    ]
    return Finding(
        arch, config.family, layer, str(config), resources, figure, MAX_PER_OUTPUT, UNIT, tuple(faults), NEIGHBOURS
    )


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
