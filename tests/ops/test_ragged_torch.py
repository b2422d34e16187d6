"""`ragged_conv2d` and `RaggedConv2d` as torch sees them: values, derivatives, autocast, tracing, state and errors."""

import copy

import pytest
import torch
import torch.nn.functional as F
from ragged_cases import CONFIG, LAYOUTS, LISTED, SERIES
from ragged_oracle import by_group
from torch import Tensor, nn
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode
from torch_paths import by

import grouped_conv
from grouped_conv import RaggedConv2d, ragged_conv2d
from grouped_conv.by_torch import ragged as ragged_aten
from grouped_conv.call_values import device_tables
from grouped_conv.call_values.layout_text import write_layout
from grouped_conv.call_values.ragged_weights import are_flat, views, weight_shapes
from grouped_conv.kernels import GroupLayout

WINDOW = ([1, 1], [0, 1, 1, 0], [1, 1])
pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def operands(layout: GroupLayout, dtype: torch.dtype = torch.float64, grads: bool = False) -> tuple[Tensor, ...]:
    """Input, bias, scale, residual for `WINDOW`, and the weights."""
    torch.manual_seed(0)
    tensors = [
        torch.randn(2, layout.in_channels, 5, 6),
        torch.randn(layout.out_channels),
        torch.randn(layout.out_channels),
        torch.randn(2, layout.out_channels, 4, 5),
        *(torch.randn(shape) / 3 for shape in weight_shapes(layout, (3, 3))),
    ]
    return tuple(tensor.to(dtype).requires_grad_(grads) for tensor in tensors)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("nhwc", [False, True])
def test_aten_path_is_one_convolution_per_group(layout: GroupLayout, nhwc: bool) -> None:
    input, bias, scale, _, *weights = operands(layout)
    if nhwc:
        input = input.contiguous(memory_format=torch.channels_last)
    window = {"stride": (2, 1), "padding": 1, "dilation": (1, 2)}
    with grouped_conv.trace() as calls:
        output = ragged_conv2d(input, weights, layout, bias, **window, scale=scale, activation="gelu")
    expected = by_group(input, weights, layout, **window)
    expected = F.gelu(expected * scale[:, None, None] + bias[:, None, None])
    torch.testing.assert_close(output, expected)
    assert output.is_contiguous(memory_format=torch.channels_last if nhwc else torch.contiguous_format)
    assert [call.path for call in calls] == ["aten"]


@pytest.mark.parametrize("name", ["log series, alignment 2", "overlap, aligned", "random lists of unequal lengths"])
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_gradcheck(name: str, activation: str) -> None:
    layout = LAYOUTS[name]
    input, bias, scale, residual, *weights = operands(layout, grads=True)

    def function(input: Tensor, bias: Tensor, scale: Tensor, residual: Tensor, *weights: Tensor) -> Tensor:
        return ragged_conv2d(
            input, weights, layout, bias, padding=(0, 1, 1, 0), scale=scale, residual=residual, activation=activation
        )

    tensors = (input, bias, scale, residual, *weights)
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
    if activation != "relu":
        assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_gradients_are_those_of_the_groups(layout: GroupLayout) -> None:
    input, bias, _, _, *weights = operands(layout, grads=True)
    torch.manual_seed(1)
    output = ragged_conv2d(input, weights, layout, bias, padding=1)
    grad = torch.randn_like(output)
    ours = torch.autograd.grad(output, (input, bias, *weights), grad)
    expected = by_group(input, weights, layout, padding=1) + bias[:, None, None]
    theirs = torch.autograd.grad(expected, (input, bias, *weights), grad)
    torch.testing.assert_close(ours, theirs)


def test_gradients_only_where_they_are_wanted() -> None:
    input, _, _, _, *weights = operands(LISTED)
    weights[1].requires_grad_()
    ragged_conv2d(input, weights, LISTED, padding=1).sum().backward()
    assert input.grad is None and weights[0].grad is None and weights[1].grad is not None
    input.requires_grad_()
    weights[1].requires_grad_(False)
    (grad,) = torch.autograd.grad(ragged_conv2d(input, weights, LISTED).sum(), input)
    assert grad.shape == input.shape


def test_the_sum_over_overlapping_groups_is_reproducible() -> None:
    layout = LAYOUTS["overlap, all groups read nearly all"]
    input, _, _, _, *weights = operands(layout, torch.float32, grads=True)
    grads = [torch.autograd.grad(ragged_conv2d(input, weights, layout).sum(), input)[0] for _ in range(3)]
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])


def test_kernel_forward_and_aten_backward() -> None:
    module = RaggedConv2d(LISTED, 3, padding=1, activation="silu")
    input = torch.randn(2, 9, 6, 5, requires_grad=True)
    ours, theirs = {}, {}
    for found, context in ((ours, grouped_conv.interpret(CONFIG)), (theirs, torch.enable_grad())):
        with context, grouped_conv.trace() as calls:
            output = module(input)
        found["path"] = calls[0].path
        found["grads"] = torch.autograd.grad(output.square().sum(), (input, *module.parameters()))
    assert (ours["path"], theirs["path"]) == ("ragged", "aten")
    torch.testing.assert_close(ours["grads"], theirs["grads"], rtol=1e-2, atol=1e-2)  # TF32 in the forward pass


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "jacrev"])
def test_torch_func(transform: str) -> None:
    input, bias, _, _, *weights = operands(LISTED)

    def ours(x: Tensor) -> Tensor:
        return ragged_conv2d(x, weights, LISTED, bias, padding=1, activation="tanh")

    def theirs(x: Tensor) -> Tensor:
        return torch.tanh(by_group(x, weights, LISTED, padding=1) + bias[:, None, None])

    apply = {
        "grad": lambda f: torch.func.grad(lambda x: f(x).square().sum())(input),
        "vmap": lambda f: torch.func.vmap(f)(input.unsqueeze(1)),
        "jvp": lambda f: torch.func.jvp(f, (input,), (torch.ones_like(input),))[1],
        "jacrev": lambda f: torch.func.jacrev(lambda x: f(x).mean((0, 2, 3)))(input),
    }[transform]
    torch.testing.assert_close(apply(ours), apply(theirs))


@pytest.mark.parametrize(("activation", "saves"), [("gelu", True), ("relu", False)])
def test_opcheck(activation: str, saves: bool) -> None:
    input, bias, scale, residual, *weights = operands(LISTED, torch.float32, grads=True)
    arguments = (input, weights, bias, scale, residual, write_layout(LISTED), *WINDOW)
    opcheck(torch.ops.grouped_conv.ragged_conv2d.default, (*arguments, activation, 0.01, saves, "default", "auto"))


def test_opcheck_without_optional_operands_and_with_the_kernel_running() -> None:
    input, bias, _, _, *weights = operands(SERIES, torch.float16)
    rest = ("none", 0.01, False, "ieee", "auto")
    op = torch.ops.grouped_conv.ragged_conv2d.default
    opcheck(op, (input, weights, None, None, None, write_layout(SERIES), *WINDOW, *rest))
    input = input.contiguous(memory_format=torch.channels_last)
    with by("ragged", CONFIG):
        opcheck(op, (input, weights, bias, None, None, write_layout(SERIES), *WINDOW, *rest))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("layout", [LISTED, SERIES], ids=["listed", "series"])
def test_compile_fullgraph(layout: GroupLayout, backend: str) -> None:
    model = nn.Sequential(RaggedConv2d(layout, 3, padding="same", activation="gelu"), nn.ReLU())
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for batch in (2, 3):  # the second makes the batch symbolic
        input = torch.randn(batch, layout.in_channels, 6, 5, requires_grad=True)
        expected = model(input)
        grads = torch.autograd.grad(expected.sum(), (input, *model.parameters()))
        output = compiled(input)
        assert output.stride() == expected.stride()
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(torch.autograd.grad(output.sum(), (input, *model.parameters())), grads)


def test_compile_of_the_function() -> None:
    input, bias, _, _, *weights = operands(LISTED, torch.float32)

    def function(input: Tensor, bias: Tensor, *weights: Tensor) -> Tensor:
        return ragged_conv2d(input, weights, LISTED, bias, padding=1)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(input, bias, *weights), function(input, bias, *weights))


def test_export() -> None:
    module = RaggedConv2d(SERIES, 3, padding=1).eval()
    input = torch.randn(2, 16, 5, 4)
    program = torch.export.export(module, (input,))
    assert "grouped_conv.ragged_conv2d" in str(program.graph)
    torch.testing.assert_close(program.module()(input), module(input))


def test_flops_are_counted_once_per_connection() -> None:
    module = RaggedConv2d(LISTED, 3, bias=False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.randn(2, 9, 6, 5))
    assert counter.get_total_flops() == 2 * 2 * 4 * 3 * LISTED.connections() * 9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_the_flat_storage_once(dtype: torch.dtype) -> None:
    module = RaggedConv2d(SERIES, 3, padding=1, activation="relu")
    input = torch.randn(2, 16, 5, 4).contiguous(memory_format=torch.channels_last)
    with grouped_conv.interpret(CONFIG), torch.autocast("cpu", dtype), grouped_conv.trace() as calls:
        output = module(input)
        again = module(input)
    assert output.dtype == dtype
    assert [call.launches for call in calls] == [("ragged",)] * 2  # the casts lie flat: nothing is packed
    (output.sum() + again.sum()).backward()
    assert all(weight.grad.dtype == torch.float32 for weight in module.weights)
    half = copy.deepcopy(module).to(dtype)
    with grouped_conv.interpret(CONFIG):
        torch.testing.assert_close(half(input.to(dtype)), output)


def test_autocast_leaves_float64_alone_and_sees_changed_weights() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert RaggedConv2d(SERIES, 3, dtype=torch.float64)(torch.randn(1, 16, 4, 4).double()).dtype == torch.float64
        module = RaggedConv2d(SERIES, 3, bias=False)
        input = torch.randn(1, 16, 4, 4)
        first = module(input)
        with torch.no_grad():
            module.weights[1].zero_()
        second = module(input)
    assert not torch.equal(first, second)
    assert not second[:, 8:12].any()


BAD_CALLS = [
    (
        {"input": torch.randn(2, 8, 5, 6)},
        r"Given 9 -> 13 in 3 groups.* expected input\[2, 8, 5, 6\] to have 9 channels",
    ),
    ({"input": torch.randn(9, 5)}, "Expected 4-dimensional input"),
    ({"input": torch.randn(2, 9, 2, 6)}, r"Kernel size: \(3 x 3\)"),
    ({"input": torch.randn(2, 9, 5, 6).half()}, "weight 0 type .* should be the same"),
    ({"weights": [torch.randn(10, 3, 3, 3)]}, "has 2 sizes of groups, but got 1 weights"),
    ({"weights": [torch.randn(10, 3, 3, 3), torch.randn(3, 4, 3)]}, "weight 1 must be 4-dimensional"),
    ({"weights": [torch.randn(10, 3, 3, 3), torch.randn(3, 4, 1, 1)]}, r"weight 1 of .* size \[3, 4, 3, 3\], but got"),
    ({"bias": torch.randn(12)}, "expected bias to be 1-dimensional with 13 elements"),
    ({"residual": torch.randn(2, 13, 5, 6)}, "residual must have the output's size"),
    ({"scale": torch.randn(12)}, "expected scale to be 1-dimensional with 13 elements"),
    ({"backend": "kernel"}, r"backend='kernel' cannot run a kernel on a CPU tensor"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_CALLS)
def test_bad_calls(changes: dict[str, object], message: str) -> None:
    input, _, _, _, *weights = operands(LISTED, torch.float32)
    arguments = {"input": input, "weights": weights, "layout": LISTED, **changes}
    with pytest.raises(RuntimeError, match=message):
        ragged_conv2d(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["activation", "precision", "backend"])
def test_unknown_names(name: str) -> None:
    input, _, _, _, *weights = operands(LISTED)
    with pytest.raises(ValueError, match=f"unknown {name} 'odd'"):
        ragged_conv2d(input, weights, LISTED, **{name: "odd"})  # type: ignore[arg-type]


def test_complex_numbers_go_to_torch() -> None:
    input, _, _, _, *weights = (tensor.to(torch.complex64) for tensor in operands(LISTED))
    torch.testing.assert_close(ragged_conv2d(input, weights, LISTED), by_group(input, weights, LISTED))


def test_views_of_a_given_storage_need_no_copy() -> None:
    flat = torch.randn(4096)
    weights = views(flat, SERIES, (3, 3))
    assert are_flat(weights, SERIES)
    assert not are_flat(views(flat[1:], SERIES, (3, 3)), SERIES)  # not 16-byte aligned
    assert not are_flat([weight.clone() for weight in weights], SERIES)


def test_no_index_is_copied_to_the_device_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Played on the CPU: the channels are put together from views instead."""

    class PlayedCuda(torch.Tensor):
        is_cuda = True  # type: ignore[assignment]

    monkeypatch.setattr(ragged_aten, "_is_capturing", lambda: True)
    value = torch.randn(2, 9, 3, 3)
    channels = (7, 2, 5)
    assert not device_tables.has_list(channels, value.device)
    captured = ragged_aten.gather(value.as_subclass(PlayedCuda), channels)
    assert torch.equal(captured.as_subclass(Tensor), value[:, list(channels)])


def test_a_transform_leaves_no_tensor_of_its_own_behind() -> None:
    layout = GroupLayout.explicit(9, [[8, 1, 3], [0, 2, 4, 5], [6, 7]], [2, 3, 4])  # used nowhere else
    input, _, _, _, *weights = operands(layout)
    torch.func.grad(lambda x: ragged_conv2d(x, weights, layout).sum())(input)
    torch.func.vmap(lambda x: ragged_conv2d(x, weights, layout))(input.unsqueeze(1))
    torch.testing.assert_close(ragged_conv2d(input, weights, layout), by_group(input, weights, layout))
