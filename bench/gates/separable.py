"""Gate of the fused kernel: MobileNetV2's blocks and Deep Roots' root modules, 128 pixels by 128 channels per tile.

The figure counts one trip of the loop over slices, with its part of the 1x1 convolution, per intermediate value of a
thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from grouped_conv.bench.gates.engine import Compiled, Gate, first_loop, per, square
from grouped_conv.bench.gates.findings import VECTOR_BYTES
from grouped_conv.bench.gates.rules import tensor_cores, wide_stores
from grouped_conv.kernels.launching.launch import Launch
from grouped_conv.kernels.separable.forward import plan_separable_call
from grouped_conv.kernels.separable.forward_rules import SeparableConfig, slices_of, why_not_on
from grouped_conv.kernels.separable.problem import SeparableProblem
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.epilogue import Epilogue

LIMITS = {"sm_80": 31.0, "sm_90": 28.0, "gfx942": 51.5}
"""Instructions per intermediate value, as counted with Triton 3.8: 24.6 to 30.3 on sm_80, 16.7 to 27.5 on sm_90, 34.6
to 51.0 on gfx942 (whose vector instructions are of 64 threads)."""


def _block(
    channels: int, groups: int, out_channels: int, size: int, activation: str, stride: int = 1
) -> SeparableProblem:
    width = channels // groups
    first = square(width, width, groups, size, 3, stride, batch=8, epilogue=Epilogue(activation, bias=True))
    return SeparableProblem(first, out_channels, Epilogue(bias=True))


LAYERS = {
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
"""fp16, batch 8, channels_last. The root modules are those of Deep Roots' ResNet-50 with its widest groupings."""


def wide_tile(problem: SeparableProblem, device: DeviceSpec) -> SeparableConfig:
    """128 pixels by 128 output channels, or 64 where those do not fit, in slices that fit the groups best."""
    width = 64 if problem.first.c_per_group >= 64 else 32 if 1 < problem.first.c_per_group <= 32 else 16
    warps = 4 if device.backend == "hip" else 8
    wide = SeparableConfig(block_m=128, block_n=128, width=width, block_k=width, num_warps=warps, num_stages=2)
    return wide if why_not_on(problem, wide, device) is None else replace(wide, block_n=64)


def kernel_alone(problem: SeparableProblem, config: SeparableConfig) -> Sequence[Launch]:
    """The fused kernel, without passes before it."""
    return plan_separable_call(problem, config)[0][-1:]


def slice_values(compiled: Compiled) -> float:
    """Intermediate values of one slice."""
    problem, config = compiled.problem, compiled.config
    return float(config.block_m * problem.mid_channels / slices_of(problem, config).count)


def wide_slice_loads(compiled: Compiled) -> Iterator[str]:
    """A thread loads its part of a slice of the input, and of the 1x1 weight's tile, 16 bytes at a time.

    Steps in a loop are counted once, and the weight only where a thread's part of it is 16 bytes or more.
    """
    problem, config = compiled.problem, compiled.config
    cut = slices_of(problem, config)
    depth = cut.tile if config.method == "direct" else cut.depth
    vector = VECTOR_BYTES // problem.item_size * compiled.threads
    expected = config.block_m * depth // vector + config.block_n * cut.tile // vector
    found = compiled.loop_loads.get(VECTOR_BYTES, 0)
    if found < expected:
        yield f"{found} loads of 16 bytes in a slice, at least {expected} expected"


def varied(problem: SeparableProblem, dtype: str, epilogue: Epilogue) -> SeparableProblem:
    """The same block with another dtype, and the epilogue after its 1x1 convolution."""
    return replace(problem, first=replace(problem.first, dtype=dtype), epilogue=epilogue)


GATES = (
    Gate(
        family="separable",
        unit="intermediate value",
        layers=LAYERS,
        choose=wide_tile,
        limit=lambda layer, problem, config, device: LIMITS.get(device.arch_name),
        launches=kernel_alone,
        loop=first_loop("mma"),
        count=per(slice_values),
        rules=(tensor_cores, wide_slice_loads, wide_stores),
        varied=varied,
    ),
)
