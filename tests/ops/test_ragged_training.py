"""Unequal groups train by our kernels: each gradient equal to torch's, the path known, flat and scattered weights."""

import pytest
import torch
from torch import Tensor

import grouped_conv
from grouped_conv import GroupLayout, RaggedConv2d, ragged_conv2d
from grouped_conv.kernels import ACTIVATIONS

LAYOUTS = {
    "log series": GroupLayout.sizes([16, 8, 4, 4], [24, 8, 4, 4]),
    "overlap": GroupLayout.overlapping(24, 32, groups=4, width=12),
    "lists": GroupLayout.explicit(10, [[0, 3, 5, 9], [1, 2, 4, 6, 7, 8, 9], [0, 9]], [8, 8, 16]),
}


def operands(layout: GroupLayout, dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """(input, a weight per size, bias and scale and residual)."""
    torch.manual_seed(0)
    module = RaggedConv2d(layout, 3, padding=1, dtype=dtype)
    x = torch.randn(2, layout.in_channels, 6, 5, dtype=dtype).contiguous(memory_format=torch.channels_last)
    residual = torch.randn(2, layout.out_channels, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    vectors = [torch.randn(layout.out_channels, dtype=dtype) for _ in range(2)]
    weights = [weight.detach() for weight in module.weights]
    return x.requires_grad_(), [w.requires_grad_() for w in weights], [t.requires_grad_() for t in (*vectors, residual)]


def call(layout: GroupLayout, x: Tensor, weights: list[Tensor], rest: list[Tensor], activation: str) -> Tensor:
    bias, scale, residual = rest
    return ragged_conv2d(
        x, weights, layout, bias, 2, 1, activation=activation, scale=scale, residual=residual, precision="ieee"
    )


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("activation", "scattered"), [("none", False), ("relu", True), ("silu", False)])
def test_every_gradient_by_kernels(name: str, activation: str, scattered: bool) -> None:
    layout = LAYOUTS[name]
    x, weights, rest = operands(layout)
    if scattered:
        weights = [w.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for w in weights]
    leaves = [x, *weights, *rest]
    with grouped_conv.interpret(), grouped_conv.trace() as calls:
        output = call(layout, x, weights, rest, activation)
        weighting = torch.randn(output.shape)
        found = torch.autograd.grad(output, leaves, weighting)
    assert [c.path for c in calls] == ["ragged", "ragged_input_grad", "ragged_weight_grad"]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    wide = exact[1 : 1 + len(weights)]
    wanted = torch.autograd.grad(
        call(layout, exact[0], wide, exact[1 + len(weights) :], activation), exact, weighting.double()
    )
    torch.testing.assert_close([mine.double() for mine in found], list(wanted), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_module_trains(activation: str) -> None:
    """Through `backward()`, half precision, twice the same bits; gradients accumulate."""
    layout, results = LAYOUTS["overlap"], []
    for _ in range(2):
        torch.manual_seed(0)
        layer = RaggedConv2d(layout, 3, padding=1, activation=activation, dtype=torch.float16)
        x = torch.randn(1, 24, 5, 4, dtype=torch.float16)
        with grouped_conv.interpret(), grouped_conv.trace() as calls:
            for _ in range(2):
                layer(x).float().square().sum().backward()
        assert {c.path for c in calls} == {"ragged", "ragged_weight_grad"}
        results.append([p.grad for p in layer.parameters()])
    for one, other in zip(*results, strict=True):
        assert one is not None
        assert torch.equal(one, other)


@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [4], [0, 3]], ids=str)
def test_only_what_is_needed(wanted: list[int]) -> None:
    layout = LAYOUTS["overlap"]
    x, weights, rest = operands(layout)
    leaves = [x, *weights, *rest]
    assert len(leaves) == 5
    for index, leaf in enumerate(leaves):
        leaf.requires_grad_(index in wanted)
    kept: list[int] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t)
    with grouped_conv.interpret(), hooks:
        call(layout, x, weights, rest, "relu").sum().backward()
    assert (x.data_ptr() in kept) == bool({1, 3} & {*wanted})  # the weight's and the scale's gradients read the input
    assert [leaf.grad is not None for leaf in leaves] == [index in wanted for index in range(5)]


@pytest.mark.parametrize("frozen", [False, True])
def test_the_compiled_path_keeps_the_input_for_weights_only(frozen: bool) -> None:
    from grouped_conv.call_values.layout_text import write_layout
    from grouped_conv.ops.ragged import FORWARD

    layout = LAYOUTS["overlap"]
    x, weights, _ = operands(layout)
    for weight in weights:
        weight.requires_grad_(not frozen)
    kept: list[int] = []
    attributes = (1, 1), (1, 1, 1, 1), (1, 1), "relu", 0.01, False, "ieee", "auto"
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        output, _ = FORWARD.overload(x, weights, None, None, None, write_layout(layout), *attributes)
    assert (x.data_ptr() in kept) is not frozen
    output.sum().backward()
    assert x.grad is not None


def test_operator_passes_torchs_checks() -> None:
    from grouped_conv.call_values.layout_text import write_layout
    from grouped_conv.call_values.ragged_weights import flat_of
    from grouped_conv.ops.ragged import BACKWARD

    layout = LAYOUTS["log series"]
    x, weights, (_, scale, residual) = operands(layout)
    flat = flat_of(weights, layout)
    grad, known = torch.randn_like(residual), torch.randn_like(residual)
    for asked in ([True] * 5, [True, False, False, False, True], [False, True, False, True, False]):
        window = ((3, 3), (2, 2), (1, 1, 1, 1), (1, 1))
        kept = x.detach() if asked[1] or asked[3] else None
        arguments = (grad, kept, flat, scale.detach(), known, x.shape, True, write_layout(layout), *window)
        torch.library.opcheck(
            BACKWARD.overload,
            (*arguments, "relu", 0.01, "default", "auto", asked),
            test_utils=("test_schema", "test_faketensor"),
        )
