"""One kernel or two calls: the planner's truth table, the values, and the policies; no kernel runs here."""

from dataclasses import FrozenInstanceError, replace
from types import SimpleNamespace

import pytest
from played_gpu import PlayedGpu
from separable_cases import RELU, RESIDUAL, SHAPES, block, shape_cases

import grouped_conv
from grouped_conv.autotune.model.fusion import plan_fusion
from grouped_conv.autotune.model.separable.forward import MODEL
from grouped_conv.context.overrides import using_config
from grouped_conv.kernels import ConvProblem, DeviceSpec, Epilogue, ImplicitGemmConfig, KernelConfig
from grouped_conv.kernels.separable.forward_rules import SeparableConfig, slices_of, tiles, why_invalid, why_not_on
from grouped_conv.kernels.separable.problem import SeparableProblem
from grouped_conv.planning import decisions
from grouped_conv.planning.decisions import Conditions
from grouped_conv.planning.executors import DriverExecutor, InterpreterExecutor, Place
from grouped_conv.planning.separable import SEPARABLE, two_calls

H100 = DeviceSpec.get("h100")


@pytest.mark.parametrize(
    ("problem", "device", "fused"),
    [
        (block((32, 192, 28, 28), (192, 1, 3, 3), 32, RELU), "h100", True),
        (block((32, 144, 56, 56), (144, 1, 3, 3), 32, RELU, stride=2), "a100", True),
        (block((32, 576, 14, 14), (576, 1, 3, 3), 96, RELU), "h100", True),
        (block((32, 512, 7, 7), (512, 64, 3, 3), 2048, RELU, RELU), "h100", False),
        (block((32, 512, 7, 7), (512, 64, 3, 3), 2048, RELU, RELU), "a100", False),
        (block((32, 512, 14, 14), (512, 512, 3, 3), 2048, RELU, RELU), "h100", False),
    ],
)
def test_truth_table(problem: SeparableProblem, device: str, fused: bool) -> None:
    found = plan_fusion(problem, DeviceSpec.get(device))
    assert found.is_fused == fused, found.reason
    assert found.reason.startswith("fused: predicted" if fused else "two calls: predicted")
    assert "MB less memory traffic" in found.reason
    if fused:
        assert found.config is not None and why_not_on(problem, found.config, DeviceSpec.get(device)) is None
    else:
        assert "the first convolution would be computed" in found.reason


def test_a_device_with_little_shared_memory_says_so() -> None:
    small = replace(H100, shared_per_block=1024)
    found = plan_fusion(block((1, 64, 8, 8), (64, 64, 3, 3), 64, RELU), small)
    assert not found.is_fused
    assert found.fused is None
    assert "shared memory" in found.reason


def test_the_first_convolution_is_counted_once_per_tile_of_output_channels() -> None:
    problem = block((8, 64, 28, 28), (64, 4, 3, 3), 256, RELU)
    wide, narrow = (SeparableConfig(block_m=64, block_n=n, width=32, num_warps=8) for n in (256, 64))
    assert tiles(problem, narrow)[1] == 4 * tiles(problem, wide)[1]
    assert MODEL.predict(problem, narrow, H100).terms["issue"] > 2 * MODEL.predict(problem, wide, H100).terms["issue"]


def test_predictions_are_positive_and_floored() -> None:
    for _, problem in SHAPES:
        for config in MODEL.defaults(problem, H100):
            if why_invalid(problem, config) is None:
                found = MODEL.predict(problem, config, H100)
                assert found.us > found.floor_us > 0
                assert 0 < found.padding_efficiency <= 1


def test_every_shape_has_a_configuration_everywhere() -> None:
    for _, problem in SHAPES:
        for name in ("a100", "h100", "mi300x", "l4"):
            device = DeviceSpec.get(name)
            assert any(why_invalid(problem, c) is None and why_not_on(problem, c, device) is None
                       for c in MODEL.defaults(problem, device)), (problem, name)  # fmt: skip
    space = MODEL.ranked(SHAPES[9][1], H100)
    assert len(space) == len(set(space)) > 20


def test_slices_cover_the_channels_once() -> None:
    for case in shape_cases():
        problem, cut = case.problem, slices_of(case.problem, case.config)
        first = problem.first
        if case.config.method == "direct":
            assert (cut.count - 1) * cut.tile < problem.mid_channels <= cut.count * cut.tile
        elif cut.pack > 1:
            assert cut.pack * first.k_per_group <= cut.tile and cut.pack * first.c_per_group <= cut.depth
            assert (cut.count - 1) * cut.pack < first.groups <= cut.count * cut.pack
        else:
            assert cut.count == first.groups * cut.parts and cut.parts * cut.tile >= first.k_per_group
            assert cut.steps * cut.depth >= first.c_per_group


def test_problem_is_a_value() -> None:
    problem = block((2, 24, 7, 6), (48, 4, 3, 3), 20, RELU, RESIDUAL, dtype="bfloat16")
    assert SeparableProblem.from_json(problem.to_json()) == problem
    assert hash(SeparableProblem.from_json(problem.to_json())) == hash(problem)
    assert "then 1x1 K=20 scale+bias+residual+relu" in str(problem)
    assert problem.output_shape == (2, 20, 7, 6)
    assert problem.macs == 2 * 42 * (48 * 4 * 9 + 48 * 20)
    assert problem.min_bytes == problem.first.min_bytes + problem.second.min_bytes - 2 * 2 * 2 * 42 * 48
    with pytest.raises(FrozenInstanceError):
        problem.out_channels = 3  # type: ignore[misc]


def test_problem_refuses_what_it_cannot_mean() -> None:
    first = ConvProblem.of((1, 8, 4, 4), (8, 1, 3, 3), padding=1, groups=8)
    for values, message in (
        ((first, 0), "positive integer, but got 0"),
        ((replace(first, epilogue=Epilogue(residual=True)), 8), "cannot have the epilogue residual"),
        ((first, 8, Epilogue("silu", save_preactivation=True)), "save its preactivation"),
    ):
        with pytest.raises(ValueError, match=message):
            SeparableProblem(*values)


def test_configuration_is_a_value_and_refuses() -> None:
    config = SeparableConfig(block_m=64, block_n=32, width=16, method="direct", num_warps=8)
    assert KernelConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="width 24 must be one of"):
        SeparableConfig(width=24)
    with pytest.raises(ValueError, match="method 'fft'"):
        SeparableConfig(method="fft")
    thin = block((1, 8, 4, 4), (8, 2, 3, 3), 8)
    assert "C_PER_GROUP=2" in str(why_invalid(thin, config))
    assert "shuffles" in str(why_invalid(replace(thin, epilogue=Epilogue(shuffle=2)), SeparableConfig()))
    assert "sums per thread" in str(why_not_on(thin, SeparableConfig(block_m=128, block_n=128), H100))
    rounded = block((1, 8, 4, 4), (8, 2, 3, 3), 8, dtype="float32", precision="tf32")
    assert "tf32" in str(why_not_on(rounded, SeparableConfig(block_n=16), DeviceSpec.get("gfx90a"))).lower()


def decide(problem: SeparableProblem, backend: str = "auto", executor: object = None) -> tuple:
    decision = decisions.decide(problem, Conditions.of(Place(executor), backend), SEPARABLE)  # type: ignore[arg-type]
    reason = decision.reason if decision.config is not None else two_calls(decision.reason)
    return decision.config, reason, decision.source


def test_decisions() -> None:
    problem = block((8, 96, 28, 28), (96, 1, 3, 3), 24, RELU)
    interpreter = InterpreterExecutor("h100-sxm")
    assert decide(problem)[:2] == (None, "two calls: the tensors are on the CPU, outside grouped_conv.interpret()")
    assert decide(problem, "aten", executor=interpreter)[1] == "two calls: backend='aten' was asked for"
    config, reason, source = decide(problem, executor=interpreter)
    assert isinstance(config, SeparableConfig) and reason.startswith("fused: predicted") and source == "predicted"
    given = SeparableConfig(block_m=64, block_n=32, width=16)
    with using_config(given):
        assert decide(problem, executor=interpreter) == (given, "a configuration was given", "given")
    with using_config(replace(given, method="direct")), pytest.raises(ValueError, match="cannot run"):
        decide(block((1, 8, 8, 8), (8, 2, 3, 3), 8), executor=interpreter)
    with using_config(ImplicitGemmConfig()):
        assert "implicit_gemm" in decide(problem, executor=interpreter)[1]
    native = SimpleNamespace(get_current_target=lambda: SimpleNamespace(backend="cpu_native", arch="avx512"))
    assert decide(problem, executor=DriverExecutor(native))[0] is not None


def test_on_a_gpu_only_policy_kernels_follows_the_planner() -> None:
    problem = block((8, 96, 28, 28), (96, 1, 3, 3), 24, RELU)
    gpu = PlayedGpu(H100)
    for policy in ("measured", "predicted"):
        with grouped_conv.policy(policy):
            config, reason, _ = decide(problem, executor=gpu)
            assert config is None
            assert reason.startswith(f"two calls: under policy '{policy}' a kernel must have records")
            assert "the planner, for h100-sxm: fused: predicted" in reason
            assert decide(problem, "kernel", gpu)[0] is not None
    with grouped_conv.policy("kernels"):
        assert decide(problem, executor=gpu)[0] is not None
    assert "no device of this GPU's architecture" in decide(problem, executor=PlayedGpu(None))[1]


def test_planning_is_pure_and_quick() -> None:
    problem = block((16, 192, 28, 28), (192, 1, 3, 3), 32, RELU)
    plan_fusion.cache_clear()
    assert plan_fusion(problem, H100) == plan_fusion(problem, H100)
