"""The count of what training keeps: a case known by arithmetic, and that fusing keeps no more than plain torch."""

import json
from dataclasses import replace

import torch
from click.testing import CliRunner
from torch import nn

import grouped_conv
from grouped_conv import GroupedConv2d
from grouped_conv.autotune.workloads.named import workload
from grouped_conv.bench import training_memory
from grouped_conv.bench.training_memory import saved_bytes
from grouped_conv.kernels import DeviceSpec, Epilogue


def test_each_storage_counts_once_and_parameters_do_not() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 1))
        x = torch.empty(2, 4, 5, 6)
    assert saved_bytes(model, x) == 4 * 2 * (4 + 8) * 30  # the input, and the rectified map that two layers keep


def test_ours_keep_what_their_derivatives_read() -> None:
    x = torch.empty(2, 4, 5, 6, device="meta")
    for activation, maps in (("none", 4), ("relu", 4 + 8), ("silu", 4 + 8), ("tanh", 4 + 8)):
        layer = GroupedConv2d(4, 8, 3, padding=1, groups=2, activation=activation, device="meta")
        assert saved_bytes(layer, x) == 4 * 2 * maps * 30, activation
    frozen = GroupedConv2d(4, 8, 3, padding=1, groups=2, device="meta").requires_grad_(False)
    assert saved_bytes(frozen, x.requires_grad_()) == 0


def test_a_written_gradient_is_borrowed_too() -> None:
    device = DeviceSpec.get("h100")
    plain = workload("alexnet", epilogue=Epilogue(bias=True))["conv2"]
    sums, written = training_memory.workspace(plain, device), 2 * 128 * 256 * 27 * 27
    assert sums % (4 * 256 * 48 * 25) == 0
    for epilogue, more in (
        (Epilogue("relu", bias=True), written),
        (Epilogue("relu", residual=True), 0),
        (Epilogue("silu", bias=True, residual=True), 0),
    ):
        assert training_memory.workspace(replace(plain, epilogue=epilogue), device) == sums + more
    with grouped_conv.max_workspace(written - 1):  # then the activation is in the loads
        assert training_memory.workspace(replace(plain, epilogue=Epilogue("relu", bias=True)), device) < written


def test_command() -> None:
    result = CliRunner().invoke(training_memory.main, ["--batch", "4", "--json"])
    rows = json.loads(result.stdout)
    assert result.exit_code == 0
    assert [row["network"] for row in rows] == list(training_memory.NETWORKS)
    for row in rows:
        assert 0 < row["saved"] <= row["saved_by_torch"]
        assert 0 < row["largest_workspace"] <= 256 * 2**20
