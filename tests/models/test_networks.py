"""Our definitions of networks against published figures, and the tables of convolutions against the networks."""

from collections import Counter

import pytest
import torch
from networks import NETWORKS, SMALL, prepared, regnetx_400mf
from torch import nn

import grouped_conv
from grouped_conv.autotune.workloads.named import MODELS, workload
from grouped_conv.models import count_macs

PUBLISHED = {
    # name: (parameters, multiply-accumulates of one 224-pixel image in units of 1e6, where that is written)
    "resnext50_32x4d": (25_028_904, 4230, "torchvision's model card: 25028904, 4.23 GFLOPS"),
    "regnetx_400mf": (5_157_512, 400, "arXiv 2003.13678 table: 5.2 M, 0.4 GF; timm's regnetx_004: 5157512"),
    "regnety_16gf": (83_590_140, 15_912, "torchvision's model card: 83590140, 15.91 GFLOPS"),
    "shufflenet_v1_g3": (1_865_728, 137, "arXiv 1707.01083 table 1: 137 MFLOPs for g = 3; authors' code: 1.9 M, 138 M"),
    "shufflenet_v2": (2_278_604, 145, "torchvision's model card: 2278604, 0.14 GFLOPS; arXiv 1807.11164: 146 M"),
    "mobilenet_v2": (3_504_872, 301, "torchvision's model card: 3504872, 0.30 GFLOPS; arXiv 1801.04381: 300 M"),
    "convnext_t": (28_589_128, 4456, "torchvision's model card: 28589128, 4.46 GFLOPS"),
}


def on_meta(make):
    with torch.device("meta"):
        return make()


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_costs_what_was_published(name):
    expected, millions, _ = PUBLISHED[name]
    model = on_meta(NETWORKS[name])
    assert parameters(model) == expected
    assert count_macs(model, (1, 3, 224, 224)) / 1e6 == pytest.approx(millions, rel=0.007)


def test_regnetx_has_two_published_widths():
    """torchvision rounds 392 up to 400 (model card: 5495976 parameters), the paper's code to 384."""
    assert parameters(on_meta(lambda: regnetx_400mf(widths=(32, 64, 160, 400)))) == 5_495_976


def convolutions(model, image):
    """Every convolution that runs on a square image, as (C, H, K, size, stride, padding, groups), counted."""
    found = Counter()

    def count(layer, inputs, _output):
        _, c, height, width = inputs[0].shape
        (size, same_size), (stride, same_stride), (padding, same_padding) = (
            layer.kernel_size, layer.stride, layer.padding,
        )  # fmt: skip
        assert (height, size, stride, padding) == (width, same_size, same_stride, same_padding)
        assert layer.dilation == (1, 1)
        found[c, height, layer.out_channels, size, stride, padding, layer.groups] += 1

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    model.eval()(torch.empty(1, 3, image, image, device="meta"))
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_the_table_is_the_network(name):
    rows = Counter()
    for row in MODELS[name]:
        rows[row.channels, row.height, row.filters, row.size, row.stride, row.padding, row.groups] += row.count
    assert rows == convolutions(on_meta(NETWORKS[name]), 224)


@pytest.mark.parametrize("name", MODELS)
def test_tables_have_distinct_rows_and_sizes_that_follow(name):
    problems = workload(name, 2)
    assert len(problems) == len(MODELS[name])
    assert len(set(problems.values())) == len(problems)
    for row, problem in zip(MODELS[name], problems.values(), strict=True):
        assert problem.out_size == (row.out_height, row.out_height)
        assert problem.epilogue == grouped_conv.kernels.Epilogue(row.activation, bias=True)


@pytest.mark.parametrize("name", SMALL)
def test_prepared_networks_keep_values_of_order_one(name):
    """Every layer's output, so that a relative error of the whole network says something about its layers."""
    model, worst = prepared(SMALL[name](), 64), {}

    def measure(layer, _inputs, output):
        worst[layer] = output.square().mean().sqrt().item()

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(measure)
    y = model(torch.randn(2, 3, 64, 64))
    assert y.shape == (2, 10)
    assert all(0.05 < value < 20 for value in worst.values()), sorted(worst.values())
