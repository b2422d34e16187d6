"""The gate on compiled code, and that it would notice."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from grouped_conv.autotune.machine_code.instructions import Mix
from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.bench import static_gate
from grouped_conv.bench.gates import implicit_gemm as implicit_gemm_gate
from grouped_conv.bench.gates.findings import EVERY_RUN, SWEEP, Finding, figure_fault, resource_faults, width_fault
from grouped_conv.bench.gates.implicit_gemm import EXCEPTED
from grouped_conv.kernels import DeviceSpec, ImplicitGemmConfig


@pytest.mark.full
@pytest.mark.parametrize("arch", [*EVERY_RUN, *(pytest.param(arch, marks=pytest.mark.sweep) for arch in SWEEP)])
def test_alexnet_compiles_well_by_default(arch):
    findings = list(implicit_gemm_gate.default_findings([arch]))
    assert [finding.layer for finding in findings] == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    assert {finding.layer: finding.faults for finding in findings if finding.faults} == {}
    assert [finding.layer for finding in findings if finding.note] == list(EXCEPTED)


@pytest.mark.parametrize("arch", [*EVERY_RUN, *(pytest.param(arch, marks=pytest.mark.sweep) for arch in SWEEP)])
def test_loops_are_no_longer_than_the_prototypes(arch):
    findings = list(implicit_gemm_gate.tile_findings([arch]))
    assert findings
    assert {finding.config: finding.faults for finding in findings if finding.faults} == {}


GOOD = Resources(
    200, 0, 65536, Mix(1400, {"mma": 64}, {16: 8}, {16: 8}), Mix(170, {"mma": 64, "global_load": 8}, {16: 8})
)


def faults(resources, limit=None):
    found = [*resource_faults(resources, DeviceSpec.get("sm_80"))]
    found += implicit_gemm_gate._finding("sm_80", "conv4", ImplicitGemmConfig(), resources, []).faults
    found += width_fault("loads", resources.loop.load_widths if resources.loop else {})
    found += width_fault("stores", resources.total.store_widths)
    return [*found, *figure_fault(resources.loop.per_mma if resources.loop else None, limit, "MMA")]


def test_every_rule_can_fail():
    assert faults(GOOD, 2.7) == []
    assert faults(replace(GOOD, spill_bytes=8)) == ["spills 8 bytes per thread"]
    assert "200000 bytes of shared memory" in faults(replace(GOOD, shared_bytes=200_000))[0]
    assert "at most 2.60 allowed" in faults(GOOD, 2.6)[0]
    assert "nothing to count" in faults(replace(GOOD, loop=None), 2.6)[-1]
    assert "no loop with a tensor-core instruction" in faults(replace(GOOD, loop=None))[0]
    no_mma = replace(GOOD, loop=Mix(170, {"global_load": 8}, {16: 8}))
    assert faults(no_mma) == ["no loop with a tensor-core instruction"]
    narrow = replace(GOOD, loop=Mix(170, {"mma": 64}, {2: 1, 16: 7}))
    assert faults(narrow) == ["loads by width in bytes: {2: 1, 16: 7}"]
    scattered = replace(GOOD, total=Mix(1400, {"mma": 64}, {16: 8}, {2: 128}))
    assert faults(scattered) == ["stores by width in bytes: {2: 128}"]


def test_same_tile_same_limit():
    config = ImplicitGemmConfig(
        block_m=128, block_n=128, block_k=64, num_warps=8, loop_order="taps_inner", num_stages=2
    )
    assert implicit_gemm_gate._limit("sm_80", config) == 175 / 64
    assert implicit_gemm_gate._limit("sm_80", replace(config, loop_order="flat")) == 216 / 64
    assert implicit_gemm_gate._limit("sm_80", replace(config, block_m=64)) is None


def test_command(monkeypatch):
    finding = Finding("sm_80", "implicit_gemm", "conv4", "128x128x64", GOOD, 2.656, 2.7, "MMA", ())
    monkeypatch.setattr(static_gate, "GATES", {"implicit_gemm": lambda archs: iter([finding])})
    result = CliRunner().invoke(static_gate.main, [])
    assert result.exit_code == 0
    assert "64 MMA of  170, 2.66 per MMA (<= 2.70), loads 8x16B, stores 8x16B: ok" in result.stdout
    faulty = replace(finding, faults=("spills",))
    monkeypatch.setattr(static_gate, "GATES", {"implicit_gemm": lambda archs: iter([faulty])})
    result = CliRunner().invoke(static_gate.main, ["--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)[0]["faults"] == ["spills"]
