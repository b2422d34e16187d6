"""The values that travel through the package: exact figures, JSON both ways, and errors that name the numbers."""

import json
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise

import pytest
import torch
from conv_cases import alexnet_layers
from hypothesis import given
from hypothesis import strategies as st

from grouped_conv.kernels import (
    ConvProblem,
    DeviceSpec,
    Epilogue,
    GroupLayout,
    ImplicitGemmConfig,
    KernelConfig,
    PackConfig,
    ReduceConfig,
)

# Caffe's bvlc_alexnet: (MACs with two groups, MACs without groups) per layer, bias not counted
MACS = {
    "conv1": (105_415_200, 105_415_200),
    "conv2": (223_948_800, 447_897_600),
    "conv3": (149_520_384, 149_520_384),
    "conv4": (112_140_288, 224_280_576),
    "conv5": (74_760_192, 149_520_384),
}


@pytest.mark.parametrize("layer", MACS)
def test_macs_of_alexnet(layer: str) -> None:
    grouped = alexnet_layers(1)[layer]
    k, _, r, s = grouped.weight_shape
    dense = ConvProblem.of(
        grouped.input_shape, (k, grouped.in_channels, r, s), stride=grouped.stride, padding=grouped.padding
    )
    assert (grouped.macs, dense.macs) == MACS[layer]


def test_sizes_bytes_and_intensity_of_conv2() -> None:
    """Batch 128, fp16: 865 FLOP per byte."""
    problem = replace(alexnet_layers(128)["conv2"], epilogue=Epilogue())
    assert problem.out_size == (27, 27)
    assert problem.gemm == (2, 128 * 27 * 27, 128, 1200)
    assert problem.min_bytes == 2 * (128 * 96 * 27 * 27 + 256 * 48 * 25 + 128 * 256 * 27 * 27)
    assert problem.arithmetic_intensity == pytest.approx(865, abs=1)


def test_epilogue_operands_count_as_bytes() -> None:
    plain = ConvProblem.of((2, 4, 5, 5), (6, 4, 1, 1))
    full = replace(plain, epilogue=Epilogue("silu", bias=True, scale=True, residual=True, save_preactivation=True))
    assert full.min_bytes - plain.min_bytes == 2 * (6 + 6 + 2 * 2 * 6 * 25)


@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(0, 4)] * 4),
)
def test_out_size_is_torchs(size, kernel, stride, dilation, padding) -> None:  # type: ignore[no-untyped-def]
    top, bottom, left, right = padding
    x = torch.empty(1, 1, size[0] + top + bottom, size[1] + left + right, device="meta")
    weight = torch.empty(1, 1, *kernel, device="meta")

    def build() -> ConvProblem:
        return ConvProblem.of((1, 1, *size), (1, 1, *kernel), stride, padding, dilation)

    fits = all(d * (k - 1) + 1 <= n for d, k, n in zip(dilation, kernel, x.shape[2:], strict=True))
    if not fits:
        with pytest.raises(ValueError, match="Kernel size can't be greater than actual input size"):
            build()
        return
    y = torch.nn.functional.conv2d(x, weight, None, stride, 0, dilation)
    assert build().out_size == tuple(y.shape[2:])


@pytest.mark.parametrize(
    ("padding", "sides"),
    [
        (1, (1, 1, 1, 1)),
        ((1, 2), (1, 1, 2, 2)),
        ((1, 2, 3, 4), (1, 2, 3, 4)),
        (((1, 2), (3, 4)), (1, 2, 3, 4)),
        ("valid", (0, 0, 0, 0)),
        ("same", (1, 1, 0, 1)),
    ],
)
def test_every_way_to_write_padding(padding: object, sides: tuple[int, ...]) -> None:
    assert ConvProblem.of((1, 1, 9, 9), (1, 1, 3, 2), padding=padding).padding == sides  # type: ignore[arg-type]


BAD_PROBLEMS = [
    (dict(groups=3), "in_channels must be divisible by groups, but got in_channels=8, groups=3"),
    (dict(groups=4), "to have 16 channels, but got 8"),
    (dict(stride=0), r"stride=\(0, 0\)"),
    (dict(padding=-1), r"padding=\(-1, -1, -1, -1\)"),
    (dict(padding="full"), "'full', should be one of 'valid', 'same'"),
    (dict(padding="same", stride=2), r"stride=\(2, 2\)"),
    (dict(dilation=9), r"\(9 x 9\). Kernel size: \(19 x 19\)"),
    (dict(dtype="float64"), "float64.*accepted: float16, bfloat16, float32"),
    (dict(direction="sideways"), "'sideways' is unknown; accepted: forward"),
    (dict(dtype="float32", precision="tf16"), "'tf16'"),
]


@pytest.mark.parametrize(("keywords", "message"), BAD_PROBLEMS)
def test_bad_problems_name_their_numbers(keywords: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvProblem.of((2, 8, 9, 9), (8, 4, 3, 3), **({"groups": 2} | keywords))  # type: ignore[arg-type]


def test_equal_problems_are_equal_whatever_they_were_built_from() -> None:
    built = ConvProblem.of((1, 4, 5, 5), (4, 2, 3, 3), padding=1, groups=2, dtype=torch.float16)
    again = ConvProblem.of((1, 4, 5, 5), (4, 2, 3, 3), (1, 1), "same", 1, 2, "fp16", precision="ieee")
    assert built == again
    assert hash(built) == hash(again)


@pytest.mark.parametrize(
    "value",
    [
        alexnet_layers(3, "float32")["conv2"],
        GroupLayout.sizes([3, 5], [4, 4]),
        GroupLayout.uniform(6, 4, 2),
        Epilogue("leaky_relu", 0.2, bias=True),
        DeviceSpec.get("a100"),
        ImplicitGemmConfig(block_m=64, split_k=2, loop_order="taps_inner", cache_a=".ca"),
        PackConfig(block_p=32),
        ReduceConfig(block_n=32),
    ],
    ids=lambda value: type(value).__name__,
)
def test_json_both_ways(value) -> None:  # type: ignore[no-untyped-def]
    kind = KernelConfig if isinstance(value, KernelConfig) else type(value)
    again = kind.from_json(json.loads(json.dumps(value.to_json())))
    assert again == value
    assert hash(again) == hash(value)
    assert str(again) == str(value)
    with pytest.raises((FrozenInstanceError, TypeError)):
        value.anything = 1


def test_layouts() -> None:
    assert GroupLayout.sizes([2, 2], [3, 3]) == GroupLayout.uniform(4, 6, 2)
    unequal = GroupLayout.sizes([4, 2, 1, 1], [8, 4, 2, 2])
    assert not unequal.is_uniform
    assert unequal.inputs_of(1) == (4, 5)
    assert unequal.connections() == 4 * 8 + 2 * 4 + 2 + 2
    shared = GroupLayout.overlapping(8, 6, groups=3, width=4)
    assert [shared.inputs_of(g)[0] for g in range(3)] == [0, 2, 4]
    assert GroupLayout.explicit(4, [[3, 0], [1, 2]], [2, 5]).out_channels == 7


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GroupLayout.uniform(4, 6, 0), "groups must be a positive integer, but got 0"),
        (lambda: GroupLayout.uniform(4, 5, 2), "out_channels=5, groups=2"),
        (lambda: Epilogue("mish"), "'mish'; accepted: none, relu"),
        (lambda: ImplicitGemmConfig(block_m=48), "block_m must be a power of two, but got 48"),
        (lambda: ImplicitGemmConfig(block_k=8), "128x128x8"),
        (lambda: KernelConfig.from_json({"family": "winograd"}), "'winograd'; accepted: .*implicit_gemm"),
        (lambda: DeviceSpec.get("gtx580"), "unknown device 'gtx580'; known: a10, a100"),
    ],
)
def test_bad_values_name_their_numbers(build, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        build()


def test_devices_of_the_design_are_there_with_sources() -> None:
    nvidia = (
        "a100",
        "h100-sxm",
        "h100-pcie",
        "h100-nvl",
        "h200",
        "l4",
        "l40s",
        "a10",
        "rtx3090",
        "rtx4090",
        "rtx5090",
        "b200",
    )
    for name in (*nvidia, "mi210", "mi300x"):
        spec = DeviceSpec.get(name)
        assert spec.key == name
        assert len(spec.source) > 8
        assert spec.shared_per_block <= spec.shared_per_sm
        rates = (spec.fp32_flops, spec.tf32_flops or spec.fp32_flops, spec.half_flops)
        assert all(slow <= fast for slow, fast in pairwise(rates)), rates
    assert DeviceSpec.get("H100") is DeviceSpec.get("sm_90")
    assert DeviceSpec.get("h100").warp_size == 32
    assert DeviceSpec.get("mi300x").warp_size == 64
