"""The exact gate on the fused kernel's compiled code."""

import pytest

from grouped_conv.bench.gates.families import GATES, findings
from grouped_conv.bench.gates.findings import EVERY_RUN
from grouped_conv.bench.gates.separable import LAYERS
from grouped_conv.kernels import DeviceSpec
from grouped_conv.kernels.separable.forward_rules import SeparableConfig


@pytest.mark.parametrize("arch", EVERY_RUN)
@pytest.mark.parametrize("name", ["mobilenetv2 144-32", "resnet50 res2 g16", "resnet50 res5 g8"])
def test_compiled_code_is_good(arch: str, name: str) -> None:
    (finding,) = findings("separable", [arch], lambda problem: problem == LAYERS[name])
    print(finding)
    assert finding.faults == ()
    assert finding.figure is not None
    assert finding.limit is not None


@pytest.mark.sweep
@pytest.mark.parametrize("arch", EVERY_RUN)
def test_every_problem(arch: str) -> None:
    found = list(findings("separable", [arch]))
    assert {finding.layer: finding.faults for finding in found if finding.faults} == {}


def test_a_tile_that_spills_is_a_fault() -> None:
    """128 sums per thread: the rules refuse such a tile, and the gate sees it."""
    config = SeparableConfig(block_m=128, block_n=128, width=32, num_warps=4)
    (gate,) = GATES["separable"]
    finding = gate.judge("spills", LAYERS["resnet50 res2 g16"], config, DeviceSpec.get("sm_80"))
    assert any("spills" in fault for fault in finding.faults)
