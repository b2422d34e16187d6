"""The memory of a training step: bytes saved for backward, with our layers and with plain torch's, and workspaces.

`python -m grouped_conv.bench.training_memory` needs no GPU: networks run on torch's meta device. The tensors that
autograd keeps are counted, each storage once and without parameters. A workspace exists during one call; its size
follows from the configuration that the heuristic chooses for the device.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import click
import torch
from torch import Tensor, nn

import grouped_conv
from grouped_conv import GroupedConv2d
from grouped_conv.autotune.model.heuristic import choose
from grouped_conv.autotune.workloads.named import workload
from grouped_conv.context.workspace import max_workspace_bytes
from grouped_conv.kernels.gradient_call import capped, gradient_problem, plan_gradient, written_problem
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.problem import ConvProblem
from grouped_conv.models import AlexNet
from grouped_conv.planning.written_gradient import written_bytes


class Bottleneck(nn.Module):
    """A block of ResNeXt-50 (arXiv 1611.05431): 1x1, grouped 3x3, 1x1, each normalised, and a shortcut."""

    def __init__(self, channels: int, width: int, out_channels: int, stride: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False),
            *(nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != out_channels:
            self.shortcut.append(nn.Conv2d(channels, out_channels, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """`(N, channels, H, W)` to `(N, out_channels, H / stride, W / stride)`."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnext50() -> nn.Module:
    """ResNeXt-50 32x4d."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)]
    layers.append(nn.MaxPool2d(3, 2, 1))
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        width = 128 * 2**stage
        for block in range(blocks):
            layers.append(Bottleneck(channels, width, 2 * width, 2 if stage and not block else 1, 32))
            channels = 2 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "AlexNet": (lambda: AlexNet(variant="torchvision", groups=2), "alexnet"),
    "AlexNet, the paper's": (AlexNet, "alexnet"),
    "ResNeXt-50 32x4d": (resnext50, "resnext50_32x4d"),
}
"""By name: how to build the network, and the name of its table of layers."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one network's training step.

    Attributes:
        network, batch, dtype, device: what was counted, and the device for which the heuristic chose configurations.
        saved: bytes kept for backward with our layers.
        saved_by_torch: bytes kept with plain torch's layers.
        largest_workspace: bytes that the gradients of one layer borrow, for the grouped layer that borrows most: the
            weight's partial sums, and the gradient before the activation if a pass writes it.
        layer: that layer.
    """

    network: str
    batch: int
    dtype: str
    device: str
    saved: int
    saved_by_torch: int
    largest_workspace: int
    layer: str


def saved_bytes(model: nn.Module, input: Tensor) -> int:
    """Bytes that autograd keeps after one forward pass, each storage once, without parameters and buffers."""
    known = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in known:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(input)
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def measure(name: str, batch: int, dtype: str, device: str) -> Memory:
    """Count one network."""
    build, table = NETWORKS[name]
    with torch.device("meta"):
        ours = build().to(getattr(torch, dtype)).train()
        input = torch.empty(batch, 3, 224, 224, dtype=getattr(torch, dtype))
    input = input.contiguous(memory_format=torch.channels_last)
    plain = copy.deepcopy(ours)
    grouped_conv.unconvert(plain)
    grouped_conv.convert(ours)
    fused = any(isinstance(module, GroupedConv2d) and module.activation != "none" for module in ours.modules())
    layers = workload(table, batch, dtype, epilogue=None if fused else Epilogue())
    workspaces = {layer: workspace(problem, DeviceSpec.get(device)) for layer, problem in layers.items()}
    largest = max(workspaces, key=lambda layer: workspaces[layer])
    return Memory(
        name,
        batch,
        dtype,
        device,
        saved_bytes(ours, input),
        saved_bytes(plain, input),
        workspaces[largest],
        largest,
    )


def workspace(problem: ConvProblem, device: DeviceSpec) -> int:
    """Bytes that all gradients of one layer borrow with the heuristic's configurations."""
    gradient, limit = gradient_problem(problem, "weight_grad"), max_workspace_bytes()
    epilogue = problem.epilogue
    written = 0
    if epilogue.activation != "none" and (epilogue.bias or epilogue.residual):
        size = 0 if epilogue.residual else written_bytes(problem)  # the residual's gradient is a result
        if size <= limit:
            gradient, written = written_problem(gradient), size
    config = capped(gradient, choose(gradient, device), limit - written)
    temporaries = plan_gradient(gradient, config).temporaries
    return written + sum(getattr(torch, one.dtype).itemsize * math.prod(one.shape) for one in temporaries)


@click.command()
@click.option("--batch", default=128, show_default=True, help="Images per step.")
@click.option("--dtype", default="float16", show_default=True, help="Type of activations and parameters.")
@click.option("--device", default="h100", show_default=True, help="GPU for which configurations are chosen.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(batch: int, dtype: str, device: str, as_json: bool) -> None:
    """Print the bytes kept for backward and borrowed; exit code 1 if our layers keep more than plain torch."""
    rows = [measure(name, batch, dtype, device) for name in NETWORKS]
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        click.echo(
            f"{'network':22} {'saved':>12} {'by torch':>12} {'ratio':>6} {'largest workspace':>20}  (MB, {device})"
        )
        for row in rows:
            ratio = row.saved / row.saved_by_torch
            click.echo(
                f"{row.network:22} {row.saved / 1e6:12.1f} {row.saved_by_torch / 1e6:12.1f} {ratio:6.3f} "
                f"{row.largest_workspace / 1e6:20.1f}  {row.layer}"
            )
    raise SystemExit(1 if any(row.saved > row.saved_by_torch for row in rows) else 0)


if __name__ == "__main__":
    main()
