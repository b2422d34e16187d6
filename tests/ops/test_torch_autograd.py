"""Gradients of `grouped_conv2d`: eager, second order, forward mode, torch.func, and what is kept for backward."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from dispatch_calls import CONFIG
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch_paths import BOTH_PATHS, by

import grouped_conv
from grouped_conv import GroupedConv2d, grouped_conv2d
from grouped_conv.kernels import ACTIVATIONS

GROUPS = 2
PADDING = (1, 2, 0, 1)
NAMES = ("input", "weight", "bias", "scale", "residual")


def operands(dtype: torch.dtype = torch.float32, batch: int = 2) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, 4, 5, 4), (6, 2, 3, 2), (6,), (6,), (batch, 6, 6, 4)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


def ours(input, weight, bias, scale, residual, activation="none", **more) -> Tensor:
    more |= dict(padding=PADDING, groups=GROUPS, scale=scale, residual=residual, activation=activation)
    return grouped_conv2d(input, weight, bias, **more)


def torchs(input, weight, bias, scale, residual, activation="none", negative_slope=0.01) -> Tensor:
    top, bottom, left, right = PADDING
    value = F.conv2d(F.pad(input, (left, right, top, bottom)), weight, groups=GROUPS)
    value = value * scale[:, None, None] + bias[:, None, None] + residual
    if activation == "leaky_relu":
        return F.leaky_relu(value, negative_slope)
    return value if activation == "none" else getattr(F, activation)(value)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@BOTH_PATHS
def test_every_gradient_of_every_activation(activation: str, path: str) -> None:
    leaves = [t.requires_grad_() for t in operands()]
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    with by(path):
        output = ours(*leaves, activation, precision="ieee")
    weighting = torch.randn(output.shape)
    gradients = torch.autograd.grad((output * weighting).sum(), leaves)
    wanted = torch.autograd.grad((torchs(*doubles, activation) * weighting).sum(), doubles)
    found = {name: gradient.double() for name, gradient in zip(NAMES, gradients, strict=True)}
    torch.testing.assert_close(found, dict(zip(NAMES, wanted, strict=True)), rtol=2e-4, atol=2e-4)


def test_a_falling_leaky_relu_is_differentiated_from_its_argument() -> None:
    leaves = [t.requires_grad_() for t in operands(torch.float64)]
    arguments = dict(activation="leaky_relu", negative_slope=-0.5)
    mine = torch.autograd.grad(ours(*leaves, **arguments).sum(), leaves)
    wanted = torch.autograd.grad(torchs(*leaves, **arguments).sum(), leaves)
    torch.testing.assert_close(mine, wanted)


@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [4], [0, 2], [1, 3]], ids=str)
def test_only_the_gradients_asked_for(wanted: list[int]) -> None:
    leaves = operands()
    for index in wanted:
        leaves[index].requires_grad_()
    ours(*leaves, "silu").sum().backward()
    assert [t.grad is not None for t in leaves] == [index in wanted for index in range(5)]


@pytest.mark.parametrize("activation", ["none", "relu6", "leaky_relu", "silu", "gelu", "hardswish", "sigmoid", "tanh"])
def test_first_and_second_derivatives_in_float64(activation: str) -> None:
    leaves = [t[:1].contiguous() if t.dim() == 4 and t.shape[0] == 2 else t for t in operands(torch.float64)]
    leaves = [t.requires_grad_() for t in leaves]
    function = lambda *tensors: ours(*tensors, activation)  # noqa: E731
    with grouped_conv.trace() as calls:
        assert gradcheck(function, leaves, fast_mode=True, check_forward_ad=True)
        assert gradgradcheck(function, leaves, fast_mode=True)
    assert {call.path for call in calls} == {"aten"}


@pytest.mark.parametrize("activation", ["none", "relu", "silu", "gelu", "tanh"])
def test_second_derivatives_in_float32_with_the_kernel_forward(activation: str) -> None:
    leaves = [t.requires_grad_() for t in operands()]
    doubles = [t.detach().double().requires_grad_() for t in leaves]

    def penalty(output: Tensor, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(output.square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), tensors)

    with by("implicit_gemm"):
        output = ours(*leaves, activation, precision="ieee")
    for mine, true in zip(penalty(output, leaves), penalty(torchs(*doubles, activation), doubles), strict=True):
        torch.testing.assert_close(mine.double() / true.abs().max(), true / true.abs().max(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["none", "silu", "relu"])
def test_forward_mode(activation: str) -> None:
    primals = operands(torch.float64)
    tangents = operands(torch.float64)[::-1][::-1]
    function = lambda *tensors: ours(*tensors, activation)  # noqa: E731
    reference = lambda *tensors: torchs(*tensors, activation)  # noqa: E731
    torch.testing.assert_close(jvp(function, primals, tangents), jvp(reference, primals, tangents))
    for index in range(5):
        one = lambda t, index=index, f=function: f(*(t if i == index else p for i, p in enumerate(primals)))  # noqa: E731
        same = lambda t, index=index, f=reference: f(*(t if i == index else p for i, p in enumerate(primals)))  # noqa: E731
        mine, true = (jvp(f, (primals[index],), (tangents[index],))[1] for f in (one, same))
        torch.testing.assert_close(mine, true)


def test_forward_mode_runs_the_kernel() -> None:
    primals = operands()
    with by("implicit_gemm"):
        _, tangent = jvp(lambda x: ours(x, *primals[1:], "relu", precision="ieee"), primals[:1], primals[:1])
    wanted = jvp(lambda x: torchs(x, *primals[1:], "relu"), primals[:1], primals[:1])[1]
    torch.testing.assert_close(tangent, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["none", "silu"])
def test_torch_func_grad_and_jacrev(activation: str) -> None:
    tensors = operands(torch.float64)

    def both(transform) -> tuple:
        return tuple(
            transform(lambda *t, f=f: f(*t, activation).square().sum(), argnums=tuple(range(5)))(*tensors)
            for f in (ours, torchs)
        )

    torch.testing.assert_close(*both(grad))
    torch.testing.assert_close(*both(lambda f, argnums: grad(lambda *t: sum(g.sum() for g in grad(f, argnums)(*t)))))
    small = tensors[2]
    mine, true = (jacrev(lambda b, f=f: f(*tensors[:2], b, *tensors[3:], activation))(small) for f in (ours, torchs))
    torch.testing.assert_close(mine, true)


BATCHED = {
    "input": (0,),
    "input, batch last": (-1,),
    "weight": (None, 0),
    "bias": (None, None, 0),
    "scale": (None, None, None, 0),
    "residual": (None, None, None, None, 0),
    "all": (0, 1, 0, 0, 2),
}


@pytest.mark.parametrize("dims", BATCHED.values(), ids=BATCHED)
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_vmap(dims: tuple, activation: str) -> None:
    dims = (*dims, *[None] * (5 - len(dims)))
    tensors = [
        t if dim is None else torch.stack([t, 2 * t, t - 1], dim)
        for t, dim in zip(operands(torch.float64), dims, strict=True)
    ]
    mine, true = (vmap(lambda *t, f=f: f(*t, activation), dims)(*tensors) for f in (ours, torchs))
    torch.testing.assert_close(mine, true)


def test_vmap_of_the_operators_themselves() -> None:
    input, weight, bias, scale, residual = operands()
    stacked = torch.stack([input, 2 * input])
    window = ([1, 1], list(PADDING), [1, 1])
    plain = vmap(lambda x: torch.ops.grouped_conv.conv2d(x, weight, bias, *window, "default", "auto"))(stacked)
    torch.testing.assert_close(plain[1], grouped_conv2d(2 * input, weight, bias, padding=PADDING, groups=GROUPS))
    for saves in (False, True):
        fused = vmap(
            lambda x, saves=saves: torch.ops.grouped_conv.conv2d_fused(
                x, weight, bias, scale, residual, *window, "gelu", 0.01, saves, "default", "auto"
            )[0]
        )(stacked)
        torch.testing.assert_close(fused[1], ours(2 * input, weight, bias, scale, residual, "gelu"))


def test_vmap_runs_the_kernel_once() -> None:
    input, weight, bias, scale, residual = operands()
    stacked = torch.stack([input, 2 * input, 3 * input])
    with by("implicit_gemm") as calls:
        mine = vmap(lambda x: ours(x, weight, bias, scale, residual, "relu", precision="ieee"))(stacked)
    assert [call.problem.batch for call in calls] == [6]
    torch.testing.assert_close(mine[2], torchs(3 * input, weight, bias, scale, residual, "relu"), rtol=1e-4, atol=1e-4)


def test_per_sample_gradients_of_a_layer() -> None:
    torch.manual_seed(0)
    layer = GroupedConv2d(4, 6, 3, groups=2, activation="silu").double()
    parameters = dict(layer.named_parameters())
    images = torch.randn(3, 4, 5, 5, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return functional_call(layer, parameters, (image,)).square().sum()

    per_sample = vmap(grad(loss), (None, 0))({n: p.detach() for n, p in parameters.items()}, images)
    for index in range(3):
        wanted = torch.autograd.grad(loss(parameters, images[index]), list(parameters.values()))
        torch.testing.assert_close([mine[index] for mine in per_sample.values()], list(wanted))


@pytest.mark.parametrize("activation", ["none", "relu", "silu"])
@pytest.mark.parametrize("trains", ["input", "weight"])
def test_backward_keeps_only_what_its_formula_reads(activation: str, trains: str) -> None:
    """Relu's output, silu's argument, nothing of that size without either; the input only for the weight's gradient."""
    input, weight, bias, _, _ = operands()
    (input if trains == "input" else weight).requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        output = grouped_conv2d(input, weight, bias, padding=PADDING, groups=GROUPS, activation=activation)
    of_output_shape = [t for t in saved if t.shape == output.shape]
    assert len(of_output_shape) == (0 if activation == "none" else 1)
    assert any(t.data_ptr() == output.data_ptr() for t in of_output_shape) == (activation == "relu")
    assert any(t.data_ptr() == input.data_ptr() for t in saved) == (trains == "weight")
    output.sum().backward()


def test_graphs_are_freed() -> None:
    input, weight, bias, scale, residual = operands()
    output = ours(input, weight.requires_grad_(), bias, scale, residual, "gelu")
    node = weakref.ref(output.grad_fn)
    gc.disable()
    try:
        del output
        assert node() is None
    finally:
        gc.enable()


def test_half_precision_gradients_have_the_operands_dtype() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        leaves = [t.requires_grad_() for t in operands(dtype)]
        with grouped_conv.trace() as calls, grouped_conv.interpret(CONFIG):
            ours(*leaves, "gelu").sum().backward()
        assert calls[0].path == "implicit_gemm"
        assert {t.grad.dtype for t in leaves} == {dtype}


def test_gradients_of_an_empty_batch() -> None:
    leaves = [t.requires_grad_() for t in operands(batch=0)]
    ours(*leaves, "gelu").sum().backward()
    torch.testing.assert_close([leaf.grad for leaf in leaves], [torch.zeros_like(leaf) for leaf in leaves])
