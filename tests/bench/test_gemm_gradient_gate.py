"""Gradients of AlexNet and ResNeXt layers compile well by default; the gate can fail."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from grouped_conv.bench.gates import implicit_gemm_gradients as gemm_gradient_gate
from grouped_conv.bench.gates.findings import EVERY_RUN
from grouped_conv.bench.gates.gradient_gates import EPILOGUES, PLAIN, RELU
from grouped_conv.bench.gates.implicit_gemm_gradients import LIMITS, judge, layers
from grouped_conv.kernels.gradient_call import gradient_problem
from grouped_conv.kernels.values.epilogue import Epilogue

SWEPT = [pytest.param(arch, "bfloat16", marks=pytest.mark.sweep) for arch in ("sm_90", "gfx942", "sm_100")]


@pytest.mark.full
@pytest.mark.parametrize(
    ("arch", "dtype"),
    [("sm_80", "float16"), ("sm_80", "bfloat16"), ("sm_90", "float16"), ("gfx942", "float16"), *SWEPT],
)
def test_compiles_well(arch: str, dtype: str) -> None:
    assert_compiles_well(arch, dtype, (PLAIN, RELU))


@pytest.mark.sweep
@pytest.mark.parametrize("arch", [*EVERY_RUN, "sm_100"])
def test_compiles_well_behind_every_epilogue(arch: str) -> None:
    assert_compiles_well(arch, "float16", EPILOGUES[2:])


def assert_compiles_well(arch: str, dtype: str, epilogues: Sequence[Epilogue]) -> None:
    found = gemm_gradient_gate.findings([arch], [dtype], epilogues)
    faults = [str(finding) for finding in found if finding.faults]
    assert not faults, "\n".join(faults)


def test_the_gate_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    (config, limit), *_ = LIMITS["sm_80"].items()
    problem = gradient_problem(layers("float16")["conv4"], config.direction)
    assert not judge("sm_80", "conv4", problem, config).faults
    monkeypatch.setitem(LIMITS["sm_80"], config, 0.5 * limit)
    assert "at most" in judge("sm_80", "conv4", problem, config).faults[0]
    narrow = replace(problem, layout=replace(problem.layout, in_channels=384, out_channels=382))
    assert any("loads" in fault for fault in judge("sm_80", "odd", narrow, replace(config, loop_order="flat")).faults)


def test_narrow_loads_are_found_beside_those_of_a_table() -> None:
    table, limit = next((c, lim) for c, lim in LIMITS["sm_80"].items() if getattr(c, "pixel_table", False))
    problem = gradient_problem(layers("float16")["conv4"], table.direction)
    good = judge("sm_80", "conv4", problem, table)
    assert good.figure <= limit
    assert not good.faults
    narrow = replace(problem, layout=replace(problem.layout, in_channels=376))
    assert any("loads" in fault for fault in judge("sm_80", "94 groups of 4", narrow, table).faults)
