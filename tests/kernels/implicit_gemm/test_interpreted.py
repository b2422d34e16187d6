"""The real kernels in Triton's interpreter, called as a user calls them, against float64. The path is asserted."""

from dataclasses import replace

import pytest
import torch
from case import Case
from conv_cases import alexnet_layers, all_cases
from conv_oracle import allowance, check_output, convolve, make_tensors, reference, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import grouped_conv
from grouped_conv.kernels import ACTIVATIONS, ConvProblem, Epilogue, ImplicitGemmConfig
from grouped_conv.kernels.families import why_invalid


def expected_launches(problem: ConvProblem, config: ImplicitGemmConfig) -> tuple[str, ...]:
    """Pack passes only for operands whose channels are not innermost, a second pass only for a split reduction."""
    pack_input = not problem.input_channels_last and problem.in_channels > 1
    pack_weight = not problem.weight_channels_last and problem.c_per_group > 1 and problem.taps > 1
    second = config.split_k > 1
    return ("pack_channels_last",) * (pack_input + pack_weight) + ("implicit_gemm",) + ("split_reduce",) * second


def run(problem: ConvProblem, config: ImplicitGemmConfig, tensors: dict[str, Tensor]) -> Tensor:
    """Interpret the problem with `config`; the kernel must have run, with these launches."""
    with grouped_conv.interpret(config), grouped_conv.trace() as calls:
        y = convolve(problem, tensors)
    (call,) = calls
    assert call.path == "implicit_gemm", call
    assert call.config == config
    assert call.launches == expected_launches(problem, config), call
    return y


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.id)
def test_agrees_with_float64(case: Case) -> None:
    problem = replace(case.problem, epilogue=replace(case.problem.epilogue, save_preactivation=False))
    tensors = make_tensors(problem)
    tensors["output"] = run(problem, case.config, tensors)
    check_output(problem, tensors, case.id)


NON_FINITE = (float("inf"), float("-inf"), float("nan"))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("where", ["input", "weight", "bias", "residual"])
def test_infinities_and_nan_come_out_where_torch_puts_them(where: str, activation: str) -> None:
    epilogue = Epilogue(activation, bias=True, residual=True)
    problem = ConvProblem.of(
        (1, 16, 6, 5), (32, 8, 3, 3), padding=1, groups=2, dtype="float32", precision="ieee", epilogue=epilogue
    )
    tensors = make_tensors(problem)
    flat = tensors[where].view(-1) if where == "bias" else tensors[where].permute(0, 2, 3, 1).reshape(-1)
    values = flat.clone()
    values[:: max(1, values.numel() // 3)][:3] = torch.tensor(NON_FINITE)
    if where == "bias":
        tensors[where] = values
    else:
        n, c, h, w = tensors[where].shape
        tensors[where] = values.view(n, h, w, c).permute(0, 3, 1, 2)
    y = run(problem, ImplicitGemmConfig(block_m=32, block_n=16, block_k=16), tensors)
    exact = reference(problem, tensors)
    assert not exact.isfinite().all()
    assert torch.equal(y.isnan(), exact.isnan())
    assert relative_error(y, exact) <= allowance(problem, tensors, exact)


@pytest.mark.full
@settings(max_examples=60)
@given(data=st.data())
def test_random_problems(data: st.DataObject) -> None:
    """Any problem the constructor accepts, in any configuration the predicate accepts."""
    draw = data.draw
    groups, c, k = draw(st.integers(1, 4)), draw(st.integers(1, 20)), draw(st.integers(1, 20))
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    dilation = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, 3)) for _ in range(4))
    size = tuple(d * (r - 1) + 1 + draw(st.integers(0, 7)) for d, r in zip(dilation, kernel, strict=True))
    dtype, precision = draw(st.sampled_from([("float16", "ieee"), ("bfloat16", "ieee"), ("float32", "ieee")]))
    problem = ConvProblem.of(
        (draw(st.integers(1, 3)), groups * c, *size),
        (groups * k, c, *kernel),
        stride=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        padding=padding,
        dilation=dilation,
        groups=groups,
        dtype=dtype,
        precision=precision,
        channels_last=draw(st.booleans()),
        weight_channels_last=draw(st.booleans()),
        epilogue=Epilogue(draw(st.sampled_from(ACTIVATIONS)), bias=draw(st.booleans()), residual=draw(st.booleans())),
    )
    config = ImplicitGemmConfig(
        block_m=draw(st.sampled_from([16, 64])),
        block_n=draw(st.sampled_from([16, 32])),
        block_k=draw(st.sampled_from([16, 32])),
        num_stages=draw(st.integers(1, 4)),
        split_k=draw(st.integers(1, 3)),
        swizzle_m=draw(st.integers(1, 4)),
        loop_order=draw(st.sampled_from(["flat", "channels_inner", "taps_inner"])),
    )
    if why_invalid(problem, config) is not None:
        config = replace(config, loop_order="flat", split_k=1)
    tensors = make_tensors(problem, seed=draw(st.integers(0, 2**16)))
    with grouped_conv.interpret(config), grouped_conv.trace() as calls:
        tensors["output"] = convolve(problem, tensors)
    assert calls[0].path == "implicit_gemm"
    check_output(problem, tensors)


def test_split_reduction_is_bit_reproducible_and_in_order() -> None:
    problem = ConvProblem.of((1, 32, 7, 7), (32, 32, 3, 3), padding=1)
    config = ImplicitGemmConfig(block_m=16, block_n=16, block_k=32, split_k=4)
    tensors = make_tensors(problem)
    assert torch.equal(run(problem, config, tensors), run(problem, config, tensors))


def test_tf32_differs_from_ieee_as_on_a_gpu() -> None:
    problem = ConvProblem.of((1, 32, 6, 6), (16, 32, 3, 3), dtype="float32", precision="ieee")
    tensors, config = make_tensors(problem), ImplicitGemmConfig(block_m=16, block_n=16, block_k=32)
    exact = reference(problem, tensors)
    ieee = relative_error(run(problem, config, tensors), exact)
    tf32 = relative_error(run(replace(problem, precision="tf32"), config, tensors), exact)
    assert ieee < 1e-6 < 1e-4 < tf32 < 1e-2


@pytest.mark.smoke
def test_one_grouped_convolution_in_every_dtype() -> None:
    """What every supported Triton must run."""
    for dtype in ("float16", "bfloat16", "float32"):
        problem = replace(alexnet_layers(1, dtype)["conv4"], in_size=(5, 5))
        tensors = make_tensors(problem)
        tensors["output"] = run(problem, ImplicitGemmConfig(block_m=32, block_n=128, block_k=64), tensors)
        check_output(problem, tensors)
