"""`grouped_conv2d` beside `torch.nn.functional.conv2d`: memory formats, arguments, errors, dtypes."""

import itertools
import random

import pytest
import torch
import torch.nn.functional as F
from dispatch_calls import CONFIG
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from torch_paths import BOTH_PATHS, by

import grouped_conv
from grouped_conv import GroupedConv2d, grouped_conv2d
from grouped_conv.call_values.memory_formats import is_channels_last
from grouped_conv.kernels import ACTIVATIONS
from grouped_conv.planning.plan import cudnn_precision

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def operands(input_shape: tuple[int, ...], weight_shape: tuple[int, ...], dtype=torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = (input_shape, weight_shape, weight_shape[:1])
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def in_format(tensor: Tensor, name: str) -> Tensor:
    """A tensor whose strides are exactly those of the format, also where sizes of 1 leave them open."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, memory_format=FORMATS[name]).copy_(tensor)


def aten_says_channels_last(tensor: Tensor) -> bool:
    """ATen's `suggest_memory_format`, seen in the strides of an upsampling's output."""
    _, channels, _, _ = tensor.shape
    return F.interpolate(tensor, size=(3, 3)).stride()[1:] == (1, 3 * channels, channels)


def close(ours: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(ours, wanted.to(ours.dtype), rtol=1e-4, atol=1e-4)


# (input, weight, groups): ordinary, and shapes whose strides do not tell the format
SHAPES = {
    "ordinary": ((2, 4, 5, 6), (6, 2, 3, 3), 2),
    "one image": ((1, 4, 5, 5), (4, 4, 1, 1), 1),
    "one channel in": ((2, 1, 5, 4), (3, 1, 2, 2), 1),
    "one channel out": ((2, 3, 4, 4), (1, 3, 3, 3), 1),
    "depthwise": ((2, 3, 4, 5), (6, 1, 3, 3), 3),
    "one pixel in": ((2, 4, 1, 1), (4, 2, 1, 1), 2),
    "one pixel out": ((2, 4, 3, 3), (4, 2, 3, 3), 2),
    "one row": ((2, 4, 1, 5), (4, 4, 1, 3), 1),
    "all ones": ((1, 1, 1, 1), (1, 1, 1, 1), 1),
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("input_format", FORMATS)
@pytest.mark.parametrize("weight_format", FORMATS)
@BOTH_PATHS
def test_strides_follow_atens_rule_on_every_path_and_in_the_fake(shapes, input_format, weight_format, path) -> None:
    input_shape, weight_shape, groups = shapes
    input, weight, bias = operands(input_shape, weight_shape)
    input, weight = in_format(input, input_format), in_format(weight, weight_format)
    residual = torch.randn_like(F.conv2d(input, weight, groups=groups))

    def both(input: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> list[Tensor]:
        plain = grouped_conv2d(input, weight, bias, groups=groups, precision="ieee")
        fused = grouped_conv2d(input, weight, bias, groups=groups, activation="gelu", residual=residual, scale=2.0)
        return [plain, fused]

    with by(path) as calls:
        real = both(input, weight, bias, residual)
    assert len(calls) == 2
    layout = torch.channels_last if any(map(aten_says_channels_last, (input, weight))) else torch.contiguous_format
    wanted = torch.empty(real[0].shape, memory_format=layout).stride()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = both(*(mode.from_tensor(t) for t in (input, weight, bias, residual)))
    assert [y.stride() for y in real] == [y.stride() for y in fake] == [wanted] * 2
    assert [y.shape for y in real] == [y.shape for y in fake]
    close(real[0], F.conv2d(input, weight, bias, groups=groups))


def test_the_format_rule_is_atens_for_random_strides() -> None:
    rng = random.Random(0)
    seen = set()
    for _ in range(2000):
        shape = [rng.choice([1, 1, 2, 3]) for _ in range(4)]
        strides = rng.choice(
            [
                [rng.choice([0, 1, 2, 3, 4, 6, 12]) for _ in range(4)],
                torch.empty(shape, memory_format=torch.channels_last).stride(),
                torch.empty(shape).stride(),
            ]
        )
        answer = is_channels_last(shape, strides)
        assert answer == aten_says_channels_last(torch.zeros(200).as_strided(shape, strides)), (shape, strides)
        seen.add(answer)
    assert seen == {True, False}
    assert not is_channels_last((0, 4, 3, 3), (36, 1, 12, 4))


@pytest.mark.parametrize("layout", ["sliced", "expanded", "transposed", "offset"])
def test_odd_strides_and_addresses(layout: str) -> None:
    input, weight, bias = operands((2, 8, 6, 7), (8, 4, 3, 3))
    if layout == "sliced":
        input = torch.randn(2, 16, 12, 7)[:, ::2, ::2]
    elif layout == "expanded":
        input = torch.randn(1, 8, 6, 1).expand(2, 8, 6, 7)
    elif layout == "transposed":
        input, weight = torch.randn(2, 8, 7, 6).transpose(2, 3), torch.randn(8, 4, 3, 3).transpose(2, 3)
    else:
        input = torch.randn(1 + 2 * 8 * 6 * 7)[1:].view(2, 6, 7, 8).permute(0, 3, 1, 2)
        bias = torch.randn(17)[1::2]
    with by("implicit_gemm"):
        ours = grouped_conv2d(input, weight, bias, groups=2, padding=1, precision="ieee")
    close(ours, F.conv2d(input, weight, bias, groups=2, padding=1))


@pytest.mark.parametrize(
    "arguments",
    [
        {"padding": "same"},
        {"padding": "same", "dilation": 2},
        {"padding": "valid", "stride": 2},
        {"padding": 2, "stride": (2, 1)},
        {"padding": [1, 2], "stride": [2], "dilation": [1, 2]},
        {"padding": (0,), "dilation": (2, 1)},
    ],
    ids=str,
)
@pytest.mark.parametrize("kernel", [(3, 3), (4, 2), (1, 1)])
@BOTH_PATHS
def test_arguments_mean_what_torch_means(arguments: dict, kernel: tuple[int, int], path: str) -> None:
    input, weight, bias = operands((2, 4, 9, 10), (4, 2, *kernel))
    with by(path):
        ours = grouped_conv2d(input, weight, bias, groups=2, precision="ieee", **arguments)
    close(ours, F.conv2d(input, weight, bias, groups=2, **arguments))


@pytest.mark.parametrize("padding", [(1, 2, 0, 3), ((1, 2), (0, 3)), [1, 2, 0, 3]])
def test_padding_per_side(padding) -> None:
    input, weight, bias = operands((2, 4, 5, 6), (4, 2, 3, 3))
    wanted = F.conv2d(F.pad(input, (0, 3, 1, 2)), weight, bias, groups=2)
    close(grouped_conv2d(input, weight, bias, padding=padding, groups=2), wanted)
    with grouped_conv.interpret(CONFIG):
        close(grouped_conv2d(input, weight, bias, padding=padding, groups=2, precision="ieee"), wanted)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@BOTH_PATHS
def test_epilogue(activation: str, path: str) -> None:
    input, weight, bias = operands((1, 4, 4, 5), (6, 2, 3, 3))
    scale, residual = torch.randn(6), torch.randn(1, 6, 4, 5)
    inner = scale[:, None, None] * F.conv2d(input, weight, padding=1, groups=2) + bias[:, None, None] + residual
    wanted = inner if activation == "none" else getattr(F, activation)(inner)
    arguments = dict(padding=1, groups=2, scale=scale, residual=residual, activation=activation, precision="ieee")
    with by(path):
        ours = grouped_conv2d(input, weight, bias, **arguments)
    close(ours, wanted)


@pytest.mark.parametrize("scale", [0.5, torch.tensor(0.5), torch.full((6,), 0.5)], ids=["number", "0-d", "vector"])
def test_forms_of_scale(scale) -> None:
    input, weight, bias = operands((1, 4, 4, 5), (6, 2, 3, 3))
    close(grouped_conv2d(input, weight, bias, groups=2, scale=scale), F.conv2d(input, 0.5 * weight, bias, groups=2))


def test_leaky_relu_takes_its_slope() -> None:
    input, weight, _ = operands((1, 4, 4, 5), (6, 2, 3, 3))
    ours = grouped_conv2d(input, weight, groups=2, activation="leaky_relu", negative_slope=0.3)
    close(ours, F.leaky_relu(F.conv2d(input, weight, groups=2), 0.3))


@BOTH_PATHS
def test_unbatched_input(path: str) -> None:
    input, weight, bias = operands((4, 5, 6), (6, 2, 3, 3))
    residual = torch.randn(6, 3, 4)
    with by(path):
        ours = grouped_conv2d(input, weight, bias, groups=2, residual=residual, precision="ieee")
    close(ours, F.conv2d(input, weight, bias, groups=2) + residual)


def test_an_empty_batch_launches_nothing() -> None:
    input, weight, bias = operands((0, 4, 5, 6), (6, 2, 3, 3))
    weight.requires_grad_()
    with grouped_conv.interpret(), grouped_conv.trace() as calls:
        ours = grouped_conv2d(input, weight, bias, groups=2, activation="silu")
    assert (calls[0].path, calls[0].launches) == ("empty", ())
    assert ours.shape == (0, 6, 3, 4)
    ours.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


BAD_CALLS = {
    "channels": ((2, 3, 8, 8), (8, 4, 3, 3), {}),
    "channels of groups": ((2, 4, 8, 8), (8, 4, 3, 3), {"groups": 2}),
    "unbatched channels": ((3, 8, 8), (8, 4, 3, 3), {}),
    "kernel too large": ((2, 4, 2, 2), (8, 4, 3, 3), {}),
    "dilated kernel too large": ((2, 4, 8, 8), (8, 4, 3, 3), {"dilation": 5, "padding": (0, 1)}),
    "no groups": ((2, 4, 8, 8), (8, 4, 3, 3), {"groups": 0}),
    "groups do not divide K": ((2, 12, 8, 8), (8, 4, 3, 3), {"groups": 3}),
    "more groups than K": ((2, 64, 8, 8), (8, 4, 3, 3), {"groups": 16}),
    "negative padding": ((2, 4, 8, 8), (8, 4, 3, 3), {"padding": -1}),
    "zero stride": ((2, 4, 8, 8), (8, 4, 3, 3), {"stride": 0}),
    "zero dilation": ((2, 4, 8, 8), (8, 4, 3, 3), {"dilation": 0}),
    "three strides": ((2, 4, 8, 8), (8, 4, 3, 3), {"stride": (1, 1, 1)}),
    "fractional stride": ((2, 4, 8, 8), (8, 4, 3, 3), {"stride": 1.5}),
    "same with stride": ((2, 4, 8, 8), (8, 4, 3, 3), {"padding": "same", "stride": 2}),
    "unknown padding": ((2, 4, 8, 8), (8, 4, 3, 3), {"padding": "full"}),
    "2-D input": ((8, 8), (8, 4, 3, 3), {}),
    "5-D input": ((1, 2, 4, 8, 8), (8, 4, 3, 3), {}),
    "3-D weight": ((2, 4, 8, 8), (4, 3, 3), {}),
    "no output channels": ((2, 4, 8, 8), (0, 4, 3, 3), {}),
}


@pytest.mark.parametrize(("input_shape", "weight_shape", "arguments"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_calls_get_torchs_error(input_shape, weight_shape, arguments) -> None:
    input, weight, _ = operands(input_shape, weight_shape)
    with pytest.raises((RuntimeError, TypeError)) as wanted:
        F.conv2d(input, weight, **arguments)
    with pytest.raises(wanted.type) as ours:
        grouped_conv2d(input, weight, **arguments)
    mine, theirs = (
        str(error.value).split(" got ")[: 1 if error.type is TypeError else None] for error in (ours, wanted)
    )
    assert mine == theirs
    with grouped_conv.interpret(), pytest.raises(wanted.type):
        grouped_conv2d(input, weight, **arguments)


@pytest.mark.parametrize("change", ["input", "weight", "bias", "bias size", "bias dimensions"])
def test_operands_that_do_not_match_get_torchs_error(change: str) -> None:
    input, weight, bias = operands((2, 4, 8, 8), (8, 4, 3, 3))
    if change == "bias size":
        bias = bias[:4]
    elif change == "bias dimensions":
        bias = bias[:, None]
    input, weight, bias = (
        t.half() if name == change else t
        for name, t in zip(("input", "weight", "bias"), (input, weight, bias), strict=True)
    )
    with pytest.raises(RuntimeError) as wanted:
        F.conv2d(input, weight, bias)
    with pytest.raises(RuntimeError) as ours:
        grouped_conv2d(input, weight, bias)
    assert str(ours.value) == str(wanted.value)


def test_errors_of_our_own_arguments() -> None:
    input, weight, bias = operands((2, 4, 8, 8), (8, 4, 3, 3))
    for error, message, wrong in (
        (ValueError, "unknown activation 'swish'; accepted: none, relu", {"activation": "swish"}),
        (ValueError, "unknown precision 'fp8'; accepted: ieee, tf32", {"precision": "fp8"}),
        (ValueError, "unknown backend 'cudnn'; accepted: aten, kernel", {"backend": "cudnn"}),
        (RuntimeError, r"the output's size \[2, 8, 6, 6\]", {"residual": torch.zeros(2, 8, 6, 5)}),
        (RuntimeError, r"residual type .* should be the same", {"residual": torch.zeros(2, 8, 6, 6).half()}),
        (RuntimeError, "expected scale to be 1-dimensional with 8 elements", {"scale": torch.ones(4)}),
    ):
        with pytest.raises(error, match=message):
            grouped_conv2d(input, weight, **wrong)
    assert grouped_conv2d(input, weight, bias).shape == (2, 8, 6, 6)


def test_a_wrong_weight_cannot_change_the_number_of_groups() -> None:
    """The operators take groups from the shapes; fake and real refuse what is no whole number of groups."""
    input, weight, _ = operands((2, 6, 8, 8), (8, 4, 3, 3))
    attributes = ([1, 1], [0, 0, 0, 0], [1, 1], "default", "auto")
    with pytest.raises(RuntimeError, match="4"):
        torch.ops.grouped_conv.conv2d(input, weight, None, *attributes)
    with pytest.raises(RuntimeError, match="implies groups of 4 input channels"):
        torch.ops.grouped_conv.conv2d(input.to("meta"), weight.to("meta"), None, *attributes)
    uneven = torch.randn(8, 2, 3, 3)[:7]
    with pytest.raises(RuntimeError, match="expected weight to be divisible by 3"):
        torch.ops.grouped_conv.conv2d(input.to("meta"), uneven.to("meta"), None, *attributes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.int64])
def test_other_dtypes_are_torchs_and_the_trace_says_why(dtype: torch.dtype) -> None:
    input, weight, bias = ((10 * t).to(dtype) for t in operands((2, 4, 5, 6), (6, 2, 3, 3)))
    with grouped_conv.interpret(), grouped_conv.trace() as calls:
        ours = grouped_conv2d(input, weight, bias, groups=2)
    torch.testing.assert_close(ours, F.conv2d(input, weight, bias, groups=2))
    assert calls[0].path == "aten"
    assert str(dtype).removeprefix("torch.") in calls[0].reason or dtype.is_complex
    with pytest.raises(RuntimeError, match="backend='kernel' was asked for, but"):
        grouped_conv2d(input, weight, bias, groups=2, backend="kernel")


def test_precision_follows_torchs_flag_and_can_be_given() -> None:
    input, weight, _ = operands((1, 32, 6, 6), (16, 32, 3, 3))
    wanted = F.conv2d(input.double(), weight.double())

    def error(**arguments) -> tuple[str, float]:
        with grouped_conv.interpret(CONFIG), grouped_conv.trace() as calls:
            ours = grouped_conv2d(input, weight, **arguments)
        return calls[0].problem.precision, float((ours - wanted).abs().max())

    results = {}
    for flag in ("ieee", "tf32", "none"):
        with cudnn_precision(flag):
            results[flag] = error()
    assert [results[flag][0] for flag in ("ieee", "tf32", "none")] == ["ieee", "tf32", "ieee"]
    assert results["ieee"][1] < 1e-4 < results["tf32"][1] < 0.2
    assert error(precision="ieee") == results["ieee"]
    assert error(precision="tf32") == results["tf32"]


def test_meta_tensors() -> None:
    input, weight, bias = (t.to("meta") for t in operands((2, 4, 5, 6), (6, 2, 3, 3)))
    ours = grouped_conv2d(input.to(memory_format=torch.channels_last), weight, bias, groups=2, activation="relu")
    assert (ours.device.type, ours.shape, ours.stride()) == ("meta", (2, 6, 3, 4), (72, 1, 24, 6))


def test_the_flop_counter_agrees_with_conv2d() -> None:
    """With groups torch counts the weight's gradient `groups` times (2.13): each connected weight counts once here."""
    for groups in (1, 2):
        input, weight, bias = operands((2, 4, 5, 6), (6, 4 // groups, 3, 3))
        weight.requires_grad_()

        def flops(function, *leaves, groups=groups, tensors=(input, weight, bias)) -> int:
            with FlopCounterMode(display=False) as counter:
                output = function(*tensors, padding=1, groups=groups)
                if leaves:
                    torch.autograd.grad(output.sum(), leaves)
            return counter.get_total_flops()

        forward = flops(F.conv2d)
        assert flops(grouped_conv2d) == forward > 0
        assert flops(grouped_conv2d, weight) == 2 * forward
        if groups == 1:
            assert flops(F.conv2d, weight) == 2 * forward
        input.requires_grad_()
        assert flops(grouped_conv2d, input, weight) == 3 * forward


def test_inference_mode_gives_an_inference_tensor() -> None:
    input, weight, bias = operands((2, 4, 5, 6), (6, 2, 3, 3))
    with torch.inference_mode():
        assert grouped_conv2d(input, weight, bias, groups=2).is_inference()


@pytest.mark.parametrize(
    ("mode", "kernel"), list(itertools.product(["zeros", "reflect", "replicate", "circular"], [3, 4]))
)
def test_the_layers_padding_modes(mode: str, kernel: int) -> None:
    torch.manual_seed(0)
    ours = GroupedConv2d(4, 6, kernel, padding="same", groups=2, padding_mode=mode)
    plain = torch.nn.Conv2d(4, 6, kernel, padding="same", groups=2, padding_mode=mode)
    plain.load_state_dict(ours.state_dict())
    input = torch.randn(2, 4, 7, 8)
    close(ours(input), plain(input))
