"""AlexNet: the published numbers, the same net of plain torch layers, and its convolutions by the real kernel."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import grouped_conv
from grouped_conv.kernels import ImplicitGemmConfig
from grouped_conv.models import VARIANTS, AlexNet, LocalResponseNorm, count_macs, layer_costs
from grouped_conv.models.alexnet import CONVOLUTIONS, LAYERS

# (groups, parameters, MACs, conv weights, conv MACs) of the 96-256-384-384-256 network
TOTALS = [
    (1, 62_378_344, 1_135_256_096, 3_745_824, 1_076_634_144),
    (2, 60_965_224, 724_406_816, 2_332_704, 665_784_864),
    (4, 60_258_664, 518_982_176, 1_626_144, 460_360_224),
]
# layer: (output, weights, parameters, MACs) with groups=2; parameters and MACs with groups=1
TABLE = {
    "conv1": ((1, 96, 55, 55), 34_848, 34_944, 105_415_200, 34_944, 105_415_200),
    "conv2": ((1, 256, 27, 27), 307_200, 307_456, 223_948_800, 614_656, 447_897_600),
    "conv3": ((1, 384, 13, 13), 884_736, 885_120, 149_520_384, 885_120, 149_520_384),
    "conv4": ((1, 384, 13, 13), 663_552, 663_936, 112_140_288, 1_327_488, 224_280_576),
    "conv5": ((1, 256, 13, 13), 442_368, 442_624, 74_760_192, 884_992, 149_520_384),
    "fc6": ((1, 4096), 37_748_736, 37_752_832, 37_748_736, 37_752_832, 37_748_736),
    "fc7": ((1, 4096), 16_777_216, 16_781_312, 16_777_216, 16_781_312, 16_777_216),
    "fc8": ((1, 1000), 4_096_000, 4_097_000, 4_096_000, 4_097_000, 4_096_000),
}


def on_meta(**arguments: object) -> AlexNet:
    return AlexNet(device="meta", **arguments)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("variant", ["paper", "caffe"])
@pytest.mark.parametrize(("groups", "params", "macs", "conv_weights", "conv_macs"), TOTALS)
def test_totals(variant: str, groups: int, params: int, macs: int, conv_weights: int, conv_macs: int) -> None:
    model = on_meta(variant=variant, groups=groups)
    assert parameters(model) == params
    assert model.macs() == macs
    rows = [row for row in layer_costs(model, (1, *model.input_size)) if row.name in CONVOLUTIONS]
    assert sum(row.weights for row in rows) == conv_weights
    assert sum(row.macs for row in rows) == conv_macs


@pytest.mark.parametrize(("variant", "size"), [("paper", 224), ("caffe", 227)])
def test_every_layer(variant: str, size: int) -> None:
    grouped = layer_costs(on_meta(variant=variant, groups=2), (1, 3, size, size))
    dense = layer_costs(on_meta(variant=variant, groups=1), (1, 3, size, size))
    found = {
        row.name: (row.output_shape, row.weights, row.parameters, row.macs, other.parameters, other.macs)
        for row, other in zip(grouped, dense, strict=True)
    }
    assert found == TABLE
    assert [row.groups for row in grouped] == [1, 2, 1, 2, 2, 1, 1, 1]


def test_torchvision_has_its_published_size() -> None:
    assert parameters(on_meta(variant="torchvision")) == 61_100_840
    assert on_meta(variant="torchvision").macs() == 714_188_480


def test_macs_scale_with_the_batch_and_change_nothing() -> None:
    model = on_meta(variant="caffe").eval()
    assert count_macs(model, (4, 3, 227, 227)) == 4 * 724_406_816
    assert not any(layer._forward_hooks for layer in model.modules())


class PlainLrn(nn.Module):
    """torch's normalisation on each tower by itself."""

    def __init__(self, alpha: float, k: float, towers: int) -> None:
        super().__init__()
        self.norm, self.towers = nn.LocalResponseNorm(5, alpha, 0.75, k), towers

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.norm(part) for part in x.contiguous().chunk(self.towers, 1)], 1)


def plain_alexnet(variant: str, g: int) -> nn.Sequential:
    """The variants written out with torch's layers alone, named as ours."""
    lrn: Callable[[], nn.Module] = nn.Identity
    c1, c2, c3, c4, c5 = (96, 256, 384, 384, 256)
    pad: nn.Module = nn.Identity()
    conv1_padding, ceil = 0, True
    if variant == "paper":
        pad = nn.ZeroPad2d((0, 3, 0, 3))
        lrn = lambda: PlainLrn(5e-4, 2.0, g)  # noqa: E731
    elif variant == "caffe":
        lrn = lambda: PlainLrn(1e-4, 1.0, 1)  # noqa: E731
    else:
        c1, c2, c3, c4, c5 = (64, 192, 384, 256, 256)
        conv1_padding, ceil = 2, False
    layers = nn.Sequential()
    layers.add_module("pad", pad)
    sizes = (3, c1, 11, 4, conv1_padding), (c1, c2, 5, 1, 2), (c2, c3, 3, 1, 1), (c3, c4, 3, 1, 1), (c4, c5, 3, 1, 1)
    for number, size, groups in zip((1, 2, 3, 4, 5), sizes, (1, g, 1, g, g), strict=True):
        layers.add_module(f"conv{number}", nn.Conv2d(*size, groups=groups))
        layers.add_module(f"relu{number}", nn.ReLU())
        if number in (1, 2):
            layers.add_module(f"norm{number}", lrn())
        if number in (1, 2, 5):
            layers.add_module(f"pool{number}", nn.MaxPool2d(3, 2, ceil_mode=ceil))
    layers.add_module("avgpool", nn.AdaptiveAvgPool2d(6) if variant == "torchvision" else nn.Identity())
    layers.add_module("flatten", nn.Flatten())
    for number, inputs, outputs in ((6, c5 * 36, 4096), (7, 4096, 4096), (8, 4096, 1000)):
        layers.add_module(f"fc{number}", nn.Linear(inputs, outputs))
        layers.add_module(f"relu{number}", nn.ReLU() if number < 8 else nn.Identity())
    return layers


@pytest.mark.parametrize("variant", list(VARIANTS))
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_equals_the_plain_network(variant: str, groups: int) -> None:
    torch.manual_seed(groups)
    ours = AlexNet(variant=variant, groups=groups).eval()
    with torch.device("meta"):
        plain = plain_alexnet(variant, groups)
    plain.load_state_dict(ours.state_dict(), strict=True, assign=True)
    images = 50 * torch.randn(2, *ours.input_size)
    with torch.no_grad():
        found, expected = ours(images), plain(images)
    assert found.shape == (2, 1000)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_training_step_reaches_every_parameter() -> None:
    model = AlexNet(num_classes=4, variant="caffe").train()
    model(50 * torch.randn(1, 3, 227, 227)).logsumexp(1).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("paper", "fc6 drop6 fc7 drop7 fc8"),
        ("caffe", "fc6 drop6 fc7 drop7 fc8"),
        ("torchvision", "drop6 fc6 drop7 fc7 fc8"),
    ],
)
def test_dropout_stands_where_each_variant_has_it(variant: str, expected: str) -> None:
    model = on_meta(variant=variant, dropout=0.25)
    order: list[str] = []
    for name in expected.split():
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: order.append(name))
    model(torch.empty(1, *model.input_size, device="meta"))
    assert order == expected.split()
    assert model.drop6.p == model.drop7.p == 0.25


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_lrn_is_torchs_and_keeps_the_memory_format(batch: int, channels_last: bool) -> None:
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = (3 * torch.randn(batch, 12, 7, 5)).to(memory_format=memory_format)
    for size in (1, 2, 3, 5):
        found = LocalResponseNorm(size, alpha=0.3, beta=0.6, k=1.5)(x)
        torch.testing.assert_close(found, nn.LocalResponseNorm(size, 0.3, 0.6, 1.5)(x.contiguous()))
        assert found.stride() == x.stride()


def test_lrn_stays_inside_a_tower() -> None:
    x = torch.randn(2, 12, 4, 4)
    towers = [nn.LocalResponseNorm(5, 0.5, 0.75, 2.0)(part) for part in x.chunk(2, 1)]
    found = LocalResponseNorm(5, 0.5, 0.75, 2.0, groups=2)(x)
    torch.testing.assert_close(found, torch.cat(towers, 1))
    across = LocalResponseNorm(5, 0.5, 0.75, 2.0)(x)
    differs = (found != across).any(dim=(0, 2, 3))
    assert differs.nonzero().flatten().tolist() == [4, 5, 6, 7]  # two channels on each side of the border


def test_lrn_squares_half_precision_in_float32() -> None:
    x = torch.full((1, 8, 2, 2), 1000.0, dtype=torch.float16)  # 1000^2 is infinite in float16
    found = LocalResponseNorm(5)(x)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), LocalResponseNorm(5)(x.float()), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("arguments", "towers"),
    [
        ({"variant": "paper"}, 2),
        ({"variant": "paper", "groups": 4}, 4),
        ({"variant": "paper", "lrn_groups": 1}, 1),
        ({"variant": "caffe"}, 1),
        ({"variant": "caffe", "lrn_groups": 2}, 2),
    ],
)
def test_lrn_towers_of_each_variant(arguments: dict[str, object], towers: int) -> None:
    model = on_meta(**arguments)
    assert [model.norm1.groups, model.norm2.groups] == [towers, towers]


def test_constants_of_each_variant() -> None:
    paper, caffe = on_meta(variant="paper").norm1, on_meta(variant="caffe").norm2
    assert (paper.size, paper.alpha, paper.beta, paper.k) == (5, 5e-4, 0.75, 2.0)
    assert (caffe.size, caffe.alpha, caffe.beta, caffe.k) == (5, 1e-4, 0.75, 1.0)
    assert isinstance(on_meta(variant="torchvision").norm1, nn.Identity)


def test_crop_rule_of_2012() -> None:
    """The last window of conv1 hangs over the right and bottom edge, and reads zeros there."""
    torch.manual_seed(0)
    paper = AlexNet(variant="paper").eval()
    image = torch.randn(1, 3, 224, 224)
    framed = torch.zeros(1, 3, 227, 227)
    framed[..., :224, :224] = image
    with torch.no_grad():
        torch.testing.assert_close(paper(image), paper(framed), rtol=0, atol=0)


@pytest.mark.parametrize(("variant", "size", "conv1"), [("paper", 224, 55), ("caffe", 227, 55), ("caffe", 224, 54)])
def test_first_map(variant: str, size: int, conv1: int) -> None:
    """Caffe rounds down and reads nothing outside: 54 of 224; its rounded-up pooling still ends in 6x6."""
    rows = layer_costs(on_meta(variant=variant), (1, 3, size, size))
    assert rows[0].output_shape == (1, 96, conv1, conv1)
    assert rows[1].output_shape == (1, 256, 27, 27)


@pytest.mark.parametrize("variant", ["paper", "caffe"])
def test_initial_values(variant: str) -> None:
    torch.manual_seed(0)
    model = AlexNet(variant=variant)
    high = 1.0 if variant == "paper" else 0.1
    for name in LAYERS:
        layer = model.get_submodule(name)
        biased = name in ("conv2", "conv4", "conv5", "fc6", "fc7")
        assert layer.bias.unique().tolist() == pytest.approx([high if biased else 0.0])
        std = 0.005 if variant == "caffe" and name in ("fc6", "fc7") else 0.01
        assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
        assert abs(layer.weight.mean().item()) < std / 50


def test_weights_from_caffe_fit_by_name() -> None:
    names = {f"{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")}
    state = on_meta(variant="caffe").state_dict()
    assert set(state) == names
    shapes = [tuple(state[f"{layer}.weight"].shape) for layer in LAYERS]
    assert shapes == [
        (96, 3, 11, 11),
        (256, 48, 5, 5),
        (384, 256, 3, 3),
        (384, 192, 3, 3),
        (256, 192, 3, 3),
        (4096, 9216),
        (4096, 4096),
        (1000, 4096),
    ]


def test_weights_from_torchvision_load_by_torchvisions_names() -> None:
    torch.manual_seed(0)
    source = AlexNet(num_classes=3, variant="torchvision")
    theirs = [*(f"features.{i}" for i in (0, 3, 6, 8, 10)), *(f"classifier.{i}" for i in (1, 4, 6))]
    renamed = {
        f"{their}.{kind}": source.state_dict()[f"{our}.{kind}"]
        for their, our in zip(theirs, LAYERS, strict=True)
        for kind in ("weight", "bias")
    }
    target = nn.Sequential(AlexNet(num_classes=3, variant="torchvision", device="meta"))
    target.load_state_dict({f"0.{name}": value for name, value in renamed.items()}, strict=True, assign=True)
    for name, value in source.state_dict().items():
        assert torch.equal(target[0].state_dict()[name], value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"variant": "vgg"}, r"'vgg'.*paper, caffe, torchvision"),
        ({"groups": 3}, "groups=3.*1, 2, 4"),
        ({"groups": 0}, "groups=0"),
        ({"num_classes": 0}, "num_classes.*0"),
        ({"lrn_groups": 5}, "lrn_groups=5.*96 and 256"),
        ({"lrn_groups": 0}, "lrn_groups=0"),
        ({"lrn_groups": 2, "variant": "torchvision"}, "lrn_groups=2.*torchvision"),
        ({"dropout": 1.5}, "1.5"),
    ],
)
def test_refuses_what_is_no_alexnet(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        on_meta(**arguments)


def test_refuses_an_image_of_another_size() -> None:
    with pytest.raises(ValueError, match="224x224 images: one of 300x224 ends in 9x6 maps"):
        on_meta(variant="paper")(torch.empty(1, 3, 300, 224, device="meta"))


@pytest.mark.parametrize(("size", "channels", "groups"), [(3, 7, 2), (5, 8, 3)])
def test_lrn_refuses_towers_that_do_not_fit(size: int, channels: int, groups: int) -> None:
    with pytest.raises(ValueError, match=f"groups={groups}"):
        LocalResponseNorm(size, groups=groups)(torch.zeros(1, channels, 2, 2))


@pytest.mark.smoke
def test_convolutions_run_by_the_kernel() -> None:
    """A 63-pixel image through the whole network, every convolution in Triton's interpreter and packed at most once."""
    torch.manual_seed(0)
    model = AlexNet(variant="torchvision", groups=2).eval()
    image = torch.randn(1, 3, 63, 63)
    config = ImplicitGemmConfig(block_m=64, block_n=64, block_k=64)
    with torch.no_grad():
        expected = model(image)
        with grouped_conv.interpret(config), grouped_conv.trace() as calls:
            found = model(image)
    assert [call.path for call in calls] == ["implicit_gemm"] * 5
    assert [call.problem.groups for call in calls] == [1, 2, 1, 2, 2]
    assert [call.problem.epilogue.activation for call in calls] == ["relu"] * 5
    # the image arrives with its channels outermost; from then on every layer hands over channels_last
    assert [call.launches for call in calls] == [("pack_channels_last", "implicit_gemm")] + [("implicit_gemm",)] * 4
    assert float((found - expected).abs().max()) <= 1e-2 * float(expected.abs().max())  # TF32 products in five layers


@pytest.mark.parametrize("variant", ["paper", "caffe"])
def test_normalised_layers_hand_over_channels_last(variant: str) -> None:
    """LRN and pooling keep the format, so that no convolution after the first has to pack its input."""
    model = on_meta(variant=variant).eval()
    formats: list[bool] = []
    for name in CONVOLUTIONS[1:]:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs: formats.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
        )
    for batch in (1, 2):
        model(torch.empty(batch, *model.input_size, device="meta"))
    assert formats == [True] * 8
