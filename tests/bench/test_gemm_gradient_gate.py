"""Gradients of AlexNet and ResNeXt layers compile well by default; the gate can fail."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from grouped_conv.bench.gates.families import findings
from grouped_conv.bench.gates.findings import EVERY_RUN
from grouped_conv.bench.gates.implicit_gemm import INPUT_GRAD, INPUT_GRAD_TILES, WEIGHT_GRAD, WEIGHT_GRAD_TILES
from grouped_conv.bench.gates.rules import EPILOGUES
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.problem import ConvProblem

SWEPT = [pytest.param(arch, "bfloat16", marks=pytest.mark.sweep) for arch in ("sm_90", "gfx942", "sm_100")]
A100 = DeviceSpec.get("sm_80")


@pytest.mark.full
@pytest.mark.parametrize(
    ("arch", "dtype"),
    [("sm_80", "float16"), ("sm_80", "bfloat16"), ("sm_90", "float16"), ("gfx942", "float16"), *SWEPT],
)
def test_compiles_well(arch: str, dtype: str) -> None:
    assert_compiles_well(arch, lambda problem: problem.dtype == dtype and problem.epilogue not in EPILOGUES[2:])


@pytest.mark.sweep
@pytest.mark.parametrize("arch", [*EVERY_RUN, "sm_100"])
def test_compiles_well_with_every_epilogue(arch: str) -> None:
    assert_compiles_well(arch, lambda problem: problem.epilogue in EPILOGUES[2:])


def assert_compiles_well(arch: str, wanted: Callable[[ConvProblem], bool]) -> None:
    found = [finding for family in ("input_grad", "weight_grad") for finding in findings(family, [arch], wanted)]
    assert len(found) >= 12
    faults = [str(finding) for finding in found if finding.faults]
    assert not faults, "\n".join(faults)


@pytest.mark.full
def test_the_gate_can_fail() -> None:
    config, limit = INPUT_GRAD_TILES[0].config, INPUT_GRAD_TILES[0].limits["sm_80"]
    problem = INPUT_GRAD.layers["conv4"]
    assert not INPUT_GRAD.judge("conv4", problem, config, A100, limit).faults
    assert "at most" in INPUT_GRAD.judge("conv4", problem, config, A100, 0.5 * limit).faults[0]
    narrow = replace(problem, layout=replace(problem.layout, in_channels=384, out_channels=382))
    found = INPUT_GRAD.judge("odd", narrow, replace(config, loop_order="flat"), A100)
    assert any("loads" in fault for fault in found.faults)


def test_narrow_loads_are_found_among_those_of_a_table() -> None:
    table, limits = next((tile.config, tile.limits) for tile in WEIGHT_GRAD_TILES if tile.config.pixel_table)
    problem = WEIGHT_GRAD.layers["conv4"]
    good = WEIGHT_GRAD.judge("conv4", problem, table, A100, limits["sm_80"])
    assert good.figure is not None
    assert good.figure <= limits["sm_80"]
    assert not good.faults
    narrow = replace(problem, layout=replace(problem.layout, in_channels=376))
    assert any("loads" in fault for fault in WEIGHT_GRAD.judge("94 groups of 4", narrow, table, A100).faults)
