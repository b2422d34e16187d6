"""`separable_conv2d`, `SeparableConv2d` and `RootModule` as torch sees them: derivatives, compilation, names, hooks."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import grouped_conv
from grouped_conv import GroupedConv2d, RootModule, SeparableConv2d, separable_conv2d
from grouped_conv.kernels import ACTIVATIONS
from grouped_conv.kernels.separable.forward_rules import SeparableConfig

SMALL = SeparableConfig(block_m=32, block_n=16, width=16, block_k=16)
OPERATOR = torch.ops.grouped_conv.separable_conv2d.default


def operands(dtype: torch.dtype = torch.float64, channels_last: bool = False) -> list[Tensor]:
    """Input, weight (groups of 2 to 3), 1x1 weight, both biases, both scales, residual."""
    torch.manual_seed(0)
    shapes = [(2, 4, 5, 4), (6, 2, 3, 3), (5, 6, 1, 1), (6,), (5,), (6,), (5,), (2, 5, 5, 4)]
    made = [torch.randn(shape, dtype=dtype) for shape in shapes]
    if channels_last:
        made = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in made]
    return [t.requires_grad_() for t in made]


def call(*tensors: Tensor, **changes: str) -> Tensor:
    x, w, pw, b, pb, s, ps, r = tensors
    arguments = {"padding": 1, "activation": "silu", "pointwise_activation": "gelu", **changes}
    return separable_conv2d(x, w, pw, b, pb, scale=s, pointwise_scale=ps, residual=r, **arguments)


def plain(*tensors: Tensor) -> Tensor:
    x, w, pw, b, pb, s, ps, r = tensors
    hidden = F.silu(F.conv2d(x, w, None, padding=1, groups=2) * s.view(-1, 1, 1) + b.view(-1, 1, 1))
    return F.gelu(F.conv2d(hidden, pw) * ps.view(-1, 1, 1) + pb.view(-1, 1, 1) + r)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients(activation: str) -> None:
    """Away from kinks: values this size keep clear of them."""
    given = operands()
    for between, behind in ((activation, "none"), ("tanh", activation)):
        assert torch.autograd.gradcheck(
            lambda *t, a=between, b=behind: call(*t, activation=a, pointwise_activation=b), given, fast_mode=True
        )


def test_second_derivatives_and_every_gradient_by_name() -> None:
    given = operands()
    assert torch.autograd.gradgradcheck(call, given, fast_mode=True)
    ours = torch.autograd.grad(call(*given).square().sum(), given)
    theirs = torch.autograd.grad(plain(*given).square().sum(), given)
    names = ("input", "weight", "pointwise_weight", "bias", "pointwise_bias", "scale", "pointwise_scale", "residual")
    torch.testing.assert_close(dict(zip(names, ours, strict=True)), dict(zip(names, theirs, strict=True)))


@pytest.mark.parametrize("wanted", range(8))
def test_only_the_gradients_that_are_asked_for(wanted: int) -> None:
    given = [t.detach().requires_grad_(index == wanted) for index, t in enumerate(operands())]
    call(*given).sum().backward()
    assert [t.grad is not None for t in given] == [index == wanted for index in range(8)]


def test_gradients_through_the_fused_kernel() -> None:
    ours, theirs = operands(torch.float32, channels_last=True), operands(torch.float32, channels_last=True)
    with grouped_conv.interpret(SMALL), grouped_conv.trace() as calls:
        y = call(*ours, precision="ieee")
    assert [record.path for record in calls] == ["separable"]
    y.square().sum().backward()
    plain(*theirs).square().sum().backward()
    torch.testing.assert_close([t.grad for t in ours], [t.grad for t in theirs], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck(channels_last: bool) -> None:
    x, w, pw, b, pb, s, ps, r = operands(torch.float32, channels_last)
    window = ([1, 1], [1, 1, 1, 1], [1, 1])
    for tensors, choices in (
        ((x, w, b, s, pw, pb, ps, r), ("silu", 0.01, "gelu", 0.01, "default", "auto")),
        ((x, w, None, None, pw, None, None, None), ("none", 0.01, "relu", 0.01, "default", "auto")),
    ):
        torch.library.opcheck(OPERATOR, (*tensors, *window, *choices))


def test_compiles_in_one_graph_and_has_the_same_gradients() -> None:
    ours, theirs = operands(torch.float32), operands(torch.float32)
    y = torch.compile(call, fullgraph=True, backend="aot_eager")(*ours)
    expected = call(*theirs)
    torch.testing.assert_close(y, expected)
    assert y.stride() == expected.stride()
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close([t.grad for t in ours], [t.grad for t in theirs])


def test_under_torch_func_and_forward_mode() -> None:
    given = [t.detach() for t in operands()]
    jacobian = torch.func.jacrev(call)(*given)
    torch.testing.assert_close(torch.func.jacfwd(call)(*given), jacobian)
    torch.testing.assert_close(
        torch.func.vmap(lambda x: call(x[None], *given[1:7], given[7][:1])[0])(given[0]),
        call(*given[:7], given[7][:1].expand(2, -1, -1, -1)),
    )


def test_autocast_reaches_both() -> None:
    given = operands(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = call(*given)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in given)


def test_unbatched_empty_and_counted() -> None:
    x, w, pw, b, pb, *_ = [t.detach() for t in operands(torch.float32)]
    y = separable_conv2d(x, w, pw, b, pb, padding=1)
    torch.testing.assert_close(separable_conv2d(x[0], w, pw, b, pb, padding=1), y[0])
    with grouped_conv.trace() as calls:
        assert separable_conv2d(x[:0], w, pw, b, pb, padding=1).shape == (0, 5, 5, 4)
    assert calls[0].reason == "the output has no elements"
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        separable_conv2d(x, w, pw, b, pb, padding=1)
    assert counter.get_total_flops() == 2 * 2 * 20 * (6 * 2 * 9 + 5 * 6)
    for error, message, second, wrong in (
        (ValueError, r"pointwise_weight must have size \[out_channels, 6, 1, 1\]", w, {}),
        (ValueError, "groups=3", pw, {"groups": 3}),
        (ValueError, "unknown activation 'swish'", pw, {"pointwise_activation": "swish"}),
        (RuntimeError, "should be the same", pw.double(), {}),
    ):
        with pytest.raises(error, match=message):
            separable_conv2d(x, w, second, **wrong)
    z = separable_conv2d(x.to(torch.complex64), w.to(torch.complex64), pw.to(torch.complex64), padding=1)
    torch.testing.assert_close(z.real, separable_conv2d(x, w, pw, padding=1))


def separable(**options: object) -> SeparableConv2d:
    torch.manual_seed(1)
    return SeparableConv2d(8, 12, 3, padding=1, depthwise_activation="relu6", **options)


def root(**options: object) -> RootModule:
    torch.manual_seed(1)
    return RootModule(8, 12, 3, padding=1, groups=4, grouped_activation="relu", activation="relu", **options)


def test_names_and_shapes() -> None:
    assert {name: tuple(p.shape) for name, p in separable(multiplier=2).named_parameters()} == {
        "depthwise.weight": (16, 1, 3, 3),
        "depthwise.bias": (16,),
        "pointwise.weight": (12, 16, 1, 1),
        "pointwise.bias": (12,),
    }
    assert [name for name, _ in root(bias=False, mid_channels=16).named_parameters()] == [
        "grouped.weight",
        "pointwise.weight",
    ]
    assert "grouped_activation=relu, activation=relu" in repr(root())
    loaded = root(batch_norm=True)
    loaded.load_state_dict(root(batch_norm=True).state_dict())
    assert all(type(child) is GroupedConv2d for child in (loaded.grouped, loaded.pointwise))
    with pytest.raises(ValueError, match="multiplier must be at least 1"):
        separable(multiplier=0)
    with pytest.raises(ValueError, match="divisible by groups"):
        RootModule(9, 12, 3, groups=4)


def paths(module: nn.Module, x: Tensor) -> tuple[list[str], Tensor]:
    with grouped_conv.interpret(), grouped_conv.trace() as calls:
        y = module(x)
    return [record.path for record in calls], y


@pytest.mark.parametrize("make", [separable, root])
def test_fused_and_one_by_one_are_equal(make: object) -> None:
    module = make().requires_grad_(False)  # type: ignore[operator]
    x = torch.randn(1, 8, 5, 5).half().contiguous(memory_format=torch.channels_last)
    module = module.half()
    fused, y = paths(module, x)
    assert fused == ["separable"]
    seen = []
    handle = module.pointwise.register_forward_hook(lambda m, args, out: seen.append(out.shape))
    separate, z = paths(module, x)
    handle.remove()
    assert "separable" not in separate and len(separate) == 2 and seen == [(1, 12, 5, 5)]
    torch.testing.assert_close(y, z, rtol=2e-3, atol=2e-3)
    assert paths(module, x)[0] == ["separable"]


def test_batchnorm_is_folded_and_then_fused() -> None:
    model = nn.Sequential(root(batch_norm=True), nn.ReLU(), SeparableConv2d(12, 8, 3, batch_norm=True))
    for _ in range(3):
        model(torch.randn(4, 8, 6, 6) + 1)
    model.eval()
    x = torch.randn(1, 8, 6, 6)
    before = model(x)
    assert "separable" not in paths(model, x)[0]
    grouped_conv.fold_batchnorm(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    assert paths(model, x)[0] == ["separable", "separable"]


def test_conversion_keeps_them_and_unconverts_to_torch() -> None:
    model = nn.Sequential(separable(), root_like := RootModule(12, 8, 3, groups=2, grouped_activation="relu"))
    x = torch.randn(1, 8, 6, 6)
    before = model(x)
    torch.testing.assert_close(grouped_conv.convert(model)(x), before)
    plain_model = grouped_conv.unconvert(model)
    assert type(root_like.grouped) is nn.Conv2d
    torch.testing.assert_close(plain_model(x), before)


def test_padding_modes_and_other_windows() -> None:
    torch.manual_seed(0)
    module = SeparableConv2d(6, 4, (3, 5), (2, 1), (1, 2), padding_mode="reflect", activation="tanh")
    x = torch.randn(2, 6, 7, 8)
    padded = F.pad(x, (2, 2, 1, 1), mode="reflect")
    hidden = F.conv2d(padded, module.depthwise.weight, module.depthwise.bias, (2, 1), groups=6)
    expected = torch.tanh(F.conv2d(hidden, module.pointwise.weight, module.pointwise.bias))
    torch.testing.assert_close(module(x), expected)
