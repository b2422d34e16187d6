"""Channel shuffles around a convolution: what torch computes in separate operations, and all its derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import grouped_conv
from grouped_conv import GroupedConv2d, grouped_conv2d
from grouped_conv.by_torch.gradients import shuffle_channels, unshuffle_channels
from grouped_conv.kernels import ConvProblem, Epilogue


def operands(dtype: torch.dtype = torch.float64, *, nhwc: bool = True) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    layout = torch.channels_last if nhwc else torch.contiguous_format
    x = torch.randn(2, 12, 5, 4, dtype=dtype).contiguous(memory_format=layout)
    return x, torch.randn(18, 4, 3, 3, dtype=dtype), torch.randn(18, dtype=dtype), torch.randn(2, 18, 5, 4, dtype=dtype)


def ours(x: Tensor, w: Tensor, b: Tensor, r: Tensor, **choices) -> Tensor:
    return grouped_conv2d(
        x, w, b, padding=1, groups=3, residual=r, activation="silu", input_shuffle=4, output_shuffle=6, **choices
    )


def plain(x: Tensor, w: Tensor, b: Tensor, r: Tensor) -> Tensor:
    y = F.conv2d(F.channel_shuffle(x, 4), w, b, padding=1, groups=3) + r
    return F.channel_shuffle(F.silu(y), 6)


@pytest.mark.parametrize("nhwc", [True, False])
def test_equals_torch_in_separate_operations(nhwc):
    given = operands(nhwc=nhwc)
    torch.testing.assert_close(ours(*given), plain(*given))
    assert ours(*given).is_contiguous(memory_format=torch.channels_last if nhwc else torch.contiguous_format)


@pytest.mark.parametrize("groups", [2, 3, 4, 6])
def test_shuffle_and_its_inverse(groups):
    x = torch.arange(24.0).view(1, 24, 1, 1)
    assert torch.equal(shuffle_channels(x, groups), F.channel_shuffle(x, groups))
    with torch.no_grad():
        assert torch.equal(shuffle_channels(x, groups), F.channel_shuffle(x, groups))
    assert torch.equal(unshuffle_channels(shuffle_channels(x, groups), groups), x)


def test_strided_groups_read_channels_that_are_groups_apart():
    """What pytorch#101871 asks for: group g reads channels g, g + G, g + 2 G, ..."""
    x, w, *_ = operands()
    apart = grouped_conv2d(x, w, groups=3, input_shuffle=12 // 3)
    torch.testing.assert_close(apart[:, 6:12], F.conv2d(x[:, 1::3], w[6:12]))


def test_derivatives():
    given = tuple(tensor.requires_grad_() for tensor in operands())
    assert torch.autograd.gradcheck(ours, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(ours, given, fast_mode=True)
    with torch.no_grad():
        tangents = tuple(torch.randn_like(tensor) for tensor in given)
    primals = tuple(tensor.detach() for tensor in given)
    along = torch.func.jvp(ours, primals, tangents)
    for mine, theirs in zip(along, torch.func.jvp(plain, primals, tangents), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("dims", [(0, None, None, None), (None, 0, 0, None), (1, 0, None, 0), (2, 1, 0, 1)])
def test_vmap(dims):
    batched = [t if d is None else torch.stack([t, 2 * t, -t], d) for t, d in zip(operands(), dims, strict=True)]
    mapped, expected = torch.vmap(ours, dims)(*batched), torch.vmap(plain, dims)(*batched)
    torch.testing.assert_close(mapped, expected)


def test_compiles_without_breaks_and_passes_opcheck():
    given = operands(torch.float32)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), plain(*given))
    x, w, b, r = given
    attributes = ((1, 1), (1, 1, 1, 1), (1, 1), "silu", 0.01, True, "default", "auto", 4, 6)
    torch.library.opcheck(torch.ops.grouped_conv.conv2d_fused, (x, w, b, None, r, *attributes))


def test_kernels_compute_them_and_say_so():
    given = operands(torch.float32)
    with grouped_conv.interpret(), grouped_conv.trace() as calls:
        y = ours(*given, precision="ieee")
    torch.testing.assert_close(y, plain(*given), atol=1e-5, rtol=1e-5)
    (record,) = calls
    assert record.path in grouped_conv.kernels.families.FAMILIES
    assert record.problem.input_shuffle == 4
    assert "shuffle(6)" in str(record.problem)


def test_a_layer_with_a_shuffle_is_a_layer_and_a_shuffle():
    torch.manual_seed(0)
    layer = GroupedConv2d(12, 18, 1, groups=3, activation="relu", output_shuffle=3)
    x = torch.randn(2, 12, 4, 4)
    expected = F.channel_shuffle(F.relu(F.conv2d(x, layer.weight, layer.bias, groups=3)), 3)
    torch.testing.assert_close(layer(x), expected)
    assert "output_shuffle=3" in repr(layer)
    torch.testing.assert_close(grouped_conv.ChannelShuffle(3)(x), F.channel_shuffle(x, 3))
    with pytest.raises(ValueError, match="output_shuffle=5 must be at least 1 and divide the 18 channels"):
        GroupedConv2d(12, 18, 1, groups=3, output_shuffle=5)
    undone = grouped_conv.unconvert(torch.nn.Sequential(layer))
    assert not any(isinstance(module, GroupedConv2d) for module in undone.modules())
    torch.testing.assert_close(undone(x), expected)


def test_batchnorm_behind_a_shuffle_is_left_alone(capsys):
    model = torch.nn.Sequential(GroupedConv2d(12, 18, 1, groups=3, output_shuffle=3), torch.nn.BatchNorm2d(18)).eval()
    grouped_conv.fold_batchnorm(model, verbose=True)
    assert isinstance(model[1], torch.nn.BatchNorm2d)
    assert "left, a channel shuffle in 3 groups lies between" in capsys.readouterr().out


def test_what_divides_no_channels_is_refused():
    x, w, *_ = operands()
    with pytest.raises(RuntimeError, match="input_shuffle=5 must be at least 1 and divide the 12 channels"):
        grouped_conv2d(x, w, groups=3, input_shuffle=5)
    with pytest.raises(ValueError, match="shuffle=7 must be at least 1 and divide the 18 channels"):
        ConvProblem.of((1, 12, 5, 5), (18, 4, 3, 3), groups=3, epilogue=Epilogue(shuffle=7))
    with pytest.raises(ValueError, match="shuffle must be at least 1"):
        Epilogue(shuffle=0)
