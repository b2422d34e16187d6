"""`RaggedConv2d`: its parameters in memory and in state_dicts, initialisation, padding modes, folding, errors."""

import copy
import io
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from ragged_cases import CONFIG, LISTED, SERIES
from ragged_oracle import by_group
from torch import nn

import grouped_conv
from grouped_conv import GroupedConv2d, RaggedConv2d
from grouped_conv.call_values.ragged_weights import are_flat
from grouped_conv.kernels import GroupLayout

FLAT_AFTER = {
    "half": lambda m: m.half(),
    "half and back": lambda m: m.half().float(),
    "to float64": lambda m: m.to(torch.float64),
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "share_memory": lambda m: m.share_memory(),
    "contiguous": lambda m: m.to(memory_format=torch.contiguous_format),
    "reset": lambda m: (m.reset_parameters(), m)[1],
    "load": lambda m: (m.load_state_dict({k: v.clone() for k, v in m.state_dict().items()}), m)[1],
    "load half": lambda m: (m.load_state_dict({k: v.half() for k, v in m.state_dict().items()}), m)[1],
    "load assign": lambda m: (
        m.load_state_dict({k: v.contiguous().clone() for k, v in m.state_dict().items()}, assign=True), m)[1],
    "parent load assign": lambda m: (
        nn.Sequential(m).load_state_dict({f"0.{k}": v.clone() for k, v in m.state_dict().items()}, assign=True), m)[1],
    "from meta": lambda m: (
        (empty := RaggedConv2d(m.layout, 3, device="meta").to_empty(device="cpu")).load_state_dict(m.state_dict()),
        empty)[1],
}  # fmt: skip


@pytest.mark.parametrize("how", FLAT_AFTER)
def test_weights_stay_flat(how: str) -> None:
    module = RaggedConv2d(LISTED, 3)
    assert are_flat(list(module.weights), LISTED)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    after = FLAT_AFTER[how](module)
    assert are_flat(list(after.weights), LISTED), how
    assert list(after.state_dict()) == ["weight_0", "weight_1", "bias"]
    if how != "reset":
        for name, value in after.state_dict().items():
            torch.testing.assert_close(value.float(), before[name], rtol=1e-3, atol=1e-3)
    input = torch.randn(1, 9, 5, 4).to(after.bias.dtype)
    torch.testing.assert_close(
        after(input), by_group(input, list(after.weights), LISTED) + after.bias[:, None, None], rtol=1e-3, atol=1e-3
    )


def test_parameters_keep_their_identity() -> None:
    module = RaggedConv2d(LISTED, 3)
    known = list(module.parameters())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.double()
    module(torch.randn(1, 9, 5, 4).double()).sum().backward()
    before = module.weights[0].clone()
    optimizer.step()
    assert all(mine is other for mine, other in zip(module.parameters(), known, strict=True))
    assert not torch.equal(before, module.weights[0])
    assert are_flat(list(module.weights), LISTED)


def test_a_replaced_weight_costs_a_copy_until_it_is_flattened() -> None:
    module = RaggedConv2d(SERIES, 3, padding=1)
    input = torch.randn(1, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    module.weight_1 = nn.Parameter(torch.randn_like(module.weight_1))

    def launches() -> tuple[str, ...]:
        with torch.no_grad(), grouped_conv.interpret(CONFIG), grouped_conv.trace() as calls:
            output = module(input)
        torch.testing.assert_close(output, module(input), rtol=1e-2, atol=1e-2)
        return calls[0].launches

    assert launches() == ("cat_weights", "ragged")
    module.flatten_weights()
    assert launches() == ("ragged",)


def test_torch_save_keeps_one_storage() -> None:
    module, buffer = RaggedConv2d(GroupLayout.log_series(64, 64, 4), 3), io.BytesIO()
    torch.save(module.state_dict(), buffer)
    size = sum(p.numel() for p in module.parameters()) * 4
    assert buffer.tell() < 1.1 * size + 8192
    buffer.seek(0)
    again = RaggedConv2d(module.layout, 3)
    again.load_state_dict(torch.load(buffer))
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), again.parameters(), strict=True))


def test_each_group_is_initialised_by_its_own_fan_in() -> None:
    torch.manual_seed(0)
    layout = GroupLayout.sizes([64, 4], [64, 64])
    module = RaggedConv2d(layout, 3)
    for group, (inputs, part) in enumerate(zip((64, 4), module.bias.split(64), strict=True)):
        bound = 1 / math.sqrt(9 * inputs)
        weight = module.group_weight(group)
        assert weight.shape == (64, inputs, 3, 3)
        assert 0.9 * bound < weight.abs().max() <= bound
        assert 0.8 * bound < part.abs().max() <= bound


def test_a_uniform_layout_is_the_ordinary_convolution() -> None:
    torch.manual_seed(0)
    module = RaggedConv2d(GroupLayout.uniform(8, 12, 2), 3, padding=1)
    twin = GroupedConv2d(8, 12, 3, padding=1, groups=2)
    twin.load_state_dict({"weight": module.weights[0], "bias": module.bias})
    input = torch.randn(2, 8, 5, 4)
    assert torch.equal(module(input), twin(input))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (1, 2), "same"])
def test_padding_modes(mode: str, padding: object) -> None:
    module = RaggedConv2d(LISTED, 3, padding=padding, padding_mode=mode, dtype=torch.float64)  # type: ignore[arg-type]
    plain = nn.Conv2d(9, 1, 3, padding=padding, padding_mode=mode)  # type: ignore[arg-type]
    input = torch.randn(2, 9, 6, 7).double()
    padded = F.pad(input, plain._reversed_padding_repeated_twice, mode=mode)
    torch.testing.assert_close(
        module(input), by_group(padded, list(module.weights), LISTED) + module.bias[:, None, None]
    )


def test_unbatched_empty_and_strided_inputs() -> None:
    module = RaggedConv2d(LISTED, 3, padding=1)
    input = torch.randn(2, 9, 6, 5)
    torch.testing.assert_close(module(input[0]), module(input)[0])
    assert module(input[:0]).shape == (0, 13, 6, 5)
    wide = torch.randn(2, 12, 6, 5)
    torch.testing.assert_close(module(wide[:, 2:11]), module(wide[:, 2:11].clone()))


def test_repr() -> None:
    text = repr(RaggedConv2d(SERIES, 3, stride=2, padding=1, bias=False, activation="relu"))
    assert "16 -> 16 in 4 groups: 8 -> 8, 4 -> 4, 2 x 2 -> 2, kernel_size=(3, 3), stride=(2, 2), padding=1" in text
    assert "bias=False, activation=relu" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": (4, 4)}, "layout must be a GroupLayout, but got tuple"),
        ({"kernel_size": (3, 0)}, r"kernel_size must be at least 1, but got \(3, 0\)"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"padding": "full"}, "Invalid padding string 'full'"),
        ({"padding": "same", "stride": 2}, "padding='same' is not supported for strided convolutions"),
        ({"padding_mode": "mirror"}, "padding_mode 'mirror' must be one of zeros, reflect"),
        ({"activation": "mish"}, "unknown activation 'mish'"),
    ],
)
def test_bad_modules(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RaggedConv2d(**{"layout": LISTED, "kernel_size": 3, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", [LISTED, SERIES], ids=["listed", "series"])
@pytest.mark.parametrize("bias", [False, True])
def test_batchnorm_folds_into_it(layout: GroupLayout, bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(RaggedConv2d(layout, 3, padding=1, bias=bias), nn.BatchNorm2d(layout.out_channels), nn.ReLU())
    input = torch.randn(4, layout.in_channels, 6, 5)
    model(input)
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 2)
        model[1].bias.normal_()
    expected = model.eval()(input)
    folded = grouped_conv.fold_batchnorm(model)
    assert isinstance(folded[1], nn.Identity)
    assert are_flat(list(folded[0].weights), layout)
    torch.testing.assert_close(folded(input), expected)
