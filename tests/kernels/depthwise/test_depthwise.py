"""The depthwise kernel in Triton's interpreter, called as a user calls it, against float64; its rules and its bytes."""

from dataclasses import replace

import pytest
import torch
from case import Case
from conv_oracle import allowance, check_output, convolve, make_tensors, reference, relative_error
from depthwise_cases import SMALL, all_cases, depthwise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from truth import judge

import grouped_conv
from grouped_conv.kernels import ACTIVATIONS, ConvProblem, Epilogue
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.depthwise.forward_rules import DepthwiseConfig, halo_bytes, walk_of, why_invalid
from grouped_conv.kernels.families import KernelConfig
from grouped_conv.kernels.interpreting.interpreter import interpret_launch


def run(problem: ConvProblem, config: DepthwiseConfig, tensors: dict[str, Tensor]) -> Tensor:
    """Interpret the problem with `config`; the depthwise kernel must have run, after the pack passes it asks for."""
    with grouped_conv.interpret(config), grouped_conv.trace() as calls:
        y = convolve(problem, tensors)
    (call,) = calls
    pack_input = not problem.input_channels_last and problem.in_channels > 1
    assert call.path == "depthwise", call
    assert call.config == config
    assert call.launches == ("pack_channels_last",) * (pack_input + config.pack_weight) + ("depthwise",), call
    return y


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.id)
def test_agrees_with_float64(case: Case) -> None:
    tensors = make_tensors(case.problem)
    tensors["output"] = run(case.problem, case.config, tensors)
    check_output(case.problem, tensors, case.id)


@pytest.mark.parametrize("multiplier", [1, 2, 3])
def test_saved_preactivation(multiplier: int) -> None:
    epilogue = Epilogue("gelu", bias=True, scale=True, residual=True, save_preactivation=True)
    problem = depthwise(8, (4, 5), (3, 3), multiplier, epilogue=epilogue)
    judge(problem, replace(SMALL, multipliers=multiplier), interpret_launch)


PATHS = (
    SMALL,
    replace(SMALL, tile_h=1, row_loop=True, pack_weight=True),
    replace(SMALL, tile_h=1, resident=True, interior=True, steps=2, strip="h"),
)
NON_FINITE = (float("inf"), float("-inf"), float("nan"))


@pytest.mark.parametrize("config", PATHS, ids=str)
@pytest.mark.parametrize("where", ["input", "weight", "bias", "residual"])
@pytest.mark.parametrize("activation", ["none", "relu", "hardswish"])
def test_infinities_and_nan_come_out_where_torch_puts_them(
    where: str, activation: str, config: DepthwiseConfig
) -> None:
    """A zero of the padding times an infinite weight is NaN, as in float64."""
    epilogue = Epilogue(activation, bias=True, residual=True)
    problem = depthwise(21, (6, 5), (3, 3), dtype="float32", epilogue=epilogue)
    tensors = make_tensors(problem)
    values = tensors[where].clone(memory_format=torch.contiguous_format).view(-1)
    values[:: max(1, values.numel() // 3)][:3] = torch.tensor(NON_FINITE)
    tensors[where] = values.view(tensors[where].shape).contiguous(
        memory_format=torch.channels_last if tensors[where].dim() == 4 else torch.contiguous_format
    )
    y = run(problem, config, tensors)
    exact = reference(problem, tensors)
    assert not exact.isfinite().all()
    assert torch.equal(y.isnan(), exact.isnan())
    assert relative_error(y, exact) <= allowance(problem, tensors, exact)


@pytest.mark.parametrize("config", PATHS, ids=str)
@pytest.mark.parametrize("value", NON_FINITE)
def test_what_is_not_finite_stays_in_its_channel(value: float, config: DepthwiseConfig) -> None:
    problem = depthwise(21, (6, 5), (3, 3), epilogue=Epilogue())
    tensors = make_tensors(problem)
    clean = run(problem, config, tensors)
    tensors["input"][:, 7] = value
    tensors["weight"][7] = value
    y = run(problem, config, tensors)
    assert not y[:, 7].isfinite().any()
    others = [channel for channel in range(21) if channel != 7]
    assert torch.equal(y[:, others], clean[:, others])


@pytest.mark.full
@settings(max_examples=25)
@given(data=st.data())
def test_random_problems(data: st.DataObject) -> None:
    """Any problem the constructor accepts, in any configuration the predicate accepts."""
    draw = data.draw
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    dilation = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    size = tuple(d * (r - 1) + 1 + draw(st.integers(0, 5)) for d, r in zip(dilation, kernel, strict=True))
    multiplier = draw(st.integers(1, 4))
    problem = depthwise(
        draw(st.integers(1, 20)),
        size,
        kernel,
        multiplier,
        batch=draw(st.integers(1, 3)),
        dtype=draw(st.sampled_from(["float16", "bfloat16", "float32"])),
        epilogue=Epilogue(draw(st.sampled_from(ACTIVATIONS)), bias=draw(st.booleans()), residual=draw(st.booleans())),
        stride=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        dilation=dilation,
        padding=tuple(draw(st.integers(0, 3)) for _ in range(4)),
        channels_last=draw(st.booleans()),
        weight_channels_last=draw(st.booleans()),
    )
    row_loop = draw(st.booleans())
    config = DepthwiseConfig(
        num_warps=1,
        block_c=draw(st.sampled_from([16, 32])),
        tile_h=draw(st.integers(1, 2)),
        tile_w=draw(st.integers(1, 3)),
        block_h=draw(st.sampled_from([1, 2, 4])),
        block_w=draw(st.sampled_from([2, 4])),
        steps=draw(st.integers(1, 2)),
        multipliers=draw(st.sampled_from([m for m in range(1, multiplier + 1) if multiplier % m == 0])),
        strip=draw(st.sampled_from(["w", "h"])),
        pack_weight=draw(st.booleans()),
        row_loop=row_loop,
        chunk=draw(st.integers(0, 3)) if row_loop else 0,
        resident=not row_loop and draw(st.booleans()),
        interior=draw(st.booleans()),
        static_channels=draw(st.booleans()),
    )
    tensors = make_tensors(problem, seed=draw(st.integers(0, 2**16)))
    tensors["output"] = run(problem, config, tensors)
    check_output(problem, tensors)


def test_a_channels_innermost_input_with_gaps_is_read_in_place() -> None:
    problem = depthwise(16, (5, 6), (3, 3), dtype="float32")
    tensors = make_tensors(problem)
    wide = torch.randn(1, 7, 9, 24)
    tensors["input"] = wide[:, 1:6, 2:8, 4:20].permute(0, 3, 1, 2)
    tensors["output"] = run(problem, SMALL, tensors)
    check_output(problem, tensors)


def test_a_weight_with_output_channels_innermost_is_read_in_place() -> None:
    problem = depthwise(16, (5, 6), (3, 3), dtype="float32")
    tensors = make_tensors(problem)
    tensors["weight"] = torch.randn(3, 3, 1, 16).permute(3, 2, 0, 1)
    tensors["output"] = run(problem, SMALL, tensors)
    check_output(problem, tensors)


@pytest.mark.smoke
def test_one_problem_in_every_dtype() -> None:
    """What every supported Triton must run."""
    for dtype, config in zip(("float16", "bfloat16", "float32"), PATHS, strict=True):
        problem = depthwise(16, (5, 6), (3, 3), dtype=dtype)
        tensors = make_tensors(problem)
        tensors["output"] = run(problem, config, tensors)
        check_output(problem, tensors, str(config))


REFUSED = [
    (ConvProblem.of((1, 8, 5, 5), (8, 2, 3, 3), groups=4), SMALL, "one input channel"),
    (replace(depthwise(8, (5, 5), (3, 3)), direction="input_grad"), SMALL, "forward direction"),
    (depthwise(8, (5, 5), (3, 3), input_shuffle=2), SMALL, "no shuffled input"),
    (depthwise(8, (5, 5), (3, 3), 3), replace(SMALL, multipliers=2), "must divide the multiplier 3"),
    (depthwise(8, (40, 40), (31, 31)), SMALL, "use row_loop or smaller tiles"),
    (depthwise(8, (40, 40), (31, 31)), replace(SMALL, tile_h=4, tile_w=8, row_loop=True), "use smaller tiles"),
    (depthwise(2**20, (64, 64), (3, 3), batch=64), replace(SMALL, tile_h=1, tile_w=1, block_w=1), "more than a grid"),
    (depthwise(2**31, (1, 1), (1, 1)), replace(SMALL, block_c=2**16), "channels are more than"),
]


@pytest.mark.parametrize(("problem", "config", "reason"), REFUSED, ids=[row[2] for row in REFUSED])
def test_what_is_refused_says_why(problem: ConvProblem, config: DepthwiseConfig, reason: str) -> None:
    assert reason in (why_invalid(problem, config) or "")
    with pytest.raises(ValueError, match=reason):
        plan_call(problem, config)


def test_configurations() -> None:
    config = replace(SMALL, strip="h", row_loop=True, static_channels=False)
    assert KernelConfig.from_json(config.to_json()) == config
    assert str(config) == "2x2 1x4x16 w1 along-h row-loop dyn"
    for wrong in ({"block_c": 8}, {"block_w": 3}, {"tile_w": 0}, {"strip": "d"}, {"resident": True, "row_loop": True}):
        with pytest.raises(ValueError):
            DepthwiseConfig(**wrong)
    for wrong in ({"chunk": 4}, {"chunk": -1, "row_loop": True}):
        with pytest.raises(ValueError, match="row_loop"):
            DepthwiseConfig(**wrong)


def brute_force_bytes(problem: ConvProblem, config: DepthwiseConfig) -> int:
    """`halo_bytes` by listing every input position that every program's outputs need."""
    walk = walk_of(problem, config)
    size, out = problem.in_size, problem.out_size
    order = (0, 1) if config.strip == "w" else (1, 0)
    read = 0
    for block_h in range(walk.blocks_h):
        for block_w in range(walk.blocks_w):
            needed = set()
            for tile_row in range(config.block_h * config.steps):
                image, row = divmod(block_h * config.block_h * config.steps + tile_row, walk.rows_each)
                if image >= problem.batch:
                    continue
                for u in range(config.tile_h):
                    for v in range(config.tile_w * config.block_w):
                        at = {order[0]: row * config.tile_h + u, order[1]: block_w * config.tile_w * config.block_w + v}
                        if at[0] >= out[0] or at[1] >= out[1]:
                            continue
                        for r in range(problem.kernel_size[0]):
                            for s in range(problem.kernel_size[1]):
                                h, w = (
                                    at[i] * problem.stride[i] - problem.padding[2 * i] + tap * problem.dilation[i]
                                    for i, tap in ((0, r), (1, s))
                                )
                                if 0 <= h < size[0] and 0 <= w < size[1]:
                                    needed.add((image, h, w))
            read += len(needed)
    return read * problem.in_channels * walk.parts * problem.item_size


WALKS = [
    (depthwise(16, (7, 6), (3, 3), batch=3), replace(SMALL, block_h=2)),
    (depthwise(16, (9, 14), (3, 3), batch=2, stride=2), replace(SMALL, tile_h=1, tile_w=3, block_w=2, steps=2)),
    (depthwise(16, (9, 8), (3, 2), 4, dilation=(2, 3), padding=(2, 1, 0, 3)), replace(SMALL, strip="h", multipliers=2)),
    (depthwise(8, (11, 12), (1, 1), stride=3, batch=2), SMALL),
]


@pytest.mark.parametrize(("problem", "config"), WALKS, ids=lambda value: str(value))
def test_compulsory_bytes_of_the_walk(problem: ConvProblem, config: DepthwiseConfig) -> None:
    assert halo_bytes(problem, config) == brute_force_bytes(problem, config)
