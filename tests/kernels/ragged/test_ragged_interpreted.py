"""The ragged kernel in Triton's interpreter against one float64 convolution per group."""

import random
from dataclasses import replace

import pytest
import torch
from case import Case
from conv_oracle import relative_error, run_call
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged_cases import CONFIGS, LAYOUTS, all_cases
from ragged_oracle import Tensors, check_ragged, make_ragged_tensors, ragged_problem, ragged_reference, weight_of

import grouped_conv
from grouped_conv import RaggedConv2d, ragged_conv2d
from grouped_conv.call_values.ragged_weights import views
from grouped_conv.kernels import ACTIVATIONS, ConvProblem, Epilogue, GroupLayout, KernelConfig
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.interpreting.interpreter import interpret_launch
from grouped_conv.kernels.ragged.forward_rules import RaggedConfig


def expected_launches(problem: ConvProblem) -> tuple[str, ...]:
    """A pack pass only for an input whose channels are not innermost."""
    pack = not problem.input_channels_last and problem.in_channels > 1 and problem.in_size != (1, 1)
    return ("pack_channels_last",) * pack + ("ragged",)


def run(problem: ConvProblem, config: KernelConfig, seed: int = 0) -> Tensors:
    call = plan_call(problem, config)
    assert tuple(launch.name for launch in call.launches) == expected_launches(problem)
    tensors = make_ragged_tensors(problem, config, seed)
    run_call(call, tensors, interpret_launch)
    return tensors


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.id)
def test_agrees_with_float64(case: Case) -> None:
    check_ragged(case.problem, run(case.problem, case.config), case.id)


def test_the_table_is_long_enough() -> None:
    assert len(all_cases()) >= 60


@settings(max_examples=40)
@given(data=st.data())
def test_random_layouts(data: st.DataObject) -> None:
    """Any layout the constructor accepts, in any configuration."""
    draw = data.draw
    channels = draw(st.integers(1, 20))
    lists = st.lists(st.integers(0, channels - 1), min_size=1, max_size=channels, unique=True)
    index = draw(st.lists(lists, min_size=1, max_size=4))
    layout = GroupLayout.explicit(channels, index, [draw(st.integers(1, 20)) for _ in index], allow_unread=True)
    if layout.is_uniform:
        return
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 3)))
    size = tuple(d * (r - 1) + 1 + draw(st.integers(0, 5)) for d, r in zip(dilation, kernel, strict=True))
    problem = ragged_problem(
        layout,
        (size[0], size[1]),
        kernel,
        batch=draw(st.integers(1, 3)),
        stride=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        padding=tuple(draw(st.integers(0, 3)) for _ in range(4)),
        dilation=dilation,
        dtype=draw(st.sampled_from(["float16", "bfloat16", "float32"])),
        input_channels_last=draw(st.booleans()),
        epilogue=Epilogue(draw(st.sampled_from(ACTIVATIONS)), bias=draw(st.booleans()), residual=draw(st.booleans())),
    )
    config = RaggedConfig(
        block_m=draw(st.sampled_from([16, 64])),
        block_n=draw(st.sampled_from([16, 32])),
        block_k=draw(st.sampled_from([16, 32])),
        num_stages=draw(st.integers(1, 4)),
    )
    check_ragged(problem, run(problem, config, seed=draw(st.integers(0, 2**16))))


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize(
    "name", ["log series, alignment 2", "overlap, aligned", "random lists", "channels nobody reads"]
)
def test_what_one_group_reads_reaches_no_other(name: str, value: float) -> None:
    """Non-finite values in one input channel, and in one group's filters, stay with the groups that read them."""
    layout = LAYOUTS[name]
    problem = ragged_problem(layout, padding=(1, 1, 1, 1), dtype="float32")
    for channel in (layout.inputs_of(0)[0], layout.inputs_of(layout.groups - 1)[-1], *layout.unread[:1]):
        clean, tensors = run(problem, CONFIGS[0]), make_ragged_tensors(problem, CONFIGS[0])
        tensors["input"][:, channel] = value
        run_call(plan_call(problem, CONFIGS[0]), tensors, interpret_launch)
        check_ragged(problem, tensors, f"{name}, channel {channel}")
        for group, (part, before) in enumerate(zip(*split(layout, tensors, clean), strict=True)):
            reads = channel in layout.inputs_of(group)
            assert bool(part.isfinite().all()) != reads
            assert reads or torch.equal(part, before)
    tensors = make_ragged_tensors(problem, CONFIGS[0])
    weight_of(problem, tensors["weight"], 1).fill_(value)
    run_call(plan_call(problem, CONFIGS[0]), tensors, interpret_launch)
    finite = [bool(part.isfinite().all()) for part in split(layout, tensors)[0]]
    assert finite == [group != 1 for group in range(layout.groups)]


def split(layout: GroupLayout, *runs: Tensors) -> list[tuple[torch.Tensor, ...]]:
    """The output channels of each group, of each run."""
    return [tensors["output"].split(list(layout.outputs), 1) for tensors in runs]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("name", ["odd sizes, alignment 1", "groups of one channel"])
@pytest.mark.parametrize("activation", ["none", "relu", "gelu", "tanh"])
def test_infinities_and_nan_come_out_where_torch_puts_them(activation: str, name: str, config: RaggedConfig) -> None:
    """Blocks of 64 reach tap 63 of a group of one channel: what lies there must not be read as some other tap."""
    problem = ragged_problem(
        LAYOUTS[name],
        (14, 5),
        padding=(1, 1, 1, 1),
        dtype="float32",
        epilogue=Epilogue(activation, bias=True, residual=True),
    )
    tensors = make_ragged_tensors(problem, config)
    for channel, row, value in ((0, 2, "inf"), (1, 12, "nan"), (3, 9, "-inf"), (6, 7, "nan")):
        tensors["input"][0, channel, row, 1] = float(value)
    tensors["bias"][1] = float("nan")
    tensors["residual"][0, 4, 1] = float("-inf")
    run_call(plan_call(problem, config), tensors, interpret_launch)
    exact = ragged_reference(problem, tensors)
    assert not exact.isfinite().all()
    assert torch.equal(tensors["output"].isnan(), exact.isnan())
    check_ragged(problem, tensors)


def test_an_empty_batch_has_no_programs() -> None:
    problem = ragged_problem(LAYOUTS["alignment 4"], batch=0, padding=(1, 1, 1, 1))
    (launch,) = plan_call(problem, CONFIGS[0]).launches
    assert launch.grid == (0, 1, 1)


@pytest.mark.parametrize("name", LAYOUTS)
def test_module_takes_the_kernel_in_one_launch(name: str) -> None:
    layout = LAYOUTS[name]
    torch.manual_seed(0)
    module = RaggedConv2d(layout, 3, padding=1, activation="relu", dtype=torch.float16)
    input = torch.randn(2, layout.in_channels, 5, 4).half().contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), grouped_conv.interpret(CONFIGS[0]), grouped_conv.trace() as calls:
        output = module(input)
    assert [(call.path, call.launches, call.config) for call in calls] == [("ragged", ("ragged",), CONFIGS[0])]
    with torch.no_grad(), grouped_conv.trace() as calls:
        by_aten = module(input)
    assert [(call.path, call.launches) for call in calls] == [("aten", ())]
    assert output.stride() == by_aten.stride()
    assert relative_error(output, by_aten.double()) < 2e-3


def test_scattered_weights_are_copied_and_an_nchw_input_is_packed_and_trace_says_so() -> None:
    layout = LAYOUTS["log series, alignment 2"]
    problem = ragged_problem(layout, padding=(1, 1, 1, 1), dtype="float32", epilogue=Epilogue("relu", bias=True))
    tensors = make_ragged_tensors(problem)
    weights = [view.clone(memory_format=torch.contiguous_format) for view in views(tensors["weight"], layout, (3, 3))]
    for input in (tensors["input"], tensors["input"].contiguous()):
        with grouped_conv.interpret(), grouped_conv.trace() as calls:
            tensors["output"] = ragged_conv2d(
                input, weights, layout, tensors["bias"], padding=1, activation="relu", precision="ieee"
            )
        check_ragged(problem, tensors)
        packs = ("pack_channels_last",) * input.is_contiguous()
        assert calls[0].launches == ("cat_weights", *packs, "ragged")
        assert tensors["output"].is_contiguous(memory_format=torch.channels_last) is not input.is_contiguous()


def test_the_heuristic_chooses_for_every_layout_and_device() -> None:
    from grouped_conv.autotune import choose
    from grouped_conv.kernels import DeviceSpec
    from grouped_conv.kernels.families import why_invalid

    for layout in LAYOUTS.values():
        problem = ragged_problem(layout, (14, 14), batch=4, padding=(1, 1, 1, 1))
        for name in ("a100", "h100", "mi300x", "b200"):
            config = choose(problem, DeviceSpec.get(name))
            assert isinstance(config, RaggedConfig)
            assert why_invalid(problem, config, DeviceSpec.get(name)) is None


@pytest.mark.smoke
def test_lists_and_ranges_in_every_dtype() -> None:
    """What every supported Triton must run."""
    for dtype, name in (
        ("float16", "log series, alignment 8"),
        ("bfloat16", "random lists"),
        ("float32", "alignment 4"),
    ):
        problem = ragged_problem(LAYOUTS[name], padding=(1, 1, 1, 1), dtype=dtype, epilogue=Epilogue("relu", bias=True))
        check_ragged(problem, run(problem, CONFIGS[0]), name)


def test_default_configuration_is_right() -> None:
    draw = random.Random(7)
    for name in draw.sample(sorted(LAYOUTS), 4):
        problem = ragged_problem(LAYOUTS[name], padding=(1, 1, 1, 1), epilogue=Epilogue(bias=True))
        tensors = make_ragged_tensors(problem)
        with grouped_conv.interpret(device="a100"), grouped_conv.trace() as calls:
            tensors["output"] = ragged_conv2d(
                tensors["input"], views(tensors["weight"], problem.layout, (3, 3)), problem.layout, tensors["bias"],
                padding=1,
            )  # fmt: skip
        assert calls[0].source == "heuristic"
        check_ragged(replace(problem), tensors, name)


@pytest.mark.parametrize(
    ("name", "block_k", "stages", "expected"),
    [
        ("log series, alignment 8", 64, 3, (False, False)),  # nine taps of 8 channels: tap 15 at most, 31 prepared
        ("log series, alignment 8", 64, 4, (False, True)),  # tap 39 prepared: no bit of the word
        ("groups of one channel", 16, 1, (False, False)),
        ("groups of one channel", 64, 1, (True, True)),
    ],
)
def test_taps_beyond_the_word_are_masked_or_folded(
    name: str, block_k: int, stages: int, expected: tuple[bool, bool]
) -> None:
    config = RaggedConfig(block_m=16, block_n=16, block_k=block_k, num_stages=stages)
    (launch,) = plan_call(ragged_problem(LAYOUTS[name]), config).launches
    loop = launch.constants["LOOP"]
    assert expected == (loop.MASK_K, loop.CLAMP)
