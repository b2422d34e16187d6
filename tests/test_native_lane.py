"""Compiled kernels, run natively on this CPU: 14 compiled variants x 72 random sizes, and AlexNet's layers in full.

Building a variant takes seconds, running it milliseconds, so sizes, batches and group counts are drawn at random for
each variant of what is compiled in (channels per group, kernel, stride, padding, dilation, dtype, loop, epilogue).
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from conv_cases import alexnet_layers
from conv_oracle import allowance, check_output, make_tensors, reference, relative_error, run_call
from native_rules import config_for
from torch import Tensor

import grouped_conv
from grouped_conv.interpreting import through_driver
from grouped_conv.kernels import ACTIVATIONS, ConvProblem, Epilogue, ImplicitGemmConfig
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.launch import Launch, compile_launch
from grouped_conv.kernels.validity import why_invalid

pytestmark = pytest.mark.native
SIZES_PER_VARIANT = 72
Runner = Callable[[Launch, Mapping[str, Tensor]], None]


def runner(lane: ModuleType) -> Runner:
    """Compiles each launch once whatever its sizes: promises about their divisibility are left out."""
    kernels: dict[Any, Any] = {}
    target = lane.driver.get_current_target()

    def run(launch: Launch, tensors: Mapping[str, Tensor]) -> None:
        integers = tuple(replace(integer, divisor=1) for integer in launch.integers)
        constants = {**launch.constants, **({"X_ALIGN": 1} if "X_ALIGN" in launch.constants else {})}
        launch = replace(launch, integers=integers, constants=constants)
        key = launch.source().hash(), str(launch.config)
        if key not in kernels:
            kernels[key] = compile_launch(launch, target)
        kernels[key][launch.grid](*launch.positional(tensors))

    return run


def variants() -> list[tuple[str, ConvProblem, ImplicitGemmConfig]]:
    """14 variants over dtypes, layouts, loops, kernels, strides, dilations, pads and epilogues, drawn once for all."""
    draw = random.Random(1605)
    shapes = [(1, 1), (1, 3), (3, 8), (4, 4), (5, 7), (8, 24), (16, 16), (24, 40), (32, 20), (48, 64), (16, 64)]
    kernels = [(1, 1), (3, 3), (5, 5), (1, 4), (3, 2), (7, 7), (17, 2)]
    rows = []
    for index in range(14):
        c, k = shapes[index % len(shapes)]
        kernel = kernels[index % len(kernels)]
        dilation = (draw.randint(1, 2), draw.randint(1, 3))
        padding = tuple(draw.randint(0, 3) for _ in range(4))
        epilogue = Epilogue(
            ACTIVATIONS[index % len(ACTIVATIONS)], bias=index % 2 == 0, scale=index % 3 == 0, residual=index % 5 == 0
        )
        window = tuple(d * (r - 1) + 1 for d, r in zip(dilation, kernel, strict=True))
        problem = ConvProblem.of(
            (1, c, *(size + 2 for size in window)),
            (k, c, *kernel),
            stride=(draw.randint(1, 3), draw.randint(1, 2)),
            padding=padding,
            dilation=dilation,
            dtype=("float16", "bfloat16", "float32")[index % 3],
            precision="ieee",
            channels_last=index % 4 != 1,
            weight_channels_last=index % 4 != 2,
            epilogue=epilogue,
        )
        wishes = [
            config_for(problem, ("flat", "taps_inner", "channels_inner")[index % 3], 1 + index % 2),
            config_for(problem),
        ]
        config = next(wish for wish in wishes if why_invalid(problem, wish) is None)
        rows.append((f"{index}-C{c}-K{k}-{kernel[0]}x{kernel[1]}-{problem.dtype}-{config.loop_order}", problem, config))
    return rows


def resized(problem: ConvProblem, draw: random.Random) -> ConvProblem:
    """The same compiled variant at another batch, image and number of groups."""
    groups = draw.randint(1, 5)
    height, width = (least + draw.randint(0, 14) for least in problem.in_size)
    _, c, r, s = problem.weight_shape
    return ConvProblem.of(
        (draw.randint(1, 4), groups * c, height, width),
        (groups * problem.out_channels, c, r, s),
        problem.stride,
        problem.padding,
        problem.dilation,
        groups,
        problem.dtype,
        problem.input_channels_last,
        epilogue=problem.epilogue,
        precision="ieee",
        weight_channels_last=problem.weight_channels_last,
    )


@pytest.mark.parametrize(
    ("name", "variant", "config"), variants(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_random_sizes(name: str, variant: ConvProblem, config: ImplicitGemmConfig, native: ModuleType) -> None:
    run, draw = runner(native), random.Random(name)
    for seed in range(SIZES_PER_VARIANT):
        problem = resized(variant, draw)
        tensors = make_tensors(problem, seed)
        run_call(plan_call(problem, config), tensors, run)
        check_output(problem, tensors, f"{name}: {problem}")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_alexnet_at_full_size_batch_8(dtype: str, native: ModuleType) -> None:
    layers = alexnet_layers(8, dtype, precision="ieee")
    run = runner(native)
    for layer, problem in layers.items():
        tensors = make_tensors(problem)
        run_call(plan_call(problem, config_for(problem)), tensors, run)
        check_output(problem, tensors, layer)


def test_the_public_call_takes_the_compiled_kernel(native: ModuleType) -> None:
    problem = alexnet_layers(2, "float32", precision="ieee")["conv2"]
    tensors = make_tensors(problem)
    with through_driver(), grouped_conv.trace() as calls:
        tensors["output"] = grouped_conv.grouped_conv2d(
            tensors["input"], tensors["weight"], tensors["bias"], padding=2, groups=2, activation="relu"
        )
    assert [call.path for call in calls] == ["implicit_gemm"]
    assert "cpu_native" in calls[0].reason
    check_output(problem, tensors)


def test_a_known_miscompile_is_noticed(native: ModuleType) -> None:
    """The first of native_rules.KNOWN: our check must reject what the lane computes wrongly."""
    problem = ConvProblem.of((1, 32, 8, 8), (128, 32, 1, 1), dtype="float32", precision="ieee")
    config = ImplicitGemmConfig(block_m=64, block_n=128, block_k=16, num_warps=1)
    tensors = make_tensors(problem)
    run_call(plan_call(problem, config), tensors, runner(native))
    exact = reference(problem, tensors)
    assert relative_error(tensors["output"], exact) > allowance(problem, tensors, exact)
