"""The exact gate on the fused kernel's compiled code."""

import pytest

from grouped_conv.bench import separable_gate
from grouped_conv.kernels import DeviceSpec

MOST = {"sm_80": 31.0, "sm_90": 28.0, "gfx942": 51.5}
"""Instructions per intermediate value of 128x128 tiles, 1x1 part included, as counted with Triton 3.8: 24.6 to 30.3 on
sm_80, 16.7 to 27.9 on sm_90, 34.6 to 51.0 on gfx942 (whose threads hold twice the values)."""


@pytest.mark.parametrize("arch", separable_gate.EVERY_RUN)
@pytest.mark.parametrize("name", ["mobilenetv2 144-32", "resnet50 res2 g16", "resnet50 res5 g8"])
def test_compiled_code_is_good(arch: str, name: str) -> None:
    (finding,) = separable_gate.findings([arch], [name])
    print(finding)
    assert finding.faults == ()
    assert finding.per_value <= MOST[arch]


@pytest.mark.sweep
@pytest.mark.parametrize("arch", separable_gate.EVERY_RUN)
def test_every_problem(arch: str) -> None:
    found = list(separable_gate.findings([arch]))
    assert {finding.name: finding.faults for finding in found if finding.faults} == {}
    assert max(finding.per_value for finding in found) <= MOST[arch]


def test_a_tile_that_spills_is_a_fault() -> None:
    """128 sums per thread: the rules refuse such a tile, and the gate would see it."""
    device = DeviceSpec.get("sm_80")
    problem = separable_gate.PROBLEMS["resnet50 res2 g16"]
    config = separable_gate.SeparableConfig(block_m=128, block_n=128, width=32, num_warps=4)
    finding = separable_gate.judge("spills", problem, config, device)
    assert any("spills" in fault for fault in finding.faults)
