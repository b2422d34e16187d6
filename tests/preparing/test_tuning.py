"""`grouped_conv.tune`: which problems a model has, where they are tuned, what comes back."""

import json
from pathlib import Path

import pytest
import torch
from fake_compiler import COMPILED
from processes import run_python
from torch import nn

import grouped_conv
from grouped_conv import GroupedConv2d, RaggedConv2d
from grouped_conv.autotune.workloads.named import in_directions, workload
from grouped_conv.kernels import ConvProblem, DeviceSpec
from grouped_conv.preparing.targets import target_of
from grouped_conv.preparing.traced_problems import problems_of

CONV4 = workload("alexnet")["conv4"]


class Twice(nn.Module):
    """One layer called with two shapes, and a call outside of any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = GroupedConv2d(8, 8, 3, padding=1, groups=2, activation="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x) + grouped_conv.grouped_conv2d(x, torch.ones(8, 8, 1, 1))
        return self.conv(y[:, :, ::2])


def test_the_problems_of_a_model_in_eval_mode() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3)).eval()
    found = problems_of(model, torch.ones(2, 4, 9, 9))
    assert list(found) == ["0", "3"]
    assert (found["0"].batch, found["0"].groups, found["3"].out_channels) == (2, 2, 6)
    assert all(problem.weight_channels_last for problem in found.values())  # as they run after `convert`
    assert type(model[0]) is nn.Conv2d  # the model itself is left alone


def test_training_needs_gradients_where_torch_would_compute_them() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    model[1].requires_grad_(False)
    before = [buffer.clone() for buffer in model.parameters()]
    names = list(problems_of(model, torch.ones(2, 4, 9, 9)))
    assert names == ["0", "0 weight_grad", "1", "1 input_grad", "2", "2 input_grad", "2 weight_grad"]
    assert list(problems_of(model, torch.ones(2, 4, 9, 9), ["forward"])) == ["0", "1", "2"]
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_layers_called_twice_and_calls_outside_of_layers() -> None:
    found = problems_of(Twice().eval(), torch.ones(1, 8, 6, 6))
    assert list(found) == ["conv", "call", "conv #2"]
    assert (found["conv"].in_size, found["conv #2"].in_size) == ((6, 6), (3, 6))
    assert found["conv"].epilogue.activation == "relu"


def test_equal_layers_are_tuned_once_and_unequal_groups_are_layers_too() -> None:
    one = nn.Conv2d(8, 8, 3, padding=1)
    ragged = RaggedConv2d(grouped_conv.GroupLayout.sizes([3, 5], [4, 2]), 3)
    found = problems_of(nn.Sequential(one, nn.Conv2d(8, 8, 3, padding=1), ragged).eval(), torch.ones(1, 8, 6, 6))
    assert list(found) in (["0", "2"], ["0", "1", "2"])  # the second input may lie otherwise in memory
    assert not found["2"].layout.is_uniform


def test_a_model_without_convolutions_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear computes no convolution"):
        problems_of(nn.Linear(3, 3), torch.ones(1, 3))
    with pytest.raises(ValueError, match="give example_input"):
        grouped_conv.tune(nn.Conv2d(4, 4, 3), device="h100")


def test_where_to_tune() -> None:
    assert target_of("h100").spec == DeviceSpec.get("h100")
    assert not target_of(DeviceSpec.get("a100")).measures
    assert target_of("cpu-native").spec.key == "cpu-native"
    assert target_of("cpu-native").measures
    with pytest.raises(ValueError, match="unknown device 'h900'"):
        target_of("h900")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"no GPU is here to measure on; name one to predict for"):
            target_of(None)
        with pytest.raises(ValueError, match="device 'cuda:1' is no GPU of this machine"):
            target_of("cuda:1")


def test_tuning_a_model_offline(kept, compiled) -> None:  # type: ignore[no-untyped-def]
    model = nn.Sequential(nn.Conv2d(32, 64, 3, groups=2), nn.ReLU(), nn.Conv2d(64, 64, 3)).eval()
    table = grouped_conv.tune(model, torch.ones(1, 32, 9, 9), device="h100", effort="quick", progress=False)
    assert list(table["layer"]) == ["0", "2"]
    assert set(table["source"]) == {"predicted"}
    assert len(compiled) == len(kept.trials()) == 2 * 6


def test_tuning_problems_and_every_trial(kept, compiled) -> None:  # type: ignore[no-untyped-def]
    seen: list[object] = []
    arguments = {"device": "a100", "all_trials": True, "progress": seen.append}
    table = grouped_conv.tune({"mine": CONV4}, **arguments)
    assert len(table) == len(compiled) == COMPILED
    assert set(table["layer"]) == {"mine"}
    assert set(table["status"]) == {"predicted", "failed"}
    assert len(seen) == COMPILED + 1
    assert len(grouped_conv.tune([CONV4], store=kept.path, **arguments)) == COMPILED  # known by now
    assert len(compiled) == COMPILED
    both = grouped_conv.tune(CONV4, device="a100", directions=["forward", "weight_grad"], effort="none")
    assert list(both["layer"]) == ["problem 1", "problem 1 weight_grad"]


def test_in_directions_leaves_gradients_as_they_are() -> None:
    gradient = in_directions({"a": CONV4}, ["weight_grad"])
    assert in_directions(gradient, ["forward"]) == gradient
    assert isinstance(gradient["a weight_grad"], ConvProblem)


# ---- a device that is not here takes neither torch nor the modules of ours that import it


TUNE = """
import json, sys
from grouped_conv.cli.main import main
from grouped_conv.preparing import targets

targets.DRIVER_NODES = ()  # a machine with a GPU has to ask torch whether it is the device
layer = "N=2 C=32 H=8 K=32 R=3 pad=1 groups=4"
main(["tune", "--layer", layer, "--device", "a100", "--limit", "1"], standalone_mode=False)
print(json.dumps([*sys.modules]))
"""
WITHOUT_TORCH = ("autotune", "kernels", "cli", "preparing", "_source_tree")


def test_the_parent_process_imports_no_torch(tmp_path: Path) -> None:
    output = run_python(TUNE, GROUPED_CONV_STORE=str(tmp_path / "store.sqlite3"))
    assert "pack" in output
    loaded = json.loads(output.splitlines()[-1])
    assert "torch" not in loaded
    ours = {name.split(".")[1] for name in loaded if name.startswith("grouped_conv.")}
    assert ours <= set(WITHOUT_TORCH)
    assert not {"grouped_conv.preparing.tuning", "grouped_conv.preparing.traced_problems"} & set(loaded)
