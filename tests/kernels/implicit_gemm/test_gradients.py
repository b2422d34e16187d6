"""The gradient kernels of equal groups in Triton's interpreter against float64, by name, and bit for bit by order."""

import hypothesis.strategies as st
import pytest
import torch
from case import Case
from gradient_cases import INPUT_CONFIGS, WEIGHT_CONFIGS, cases, conv, fitted, shuffled_cases, table_cases
from gradient_oracle import check_gradient, gradient_tensors, placed, run_bias_gradient, run_gradient
from hypothesis import given, settings
from truth import ORDERS, judge

from grouped_conv.autotune.model import heuristic
from grouped_conv.kernels import ACTIVATIONS, DeviceSpec, Epilogue
from grouped_conv.kernels.gradient_call import capped, gradient_problem, plan_bias_gradient, plan_gradient
from grouped_conv.kernels.implicit_gemm.input_grad_rules import InputGradConfig
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import WeightGradConfig
from grouped_conv.kernels.interpreting.interpreter import interpret_launch

ALL = [*cases(), *shuffled_cases(), *table_cases()]


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.id)
def test_agrees_with_float64(case: Case) -> None:
    judge(case.problem, case.config, interpret_launch, case.id)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_bias_and_residual(activation: str, dtype: str) -> None:
    for shape, weight in (((2, 8, 9, 7), (24, 4, 3, 3)), ((1, 3, 5, 1), (131, 3, 1, 1))):
        shuffle = 3 if weight[0] == 24 else 1
        epilogue = Epilogue(activation, bias=True, residual=True, shuffle=shuffle)
        problem = conv(shape, weight, dtype=dtype, precision="ieee", epilogue=epilogue)
        for wanted in ((True, False), (True, True), (False, True)):
            tensors = gradient_tensors(problem)
            names = dict(zip(("grad_bias", "grad_residual"), wanted, strict=True))
            run_bias_gradient(problem, tensors, interpret_launch, **names)
            for name, want in names.items():
                if want:
                    check_gradient(problem, tensors, name.removeprefix("grad_"))


@pytest.mark.parametrize("case", ALL[::7], ids=lambda case: case.id)
def test_the_order_of_programs_changes_no_bit(case: Case) -> None:
    """Every program writes places of its own, and sums are added in a fixed order."""
    name = f"grad_{case.config.direction.removesuffix('_grad')}"
    first, *others = (judge(case.problem, case.config, run, case.id)[0][name] for run in ORDERS)
    assert all(torch.equal(first, other) for other in others)


@given(st.data())
@settings(max_examples=25)
def test_random_problems_and_the_adjoint_identity(data: st.DataObject) -> None:
    """<conv(x, w), y> = <x, input_grad(y)> = <w, weight_grad(y)> for integers, exactly."""
    draw = data.draw
    groups, c, k = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    stride, dilation = draw(st.sampled_from([1, 2, 3, 4])), draw(st.integers(1, 3))
    padding = draw(st.integers(0, 2))
    size = [draw(st.integers(max(1, dilation * (n - 1) + 1 - 2 * padding), 12)) for n in kernel]
    problem = conv(
        (draw(st.integers(1, 2)), groups * c, *size), (groups * k, c, *kernel), stride=stride, padding=padding,
        dilation=dilation, dtype="float32", precision="ieee",
    )  # fmt: skip
    tensors = gradient_tensors(problem, draw(st.integers(0, 9)))
    for name in ("input", "weight", "grad_output"):
        tensors[name] = (2 * tensors[name]).round().clamp(-3, 3)
    for config in (INPUT_CONFIGS[0], WEIGHT_CONFIGS[0]):
        direction = config.direction
        run_gradient(gradient_problem(problem, direction), fitted(problem, config), tensors, interpret_launch)
    double = {name: tensor.double() for name, tensor in tensors.items()}
    y = torch.nn.functional.conv2d(double["input"], double["weight"], None, stride, padding, dilation, groups)
    whole = (y * double["grad_output"]).sum()
    assert (double["input"] * double["grad_input"]).sum() == whole
    assert (double["weight"] * double["grad_weight"]).sum() == whole


@given(st.sampled_from([case for case in ALL if case.problem.epilogue.activation == "none"]))
@settings(max_examples=8)
def test_gradients_are_linear(case: Case) -> None:
    """In the output's gradient, exactly: powers of two."""
    name = f"grad_{case.config.direction.removesuffix('_grad')}"
    results = []
    for factor in (1.0, 4.0):
        tensors = gradient_tensors(case.problem)
        tensors["grad_output"] = tensors["grad_output"] * factor
        run_gradient(case.gradient, case.config, tensors, interpret_launch)
        results.append(tensors[name].float())
    torch.testing.assert_close(4 * results[0], results[1], rtol=0, atol=2.0**-14)


@pytest.mark.parametrize("memory", ["NCHW results", "KCRS weight", "wide strides"])
def test_memory_layouts(memory: str) -> None:
    """Results at any strides; a KCRS weight is packed, its gradient written as KCRS; pixels with gaps between them."""
    problem = conv((2, 16, 6, 5), (32, 8, 3, 3), padding=1, weight_channels_last=memory != "KCRS weight")
    tensors = gradient_tensors(problem)
    if memory == "NCHW results":
        tensors["grad_input"] = torch.full(problem.input_shape, float("nan"), dtype=torch.float16)
    if memory == "wide strides":
        for name in ("grad_output", "input"):
            wide = torch.randn(2, 48, 6, 5).half().contiguous(memory_format=torch.channels_last)
            tensors[name] = wide[:, 8 : 8 + tensors[name].shape[1]]
    for config in (InputGradConfig(block_m=32, block_n=16, block_k=16), WEIGHT_CONFIGS[0]):
        gradient = gradient_problem(problem, config.direction)
        launches = plan_gradient(gradient, config, placed(tensors)).launches
        assert (launches[0].name == "pack_channels_last") == (memory == "KCRS weight" and config.family == "input_grad")
        run_gradient(gradient, config, tensors, interpret_launch)
        check_gradient(problem, tensors, config.direction.removesuffix("_grad"), memory)


def test_bad_requests_are_refused() -> None:
    problem = conv((1, 16, 5, 5), (16, 16, 3, 3))
    inputs, weights = gradient_problem(problem, "input_grad"), gradient_problem(problem, "weight_grad")
    with pytest.raises(ValueError, match="not the direction weight_grad"):
        plan_gradient(weights, InputGradConfig())
    with pytest.raises(ValueError, match="not the direction input_grad"):
        plan_gradient(inputs, WeightGradConfig())
    with pytest.raises(ValueError, match="16 output channels divisible by block_k=64"):
        plan_gradient(inputs, InputGradConfig(loop_order="channels_inner"))
    with pytest.raises(ValueError, match=r"splits=9 are more than the 1 steps of 32 pixels"):
        plan_gradient(weights, WeightGradConfig(splits=9))
    with pytest.raises(ValueError, match="no scale whose gradient"):
        plan_gradient(weights, WeightGradConfig(), grad_scale=True)
    tensors = gradient_tensors(problem)
    tensors["grad_output"] = tensors["grad_output"].contiguous()
    with pytest.raises(ValueError, match="grad_output must have its channels innermost"):
        plan_gradient(inputs, InputGradConfig(), placed(tensors))
    with pytest.raises(ValueError, match="computes the forward direction, not the direction input_grad"):
        plan_gradient(inputs, heuristic.choose(problem, DeviceSpec.get("a100")))


@pytest.mark.parametrize("device", ["a100", "h100", "mi300x"])
def test_there_is_always_a_default(device: str) -> None:
    spec = DeviceSpec.get(device)
    for case in ALL:
        config = heuristic.choose(case.gradient, spec)
        assert config.direction == case.config.direction


def test_a_small_workspace_is_honoured() -> None:
    problem = gradient_problem(conv((8, 64, 28, 28), (64, 32, 3, 3), padding=1), "weight_grad")
    chosen = heuristic.choose(problem, DeviceSpec.get("h100"))
    one = 4 * 64 * 32 * 9
    assert chosen.splits > 4
    for limit in (100 * one, 4 * one, 4 * one - 1, 0):
        splits = capped(problem, chosen, limit).splits
        assert splits == max(1, min(chosen.splits, limit // one))
        call = plan_gradient(problem, capped(problem, chosen, limit))
        assert call.temporaries[0].shape == (splits, 64, 3, 3, 32)


def test_a_table_of_pixels_belongs_to_the_workspace() -> None:
    problem = gradient_problem(conv((8, 64, 28, 28), (64, 32, 3, 3), padding=1), "weight_grad")
    config = WeightGradConfig(block_k=64, splits=6, pixel_table=True)
    one, table = 4 * 64 * 32 * 9, 8 * (8 * 28 * 28 + 64)
    limits = (100 * one, table + 3 * one, table + one, table + one - 1, 0)
    allowed = [capped(problem, config, limit) for limit in limits]
    assert [(c.splits, c.pixel_table) for c in allowed] == [(6, True), (3, True), (1, True), (1, False), (1, False)]  # type: ignore[attr-defined]
    shapes = {t.name: (t.shape, t.dtype) for t in plan_gradient(problem, allowed[1]).temporaries}
    assert shapes == {"workspace": ((3, 64, 3, 3, 32), "float32"), "pixel_table": ((table // 8,), "int64")}


def test_a_table_of_pixels_is_for_kernels_its_words_hold_and_for_32_bit_offsets() -> None:
    config = WeightGradConfig(pixel_table=True)
    for kernel in ((16, 16), (15, 17)):
        large = gradient_problem(conv((1, 16, 20, 20), (16, 8, *kernel)), "weight_grad")
        with pytest.raises(ValueError, match="bits for kernels up to"):
            plan_gradient(large, config)
        assert not heuristic.choose(large, DeviceSpec.get("h100")).pixel_table  # type: ignore[attr-defined]
    wide = gradient_problem(conv((600, 64, 256, 256), (64, 32, 3, 3), padding=1), "weight_grad")
    call = plan_gradient(wide, config)
    assert [launch.name for launch in call.launches] == ["weight_grad", "gradient_reduce"]
    assert [one.name for one in call.temporaries] == ["workspace"]


def test_the_model_takes_a_table_where_there_are_pixels_enough() -> None:
    device = DeviceSpec.get("mi300x")
    for batch in (1, 128):
        problem = gradient_problem(conv((batch, 384, 13, 13), (384, 192, 3, 3), padding=1), "weight_grad")
        assert heuristic.choose(problem, device).pixel_table == (batch == 128)  # type: ignore[attr-defined]


def test_the_bias_pass_fills_the_device() -> None:
    problem = gradient_problem(conv((128, 96, 55, 55), (96, 96, 1, 1)), "weight_grad")
    launch = plan_bias_gradient(problem).launches[0]
    assert launch.grid[0] >= 2 * 108


def test_the_weight_gradient_of_alexnets_conv2_fills_two_waves() -> None:
    """Batch 128 on 108 multiprocessors: a peer launches 20 blocks."""
    problem = gradient_problem(conv((128, 96, 27, 27), (256, 48, 5, 5), padding=2), "weight_grad")
    device = DeviceSpec.get("a100")
    launch = next(
        one for one in plan_gradient(problem, heuristic.choose(problem, device)).launches if one.name == "weight_grad"
    )
    assert launch.grid[0] >= 2 * device.sm_count


@given(st.sampled_from([case for case in ALL if case.problem.epilogue.activation == "none"]))
@settings(max_examples=8)
def test_gradients_are_linear_in_the_other_operand(case: Case) -> None:
    """The input's in the weight, the weight's in the input, exactly: powers of two."""
    direction = case.config.direction.removesuffix("_grad")
    other = "weight" if direction == "input" else "input"
    results = []
    for factor in (1.0, 4.0):
        tensors = gradient_tensors(case.problem)
        tensors[other] = tensors[other] * factor
        run_gradient(case.gradient, case.config, tensors, interpret_launch)
        results.append(tensors[f"grad_{direction}"].float())
    torch.testing.assert_close(4 * results[0], results[1], rtol=0, atol=2.0**-14)
