"""Whole training steps by our kernels: loss and every gradient equal to plain torch's, the path of each layer known."""

import copy
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from conv_oracle import relative_error
from networks import SmallAlexNet
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import grouped_conv
from grouped_conv import GroupedConv2d
from grouped_conv.context.tracing import CallRecord
from grouped_conv.kernels import ConvProblem
from grouped_conv.planning.plan import cudnn_precision


def bottleneck(channels: int, groups: int, filters: int, activation: type[nn.Module]) -> nn.Sequential:
    """1x1, groups at stride 2, 1x1: batch-normalised as in training."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 1, bias=False), nn.BatchNorm2d(32), activation(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=groups, bias=False), nn.BatchNorm2d(32), activation(),
        nn.Conv2d(32, filters, 1, bias=False), nn.BatchNorm2d(filters),
    )  # fmt: skip


class ResNeXtBlock(nn.Module):
    """Thin groups, and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.shortcut = bottleneck(32, 8, 64, nn.ReLU), nn.Conv2d(32, 64, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.block(x) + self.shortcut(x)).mean((2, 3))


def mobilenet_block() -> nn.Sequential:
    """Depthwise, without a shortcut."""
    return nn.Sequential(*bottleneck(16, 32, 24, nn.ReLU6), nn.AdaptiveAvgPool2d(1), nn.Flatten())


NETWORKS = {"AlexNet": (SmallAlexNet, (2, 3, 63, 63), 4), "ResNeXt": (ResNeXtBlock, (2, 32, 10, 9), 4)}
NETWORKS["MobileNet"] = (mobilenet_block, (2, 16, 10, 9), 3)


def step(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one training step's forward and backward pass."""
    model.zero_grad()
    loss = F.cross_entropy(model(x), torch.arange(len(x)))
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def conv_paths(calls: list[CallRecord]) -> Counter:
    """How many convolutions and gradients each path ran, by direction."""
    return Counter((c.problem.direction, c.path == "aten") for c in calls if isinstance(c.problem, ConvProblem))


@pytest.mark.parametrize("name", NETWORKS)
def test_one_step_entirely_by_interpreted_kernels(name: str) -> None:
    make, shape, layers = NETWORKS[name]
    torch.manual_seed(0)
    plain = make().to(memory_format=torch.channels_last)
    ours = copy.deepcopy(plain)
    grouped_conv.convert(ours)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()
    theirs = step(copy.deepcopy(plain), x.detach())[1]  # torch in the same precision
    wanted_loss, wanted = step(plain.double(), x.detach().double())
    plainly = torch.backends.mkldnn.flags(enabled=False)
    with grouped_conv.interpret(), grouped_conv.trace() as calls, plainly, cudnn_precision("ieee"):
        loss, found = step(ours, x)
    counts = conv_paths(calls)
    assert counts == {(direction, False): layers for direction in ("forward", "input_grad", "weight_grad")}
    torch.testing.assert_close(loss.double(), wanted_loss, rtol=1e-5, atol=1e-6)
    for parameter, true in wanted.items():
        error, allowed = relative_error(found[parameter], true), 2 * relative_error(theirs[parameter], true)
        assert error <= allowed + 2e-5, f"{parameter}: {error:.3g} is more than {allowed:.3g}"


def _worker(rank: int, store: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = DistributedDataParallel(nn.Sequential(GroupedConv2d(8, 16, 3, padding=1, groups=2, activation="relu")))
    torch.manual_seed(1)
    x = torch.randn(4, 8, 6, 5)[2 * rank : 2 * rank + 2]
    with grouped_conv.interpret(), grouped_conv.trace() as calls:
        model(x).square().mean().backward()
    paths = [call.path for call in calls]
    torch.save(([p.grad for p in model.parameters()], paths), f"{results}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_average_their_gradients(tmp_path: Path) -> None:
    mp.spawn(_worker, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    torch.manual_seed(0)
    model = GroupedConv2d(8, 16, 3, padding=1, groups=2, activation="relu")
    torch.manual_seed(1)
    model(torch.randn(4, 8, 6, 5)).square().mean().backward()
    for gradients, paths in results:
        assert len(paths) == 2
        assert "aten" not in paths
        torch.testing.assert_close(gradients, [p.grad for p in model.parameters()], rtol=2e-3, atol=2e-3)  # TF32


@pytest.mark.skipif(os.name != "posix", reason="the C++ compiler of Inductor")
def test_a_compiled_step_has_the_operator_in_its_backward() -> None:
    torch._dynamo.reset()
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    from torch._dynamo.backends.common import aot_autograd

    layer = GroupedConv2d(8, 16, 3, padding=1, groups=2, activation="silu")
    x = torch.randn(2, 8, 6, 5, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend=aot_autograd(fw_compiler=backend, bw_compiler=backend))
    found = torch.autograd.grad(compiled(x).square().sum(), [x, *layer.parameters()])
    wanted = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    assert sum("conv2d_backward" in target for target in seen) == 1
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_selective_checkpointing_keeps_the_convolution() -> None:
    """What a policy says must be saved is not computed again."""
    from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

    layer = GroupedConv2d(8, 16, 3, padding=1, groups=2, activation="relu")
    x = torch.randn(2, 8, 6, 5, requires_grad=True)

    def policy(context: object, operator: object, *_: object, **__: object) -> CheckpointPolicy:
        name = str(operator)
        return CheckpointPolicy.MUST_SAVE if "grouped_conv" in name else CheckpointPolicy.PREFER_RECOMPUTE

    counts = []
    for saves in (True, False):
        contexts = {"context_fn": lambda: create_selective_checkpoint_contexts(policy)} if saves else {}
        with grouped_conv.trace() as calls:
            output = checkpoint(lambda t: layer(t).square(), x, use_reentrant=False, **contexts)
            torch.autograd.grad(output.sum(), [x])
        counts.append(sum(call.problem.direction == "forward" for call in calls))
    assert counts == [1, 2]
