"""The gate of the dot-product gradients: AlexNet's and a ResNeXt's layers as their gradients compile by default, and
the pass that may write the activation's gradient for them.

No spills, shared memory within the device, tensor-core instructions in the loop, 16-byte loads there and 16-byte stores
everywhere, and no more instructions per tensor-core instruction than the code that was first found to be right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from grouped_conv.autotune.compiling.offline import gpu_target
from grouped_conv.autotune.machine_code.resources import Resources, read_resources
from grouped_conv.autotune.workloads.named import workload
from grouped_conv.bench.gates.findings import VECTOR_BYTES, Finding, figure_fault, resource_faults, width_fault
from grouped_conv.bench.gates.gradient_gates import EPILOGUES, PLAIN, family_default, least_width
from grouped_conv.kernels.gradient_call import gradient_problem, plan_bias_gradient, plan_gradient
from grouped_conv.kernels.implicit_gemm.input_grad_rules import InputGradConfig
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import ENTRY_BYTES, WeightGradConfig
from grouped_conv.kernels.launching.launch import compile_launch
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.problem import ConvProblem

UNIT = "MMA"
DTYPES = ("float16", "bfloat16")
DIRECTIONS = ("input_grad", "weight_grad")
_INPUT = InputGradConfig(block_m=128, block_n=64, block_k=64, num_warps=4, num_stages=3, loop_order="channels_inner")
_WEIGHT = WeightGradConfig(block_m=128, block_n=128, block_k=64, num_warps=8, num_stages=3, splits=8)
_TABLE = replace(_WEIGHT, pixel_table=True)
LIMITS: dict[str, dict[InputGradConfig | WeightGradConfig, float]] = {
    "sm_80": {_INPUT: 246 / 64, _WEIGHT: 256 / 64, _TABLE: 214 / 64},
    "sm_90": {_INPUT: 165 / 8, _WEIGHT: 180 / 4, _TABLE: 125 / 4},
    "gfx942": {replace(_TABLE, num_stages=2): 139 / 16},
}
"""Instructions per tensor-core instruction of tiles with plain gradients, counted offline. The input's are the
prototype's at strides 1 and 2 (233 to 246 and 144 to 165). The prototype of the weight's, which copies its table of
pixels to shared memory, had 222, 153 and 131; ours, which reads it a step ahead into registers, is held to what it has
with Triton 3.8, and so is the loop that finds pixels without a table, which defaults on H100 take: the model expects L2
to bound AlexNet's layers there (conv2: 111 of 153 us, instructions 64), where a table would cost a launch and save
nothing. (On gfx942 conv2 has 123; the other two have 192 output channels per group, and a mask there is a branch.)"""


def layers(dtype: str) -> dict[str, ConvProblem]:
    """AlexNet's grouped layers at batch 128, and ResNeXt-50's wide groups with stride 1 and 2."""
    found = {name: problem for name, problem in workload("alexnet", epilogue=PLAIN).items() if name != "conv1"}
    found["rx50 stage 4"] = ConvProblem.of((128, 1024, 7, 7), (1024, 32, 3, 3), padding=1, groups=32)
    found["fat stride 2"] = ConvProblem.of((128, 256, 28, 28), (256, 64, 3, 3), stride=2, padding=1, groups=4)
    return {name: replace(problem, dtype=dtype) for name, problem in found.items()}


def findings(
    archs: Sequence[str], dtypes: Sequence[str] = DTYPES, epilogues: Sequence[Epilogue] = EPILOGUES
) -> Iterator[Finding]:
    """Defaults for every layer, in fp16 behind each kind of epilogue, and the tiles of `LIMITS`."""
    for arch in archs:
        device = DeviceSpec.get(arch)
        for dtype in dtypes:
            for layer, problem in layers(dtype).items():
                for direction in DIRECTIONS:
                    for epilogue in epilogues if dtype == "float16" else (PLAIN,):
                        gradient = gradient_problem(replace(problem, epilogue=epilogue), direction)
                        config = family_default(direction, gradient, device)
                        yield judge(arch, f"{layer} {dtype} {epilogue}", gradient, config)
            for activation in ("relu", "gelu"):
                behind = replace(layers(dtype)["conv4"], epilogue=Epilogue(activation))
                yield judge_pass(arch, f"conv4 {dtype} {activation}", gradient_problem(behind, "weight_grad"))
        for config in LIMITS.get(arch, {}):
            for layer in ("conv4", "conv2", "fat stride 2"):
                gradient = gradient_problem(layers("float16")[layer], config.direction)
                yield judge(arch, f"{layer} tile", gradient, config)


def judge(arch: str, layer: str, problem: ConvProblem, config: InputGradConfig | WeightGradConfig) -> Finding:
    """Compile the main launch of one gradient and look at its code."""
    device = DeviceSpec.get(arch)
    launch = next(one for one in plan_gradient(problem, config).launches if one.name == config.family)
    resources = read_resources(compile_launch(launch, gpu_target(device)))
    limit = LIMITS.get(arch, {}).get(config) if problem.epilogue.is_identity else None
    widths = copied(problem, config, resources, config.num_warps * device.warp_size)
    figure = resources.loop.per_mma if resources.loop else None
    faults = [
        *resource_faults(resources, device),
        *width_fault("loads in the inner loop", widths, least_width(config, problem, device)),
        *width_fault("stores", resources.total.store_widths),
        *(["no loop with a tensor-core instruction"] if figure is None else figure_fault(figure, limit, UNIT)),
    ]
    return Finding(arch, config.family, layer, str(config), resources, figure, limit, UNIT, tuple(faults))


def copied(
    problem: ConvProblem, config: InputGradConfig | WeightGradConfig, resources: Resources, threads: int
) -> dict[int, int]:
    """Loads of the loop by width, but for the table's entries: 8 bytes for each copy of the input."""
    widths = dict(resources.loop.load_widths) if resources.loop else {}
    if isinstance(config, WeightGradConfig) and config.pixel_table:
        copies = config.block_n * config.block_k * problem.item_size // (VECTOR_BYTES * threads)
        widths[ENTRY_BYTES] = max(0, widths.get(ENTRY_BYTES, 0) - copies)
    return {width: count for width, count in widths.items() if count}


def judge_pass(arch: str, layer: str, problem: ConvProblem) -> Finding:
    """Compile the pass that writes the activation's gradient; of the bias's each thread stores one sum of 4 bytes."""
    device = DeviceSpec.get(arch)
    launch = plan_bias_gradient(problem, grad_residual=True).launches[0]
    resources = read_resources(compile_launch(launch, gpu_target(device)))
    stores = dict(resources.total.store_widths)
    sums = stores.pop(4, 0)
    faults = [
        *resource_faults(resources, device),
        *width_fault("loads", resources.total.load_widths),
        *width_fault("stores", stores),
        *([f"{sums} stores of sums"] if sums != 1 else []),
    ]
    return Finding(arch, launch.name, layer, str(launch.config), resources, None, None, UNIT, tuple(faults))
