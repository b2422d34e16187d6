"""Tuning of ragged problems: what the model predicts, what the heuristic and the shortlist offer, what compiles."""

from dataclasses import replace

import pytest
from ragged_cases import LAYOUTS
from ragged_oracle import ragged_problem

from grouped_conv.autotune import choose, predict
from grouped_conv.autotune.model.families import models_for
from grouped_conv.autotune.model.ragged.forward import LAST_RESORT, MODEL, padding_efficiency
from grouped_conv.autotune.search.shortlist import shortlist
from grouped_conv.bench.gates.families import GATES, findings
from grouped_conv.bench.gates.findings import EVERY_RUN, SWEEP
from grouped_conv.kernels import ConvProblem, DeviceSpec, GroupLayout, ImplicitGemmConfig
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.ragged.forward_rules import RaggedConfig, tiles

DEVICES = [DeviceSpec.get(name) for name in ("a100", "h100", "mi300x", "b200", "l4")]
SERIES = ragged_problem(GroupLayout.log_series(128, 256, 4), (28, 28), batch=32, padding=(1, 1, 1, 1))


@pytest.mark.full
@pytest.mark.parametrize("arch", [*EVERY_RUN, *(pytest.param(arch, marks=pytest.mark.sweep) for arch in SWEEP)])
def test_compiles_well(arch: str) -> None:
    """At alignment 8 the loop is within 5 % of the uniform flat one; no layout spills at its default."""
    found = list(findings("ragged", [arch]))
    assert len(found) == 1 + len(GATES["ragged"][0].layers)
    assert {finding.layer: finding.faults for finding in found if finding.faults} == {}
    assert found[-1].limit is not None


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.key)
def test_a_prediction_is_above_the_floor_and_has_its_parts(device: DeviceSpec) -> None:
    for layout in LAYOUTS.values():
        problem = ragged_problem(layout, (14, 14), batch=8, padding=(1, 1, 1, 1))
        prediction = predict(problem, choose(problem, device), device)
        assert prediction.us > prediction.floor_us > 0
        assert 0 < prediction.padding_efficiency <= 1
        assert prediction.bound in prediction.terms


def test_one_kind_of_groups_costs_what_the_uniform_kernel_does() -> None:
    """Overlapping groups of a width that a uniform problem also has: the same programs, so the same time."""
    device = DeviceSpec.get("a100")
    overlap = GroupLayout.overlapping(96, 256, 2, 56)
    twin = GroupLayout.uniform(112, 256, 2)
    ragged = ragged_problem(overlap, (27, 27), (5, 5), batch=32, padding=(2, 2, 2, 2))
    config = RaggedConfig(block_m=128, block_n=128, block_k=64, num_warps=8, num_stages=3)
    uniform = ImplicitGemmConfig(block_m=128, block_n=128, block_k=64, num_warps=8, num_stages=3)
    ours, theirs = predict(ragged, config, device), predict(replace(ragged, layout=twin), uniform, device)
    assert ours.us == pytest.approx(theirs.us, rel=0.02)
    assert ours.padding_efficiency == pytest.approx(theirs.padding_efficiency)


def test_padding_counts_rows_columns_and_depth() -> None:
    problem = ragged_problem(GroupLayout.sizes([10, 20], [24, 8]), (8, 8), (1, 1))
    config = RaggedConfig(block_m=64, block_n=16, block_k=16)
    # one pixel tile; two column tiles of one block and one of two blocks
    assert padding_efficiency(problem, config) == problem.macs / (64 * 16 * 16 * (2 * 1 + 1 * 2))
    assert tiles(problem, config) == (1, 3, 3)


def test_a_pack_pass_costs() -> None:
    device = DeviceSpec.get("h100")
    config = choose(SERIES, device)
    plain = predict(SERIES, config, device)
    packed = predict(replace(SERIES, input_channels_last=False), config, device)
    scattered = predict(replace(SERIES, weight_channels_last=False), config, device)
    assert plain.terms["passes"] == 0 < scattered.terms["passes"] < packed.terms["passes"]
    assert packed.us > plain.us


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.key)
def test_defaults_and_candidates_are_valid_and_various(device: DeviceSpec) -> None:
    offered = [config for config in MODEL.defaults(SERIES, device) if why_invalid(SERIES, config, device) is None]
    assert LAST_RESORT in offered and len(offered) > 8
    found = MODEL.ranked(SERIES, device)
    assert len(found) > 50 and len(set(found)) == len(found)
    times = [predict(SERIES, config, device).weighed_us for config in found]
    assert times == sorted(times)
    assert predict(SERIES, choose(SERIES, device), device).weighed_us <= 1.3 * times[0]


def test_uniform_problems_are_left_to_the_others() -> None:
    uniform = ConvProblem.of((8, 64, 14, 14), (64, 16, 3, 3), padding=1, groups=4)
    device = DeviceSpec.get("a100")
    assert "ragged" not in models_for(uniform)
    assert not isinstance(choose(uniform, device), RaggedConfig)


def test_narrow_loads_take_small_steps() -> None:
    """Single channels take one load each: a deep step would spill."""
    odd = ragged_problem(LAYOUTS["odd sizes, alignment 1"], (28, 28), batch=32)
    for config in MODEL.defaults(odd, DeviceSpec.get("a100")):
        assert config.block_m * config.block_k / config.num_warps <= 1024


def test_shortlist_of_a_ragged_problem() -> None:
    chosen = shortlist(SERIES, DeviceSpec.get("h100"), 6)
    assert len(chosen) == 6
    assert all(isinstance(config, RaggedConfig) for config in chosen)


def test_an_empty_batch_takes_no_time() -> None:
    empty = replace(SERIES, batch=0)
    assert predict(empty, LAST_RESORT, DeviceSpec.get("a100")).us == 0
