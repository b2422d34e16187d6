"""GroupedConv2d and the conversion of models: the same Parameters, names, hooks and results as torch's own."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import grouped_conv
from grouped_conv import GroupedConv2d, convert, fold_batchnorm, unconvert
from grouped_conv.conversion import conversion_report
from grouped_conv.kernels import ImplicitGemmConfig

SMALL = ImplicitGemmConfig(block_m=32, block_n=16, block_k=16)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_same_names_state_and_results_as_conv2d(mode: str) -> None:
    torch.manual_seed(0)
    ours = GroupedConv2d(6, 9, (3, 2), stride=(2, 1), padding=(1, 1), groups=3, padding_mode=mode)  # type: ignore[arg-type]
    theirs = nn.Conv2d(6, 9, (3, 2), stride=(2, 1), padding=(1, 1), groups=3, padding_mode=mode)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert repr(ours) == repr(theirs).replace("Conv2d", "GroupedConv2d")
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 8, 7)
    close(ours(x), theirs(x))
    with grouped_conv.interpret(SMALL, device="a100"), grouped_conv.trace() as calls:
        interpreted = ours(x.contiguous(memory_format=torch.channels_last))
    assert [call.path for call in calls] == ["implicit_gemm"]
    assert ("pack_channels_last" in calls[0].launches) == (mode == "circular")  # whose padding torch makes NCHW
    torch.testing.assert_close(interpreted, theirs(x), rtol=5e-3, atol=5e-3)  # TF32, as torch's flag has it


def test_activation_is_fused_and_shown() -> None:
    layer = GroupedConv2d(4, 4, 3, groups=2, activation="silu")
    assert repr(layer).endswith("activation=silu)")
    x = torch.randn(1, 4, 5, 5)
    close(layer(x), F.silu(F.conv2d(x, layer.weight, layer.bias, groups=2)))
    with pytest.raises(ValueError, match=r"unknown activation 'mish'; accepted: none, relu"):
        GroupedConv2d(4, 4, 3, activation="mish")


def test_copies_and_pickles_keep_memory_and_results() -> None:
    layer = GroupedConv2d(6, 6, 3, groups=2, activation="relu").requires_grad_(False)
    x = torch.randn(1, 6, 5, 5).contiguous(memory_format=torch.channels_last)
    layer.weight.data = layer.weight.data.contiguous()
    y = layer(x)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert again.weight.stride() == layer.weight.stride()
        assert torch.equal(again(x), y)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    fresh = GroupedConv2d(6, 6, 3, groups=2, activation="relu")
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    assert fresh.weight.is_contiguous(memory_format=torch.channels_last)
    close(fresh(x), y)


def test_a_frozen_weight_is_packed_once_until_it_changes() -> None:
    layer = GroupedConv2d(8, 8, 3, groups=2).requires_grad_(False)
    layer.weight.data = layer.weight.data.contiguous()
    x = torch.randn(1, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    with grouped_conv.interpret(SMALL), grouped_conv.trace() as calls:
        first, second = layer(x), layer(x)
        layer.weight.mul_(2)
        third = layer(x)
    assert all(call.launches == ("implicit_gemm",) for call in calls)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    layer.requires_grad_(True)
    with grouped_conv.interpret(SMALL), grouped_conv.trace() as calls:
        layer(x)
    assert calls[0].launches == ("pack_channels_last", "implicit_gemm")


class Subclassed(nn.Conv2d):
    """May compute something else."""


def network() -> nn.Sequential:
    shared = nn.Conv2d(8, 8, 3, padding=1, groups=4)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1, groups=2),
        nn.ReLU(),
        shared,
        shared,
        Subclassed(8, 8, 1),
        nn.ConvTranspose2d(8, 4, 2),
        parametrizations.weight_norm(nn.Conv2d(4, 4, 3, groups=2)),
    )


def test_convert_and_back() -> None:
    torch.manual_seed(1)
    model = network()
    x = torch.randn(2, 4, 7, 7)
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append("hook"))
    parameters, modules, before = list(model.parameters()), list(model), model(x)
    assert convert(model) is model
    assert [p is q for p, q in zip(model.parameters(), parameters, strict=True)] == [True] * len(parameters)
    assert list(model) == modules
    assert model[2] is model[3]
    assert [isinstance(m, GroupedConv2d) for m in model] == [True, False, True, True, False, False, True]
    close(model(x), before)
    assert seen == ["hook", "hook"]
    notes = {note.name: note for note in conversion_report(model)}
    assert notes["4"].status == "skipped"
    assert "subclass" in notes["4"].reason
    assert "not transposed" in notes["5"].reason
    unconvert(model)
    assert not any(isinstance(m, GroupedConv2d) for m in model.modules())
    assert list(model.parameters()) == parameters
    close(model(x), before)


def test_convert_takes_the_model_itself_and_unconvert_splits_off_activations() -> None:
    layer = convert(nn.Conv2d(4, 4, 3))
    assert type(layer) is GroupedConv2d
    assert type(unconvert(layer)) is nn.Conv2d
    fused = GroupedConv2d(4, 4, 3, activation="gelu")
    x = torch.randn(1, 4, 5, 5)
    expected = fused(x)
    pair = unconvert(fused)
    assert [type(m) for m in pair] == [nn.Conv2d, nn.GELU]  # type: ignore[attr-defined]
    close(pair(x), expected)


def batchnorm_model() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)
    )
    model.train()
    for _ in range(3):
        model(torch.randn(8, 4, 6, 6))
    return model


def test_fold_batchnorm() -> None:
    torch.manual_seed(2)
    model = batchnorm_model()
    with pytest.raises(ValueError, match="ends training; call"):
        fold_batchnorm(model)
    model.eval()
    x = torch.randn(2, 4, 6, 6)
    expected = model(x)
    folded = fold_batchnorm(convert(model))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert not any(p.requires_grad for p in folded[0].parameters())
    close(folded(x), expected)
    with grouped_conv.interpret(SMALL), grouped_conv.trace() as calls:
        torch.testing.assert_close(folded(x), expected, rtol=5e-3, atol=5e-3)
    assert [call.path for call in calls] == ["implicit_gemm"] * 2


def test_a_convolution_read_twice_is_not_folded() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    model = Fork().eval()
    x = torch.randn(1, 2, 3, 3)
    expected = model(x)
    fold_batchnorm(model)
    assert isinstance(model.norm, nn.BatchNorm2d)
    assert torch.equal(model(x), expected)
