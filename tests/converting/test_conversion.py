"""`convert`, `unconvert`, `conversion_report` and `fold_batchnorm` on models of several kinds."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch_paths import by

from grouped_conv import GroupedConv1d, GroupedConv2d, convert, fold_batchnorm, unconvert
from grouped_conv.converting.conversion import conversion_report
from grouped_conv.kernels import ACTIVATIONS


class Special(nn.Conv2d):
    """A convolution that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Block(nn.Module):
    """Convolutions of many kinds, one of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.shared = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.again = self.shared
        self.normed = parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
        self.special = Special(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 8, 2)
        self.line = nn.Conv1d(8, 8, 1)
        self.volume = nn.Conv3d(8, 8, 1)
        self.head = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Flatten(2))

    def forward(self, input: Tensor) -> Tensor:
        hidden = self.again(self.shared(self.first(input)))
        return self.line(self.head(self.up(self.special(self.normed(hidden)))))


def block() -> Block:
    torch.manual_seed(0)
    return Block().eval()


def image(channels: int = 4) -> Tensor:
    return torch.randn(2, channels, 6, 7, generator=torch.Generator().manual_seed(1))


def test_convert_keeps_objects_values_and_names() -> None:
    model = block()
    wanted, names = model(image()), list(model.state_dict())
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    assert convert(model) is model
    assert [type(m).__name__ for m in (model.first, model.shared, model.normed, model.head[0])] == [
        "GroupedConv2d",
        "GroupedConv2d",
        "ParametrizedGroupedConv2d",
        "GroupedConv2d",
    ]
    assert [type(m) for m in (model.special, model.up, model.line)] == [Special, nn.ConvTranspose2d, GroupedConv1d]
    assert list(model.state_dict()) == names
    assert all(modules[name] is module for name, module in model.named_modules())
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    assert model.first.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(image()), wanted)


def test_a_converted_model_runs_the_kernels_and_trains() -> None:
    model = convert(block())
    with by("implicit_gemm") as calls:
        output = model(image())
    assert len(calls) == 6
    torch.testing.assert_close(output, block()(image()), rtol=2e-2, atol=2e-2)
    plain = block()
    model(image()).square().sum().backward()
    plain(image()).square().sum().backward()
    names = dict(model.named_parameters())
    true = dict(zip(names, (p.grad for p in plain.parameters()), strict=True))
    torch.testing.assert_close({name: p.grad for name, p in names.items()}, true)


def test_the_report_says_what_is_skipped_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    model = block()
    model.head[0].forward = lambda input: input
    assert {note.name: note.status for note in conversion_report(model)} == {
        "first": "convertible",
        "shared": "convertible",
        "normed": "convertible",
        "special": "skipped",
        "up": "skipped",
        "line": "convertible",
        "volume": "skipped",
        "head.0": "skipped",
    }
    convert(model, verbose=True)
    notes = {note.name: note for note in conversion_report(model)}
    assert {notes[name].status for name in ("first", "shared", "normed", "line")} == {"converted"}
    assert notes["special"].reason == "Special is a subclass of Conv2d and may compute something else"
    assert notes["volume"].reason == notes["up"].reason
    assert notes["volume"].reason == "only 1-D and 2-D convolutions that are not transposed have kernels"
    assert notes["head.0"].reason == "its forward was replaced on the instance"
    assert capsys.readouterr().out.splitlines() == [str(note) for note in notes.values()]
    lazy = nn.Sequential(nn.LazyConv2d(4, 3))
    assert "not initialised" in conversion_report(convert(lazy))[0].reason
    lazy(image())
    assert type(convert(lazy)[0]) is GroupedConv2d


def test_hooks_stay() -> None:
    model = block()
    seen: list[str] = []
    handles = [
        model.first.register_forward_hook(lambda module, inputs, output: seen.append("forward")),
        model.first.register_forward_pre_hook(lambda module, inputs: seen.append("before")),
        model.first.register_full_backward_hook(lambda module, inputs, outputs: seen.append("backward")),
    ]
    convert(model)(image()).sum().backward()
    assert seen == ["before", "forward", "backward"]
    for handle in handles:
        handle.remove()
    model(image()).sum().backward()
    assert len(seen) == 3


def test_a_model_that_is_a_convolution() -> None:
    layer = nn.Conv2d(4, 8, 3)
    assert convert(layer) is layer
    assert type(layer) is GroupedConv2d
    assert unconvert(layer) is layer
    assert type(layer) is nn.Conv2d
    assert conversion_report(layer)[0].name == ""


def test_converting_twice_changes_nothing() -> None:
    model = convert(nn.Sequential(GroupedConv2d(4, 8, 3, activation="relu")))
    assert model[0].activation == "relu"


def test_parametrizations_work_after_conversion_and_can_be_removed() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(4, 8, 3)))
    wanted = model(image())
    convert(model)
    copied = copy.deepcopy(model)
    for each in (model, copied):
        torch.testing.assert_close(each(image()), wanted)
        assert parametrize.is_parametrized(each[0], "weight")
    unconvert(copied)
    assert parametrize.is_parametrized(copied[0], "weight")
    assert isinstance(copied[0], nn.Conv2d)
    assert not isinstance(copied[0], GroupedConv2d)
    torch.testing.assert_close(copied(image()), wanted)
    parametrize.remove_parametrizations(model[0], "weight")
    assert type(model[0]) is GroupedConv2d
    torch.testing.assert_close(model(image()), wanted)


def test_pruned_and_old_style_weight_normed_layers() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3))
    prune.random_unstructured(model[0], "weight", 0.5)
    nn.utils.weight_norm(model[1])
    wanted = model(image())
    torch.testing.assert_close(convert(model)(image()), wanted)
    torch.testing.assert_close(unconvert(model)(image()), wanted)


def test_unconvert_gives_plain_torch_back() -> None:
    model, plain = convert(block()), block()
    assert unconvert(model) is model
    assert [type(m) for m in model.modules()][:3] == [type(m) for m in plain.modules()][:3]
    assert not any(isinstance(module, GroupedConv2d) for module in model.modules())
    assert repr(model) == repr(plain)
    assert vars(model.first).keys() == vars(plain.first).keys()
    torch.testing.assert_close(model(image()), plain(image()))


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "none"])
def test_unconvert_of_an_activation(activation: str) -> None:
    shared = GroupedConv2d(4, 4, 3, padding=1, activation=activation)
    model = nn.Sequential(shared, nn.Identity(), shared).eval()
    wanted = model(image())
    unconvert(model)
    assert model[0] is model[2]
    assert [type(m).__module__.split(".")[0] for m in model.modules()] == ["torch"] * 5
    assert list(model.state_dict())[:2] == ["0.conv.weight", "0.conv.bias"]
    assert not model[0].training
    torch.testing.assert_close(model(image()), wanted)
    alone = unconvert(GroupedConv2d(4, 4, 3, activation=activation))
    assert type(alone) is nn.Sequential


def test_unconvert_moves_hooks_that_see_the_output() -> None:
    model = nn.Sequential(GroupedConv2d(4, 4, 3, activation="relu"))
    seen: list[Tensor] = []
    handle = model[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(image())
    unconvert(model)(image())
    torch.testing.assert_close(seen[1], seen[0])
    handle.remove()
    model(image())
    assert len(seen) == 2


def test_subclasses_of_our_layer_are_not_unconverted() -> None:
    class Mine(GroupedConv2d):
        pass

    model = nn.Sequential(Mine(4, 4, 3))
    assert type(unconvert(model)[0]) is Mine


# ---- BatchNorm


def trained(model: nn.Module) -> nn.Module:
    """Running statistics and affine parameters that are not the initial ones."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


class Residual(nn.Module):
    """BatchNorm by attribute, as in ResNet; `branching` defeats torch.fx."""

    def __init__(self, branching: bool = False) -> None:
        super().__init__()
        self.branching = branching
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = GroupedConv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, affine=False)
        self.down = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.kept, self.bn3 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, input: Tensor) -> Tensor:
        if self.branching and input.sum() > 1e9:
            return input
        hidden = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(input)))))
        other = self.kept(input)
        return torch.relu(hidden + self.down(input)) + self.bn3(other) + other


def test_folding_follows_the_graph(capsys: pytest.CaptureFixture[str]) -> None:
    model = trained(Residual())
    wanted = model(image())
    assert fold_batchnorm(model, verbose=True) is model
    assert [type(m) for m in (model.bn1, model.bn2, model.down[1], model.bn3)] == [nn.Identity] * 3 + [nn.BatchNorm2d]
    assert type(model.conv2) is GroupedConv2d
    assert model.conv1.bias is not None
    assert not any(p.requires_grad for p in (*model.conv1.parameters(), *model.conv2.parameters()))
    torch.testing.assert_close(model(image()), wanted, rtol=1e-4, atol=1e-4)
    lines = capsys.readouterr().out.splitlines()
    assert "bn1: folded into conv1" in lines
    assert "bn3: left, no convolution is known to feed it alone" in lines


def test_folding_without_a_graph_takes_neighbours_in_sequentials() -> None:
    model = trained(Residual(branching=True))
    wanted = model(image())
    fold_batchnorm(model)
    assert [type(m) for m in (model.bn1, model.bn2, model.down[1])] == [nn.BatchNorm2d] * 2 + [nn.Identity]
    torch.testing.assert_close(model(image()), wanted, rtol=1e-4, atol=1e-4)


def folded(*layers: nn.Module) -> bool:
    """Was the BatchNorm folded? Either way the output must not change."""
    model = trained(nn.Sequential(*layers))
    wanted = model(image())
    fold_batchnorm(model)
    torch.testing.assert_close(model(image()), wanted, rtol=1e-4, atol=1e-4)
    return not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_what_is_folded_and_what_is_not() -> None:
    assert folded(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
    assert folded(nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(6))
    assert folded(convert(nn.Conv2d(4, 6, 3, groups=2)), nn.BatchNorm2d(6), nn.ReLU())
    assert not folded(GroupedConv2d(4, 6, 3, activation="relu"), nn.BatchNorm2d(6))
    assert not folded(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.BatchNorm2d(6))
    assert not folded(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, track_running_stats=False))
    assert not folded(Special(4, 6, 3), nn.BatchNorm2d(6))
    assert not folded(parametrizations.weight_norm(nn.Conv2d(4, 6, 3)), nn.BatchNorm2d(6))
    hooked = nn.Conv2d(4, 6, 3)
    hooked.register_forward_hook(lambda module, inputs, output: None)
    assert not folded(hooked, nn.BatchNorm2d(6))
    shared, batchnorm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
    assert not folded(shared, batchnorm, shared, nn.Identity())


def test_folding_refuses_a_model_in_training() -> None:
    model = Residual()
    with pytest.raises(ValueError, match=r"fold_batchnorm ends training; call model.eval\(\) first .*bn1, bn2"):
        fold_batchnorm(model)
    model.eval()
    model.bn1.train()
    with pytest.raises(ValueError, match="in training mode: bn1"):
        fold_batchnorm(model)


def test_folded_and_converted_models_run_the_kernels() -> None:
    model = trained(nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6)))
    wanted = model(image())
    convert(fold_batchnorm(model))
    with by("implicit_gemm") as calls:
        output = model(image())
    assert len(calls) == 1
    torch.testing.assert_close(output, wanted, rtol=2e-2, atol=2e-2)
