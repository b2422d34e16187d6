"""LRN + pool under torch: the path taken and why, gradients, compilation, autocast, layouts; AlexNet's use of it."""

import pytest
import torch
import torch.nn.functional as F
from played_gpu import conditions_on
from torch import Tensor, nn
from torch_paths import by

import grouped_conv
from grouped_conv import LrnMaxPool2d, lrn_max_pool2d
from grouped_conv.context.tracing import CallRecord
from grouped_conv.kernels import DeviceSpec, ImplicitGemmConfig
from grouped_conv.kernels.lrn_pool.forward_rules import LrnPoolConfig
from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem
from grouped_conv.models import AlexNet, LocalResponseNorm
from grouped_conv.planning.decisions import decide
from grouped_conv.planning.lrn_pool import LRN_POOL

OP = torch.ops.grouped_conv.lrn_max_pool2d.default
ATTRIBUTES = ("lrn-pool", 5, 0.3, 0.75, 1.0, 2, [3, 3], [2, 2], [0, 0], False, "auto")


def activation(*shape: int, channels_last: bool = True, dtype: torch.dtype = torch.float32) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return (5 * torch.randn(*(shape or (2, 16, 9, 8)), generator=torch.Generator().manual_seed(0), dtype=dtype)).to(
        memory_format=layout
    )


def separate(x: Tensor, alpha: float = 0.3, groups: int = 2, **pool: object) -> Tensor:
    """The same in torch's layers."""
    return F.max_pool2d(LocalResponseNorm(5, alpha, groups=groups)(x), 3, 2, **pool)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_on_the_cpu_it_is_torchs_operations(dtype: torch.dtype, channels_last: bool) -> None:
    x = activation(channels_last=channels_last, dtype=dtype)
    with grouped_conv.trace() as calls:
        y = lrn_max_pool2d(x, alpha=0.3, groups=2)
    assert [call.path for call in calls] == ["aten"]
    expected = "the kernels do not compute float64" if dtype == torch.float64 else "outside grouped_conv.interpret()"
    assert expected in calls[0].reason
    assert torch.equal(y, separate(x))
    assert y.stride() == separate(x).stride()
    assert y.dtype == dtype


def test_unbatched_and_empty() -> None:
    assert torch.equal(lrn_max_pool2d(activation()[0], alpha=0.3, groups=2), separate(activation())[0])
    with grouped_conv.trace() as calls:
        assert lrn_max_pool2d(activation()[:0]).shape == (0, 16, 4, 3)
    assert [call.path for call in calls] == ["empty"]


def test_policies_choose_torch_until_something_is_measured() -> None:
    """Decided without a GPU: the policies that need records have none for this layer."""
    problem, h100 = LrnPoolProblem.of((2, 96, 55, 55)), DeviceSpec.get("h100-sxm")
    for policy in ("measured", "predicted"):
        decision = decide(problem, conditions_on(h100, policy), LRN_POOL)
        assert decision.config is None
        assert decision.reason == f"policy {policy!r} has no measured record of LRN + pool: it is not tuned yet"
        assert decide(problem, conditions_on(h100, policy, backend="kernel"), LRN_POOL).config is not None
        assert decide(problem, conditions_on(h100, policy, backend="aten"), LRN_POOL).config is None
    chosen = decide(problem, conditions_on(h100, "kernels"), LRN_POOL)
    assert (type(chosen.config), chosen.source) == (LrnPoolConfig, "heuristic")
    with pytest.raises(RuntimeError, match=r"policy 'kernels' cannot run the LRN . pool kernel: capturing"):
        decide(problem, conditions_on(h100, "kernels", barred="capturing"), LRN_POOL)


def test_planar_input_goes_to_torch_and_says_so() -> None:
    """A pass that packs would cost as much as the kernel: one decision, in the trace."""
    x = activation(channels_last=False)
    with grouped_conv.interpret(), grouped_conv.trace() as calls:
        y = lrn_max_pool2d(x, alpha=0.3, groups=2)
        with pytest.raises(RuntimeError, match="backend='kernel' was asked for, but channels must be innermost"):
            lrn_max_pool2d(x, alpha=0.3, groups=2, backend="kernel")
    assert [(call.path, call.launches) for call in calls] == [("aten", ())]
    assert "channels must be innermost in memory; a pass to bring them there" in calls[0].reason
    assert torch.equal(y, separate(x))
    assert y.is_contiguous()


def test_backend_insists() -> None:
    x = activation()
    with pytest.raises(
        RuntimeError, match=r"backend='kernel' cannot run the LRN . pool kernel: the tensors are on the CPU"
    ):
        lrn_max_pool2d(x, backend="kernel")
    with grouped_conv.policy("kernels"), pytest.raises(RuntimeError, match="policy 'kernels' cannot run"):
        lrn_max_pool2d(x)
    with grouped_conv.interpret(), grouped_conv.trace() as calls:
        lrn_max_pool2d(x, backend="aten")
        lrn_max_pool2d(x, backend="kernel")
    assert [call.path for call in calls] == ["aten", "lrn_pool"]
    with grouped_conv.interpret(), pytest.raises(RuntimeError, match="kernels do not compute float64"):
        lrn_max_pool2d(x.double(), backend="kernel")


def test_a_given_configuration_is_used_and_others_left_to_the_convolutions() -> None:
    config = LrnPoolConfig(block=256, strip=3, rows=2)
    for given, expected in ((config, config), (ImplicitGemmConfig(), None)):
        with grouped_conv.interpret(given), grouped_conv.trace() as calls:
            y = lrn_max_pool2d(activation(), alpha=0.3, groups=2)
        assert (calls[0].path, calls[0].source) == ("lrn_pool", "given" if expected else "heuristic")
        assert expected in (None, calls[0].config)
        torch.testing.assert_close(y, separate(activation()))
    with grouped_conv.interpret(config), pytest.raises(ValueError, match="window of 19"):
        lrn_max_pool2d(activation(1, 32, 5, 5), size=19)


def test_a_layout_that_is_neither_keeps_the_promise_of_the_fake_implementation() -> None:
    x = activation(2, 16, 9, 16)[:, :, :, ::2]
    with by("lrn_pool", None):
        y = lrn_max_pool2d(x, alpha=0.3, groups=2)
    torch.testing.assert_close(y, separate(x))
    plain = lrn_max_pool2d(x, alpha=0.3, groups=2)
    assert y.stride() == plain.stride() == torch.empty_strided(y.shape, y.stride(), device="meta").stride()
    assert lrn_max_pool2d(x.to("meta")).stride() == y.stride()


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("channels_last", [True, False])
def test_opcheck(channels_last: bool, requires_grad: bool) -> None:
    x = activation(channels_last=channels_last).requires_grad_(requires_grad)
    torch.library.opcheck(OP, (x, *ATTRIBUTES))
    torch.library.opcheck(OP, (x, "lrn", *ATTRIBUTES[1:]))


@pytest.mark.parametrize("order", ["lrn-pool", "relu-lrn-pool", "lrn-relu-pool", "pool-lrn", "lrn", "pool"])
def test_gradients(order: str) -> None:
    x = torch.randn(1, 4, 3, 4, dtype=torch.float64, requires_grad=True)

    def function(t: Tensor) -> Tensor:
        return lrn_max_pool2d(t, alpha=0.7, groups=2, order=order, kernel_size=2, padding=1)

    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


def test_gradient_behind_the_kernel_is_torchs() -> None:
    ours, theirs = activation().requires_grad_(), activation().requires_grad_()
    with by("lrn_pool", None):
        y = lrn_max_pool2d(ours, alpha=0.3, groups=2)
    y.square().sum().backward()
    separate(theirs).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(dynamic: bool) -> None:
    compiled = torch.compile(
        lambda t: lrn_max_pool2d(t, alpha=0.3, groups=2).square(), fullgraph=True, backend="aot_eager", dynamic=dynamic
    )
    for height in (9, 11):
        ours, theirs = (activation(2, 16, height, 8).requires_grad_() for _ in range(2))
        y = compiled(ours)
        y.sum().backward()
        separate(theirs).square().sum().backward()
        assert y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_compiled_code_reaches_the_kernel() -> None:
    layer = torch.compile(LrnMaxPool2d(alpha=0.3, groups=2), fullgraph=True, backend="eager")
    with torch.no_grad(), by("lrn_pool", None):
        y = layer(activation())
    torch.testing.assert_close(y, separate(activation()))


def test_transforms_of_torch_func_run_on_torchs_operations() -> None:
    x, direction = activation(), activation() / 7
    with grouped_conv.trace() as calls:
        gradient = torch.func.grad(lambda t: lrn_max_pool2d(t, alpha=0.3, groups=2).square().sum())(x)
        batched = torch.func.vmap(lambda t: lrn_max_pool2d(t, alpha=0.3, groups=2))(x.unsqueeze(1))
        _, along = torch.func.jvp(lambda t: lrn_max_pool2d(t, alpha=0.3, groups=2), (x,), (direction,))
    assert [call.path for call in calls] == ["aten"] * 3
    ours = x.clone().requires_grad_()
    separate(ours).square().sum().backward()
    torch.testing.assert_close(gradient, ours.grad)
    torch.testing.assert_close(batched.squeeze(1), separate(x))
    torch.testing.assert_close(along, torch.func.jvp(separate, (x,), (direction,))[1])


@pytest.mark.parametrize("path", ["aten", "lrn_pool"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(dtype: torch.dtype, path: str) -> None:
    x = activation(dtype=dtype).requires_grad_()
    expected = lrn_max_pool2d(x.detach(), alpha=0.3)
    with torch.autocast("cpu", torch.bfloat16), by(path, None):
        y = lrn_max_pool2d(x, alpha=0.3)
    assert y.dtype == dtype
    torch.testing.assert_close(y, expected)
    y.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype


def test_module_has_no_parameters_and_says_what_it_does() -> None:
    layer = LrnMaxPool2d(5, 5e-4, k=2.0, groups=2, ceil_mode=True, order="relu-lrn-pool")
    assert not layer.state_dict()
    assert "order=relu-lrn-pool, size=5, alpha=0.0005" in repr(layer)
    x = activation()
    expected = F.max_pool2d(LocalResponseNorm(5, 5e-4, k=2.0, groups=2)(F.relu(x)), 3, 2, ceil_mode=True)
    assert torch.equal(layer(x), expected)
    assert LrnMaxPool2d(kernel_size=2, stride=None).stride == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"order": "pool-softmax"}, "'pool-softmax'.*relu, lrn, pool"),
        ({"padding": 2}, r"padding=\(2, 2\)"),
        ({"kernel_size": 0}, r"kernel_size=\(0, 0\)"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size must be an integer or two"),
        ({"groups": 0}, "groups=0"),
        ({"size": -1}, "size=-1"),
    ],
)
def test_refuses_what_is_no_layer(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LrnMaxPool2d(**arguments)
    with pytest.raises(ValueError, match=words):
        lrn_max_pool2d(activation(), **arguments)


def test_refuses_what_does_not_fit_the_input() -> None:
    for error, message, input, wrong in (
        (ValueError, r"groups=3.*\(2, 16, 9, 8\)", activation(), {"groups": 3}),
        (ValueError, r"\(N, C, H, W\) or \(C, H, W\), but got \(4, 4\)", torch.zeros(4, 4), {}),
        (ValueError, "backend 'cudnn'", activation(), {"backend": "cudnn"}),
        (RuntimeError, "Output size is too small", activation(1, 4, 2, 2), {}),
    ):
        with pytest.raises(error, match=message):
            lrn_max_pool2d(input, **wrong)


class Small(AlexNet):
    """AlexNet that stops after its last pooling, so that a small image will do."""

    def forward(self, input: Tensor) -> Tensor:
        """The maps before fc6."""
        return self.features(input)


def paths(calls: list[CallRecord]) -> list[str]:
    return [call.path for call in calls]


@pytest.fixture(params=["paper", "caffe"])
def small(request: pytest.FixtureRequest) -> AlexNet:
    torch.manual_seed(0)
    return Small(num_classes=1, variant=request.param).eval()


@pytest.mark.full
@pytest.mark.smoke
def test_alexnet_normalises_and_pools_by_the_kernel(small: AlexNet) -> None:
    """Two images of 67 pixels: every convolution and both normalised layers run by kernels, nothing is packed twice."""
    images = 50 * torch.randn(2, 3, 67, 67)
    with torch.no_grad():
        expected = small(images)
        with grouped_conv.interpret(), grouped_conv.trace() as calls:
            found = small(images)
    assert len(paths(calls)) == 7
    assert [paths(calls)[index] for index in (1, 3)] == ["lrn_pool", "lrn_pool"]
    assert all(call.launches for call in calls), [str(call) for call in calls]
    problems = [calls[index].problem for index in (1, 3)]
    towers, alpha, k = (2, 5e-4, 2.0) if small.variant == "paper" else (1, 1e-4, 1.0)
    assert [(p.order, p.size, p.groups, p.alpha, p.k, p.ceil_mode) for p in problems] == [
        ("lrn-pool", 5, towers, alpha, k, True)
    ] * 2
    assert [p.channels for p in problems] == [96, 256]
    assert float((found - expected).abs().max()) <= 1e-2 * float(expected.abs().max())  # TF32 products in five layers


def test_alexnets_layers_stay_what_they_are(small: AlexNet) -> None:
    """Someone who listens between the two layers, or replaces one, gets them one after the other."""
    images, heard = 50 * torch.randn(1, 3, 67, 67), []
    with torch.no_grad():
        with grouped_conv.trace() as calls:
            expected = small(images)
        assert [type(call.problem).__name__ for call in calls].count("LrnPoolProblem") == 2
        handle = small.norm1.register_forward_hook(lambda _module, _inputs, output: heard.append(output.shape))
        with grouped_conv.trace() as calls:
            assert torch.equal(small(images), expected)
        assert [type(call.problem).__name__ for call in calls].count("LrnPoolProblem") == 1
        assert len(heard) == 1
        handle.remove()
        small.norm2 = nn.Identity()
        assert not torch.equal(small(images), expected)
    assert type(small.pool1) is nn.MaxPool2d
    assert not any(name.startswith(("norm", "pool")) for name in small.state_dict())
