"""The gate on compiled code, and that it would notice."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from grouped_conv.autotune.machine_code.instructions import Mix
from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.bench import static_gate
from grouped_conv.bench.gates.engine import Compiled
from grouped_conv.bench.gates.families import GATES
from grouped_conv.bench.gates.findings import EVERY_RUN, SWEEP, Finding
from grouped_conv.bench.gates.implicit_gemm import EXEMPT, TILES, tile_limit
from grouped_conv.kernels import DeviceSpec, ImplicitGemmConfig

FORWARD, FORWARD_TILES = GATES["implicit_gemm"]
CONV5 = dict(FORWARD.problems())["conv5"]


def test_a_familys_first_gate_judges_its_defaults():
    for family, gates in GATES.items():
        assert {gate.family for gate in gates} == {family}
        assert not gates[0].tiles
        assert len(gates[0].layers) > 1


@pytest.mark.full
@pytest.mark.parametrize("arch", [*EVERY_RUN, *(pytest.param(arch, marks=pytest.mark.sweep) for arch in SWEEP)])
def test_alexnet_compiles_well_by_default(arch):
    findings = list(FORWARD.findings(arch))
    assert [finding.layer for finding in findings] == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    assert {finding.layer: finding.faults for finding in findings if finding.faults} == {}
    assert [finding.layer for finding in findings if finding.note] == list(EXEMPT)


@pytest.mark.parametrize("arch", [*EVERY_RUN, *(pytest.param(arch, marks=pytest.mark.sweep) for arch in SWEEP)])
def test_loops_are_no_longer_than_the_prototypes(arch):
    findings = list(FORWARD_TILES.findings(arch))
    assert len(findings) == sum(arch in tile.limits for tile in TILES) > 0
    assert {finding.config: finding.faults for finding in findings if finding.faults} == {}


GOOD = Resources(
    200, 0, 65536, Mix(1400, {"mma": 64}, {16: 8}, {16: 8}), Mix(170, {"mma": 64, "global_load": 8}, {16: 8})
)


def faults(resources, limit=None):
    compiled = Compiled("conv4", None, ImplicitGemmConfig(), DeviceSpec.get("sm_80"), None, resources)
    return [*FORWARD.faults(compiled, FORWARD.count(compiled), limit)]


def test_every_rule_can_fail():
    assert faults(GOOD, 2.7) == []
    assert faults(replace(GOOD, spill_bytes=8)) == ["spills 8 bytes per thread"]
    assert "200000 bytes of shared memory" in faults(replace(GOOD, shared_bytes=200_000))[0]
    assert "at most 2.60 allowed" in faults(GOOD, 2.6)[0]
    without_loop = faults(replace(GOOD, loop=None), 2.6)
    assert "nothing to count" in without_loop[0]
    assert "no loop with a tensor-core instruction" in without_loop[1]
    no_mma = replace(GOOD, loop=Mix(170, {"global_load": 8}, {16: 8}))
    assert faults(no_mma) == ["no loop with a tensor-core instruction"]
    narrow = replace(GOOD, loop=Mix(170, {"mma": 64}, {2: 1, 16: 7}))
    assert faults(narrow) == ["loads in the inner loop by width in bytes: {2: 1, 16: 7}"]
    scattered = replace(GOOD, total=Mix(1400, {"mma": 64}, {16: 8}, {2: 128}))
    assert faults(scattered) == ["stores by width in bytes: {2: 128}"]


def test_same_tile_same_limit():
    config = ImplicitGemmConfig(
        block_m=128, block_n=128, block_k=64, num_warps=8, loop_order="taps_inner", num_stages=2
    )
    a100 = DeviceSpec.get("sm_80")
    assert tile_limit("", None, config, a100) == 175 / 64
    assert tile_limit("", None, replace(config, loop_order="flat"), a100) == 216 / 64
    assert tile_limit("", None, replace(config, block_m=64), a100) is None


def test_another_familys_kernel_is_a_fault():
    """A layer whose heuristic's choice is of another family than the gate's."""
    (finding,) = replace(FORWARD, family="ragged").findings("sm_80", lambda problem: problem == CONV5)
    assert finding.faults == ("the heuristic chose implicit_gemm",)


def test_command(monkeypatch):
    finding = Finding("sm_80", "implicit_gemm", "conv4", "128x128x64", GOOD, 2.656, 2.7, "MMA", ())
    monkeypatch.setattr(static_gate, "findings", lambda family, archs: [finding] if family == "implicit_gemm" else [])
    result = CliRunner().invoke(static_gate.main, [])
    assert result.exit_code == 0
    assert "64 MMA of  170, 2.66 per MMA (<= 2.70), loads 8x16B, stores 8x16B: ok" in result.stdout
    faulty = replace(finding, faults=("spills",))
    monkeypatch.setattr(static_gate, "findings", lambda family, archs: [faulty])
    result = CliRunner().invoke(static_gate.main, ["--json", "--family", "weight_grad"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)[0]["faults"] == ["spills"]
