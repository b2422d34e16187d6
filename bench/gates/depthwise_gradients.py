"""What compiled depthwise gradients are held to: instructions per value, spills, access widths, no atomic instruction.

The count is what one thread issues in its inner loop, or in all where it has none, per input (or output) pixel and
channel; a loop over kernel rows counts once per row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from grouped_conv.autotune.compiling.offline import CompiledLaunch, gpu_target
from grouped_conv.autotune.machine_code.instructions import loops
from grouped_conv.autotune.machine_code.resources import disassembled
from grouped_conv.autotune.model.families import MODELS
from grouped_conv.bench.gates.depthwise import issued
from grouped_conv.bench.gates.findings import Finding, figure_fault, resource_faults, width_fault
from grouped_conv.kernels.depthwise import input_grad_rules as depthwise_input_grad_rules
from grouped_conv.kernels.depthwise import weight_grad_rules as depthwise_weight_grad_rules
from grouped_conv.kernels.depthwise.input_grad_rules import DepthwiseInputGradConfig
from grouped_conv.kernels.depthwise.weight_grad_rules import DepthwiseWeightGradConfig
from grouped_conv.kernels.gradient_call import gradient_problem, plan_gradient
from grouped_conv.kernels.launching.launch import compile_launch
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.problem import ConvProblem

UNIT = "value"
Config = DepthwiseInputGradConfig | DepthwiseWeightGradConfig


@dataclass(frozen=True, slots=True)
class TileLimit:
    """Instructions per value that a tile's code may issue, fp16, 64 channels, no activation."""

    kernel: int
    stride: int
    config: Config
    limits: dict[str, float]


TILE_LIMITS = (
    TileLimit(3, 1, DepthwiseInputGradConfig(), {"sm_80": 17.4, "sm_90": 17.7, "gfx942": 17.2}),
    TileLimit(3, 2, DepthwiseInputGradConfig(), {"sm_80": 6.5, "sm_90": 6.7, "gfx942": 8.3}),
    TileLimit(5, 1, DepthwiseInputGradConfig(tile_h=1, tile_w=8, row_loop=True), {"sm_80": 45.0, "sm_90": 45.0}),
    TileLimit(3, 1, DepthwiseWeightGradConfig(splits=8), {"sm_80": 20.8}),
    TileLimit(7, 1, DepthwiseWeightGradConfig(splits=8, rows=1), {"sm_80": 102.0}),
)

LAYERS = (
    ("mobilenet_v2 96@112/2", 96, 112, 3, 2, "relu6"),
    ("mobilenet_v2 144@56", 144, 56, 3, 1, "relu6"),
    ("5x5 240@28", 240, 28, 5, 1, "none"),
    ("convnext_t 96@56", 96, 56, 7, 1, "none"),
    ("convnext_t 768@7", 768, 7, 7, 1, "none"),
)
"""Name, channels, image, kernel, stride, activation; batch 128."""


def findings(archs: Sequence[str]) -> Iterator[Finding]:
    """Everything this gate looks at."""
    for arch in archs:
        yield from tile_findings(arch)
        yield from default_findings(arch)


def tile_findings(arch: str) -> Iterator[Finding]:
    """The tiles of `TILE_LIMITS` that have a figure for the architecture."""
    device = DeviceSpec.get(arch)
    for tile in TILE_LIMITS:
        if arch not in tile.limits:
            continue
        scale = device.warp_size // 32
        config: Config
        if isinstance(tile.config, DepthwiseInputGradConfig):
            config = replace(tile.config, block_w=tile.config.block_w * scale)
            values = depthwise_input_grad_rules.per_thread(config, device)
        else:
            config = replace(tile.config, block_p=tile.config.block_p * scale)
            values = depthwise_weight_grad_rules.per_thread(config, device)
        size, kernel = 56, tile.kernel
        problem = ConvProblem.of((8, 64, size, size), (64, 1, kernel, kernel), tile.stride, kernel // 2, groups=64)
        compiled = compiled_for(problem, config, device)
        code = disassembled(compiled.kernel)
        outputs = values * config.tile_h * config.tile_w
        if isinstance(config, DepthwiseInputGradConfig):
            figure = issued(code, kernel if config.row_loop else 1) / outputs
        else:
            found = loops(code)
            figure = len(found[0]) * (kernel if config.rows == 1 else 1) / outputs if found else 0.0
        layer = f"{kernel}x{kernel}/{tile.stride}"
        yield _finding(arch, layer, config, compiled, device, figure, tile.limits[arch], True)


def default_findings(arch: str) -> Iterator[Finding]:
    """Depthwise layers at the first default, in fp16 and bf16: no spills, 16-byte stores of the input's gradient."""
    device = DeviceSpec.get(arch)
    for index, (layer, channels, size, kernel, stride, activation) in enumerate(LAYERS):
        dtype = "bfloat16" if index % 2 else "float16"
        problem = ConvProblem.of(
            (128, channels, size, size),
            (channels, 1, kernel, kernel),
            stride,
            kernel // 2,
            groups=channels,
            dtype=dtype,
            epilogue=Epilogue(activation),
        )
        chosen: tuple[Config, ...] = (
            MODELS["depthwise_input_grad"].ranked(gradient_problem(problem, "input_grad"), device)[0],
            MODELS["depthwise_weight_grad"].ranked(gradient_problem(problem, "weight_grad"), device)[0],
        )
        for config in chosen:
            yield _finding(arch, layer, config, compiled_for(problem, config, device), device, None, None, False)


def compiled_for(problem: ConvProblem, config: Config, device: DeviceSpec) -> CompiledLaunch:
    """The family's own launch."""
    direction = "input_grad" if isinstance(config, DepthwiseInputGradConfig) else "weight_grad"
    call = plan_gradient(gradient_problem(problem, direction), config)
    launch = next(launch for launch in call.launches if launch.config is config)
    return CompiledLaunch(launch, compile_launch(launch, gpu_target(device)))


def _finding(
    arch: str,
    layer: str,
    config: Config,
    compiled: CompiledLaunch,
    device: DeviceSpec,
    figure: float | None,
    limit: float | None,
    wide: bool,
) -> Finding:
    resources = compiled.resources
    assembly = str(compiled.kernel.asm.get("ptx", compiled.kernel.asm.get("amdgcn", "")))
    atomic = any(word in assembly for word in ("atom.", "red.global", "global_atomic"))
    faults = (
        *resource_faults(resources, device),
        *figure_fault(figure, limit, UNIT),
        *(width_fault("loads", resources.total.load_widths) if wide else ()),
        *(
            width_fault("stores", resources.total.store_widths)
            if wide and isinstance(config, DepthwiseInputGradConfig)
            else ()
        ),
        *(("has an atomic instruction",) if atomic else ()),
    )
    return Finding(arch, config.family, layer, str(config), resources, figure, limit, UNIT, faults)
