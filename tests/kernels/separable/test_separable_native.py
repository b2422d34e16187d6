"""The fused kernel compiled for this CPU, on random sizes and on whole layers of MobileNetV2."""

import random
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from native_variants import Runner
from separable_cases import RELU, RELU6, RESIDUAL, block
from truth import judge

import grouped_conv
from grouped_conv import SeparableConv2d
from grouped_conv.kernels.separable.forward_rules import one_warp
from grouped_conv.kernels.separable.problem import SeparableProblem
from grouped_conv.planning.interpreting import through_driver

pytestmark = pytest.mark.native
SIZES_PER_VARIANT = 24

VARIANTS = (
    block((1, 16, 9, 9), (16, 1, 3, 3), 16, RELU6, dtype="float32"),
    block((1, 20, 9, 9), (20, 1, 3, 3), 33, RELU, RESIDUAL, dtype="bfloat16", stride=2),
    block((1, 24, 9, 9), (40, 24, 3, 3), 20, RELU, RELU, dtype="float16"),
    block((1, 21, 9, 9), (33, 7, 3, 3), 19, RELU, RELU, dtype="float32"),
)


def resized(problem: SeparableProblem, draw: random.Random) -> SeparableProblem:
    """The same compiled variant at another batch and image."""
    size = (draw.randint(1, 14), draw.randint(1, 14))
    return replace(problem, first=replace(problem.first, batch=draw.randint(1, 4), in_size=size))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_random_sizes(variant: SeparableProblem, native: ModuleType) -> None:
    run, draw = Runner(native), random.Random(str(variant))
    for seed in range(SIZES_PER_VARIANT):
        problem = resized(variant, draw)
        judge(problem, one_warp(problem), run, str(problem), seed)


def test_a_layer_takes_the_fused_kernel(native: ModuleType) -> None:
    torch.manual_seed(0)
    layer = SeparableConv2d(96, 24, 3, 2, 1, depthwise_activation="relu6").requires_grad_(False)
    x = torch.randn(2, 96, 56, 56).contiguous(memory_format=torch.channels_last)
    with through_driver(), grouped_conv.trace() as calls:
        y = layer(x)
    assert [call.path for call in calls] == ["separable"]
    torch.testing.assert_close(y, layer(x), rtol=1e-4, atol=1e-4)
