"""How many Python functions one warm call enters."""

import pytest
import torch

import grouped_conv
from grouped_conv.bench import call_count
from grouped_conv.bench.noop_driver import noop_driver
from grouped_conv.kernels import DeviceSpec
from grouped_conv.planning import plan_cache
from grouped_conv.planning.interpreting import through_driver

H100 = DeviceSpec.get("h100")


def test_a_warm_forward_call_enters_few_functions():
    with noop_driver(H100), through_driver(), torch.no_grad():
        found, entered = call_count.count("forward", call_count.sample_calls()["forward"])
    assert found.calls <= call_count.MOST_CALLS, entered
    assert found.files <= call_count.MOST_FILES, entered
    assert (found.calls, entered[0]) == (len(entered), "conv2d.py:grouped_conv2d")


@pytest.mark.parametrize("trains", [False, True])
def test_so_does_a_layers_call(trains):
    layer = grouped_conv.GroupedConv2d(96, 256, 5, padding=2, groups=2, activation="relu", dtype=torch.float16)
    input = torch.randn(1, 96, 27, 27).half().contiguous(memory_format=torch.channels_last)
    plan_cache.forget_plans()
    with noop_driver(H100), through_driver(), torch.set_grad_enabled(trains):
        found, entered = call_count.count("layer", lambda: layer(input))
    assert found.calls <= call_count.MOST_CALLS, entered


def test_only_functions_of_the_package_are_counted():
    import torch.nn.functional as F

    found, entered = call_count.count("torch", lambda: F.relu(F.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 1, 1))))
    assert (found.calls, found.files, found.depth, entered) == (0, 0, 0, [])
