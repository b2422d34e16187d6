"""The ragged kernel compiled for this CPU: 8 compiled variants x 48 random layouts, and layers at full size.

A layout is a table that the compiled kernel reads, so one variant of what is compiled in (kernel, stride, dilation,
dtype, lists or ranges, epilogue) takes any layout, batch and image.
"""

import random
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from native_variants import Runner
from ragged_cases import BIAS_RELU
from ragged_oracle import check_ragged, make_ragged_tensors, ragged_problem
from truth import judge

import grouped_conv
from grouped_conv import RaggedConv2d
from grouped_conv.kernels import ACTIVATIONS, ConvProblem, Epilogue, GroupLayout
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.launching.launch import compile_launch
from grouped_conv.kernels.ragged.forward_rules import RaggedConfig, one_warp, traits
from grouped_conv.planning.interpreting import through_driver

pytestmark = pytest.mark.native
LAYOUTS_PER_VARIANT = 48
ANY_LAYOUT = {"IN_ALIGN": 1, "WIDTH_ALIGN": 1, "OUT_ALIGN": 1, "MASK_K": True, "CLAMP": True}
"""What promises nothing about a layout, so that one compiled kernel is right for all."""


def random_layout(draw: random.Random, gather: bool) -> GroupLayout:
    """Consecutive or overlapping ranges, or lists in any order."""
    while True:
        channels, groups = draw.randint(2, 40), draw.randint(1, 5)
        outputs = [draw.randint(1, 40) for _ in range(groups)]
        if gather:
            index = [draw.sample(range(channels), draw.randint(1, channels)) for _ in range(groups)]
        else:
            ends = [sorted(draw.sample(range(channels + 1), 2)) for _ in range(groups)]
            index = [list(range(first, last)) for first, last in ends]
        layout = GroupLayout.explicit(channels, index, outputs, allow_unread=True)
        if not layout.is_uniform and traits(layout).gather == gather:
            return layout


def variants() -> list[tuple[str, ConvProblem, bool]]:
    """8 variants over dtypes, windows, memory formats, epilogues, and lists or ranges."""
    draw = random.Random(2607)
    kernels = [(1, 1), (3, 3), (5, 5), (1, 4), (3, 2), (7, 7), (17, 2), (3, 3)]
    rows = []
    for index, kernel in enumerate(kernels):
        dilation = (draw.randint(1, 2), draw.randint(1, 2))
        window = tuple(d * (r - 1) + 1 for d, r in zip(dilation, kernel, strict=True))
        epilogue = Epilogue(
            ACTIVATIONS[index % len(ACTIVATIONS)], bias=index % 2 == 0, scale=index % 3 == 0, residual=index % 4 == 1
        )
        problem = ragged_problem(
            GroupLayout.sizes([1, 2], [1, 1]),
            (window[0], window[1]),
            kernel,
            stride=(draw.randint(1, 3), draw.randint(1, 2)),
            padding=tuple(draw.randint(0, 2) for _ in range(4)),
            dilation=dilation,
            dtype=("float16", "bfloat16", "float32")[index % 3],
            input_channels_last=index != 4,
            epilogue=epilogue,
        )
        gather = index % 2 == 1
        name = f"{kernel[0]}x{kernel[1]}-{problem.dtype}-{'lists' if gather else 'ranges'}-{epilogue}"
        rows.append((name, problem, gather))
    return rows


CASES = [
    pytest.param(*row, id=row[0], marks=[pytest.mark.sweep] * (number // 2 % 2))
    for number, row in enumerate(variants())
]  # half of them in each run, with ranges and with lists: a build takes 20 s


@pytest.mark.parametrize(("name", "variant", "gather"), CASES)
def test_random_layouts(name: str, variant: ConvProblem, gather: bool, native: ModuleType) -> None:
    run, draw = Runner(native, ANY_LAYOUT), random.Random(name)
    config = RaggedConfig(block_m=32, block_n=32, block_k=16, num_warps=1)
    for seed in range(LAYOUTS_PER_VARIANT):
        height, width = (least + draw.randint(0, 9) for least in variant.in_size)
        problem = replace(
            variant, batch=draw.randint(1, 3), in_size=(height, width), layout=random_layout(draw, gather)
        )
        judge(problem, config, run, f"{name}: {problem}", seed)


FULL_SIZE = {
    "conv2 with a log series": ragged_problem(
        GroupLayout.log_series(96, 256, 4), (27, 27), (5, 5), batch=4, padding=(2, 2, 2, 2), epilogue=BIAS_RELU
    ),
    "conv4 with overlaps": ragged_problem(
        GroupLayout.overlapping(384, 384, 3, 192), (13, 13), batch=4, padding=(1, 1, 1, 1), epilogue=BIAS_RELU
    ),
    "conv4 with random lists": ragged_problem(
        GroupLayout.random_sparse(384, 384, 8, 96), (13, 13), batch=4, padding=(1, 1, 1, 1), epilogue=BIAS_RELU
    ),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_with_all_that_is_known_compiled_in(name: str, native: ModuleType) -> None:
    problem = FULL_SIZE[name]
    config, target = one_warp(problem), native.driver.get_current_target()
    tensors = make_ragged_tensors(problem, config)
    (launch,) = plan_call(problem, config).launches
    compile_launch(launch, target)[launch.grid](*launch.positional(tensors))
    check_ragged(problem, tensors, name)


def test_the_layer_takes_the_compiled_kernel(native: ModuleType) -> None:
    torch.manual_seed(0)
    module = RaggedConv2d(GroupLayout.log_series(32, 64, 4), 3, padding=1, activation="relu")
    input = torch.randn(2, 32, 14, 14).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), through_driver(), grouped_conv.trace() as calls:
        output = module(input)
    assert [(call.path, call.launches) for call in calls] == [("ragged", ("ragged",))]
    assert "cpu_native" in calls[0].reason
    torch.testing.assert_close(output, module(input), rtol=1e-5, atol=1e-5)
