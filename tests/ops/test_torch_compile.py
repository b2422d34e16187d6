"""`grouped_conv2d` under opcheck, torch.compile, torch.export and make_fx."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch_paths import by

from grouped_conv import GroupedConv2d, grouped_conv2d

WINDOW = ([1, 1], [0, 1, 1, 0], [1, 1])
pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def operands(*, nhwc: bool = False, grads: bool = False, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    tensors = [torch.randn(shape) for shape in ((2, 4, 5, 6), (6, 2, 3, 3), (6,), (6,), (2, 6, 4, 5))]
    if nhwc:
        tensors = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]
    return tuple(t.to(dtype).requires_grad_(grads) for t in tensors)


@pytest.mark.parametrize("nhwc", [False, True])
def test_opcheck_conv2d(nhwc: bool) -> None:
    input, weight, bias, _, _ = operands(nhwc=nhwc, grads=True)
    opcheck(torch.ops.grouped_conv.conv2d.default, (input, weight, bias, *WINDOW, "default", "auto"))


@pytest.mark.parametrize(("activation", "saves"), [("gelu", True), ("relu", False), ("none", True)])
def test_opcheck_conv2d_fused(activation: str, saves: bool) -> None:
    tensors = operands(nhwc=saves, grads=True)
    attributes = (*WINDOW, activation, 0.01, saves, "default", "auto")
    opcheck(torch.ops.grouped_conv.conv2d_fused.default, (*tensors, *attributes))


def test_opcheck_without_the_optional_operands() -> None:
    """Schema and fake only: what autograd does with them is the same."""
    tests = ("test_schema", "test_faketensor")
    input, weight, _, _, _ = operands()
    opcheck(torch.ops.grouped_conv.conv2d.default, (input, weight, None, *WINDOW, "ieee", "aten"), test_utils=tests)
    attributes = (*WINDOW, "silu", 0.01, True, "default", "auto")
    fused = torch.ops.grouped_conv.conv2d_fused.default
    opcheck(fused, (input, weight, None, None, None, *attributes), test_utils=tests)


def test_opcheck_with_the_kernel_running() -> None:
    input, weight, bias, scale, residual = operands(nhwc=True, dtype=torch.float16)
    with by("implicit_gemm"):
        opcheck(torch.ops.grouped_conv.conv2d.default, (input, weight, bias, *WINDOW, "default", "auto"))
        attributes = (*WINDOW, "gelu", 0.01, True, "default", "auto")
        opcheck(torch.ops.grouped_conv.conv2d_fused.default, (input, weight, bias, scale, residual, *attributes))


def function(input: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, residual: Tensor) -> Tensor:
    hidden = grouped_conv2d(
        input, weight, bias, padding=(0, 1, 1, 0), groups=2, activation="gelu", scale=scale, residual=residual
    )
    return grouped_conv2d(F.relu(hidden), weight.flatten(1, 1), padding="same", groups=3)


def test_compile_by_inductor() -> None:
    """Inductor plans its buffers by the fake strides; without code generation, which would only take time here."""
    input, weight, bias, _, _ = operands()
    function = lambda *t: grouped_conv2d(*t, groups=2, activation="gelu")  # noqa: E731
    for each in (input, input.contiguous(memory_format=torch.channels_last)):
        wanted = function(each, weight, bias)
        mine = torch.compile(function, fullgraph=True, backend="inductor")(each, weight, bias)
        torch.testing.assert_close(mine, wanted)
        assert mine.stride() == wanted.stride()


def test_compile_forward_and_backward_without_graph_breaks() -> None:
    eager, compiled = operands(grads=True), operands(grads=True)
    wanted = function(*eager)
    mine = torch.compile(function, fullgraph=True, backend="aot_eager")(*compiled)
    torch.testing.assert_close(mine, wanted)
    assert mine.stride() == wanted.stride()
    wanted.square().sum().backward()
    mine.square().sum().backward()
    torch.testing.assert_close([t.grad for t in compiled], [t.grad for t in eager], rtol=1e-4, atol=1e-4)


def test_compiled_code_runs_the_kernel() -> None:
    tensors = operands(nhwc=True)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    with by("implicit_gemm") as calls:
        mine = compiled(*tensors)
    assert len(calls) == 2
    torch.testing.assert_close(mine, function(*tensors), rtol=2e-2, atol=2e-2)


def test_compile_with_dynamic_sizes() -> None:
    _, weight, bias, _, _ = operands()
    layer = torch.compile(
        lambda x: grouped_conv2d(x, weight, bias, padding="same", groups=2, activation="relu"),
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch, height, width in ((5, 7, 8), (7, 9, 10), (9, 12, 5)):
            input = torch.randn(batch, 4, height, width)
            wanted = F.relu(F.conv2d(input, weight, bias, padding="same", groups=2))
            torch.testing.assert_close(layer(input), wanted)


def test_compile_under_autocast() -> None:
    input, weight, bias, _, _ = operands(grads=True)
    compiled = torch.compile(lambda *t: grouped_conv2d(*t, groups=2), fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine, wanted = compiled(input, weight, bias), grouped_conv2d(input, weight, bias, groups=2)
    assert mine.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(mine, wanted)
    mine.float().sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_compile_raises_torchs_error() -> None:
    input, weight, _, _, _ = operands()
    compiled = torch.compile(lambda *t: grouped_conv2d(*t, groups=3), fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match=r"expected input.* to have 6 channels, but got 4 channels"):
        compiled(input, weight)


class Net(nn.Module):
    """Two of our layers and a plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = GroupedConv2d(4, 8, 3, padding="same", groups=2, activation="silu")
        self.second = GroupedConv2d(8, 8, 3, padding=1, groups=4, padding_mode="reflect")
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, input: Tensor) -> Tensor:
        return self.head(self.second(self.first(input)))


def test_compile_a_training_step_of_a_network() -> None:
    torch.manual_seed(0)
    eager = Net()
    compiled = copy.deepcopy(eager)
    input = torch.randn(2, 4, 6, 6)
    eager(input).square().mean().backward()
    torch.compile(compiled, fullgraph=True, backend="aot_eager")(input).square().mean().backward()
    torch.testing.assert_close(*([p.grad for p in net.parameters()] for net in (compiled, eager)))


def test_compile_a_frozen_network() -> None:
    torch.manual_seed(0)
    net = Net().eval().requires_grad_(False)
    net.first.weight.data = net.first.weight.data.contiguous()
    input = torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    wanted = net(input)
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="aot_eager")(input), wanted)


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_a_dynamic_batch(strict: bool) -> None:
    torch.manual_seed(0)
    net = Net().eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(net, (torch.randn(2, 4, 6, 6),), dynamic_shapes=({0: batch},), strict=strict)
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert torch.ops.grouped_conv.conv2d_fused.default in targets
    assert torch.ops.grouped_conv.conv2d.default in targets
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    input = torch.randn(5, 4, 6, 6)
    torch.testing.assert_close(torch.export.load(file).module()(input), net(input))


def test_export_with_an_unbacked_batch() -> None:
    net = GroupedConv2d(4, 8, 3, groups=2, activation="relu").eval()

    class Selecting(nn.Module):
        def forward(self, input: Tensor, keep: Tensor) -> Tensor:
            return net(input[keep.nonzero().squeeze(1)])

    arguments = torch.randn(4, 4, 6, 6), torch.tensor([True, False, True, True])
    program = torch.export.export(Selecting(), arguments, strict=False)
    torch.testing.assert_close(program.module()(*arguments), Selecting()(*arguments))


def test_make_fx_sees_one_operator() -> None:
    tensors = operands()
    graph = make_fx(lambda *t: grouped_conv2d(*t, groups=2))(*tensors[:3]).graph
    assert [n.target for n in graph.nodes if n.op == "call_function"] == [torch.ops.grouped_conv.conv2d.default]


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp"])
def test_compile_torch_func(transform: str) -> None:
    input, weight, bias, _, _ = operands()

    def loss(convolve, weight: Tensor) -> Tensor:
        return F.gelu(convolve(input, weight, bias, groups=2)).sum()

    def transformed(convolve):
        if transform == "grad":
            return torch.func.grad(lambda w: loss(convolve, w))
        if transform == "vmap":
            return lambda w: torch.func.vmap(lambda v: loss(convolve, v))(torch.stack([w, 2 * w]))
        return lambda w: torch.func.jvp(lambda v: loss(convolve, v), (w,), (w,))

    mine = torch.compile(transformed(grouped_conv2d), fullgraph=True, backend="aot_eager")(weight)
    torch.testing.assert_close(mine, transformed(F.conv2d)(weight))


def test_make_fx_with_symbolic_sizes() -> None:
    tensors = operands()
    graph = make_fx(lambda *t: grouped_conv2d(*t, padding="same", groups=2), tracing_mode="symbolic")(*tensors[:3])
    input, weight, bias = torch.randn(3, 4, 7, 9), *tensors[1:3]
    torch.testing.assert_close(graph(input, weight, bias), F.conv2d(input, weight, bias, padding="same", groups=2))
