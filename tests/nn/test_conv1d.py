"""1-D convolutions: torch's function and layer, by the 2-D kernels at height 1."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from conv_oracle import EPSILON, relative_error
from torch import nn

import grouped_conv
from grouped_conv import GroupedConv1d, grouped_conv1d

CASES = [
    ("plain", (2, 12, 17), (8, 12, 3), {}),
    ("grouped, stride and dilation", (2, 12, 17), (9, 4, 3), {"groups": 3, "stride": 2, "dilation": 2, "padding": 2}),
    ("depthwise, causal", (1, 24, 40), (24, 1, 4), {"groups": 24, "padding": (3, 0)}),
    ("depthwise, many channels", (1, 131, 9), (131, 1, 4), {"groups": 131, "padding": "same"}),
    ("depthwise, multiplier 2", (1, 6, 33), (12, 1, 7), {"groups": 6, "padding": 3}),
    ("thin groups", (2, 32, 21), (32, 4, 5), {"groups": 8, "padding": 2}),
    ("pointwise", (3, 15, 8), (6, 5, 1), {"groups": 3}),
    ("unbatched", (6, 11), (4, 3, 3), {"groups": 2}),
]  # fmt: skip


def made(x, w, dtype=torch.float64, innermost=False):
    torch.manual_seed(0)
    input = torch.randn(x, dtype=dtype)
    return input.mT.contiguous().mT if innermost else input, torch.randn(w, dtype=dtype), torch.randn(w[0], dtype=dtype)


def reference(x, w, b, *, padding=0, **keywords):
    if isinstance(padding, tuple):
        x, padding = F.pad(x, padding), 0
    return F.conv1d(x, w, b, padding=padding, **keywords)


@pytest.mark.parametrize(("x", "w", "keywords"), [row[1:] for row in CASES], ids=[row[0] for row in CASES])
def test_equals_torch(x, w, keywords):
    given = made(x, w)
    torch.testing.assert_close(grouped_conv1d(*given, **keywords), reference(*given, **keywords))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("innermost", [True, False])
@pytest.mark.parametrize(("x", "w", "keywords"), [row[1:] for row in CASES], ids=[row[0] for row in CASES])
def test_kernels_agree_with_float64(x, w, keywords, innermost, dtype):
    given = made(x, w, getattr(torch, dtype), innermost)
    with grouped_conv.interpret(), grouped_conv.trace() as calls:
        y = grouped_conv1d(*given, precision="ieee", **keywords)
    exact = reference(*(tensor.double() for tensor in given), **keywords)
    allowed = 2 * relative_error(reference(*given, **keywords), exact) + EPSILON[dtype]
    assert relative_error(y, exact) <= allowed
    (record,) = calls
    assert record.path in grouped_conv.kernels.families.FAMILIES
    if innermost and len(x) == 3:  # a weight [K, C, S] in memory is packed, the input is not
        assert record.launches.count("pack_channels_last") <= 1
        assert y.stride(1) == 1


def test_layer_is_torchs_layer():
    torch.manual_seed(1)
    ours = GroupedConv1d(8, 12, 5, stride=2, padding=2, groups=4, padding_mode="circular", activation="relu")
    theirs = nn.Conv1d(8, 12, 5, stride=2, padding=2, groups=4, padding_mode="circular")
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 8, 31)
    torch.testing.assert_close(ours(x), F.relu(theirs(x)))
    assert ours.weight.stride() == (10, 1, 2)  # [K, S, C / groups] in memory
    assert "activation=relu" in repr(ours)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(copied(x), ours(x))


def test_gradients():
    given = [tensor.requires_grad_() for tensor in made((2, 6, 9), (4, 3, 3))]
    assert torch.autograd.gradcheck(lambda *t: grouped_conv1d(*t, groups=2, padding=1, activation="silu"), given)


def test_compiles_without_breaks():
    given = made((2, 6, 9), (4, 3, 3), torch.float32)
    compiled = torch.compile(lambda *t: grouped_conv1d(*t, groups=2), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), F.conv1d(*given, groups=2))


def test_converted_and_folded():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv1d(6, 8, 3, groups=2), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 4, 1)).eval()
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    x = torch.randn(2, 6, 12)
    expected = model(x)
    parameters = list(model.parameters())
    grouped_conv.convert(model)
    assert [type(model[i]) for i in (0, 3)] == [GroupedConv1d, GroupedConv1d]
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    torch.testing.assert_close(model(x), expected)
    grouped_conv.fold_batchnorm(model)
    assert isinstance(model[1], nn.Identity)
    torch.testing.assert_close(model(x), expected)
    assert type(grouped_conv.unconvert(model)[0]) is nn.Conv1d
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"stride": (1, 2)}, "stride must be an integer or a sequence of one, but got"),
        ({"dilation": []}, "dilation must be an integer or a sequence of one, but got"),
        ({"padding": (1, 2, 3)}, "padding must be an integer, .left, right., 'same' or 'valid', but got"),
    ],
)
def test_wrong_arguments(keywords, error):
    with pytest.raises(ValueError, match=error):
        grouped_conv1d(*made((2, 6, 9), (4, 3, 3)), groups=2, **keywords)


def test_wrong_shapes_are_refused_in_torchs_words():
    x, w, b = made((2, 6, 9), (4, 3, 3))
    with pytest.raises(RuntimeError, match=r"Expected 2D \(unbatched\) or 3D \(batched\) input to conv1d"):
        grouped_conv1d(x[None], w, b)
    with pytest.raises(RuntimeError, match="Given groups=3"):
        grouped_conv1d(x, w, b, groups=3)
