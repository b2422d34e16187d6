"""Search space, cost model and heuristic: hand-computed cases, and laws over random problems."""

import math
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grouped_conv.autotune.machine_code.instructions import Mix
from grouped_conv.autotune.machine_code.resources import Resources
from grouped_conv.autotune.model.families import predict
from grouped_conv.autotune.model.heuristic import choose
from grouped_conv.autotune.model.implicit_gemm import forward_cost as implicit_gemm_cost
from grouped_conv.autotune.model.implicit_gemm import forward_terms as cost_terms
from grouped_conv.autotune.model.implicit_gemm.forward_axes import axes, candidates
from grouped_conv.autotune.model.implicit_gemm.forward_defaults import LAST_RESORT
from grouped_conv.autotune.model.shared import prediction
from grouped_conv.autotune.model.shared.machine import DRAM_SHARE, l2_rate, machine_of, resident_programs
from grouped_conv.autotune.workloads.named import workload
from grouped_conv.kernels import ConvProblem, DeviceSpec, ImplicitGemmConfig
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.implicit_gemm.forward_rules import tiles

A100, H100, MI300X = (DeviceSpec.get(name) for name in ("a100", "h100", "mi300x"))
ALEXNET = workload("alexnet")
TILE = ImplicitGemmConfig(block_m=128, block_n=64, block_k=64, num_warps=4, num_stages=3, loop_order="channels_inner")


@st.composite
def problems(draw):
    groups = draw(st.sampled_from((1, 2, 3, 32)))
    c_per_group, k_per_group = draw(st.integers(1, 80)), draw(st.integers(1, 80))
    kernel = draw(st.tuples(st.integers(1, 11), st.integers(1, 11)))
    size = draw(st.tuples(st.integers(11, 60), st.integers(11, 60)))
    return ConvProblem.of(
        (draw(st.sampled_from((0, 1, 2, 33, 512))), groups * c_per_group, *size),
        (groups * k_per_group, c_per_group, *kernel),
        stride=draw(st.integers(1, 4)),
        padding=draw(st.integers(0, 5)),
        groups=groups,
        dtype=draw(st.sampled_from(("float16", "bfloat16", "float32"))),
        channels_last=draw(st.booleans()),
        precision=draw(st.sampled_from(("ieee", "tf32"))),
    )


# ---- space


def test_candidates_pass_the_predicate_and_the_rest_have_reasons():
    space = candidates(ALEXNET["conv4"], H100)
    assert len(set(space.configs)) == len(space.configs) > 500
    assert all(why_invalid(ALEXNET["conv4"], config, H100) is None for config in space.configs)
    everything = sum(1 for _ in axes(ALEXNET["conv4"], H100).configs())
    assert everything == len(space.configs) + space.rejected.total()
    assert any("shared memory" in reason for reason in space.rejected)
    assert not any(character.isdigit() for reason in space.rejected for character in reason if "#" in reason)


def test_space_is_the_same_every_time():
    assert candidates(ALEXNET["conv5"], MI300X).configs == candidates(ALEXNET["conv5"], MI300X).configs


def test_axes_follow_the_problem():
    conv4 = ALEXNET["conv4"]
    assert axes(conv4, H100).split_k == (1,)
    assert max(axes(replace(conv4, batch=1), H100).split_k) > 8
    narrow = ConvProblem.of((8, 64, 14, 14), (40, 8, 1, 1), groups=8)
    assert axes(narrow, H100).block_n == (16,)
    assert axes(narrow, H100).block_k == (16,)
    assert axes(narrow, H100).loop_order == ("flat", "channels_inner")
    assert axes(conv4, MI300X).cache_a == ("",)


# ---- cost model, by hand


def test_tensor_clocks_are_peak_rate():
    # A100: 312e12 / (108 * 1.41e9) = 2049 FLOP per clock and SM; a 128x64x64 trip has 2 * 524288
    assert cost_terms.tensor_clocks(ALEXNET["conv4"], TILE, A100, machine_of(A100)) == pytest.approx(512, rel=0.01)
    assert cost_terms.tensor_clocks(ALEXNET["conv4"], TILE, H100, machine_of(H100)) == pytest.approx(256, rel=0.01)
    two_warps = replace(TILE, num_warps=2)  # no warp group: Hopper falls back to register operands at 0.62 of the peak
    assert cost_terms.tensor_clocks(ALEXNET["conv4"], two_warps, H100, machine_of(H100)) == pytest.approx(413, rel=0.01)


def test_shared_memory_clocks():
    conv4 = ALEXNET["conv4"]
    # 4 warps below each other on A100: each reads 32 + 64 rows of 128 bytes; both tiles are written once: 24 KiB
    assert cost_terms.warp_grid(TILE) == (4, 1)
    assert cost_terms.warp_grid(replace(TILE, block_n=128)) == (2, 2)
    assert cost_terms.shared_clocks(conv4, TILE, "mma", False) == (4 * 96 * 128 + 24576) / 128
    # wgmma: two instructions of 64 rows, each with all 64 columns
    assert cost_terms.shared_clocks(conv4, TILE, "wgmma", False) == (2 * 128 * 128 + 24576) / 128
    through_l1 = cost_terms.shared_clocks(conv4, TILE, "wgmma", True)
    assert through_l1 == (2 * 128 * 128 + 24576 + 16384) / 128


def test_padding_efficiency_counts_every_dimension():
    conv2 = ALEXNET["conv2"]  # M = 93312, N = 128, K = 1200
    flat = replace(TILE, block_n=128, loop_order="flat")
    assert implicit_gemm_cost.padding_efficiency(conv2, flat) == pytest.approx(1200 / 1216)
    conv4 = ALEXNET["conv4"]  # M = 21632 = 169 * 128, N = 192, K = 1728 = 27 * 64
    assert implicit_gemm_cost.padding_efficiency(conv4, TILE) == 1.0
    assert implicit_gemm_cost.padding_efficiency(conv4, replace(TILE, block_n=128)) == 0.75
    assert implicit_gemm_cost.padding_efficiency(conv4, replace(TILE, block_m=256)) == pytest.approx(21632 / (85 * 256))


def test_wave_efficiency():
    assert prediction.wave_efficiency(108, A100) == 1.0
    assert prediction.wave_efficiency(109, A100) == pytest.approx(109 / 216)
    assert predict(ALEXNET["conv4"], TILE, A100).wave_efficiency == pytest.approx(1014 / 1080)


def test_floor_is_the_roofline():
    conv4 = ALEXNET["conv4"]
    assert prediction.floor_us(conv4, A100) == pytest.approx(2 * 112_140_288 * 128 / 312e12 * 1e6)
    thin = ConvProblem.of((128, 64, 56, 56), (64, 1, 1, 1), groups=64)
    assert prediction.floor_us(thin, A100) == pytest.approx(thin.min_bytes / 2039e9 * 1e6)


def test_occupancy_is_the_tightest_limit():
    programs = resident_programs
    assert programs(4, A100, shared=81920 - 1024, registers=64) == 2  # 164 KiB of shared memory
    assert programs(4, A100, shared=0, registers=255) == 2  # 65536 / (256 * 128)
    assert programs(4, A100, shared=0, registers=16) == 16  # 64 warps
    assert programs(4, A100, shared=200_000, registers=16) == 1


def test_l1_keeps_the_input_between_taps():
    conv4 = ALEXNET["conv4"]
    machine = machine_of(H100)
    cached = replace(TILE, cache_a=".ca", loop_order="taps_inner")
    hit = cost_terms.l1_hit_rate(conv4, cached, H100, machine, 73728, 1)
    assert 0.6 < hit < 8 / 9  # at best one read in nine goes to L2; the halo and the tile's edges cost some
    assert cost_terms.l1_hit_rate(conv4, TILE, H100, machine, 73728, 1) == 0
    assert cost_terms.l1_hit_rate(conv4, cached, H100, machine, 255_000, 1) < hit / 2  # 6 KB are left


def test_passes_and_launches_are_counted():
    conv4 = ALEXNET["conv4"]
    plain = predict(conv4, TILE, A100)
    packed = predict(replace(conv4, input_channels_last=False, weight_channels_last=False), TILE, A100)
    assert plain.terms["passes"] == 0
    assert plain.terms["launch"] == prediction.LAUNCH_US
    assert packed.terms["launch"] == 3 * prediction.LAUNCH_US
    moved = 2 * 2 * (math.prod(conv4.input_shape) + math.prod(conv4.weight_shape))
    assert packed.terms["passes"] == pytest.approx(moved / (DRAM_SHARE * 2039e9) * 1e6)
    one = replace(conv4, batch=1)
    split = predict(one, replace(TILE, split_k=9), A100)
    assert split.terms["launch"] == 2 * prediction.LAUNCH_US
    assert split.terms["passes"] == pytest.approx(4 * 9 * 169 * 384 / (35.5 * 108 * 1.41e9) * 1e6)


def test_no_bytes_before_the_first_load():
    wide = ConvProblem.of((128, 256, 56, 56), (64, 256, 1, 1))  # bound by its bytes
    found = predict(wide, TILE, A100)
    assert found.bound == "dram"
    assert found.terms["dram"] == pytest.approx(wide.min_bytes / (DRAM_SHARE * 2039e9) * 1e6)
    edges = implicit_gemm_cost.EDGE_LATENCY / 1410
    assert found.us == pytest.approx(found.terms["dram"] + edges + prediction.LAUNCH_US)


def test_pixels_miss_l2_once():
    conv4 = ALEXNET["conv4"]
    pointwise = ConvProblem.of((128, 192, 13, 13), (192, 192, 1, 1))
    assert cost_terms.load_latency(pointwise, TILE, machine_of(A100)) == 570
    latency = cost_terms.load_latency(conv4, TILE, machine_of(A100))  # of 9 taps, most hit
    assert 260 < latency < 260 + (570 - 260) / 3


def test_narrow_loads_are_waited_for():
    one = replace(ALEXNET["conv1"], batch=1)  # 3 channels: 2 bytes at a time, loaded in the trip that multiplies them
    deep, shallow = (predict(one, replace(TILE, loop_order="flat", num_stages=stages), A100) for stages in (4, 2))
    assert deep.us == shallow.us
    wide = replace(ALEXNET["conv5"], batch=1)
    assert predict(wide, replace(TILE, num_stages=4), A100).us < predict(wide, replace(TILE, num_stages=2), A100).us


def test_the_last_turn_has_l2_to_itself():
    machine = machine_of(A100)
    assert l2_rate(A100) == pytest.approx(35.5 * 108)
    wide = ConvProblem.of((1, 4096, 64, 64), (4096, 4096, 1, 1))

    def l2_us(programs):
        return implicit_gemm_cost.gemm_terms(wide, TILE, A100, machine, programs, None)["l2"]

    one = l2_us(108)
    assert l2_us(216) == pytest.approx(2 * one)
    assert l2_us(108 + 54) == pytest.approx(one * (1 + 35.5 / 64))  # half of them: as much as a port takes
    assert l2_us(108 + 100) == pytest.approx(one * (1 + 100 / 108))


def test_compiled_figures_replace_the_estimates():
    loop = Mix(400, {"mma": 64})
    resources = Resources(120, 0, 49152, Mix(1400, {"mma": 64}), loop)
    slow = predict(ALEXNET["conv4"], TILE, A100, resources)
    half = Resources(120, 0, 49152, Mix(1200, {"mma": 64}), Mix(200, {"mma": 64}))
    fast = predict(ALEXNET["conv4"], TILE, A100, half)
    assert slow.terms["issue"] == pytest.approx(2 * fast.terms["issue"])
    unrolled = Resources(120, 0, 49152, Mix(1400, {"mma": 128}), Mix(400, {"mma": 128}))
    twice = predict(ALEXNET["conv4"], TILE, A100, unrolled)
    assert twice.terms["issue"] == pytest.approx(fast.terms["issue"])


def test_wasted_products_are_weighed():
    wasteful = predict(ALEXNET["conv4"], replace(TILE, block_n=128, num_warps=8), H100)
    assert wasteful.weighed_us == pytest.approx(1.2 * wasteful.us)
    thrifty = predict(ALEXNET["conv4"], TILE, H100)
    assert thrifty.weighed_us == thrifty.us


@settings(max_examples=60)
@given(problems(), st.sampled_from(DeviceSpec.all()))
def test_predictions_keep_to_their_laws(problem, device):
    if why_invalid(problem, LAST_RESORT, device):
        return
    for config in (choose(problem, device), LAST_RESORT):
        prediction = predict(problem, config, device)
        assert 0 <= prediction.floor_us <= prediction.us * 1.0001
        assert 0 < prediction.padding_efficiency <= 1
        assert 0 <= prediction.wave_efficiency <= 1
        assert all(value >= 0 and math.isfinite(value) for value in prediction.terms.values())


# ---- heuristic


@settings(max_examples=60)
@given(problems(), st.sampled_from(DeviceSpec.all()))
def test_heuristic_always_answers_validly(problem, device):
    if device.arch == "gfx90a" and problem.precision == "tf32":
        with pytest.raises(ValueError, match="TF32"):
            choose(problem, device)
        return
    config = choose(problem, device)
    assert why_invalid(problem, config, device) is None
    choose.cache_clear()
    assert choose(problem, device) == config


@pytest.mark.parametrize("device", ["a100", "h100"])
@pytest.mark.parametrize("layer", ["conv2", "conv4", "conv5"])
def test_alexnet_wastes_little(device, layer):
    spec = DeviceSpec.get(device)
    config = choose(ALEXNET[layer], spec)
    prediction = predict(ALEXNET[layer], config, spec)
    assert prediction.padding_efficiency >= 0.95
    assert prediction.wave_efficiency >= 0.75  # conv5 on A100: 170 large tiles in two turns, not 676 in seven
    assert config.loop_order == ("flat" if layer == "conv2" else config.loop_order)


def test_one_image_fills_the_device():
    one = replace(ALEXNET["conv4"], batch=1)
    config = choose(one, A100)
    assert config.split_k > 1
    assert tiles(one, config)[2] >= 0.95 * A100.sm_count


def test_what_no_configuration_can_run():
    with pytest.raises(ValueError, match=r"no kernel can run .* on .* \(packed_groups: .*; depthwise: "):
        choose(ALEXNET["conv4"], A100, frozenset({"depthwise", "packed_groups"}))


def test_nothing_to_do():
    empty = replace(ALEXNET["conv4"], batch=0)
    assert choose(empty, A100) == LAST_RESORT
    assert predict(empty, LAST_RESORT, A100).us == 0
    for direction, groups in product(("input_grad", "weight_grad"), (1, 4, 64)):
        gradient = ConvProblem.of((0, 64, 8, 8), (64, 64 // groups, 3, 3), groups=groups, direction=direction)
        assert predict(gradient, choose(gradient, A100), A100).us >= 0


# ---- workloads


def test_alexnet_is_krizhevskys():
    assert sum(problem.macs for problem in ALEXNET.values()) == 128 * 665_784_864  # with two groups, per image
    weights = sum(math.prod(problem.weight_shape) for problem in ALEXNET.values())
    assert weights == 2_332_704
    assert [problem.groups for problem in ALEXNET.values()] == [1, 2, 1, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("vgg",), "unknown model 'vgg'; known: alexnet"), (("alexnet", 0), "batch"), (("alexnet", 1, "int8"), "int8")],
)
def test_bad_workloads(arguments, message):
    with pytest.raises(ValueError, match=message):
        workload(*arguments)
