"""`--explain-space`: every family's configurations and those it leaves out are counted, each once, with its reason."""

from dataclasses import replace

import pytest

from grouped_conv.autotune.model import native_lane
from grouped_conv.autotune.model.families import models_for
from grouped_conv.autotune.model.shared.model import SPILLS
from grouped_conv.autotune.search.search_space import explain, search_space
from grouped_conv.autotune.workloads.named import in_directions, workload
from grouped_conv.kernels import ConvProblem, DeviceSpec, GroupLayout
from grouped_conv.kernels.families import FAMILIES, why_invalid
from grouped_conv.kernels.values.problem import DIRECTIONS

CONV4 = workload("alexnet")["conv4"]
FORWARD = {
    "wide": CONV4,
    "thin": ConvProblem.of((8, 64, 14, 14), (64, 4, 3, 3), padding=1, groups=16),
    "depthwise": ConvProblem.of((8, 64, 14, 14), (64, 1, 5, 5), padding=2, groups=64),
    "ragged": replace(CONV4, layout=GroupLayout.log_series(256, 256, 4), batch=3),
}
PROBLEMS = in_directions(FORWARD, DIRECTIONS)
DEVICES = [DeviceSpec.get(name) for name in ("h100", "mi300x")]


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.key)
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_configuration_is_counted_once(name, device):
    problem = PROBLEMS[name]
    kept = set(search_space(problem, device).configs)
    found = explain(problem, device)
    rows = FAMILIES.items()  # of the other kind of groups, too: they say why they have nothing to offer
    assert set(found) == {
        name for name, row in rows if row.problem is ConvProblem and row.direction == problem.direction
    }
    models = models_for(problem)
    for family, (count, reasons) in found.items():
        thought_of = {config for config, _ in models[family].space(problem, device)} if family in models else set()
        mine = {config for config in kept if config.family == family}
        assert count == len(mine)
        assert count + sum(reasons.values()) == len(mine | thought_of), family
    assert sum(count for count, _ in found.values()) == len(kept) > 10


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.key)
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_reason_is_the_predicates_or_says_what_else(name, device):
    problem, other = PROBLEMS[name], set()
    for family, model in models_for(problem).items():
        space = dict(model.space(problem, device))
        assert {config for config, reason in space.items() if reason is None} == set(model.ranked(problem, device))
        for config, reason in space.items():
            invalid = why_invalid(problem, config, device)
            assert reason is not None or invalid is None, (family, config)
            if reason != invalid:
                other.add(reason)
    assert {reason.partition(" need ")[0] for reason in other} <= {
        SPILLS,
        "2 warps are for small tiles",
        "8 warps are for large tiles",
        "one channel tile: nothing to swizzle",
        "one channel block: taps_inner walks as channels_inner does",
        "the model is indifferent to swizzle_m and static_trips",
        "its tile is not among the 40 best with plain knobs",
        "resident weights of one step are read once anyway",
        "its splits",
    }


def test_a_family_that_is_not_meant_for_a_problem_says_so():
    found = explain(FORWARD["wide"], DEVICES[0])
    for family in ("depthwise", "ragged", "packed_groups"):
        ((reason, count),) = found[family][1].items()
        assert (found[family][0], count) == (0, 0)
        assert reason == why_invalid(FORWARD["wide"], FAMILIES[family].config())


def test_numbers_are_counted_together_and_names_kept():
    reasons = explain(workload("alexnet")["conv5"], DeviceSpec.get("h100"))["implicit_gemm"][1]
    assert any("h100-sxm" in reason for reason in reasons)
    assert any("# bytes" in reason for reason in reasons)
    assert not any(digit in reason.replace("h100-sxm", "") for reason in reasons for digit in "0123456789")


def test_the_heuristics_choice_is_not_counted_as_left_out(monkeypatch):
    problem, device = FORWARD["thin"], DEVICES[0]
    family, model = "packed_groups", models_for(problem)["packed_groups"]
    before_count, before = explain(problem, device)[family]
    spilling = next(config for config, reason in model.space(problem, device) if reason == SPILLS)
    monkeypatch.setattr("grouped_conv.autotune.search.search_space.choose", lambda *arguments: spilling)
    search_space.cache_clear()
    count, reasons = explain(problem, device)[family]
    search_space.cache_clear()
    assert (count, reasons[SPILLS]) == (before_count + 1, before[SPILLS] - 1)


def test_the_native_lane_has_a_space_of_its_own():
    found = explain(FORWARD["thin"], native_lane.DEVICE)
    assert sum(count for count, _ in found.values()) == len(search_space(FORWARD["thin"], native_lane.DEVICE).configs)
    assert not any(sum(reasons.values()) for _, reasons in found.values())
