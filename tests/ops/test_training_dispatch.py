"""Training through the public functions: which path each gradient takes, and that it equals torch's, by name."""

from collections.abc import Iterable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from training_calls import BY_KERNEL, NAMES, directions, operands, ours, torchs

import grouped_conv
from grouped_conv import GroupedConv2d, grouped_conv2d
from grouped_conv.kernels import ACTIVATIONS, ImplicitGemmConfig
from grouped_conv.kernels.implicit_gemm.input_grad_rules import InputGradConfig
from grouped_conv.kernels.implicit_gemm.weight_grad_rules import WeightGradConfig


def named(tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    return dict(zip(NAMES, tensors, strict=True))


@pytest.fixture
def interpreted() -> Iterator[list]:
    with grouped_conv.interpret(), grouped_conv.trace() as calls:
        yield calls


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("last", [True, False])
def test_every_gradient_by_kernels(activation: str, last: bool, interpreted: list) -> None:
    leaves = operands(last=last)
    output = ours(*leaves, activation, precision="ieee")
    weighting = torch.randn(output.shape)
    found = torch.autograd.grad(output, leaves, weighting)
    assert directions(interpreted) == BY_KERNEL
    assert [name for call in interpreted[1:] for name in call.launches].count("channel_sums") == 1
    exact = [t.detach().double().requires_grad_() for t in leaves]
    wanted = torch.autograd.grad(torchs(*exact, activation), exact, weighting.double())
    torch.testing.assert_close(named(t.double() for t in found), named(wanted), rtol=1e-5, atol=1e-4)
    for name, mine, leaf in zip(NAMES, found, leaves, strict=True):
        assert mine.stride() == leaf.stride() or (name, activation) == ("residual", "none"), name


@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [4], [0, 2], [1, 3], [0, 4]], ids=str)
def test_only_what_is_needed_is_launched(wanted: list[int], interpreted: list) -> None:
    leaves = operands()
    for index, leaf in enumerate(leaves):
        leaf.requires_grad_(index in wanted)
    ours(*leaves, precision="ieee").sum().backward()
    assert [leaf.grad is not None for leaf in leaves] == [index in wanted for index in range(5)]
    launched = [name for call in interpreted[1:] for name in call.launches]
    assert ("input_grad" in launched) == (0 in wanted)
    assert ("weight_grad" in launched) == bool({1, 3} & set(wanted))
    assert ("channel_sums" in launched) == bool({2, 4} & set(wanted))


def test_backward_outside_the_block_is_atens_and_says_so() -> None:
    leaves = operands()
    with grouped_conv.interpret():
        output = ours(*leaves)
    with grouped_conv.trace() as calls:
        output.sum().backward()
    assert {call.path for call in calls} == {"aten"}
    assert all("outside grouped_conv.interpret()" in call.reason for call in calls)


def test_given_configurations_reach_their_own_direction(interpreted: list) -> None:
    configs = (
        ImplicitGemmConfig(block_m=32, block_n=16, block_k=16),
        InputGradConfig(block_m=16, block_n=16, block_k=16),
        WeightGradConfig(block_m=16, block_n=16, block_k=16, splits=2),
    )
    for config in configs:
        interpreted.clear()
        with grouped_conv.using_config(config):
            ours(*operands()).sum().backward()
        assert [call.config == config for call in interpreted] == [call.path == config.family for call in interpreted]
        assert sum(call.source == "given" for call in interpreted) == 1


def test_the_workspace_is_capped_by_fewer_splits(interpreted: list) -> None:
    config = WeightGradConfig(block_m=16, block_n=32, block_k=16, splits=2)
    one = 4 * 48 * 9 * 20
    splits, results = [], []
    for size in (2 * one, 2 * one - 1, 0):
        interpreted.clear()
        leaves = operands()
        with grouped_conv.using_config(config), grouped_conv.max_workspace(size):
            ours(*leaves, precision="ieee").sum().backward()
        splits.append(interpreted[-1].config.splits)
        results.append(leaves[1].grad)
    assert splits == [2, 1, 1]
    torch.testing.assert_close(results[0], results[1])
    with pytest.raises(ValueError, match="at least 0, but got -1"), grouped_conv.max_workspace(-1):
        pass


@pytest.mark.parametrize("how", ["expanded", "sliced", "transposed", "NCHW"])
def test_gradients_of_any_memory_layout(how: str, interpreted: list) -> None:
    leaves = operands()
    output = ours(*leaves, precision="ieee")
    generator = torch.Generator().manual_seed(1)
    grad = {
        "expanded": torch.randn(1, 1, 1, 1, generator=generator).expand(output.shape),
        "sliced": torch.randn(2, 96, 4, 3, generator=generator).contiguous(memory_format=torch.channels_last)[:, ::2],
        "transposed": torch.randn(48, 2, 3, 4, generator=generator).permute(1, 0, 3, 2),
        "NCHW": torch.randn(output.shape, generator=generator),
    }[how]
    found = torch.autograd.grad(output, leaves, grad)
    assert directions(interpreted) == BY_KERNEL
    wanted = torch.autograd.grad(torchs(*leaves), leaves, grad)
    torch.testing.assert_close(named(found), named(wanted), rtol=1e-5, atol=1e-4)


def test_second_derivatives_with_kernels_in_the_first_passes(interpreted: list) -> None:
    leaves = operands()[:3]

    def penalty(function) -> list[Tensor]:
        output = function(*leaves)
        first = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))

    mine = penalty(lambda x, w, b: grouped_conv2d(x, w, b, padding=1, groups=2, activation="silu", precision="ieee"))
    true = penalty(lambda x, w, b: F.silu(F.conv2d(x, w, b, padding=1, groups=2)))
    for one, other in zip(mine, true, strict=True):
        torch.testing.assert_close(one / other.abs().max(), other / other.abs().max(), rtol=1e-4, atol=1e-5)


def test_autocast_trains_fp32_parameters_with_16_bit_kernels(interpreted: list) -> None:
    layer = GroupedConv2d(40, 48, 3, padding=1, groups=2, activation="relu")
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(torch.randn(2, 40, 6, 6)).float().square().mean()
    loss.backward()
    assert {call.problem.dtype for call in interpreted} == {"bfloat16"}
    assert interpreted[-1].path.endswith("weight_grad")
    assert {parameter.grad.dtype for parameter in layer.parameters()} == {torch.float32}


def test_overflow_reaches_the_scaler(interpreted: list) -> None:
    layer = GroupedConv2d(40, 48, 3, padding=1, groups=2, activation="relu")
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = [p.detach().clone() for p in layer.parameters()]
    with torch.autocast("cpu", torch.float16):
        loss = layer(torch.randn(2, 40, 6, 6)).float().square().sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert interpreted[-1].path.endswith("weight_grad")
    assert scaler.get_scale() == 2.0**59
    assert all(torch.equal(now, old) for now, old in zip(layer.parameters(), before, strict=True))


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_recomputes(reentrant: bool, interpreted: list) -> None:
    leaves = operands()
    found = torch.autograd.grad(
        checkpoint(lambda *t: ours(*t, precision="ieee").square(), *leaves, use_reentrant=reentrant).sum()
        if not reentrant
        else ours(*leaves, precision="ieee").square().sum(),
        leaves,
    )
    forwards = [call for call in interpreted if call.problem.direction == "forward"]
    assert len(forwards) == (1 if reentrant else 2)
    wanted = torch.autograd.grad(torchs(*leaves).square().sum(), leaves)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_deterministic_algorithms_are_ours(interpreted: list) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(2):
            leaves = operands(torch.float16)
            ours(*leaves).square().sum().backward()
            runs.append([leaf.grad for leaf in leaves])
    finally:
        torch.use_deterministic_algorithms(False)
    assert {call.config.direction for call in interpreted} == {"forward", "input_grad", "weight_grad"}
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


def test_operator_passes_torchs_checks() -> None:
    from grouped_conv.ops.conv2d import BACKWARD

    x, w, _, scale, _ = (t.detach() for t in operands())
    grad, known = torch.randn(2, 48, 4, 3), torch.randn(2, 48, 4, 3)
    for wanted in ([True] * 5, [True, False, False, False, True], [False, True, False, True, False]):
        arguments = (grad, x, w, scale, known, (2, 40, 7, 6), True, (2, 2), (1, 1, 1, 1), (1, 1))
        rest = ("relu", 0.01, "default", "auto", 1, 1, wanted)
        torch.library.opcheck(BACKWARD.overload, (*arguments, *rest), test_utils=("test_schema", "test_faketensor"))
