"""`GroupedConv2d`: what it shares with `torch.nn.Conv2d`, its memory format, a frozen layer's packed weight."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from dispatch_calls import CONFIG
from torch import Tensor, nn

import grouped_conv
from grouped_conv import GroupedConv2d

ARGUMENTS = dict(in_channels=4, out_channels=6, kernel_size=(3, 2), stride=(1, 2), padding=(1, 0), groups=2)


def pair(**changes) -> tuple[GroupedConv2d, nn.Conv2d]:
    torch.manual_seed(0)
    ours = GroupedConv2d(**{**ARGUMENTS, **changes})
    changes.pop("activation", None)
    torch.manual_seed(0)
    return ours, nn.Conv2d(**{**ARGUMENTS, **changes})


def image() -> Tensor:
    return torch.randn(2, 4, 6, 7, generator=torch.Generator().manual_seed(1))


def test_it_is_a_conv2d_with_the_same_initialisation_and_state() -> None:
    ours, plain = pair()
    assert isinstance(ours, nn.Conv2d)
    assert list(ours.state_dict()) == list(plain.state_dict()) == ["weight", "bias"]
    for name, value in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    torch.testing.assert_close(ours(image()), plain(image()))
    plain.load_state_dict(ours.state_dict())
    ours.load_state_dict(plain.state_dict())


def test_repr() -> None:
    ours, plain = pair(bias=False, padding_mode="circular", dilation=2)
    assert repr(ours) == repr(plain).replace("Conv2d", "GroupedConv2d", 1)
    assert repr(pair(activation="silu")[0]) == repr(pair()[0])[:-1] + ", activation=silu)"


def test_activation() -> None:
    ours, plain = pair(activation="relu")
    torch.testing.assert_close(ours(image()), F.relu(plain(image())))
    assert pair(activation="none")[0].activation is None
    with pytest.raises(ValueError, match="unknown activation 'swish'; accepted: none, relu"):
        pair(activation="swish")


def test_errors_are_conv2ds() -> None:
    for changes in ({"groups": 3}, {"padding_mode": "wrap"}, {"padding": "full"}):
        with pytest.raises(ValueError) as wanted:
            nn.Conv2d(**{**ARGUMENTS, **changes})
        with pytest.raises(ValueError) as mine:
            GroupedConv2d(**{**ARGUMENTS, **changes})
        assert str(mine.value) == str(wanted.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_and_outputs_are_channels_last_and_need_no_pack_pass(dtype: torch.dtype) -> None:
    ours, plain = pair(dtype=dtype)
    assert ours.weight.is_contiguous(memory_format=torch.channels_last)
    input = image().to(dtype).contiguous(memory_format=torch.channels_last)
    with grouped_conv.interpret(CONFIG), grouped_conv.trace() as calls:
        output = ours(input)
    assert calls[0].launches == ("implicit_gemm",)
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, plain(input), rtol=2e-2, atol=2e-2)


def test_device_and_dtype_arguments() -> None:
    layer = GroupedConv2d(4, 6, 3, device="meta", dtype=torch.float64)
    assert (layer.weight.device.type, layer.weight.dtype) == ("meta", torch.float64)
    assert layer(torch.empty(1, 4, 5, 5, device="meta", dtype=torch.float64)).shape == (1, 6, 3, 3)
    with torch.device("meta"):
        assert GroupedConv2d(4, 6, 3).weight.is_meta
    layer.to_empty(device="cpu").reset_parameters()


@pytest.mark.parametrize("through", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize("frozen", [False, True])
def test_copies(through: str, frozen: bool) -> None:
    ours, _ = pair(activation="gelu")
    if frozen:
        unpacked_and_frozen(ours)
    input = image().contiguous(memory_format=torch.channels_last)
    wanted = ours(input)
    if through == "deepcopy":
        other = copy.deepcopy(ours)
    elif through == "pickle":
        other = pickle.loads(pickle.dumps(ours))
    else:
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert "_packed_weight" not in vars(other)
    assert other.weight.stride() == ours.weight.stride()
    torch.testing.assert_close(other(input), wanted)
    assert other.weight.data_ptr() != ours.weight.data_ptr()


def unpacked_and_frozen(layer: nn.Module) -> None:
    layer.requires_grad_(False)
    layer.weight.data = layer.weight.data.contiguous()


def launches(layer: nn.Module, input: Tensor) -> tuple[str, ...]:
    with grouped_conv.interpret(CONFIG), grouped_conv.trace() as calls:
        output = layer(input)
    wanted = F.conv2d(input, layer.weight, layer.bias, layer.stride, layer.padding, groups=layer.groups)
    torch.testing.assert_close(output, wanted, rtol=2e-2, atol=2e-2)
    return calls[0].launches


def test_a_frozen_layers_weight_is_packed_once_and_again_when_it_changes() -> None:
    layer, _ = pair()
    input = image().contiguous(memory_format=torch.channels_last)
    layer.weight.data = layer.weight.data.contiguous()
    assert launches(layer, input) == ("pack_channels_last", "implicit_gemm"), "a trained weight is packed at every call"
    unpacked_and_frozen(layer)
    assert launches(layer, input) == ("implicit_gemm",)
    packed = vars(layer)["_packed_weight"]
    assert launches(layer, input) == ("implicit_gemm",)
    assert vars(layer)["_packed_weight"] is packed
    with torch.no_grad():
        layer.weight.mul_(2)
    assert launches(layer, input) == ("implicit_gemm",)
    assert vars(layer)["_packed_weight"] is not packed
    layer.weight = nn.Parameter(torch.randn_like(layer.weight).contiguous(), requires_grad=False)
    assert launches(layer, input) == ("implicit_gemm",)
    layer.half().float()
    assert "_packed_weight" not in vars(layer)
    assert launches(layer, input) == ("implicit_gemm",)
    assert layer.double()(input.double()).dtype == torch.float64


def test_a_new_weight_at_the_old_ones_address_is_noticed() -> None:
    layer, plain = pair()
    unpacked_and_frozen(layer)
    input = image().contiguous(memory_format=torch.channels_last)
    layer(input)
    memory = layer.weight.data
    memory.copy_(plain.weight.detach() + 1)
    layer.weight = nn.Parameter(memory, requires_grad=False)
    assert vars(layer)["_packed_weight"].address == layer.weight.data_ptr()
    torch.testing.assert_close(layer(input), F.conv2d(input, memory, layer.bias, (1, 2), (1, 0), groups=2))


def test_a_weight_packed_in_inference_mode_serves_in_training() -> None:
    layer, _ = pair()
    unpacked_and_frozen(layer)
    input = image().contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        layer(input)
        packed = vars(layer)["_packed_weight"]
        created = GroupedConv2d(4, 6, 3).requires_grad_(False)
        created.weight.data = created.weight.data.contiguous()
        assert created(input).shape == (2, 6, 4, 5)
    layer(input.requires_grad_()).sum().backward()
    assert vars(layer)["_packed_weight"] is packed
    assert input.grad is not None


def test_the_packed_weight_never_changes_the_outputs_format() -> None:
    layer, plain = pair()
    unpacked_and_frozen(layer)
    for input in (image(), image().contiguous(memory_format=torch.channels_last)):
        assert layer(input).stride() == plain(input).stride()
    assert launches(layer, image()) == ("pack_channels_last", "pack_channels_last", "implicit_gemm")


def test_a_frozen_layer_under_torch_func_packs_nothing() -> None:
    layer, _ = pair()
    unpacked_and_frozen(layer)
    input = image().contiguous(memory_format=torch.channels_last)
    stacked = {name: torch.stack([value, 2 * value]) for name, value in layer.state_dict().items()}
    outputs = torch.func.vmap(lambda state: torch.func.functional_call(layer, state, (input,)))(stacked)
    assert "_packed_weight" not in vars(layer)
    torch.testing.assert_close(outputs[0], layer(input))


def test_unbatched_and_empty_inputs() -> None:
    ours, plain = pair(activation="relu")
    torch.testing.assert_close(ours(image()[0]), F.relu(plain(image()[0])))
    assert ours(image()[:0]).shape == (0, 6, 6, 3)


def test_training_moves_the_weights_as_conv2ds() -> None:
    ours, plain = pair()
    for layer in (ours, plain):
        optimizer = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            layer(image()).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, plain.weight)
    assert ours.weight.is_contiguous(memory_format=torch.channels_last)
