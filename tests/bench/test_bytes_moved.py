"""The counter of bytes, on kernels whose traffic is known by arithmetic, and what it is compared with."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from click.testing import CliRunner
from conv_oracle import make_tensors, run_call, shuffled

from grouped_conv.bench import bytes_moved
from grouped_conv.bench.bytes_moved import Case, best, count_call, judge
from grouped_conv.bench.traffic.compulsory import ConvNeeds, LrnPoolNeeds, SeparableNeeds, logical_index
from grouped_conv.kernels import ConvProblem, Epilogue, GroupLayout, ImplicitGemmConfig
from grouped_conv.kernels.call import plan_call
from grouped_conv.kernels.interpreting.counting import READ, SECTOR, WRITE, counting
from grouped_conv.kernels.interpreting.interpreter import interpret_launch
from grouped_conv.kernels.launching.launch import Buffer, Integer, Launch
from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem
from grouped_conv.kernels.ragged.forward_rules import ROW
from grouped_conv.kernels.separable.problem import SeparableProblem
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec


@triton.jit
def sample(x_ptr, y_ptr, count, STEP: tl.constexpr, REPEAT: tl.constexpr, BLOCK: tl.constexpr):
    """Each program reads every STEP-th of its elements REPEAT times and stores the sums side by side."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    value = tl.zeros((BLOCK,), tl.float32)
    for _ in tl.static_range(REPEAT):
        value += tl.load(x_ptr + i * STEP, mask=mask, other=0.0)
    tl.store(y_ptr + i, value, mask=mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleConfig(KernelConfig):
    pass


def run_sample(count, step, repeat, tensors=None):
    config = SampleConfig()
    buffers = (Buffer("x_ptr", "input", "float32"), Buffer("y_ptr", "output", "float32"))
    constants = {"STEP": step, "REPEAT": repeat, "BLOCK": 16}
    launch = Launch(sample, config, (-(-count // 16), 1, 1), buffers, (Integer.of("count", count),), constants)
    tensors = tensors or {"input": aligned(count * step), "output": aligned(count)}
    with counting() as launches:
        interpret_launch(launch, tensors)
    (traffic,) = launches
    assert torch.equal(tensors["output"], repeat * tensors["input"][::step])
    return traffic


def aligned(count):
    """Distinct fp32 values that begin at a sector."""
    room = torch.empty(count + SECTOR // 4)
    skip = -(room.data_ptr() // 4) % (SECTOR // 4)
    return room[skip : skip + count].copy_(torch.arange(count))


def test_repeated_reads_are_requested_but_not_moved():
    traffic = run_sample(count=40, step=1, repeat=3)
    assert len(traffic.programs) == 3
    assert traffic.requested(READ) == 3 * 40 * 4
    assert traffic.moved(READ) == traffic.distinct(READ) == 40 * 4
    assert traffic.requested(WRITE) == traffic.moved(WRITE) == 40 * 4
    assert traffic.sectors() == 2 * 40 * 4
    assert [access.offsets.tolist() for access in traffic.programs[2]] == [list(range(32, 40))] * 2


def test_sparse_reads_take_whole_sectors():
    traffic = run_sample(count=16, step=8, repeat=1)
    assert traffic.moved(READ) == 16 * 4
    assert traffic.sectors(READ) == 16 * SECTOR
    assert traffic.sectors(READ, "output") == 0


def test_an_access_outside_the_buffers_is_an_error():
    beyond = {"input": aligned(16)[:8], "output": aligned(16)}
    with pytest.raises(RuntimeError, match=r"program \(0, 0, 0\) .* read of 4-byte elements .* not inside one buffer"):
        run_sample(count=16, step=1, repeat=1, tensors=beyond)
    run_sample(count=16, step=1, repeat=1)  # nothing stays patched


def test_blocks_do_not_nest():
    with counting(), pytest.raises(RuntimeError, match="does not nest"), counting():
        pass


def counted(problem, config):
    tensors = make_tensors(problem)
    with counting() as launches:
        run_call(plan_call(problem, config), tensors, interpret_launch)
    return tensors, launches


def test_pack_moves_each_element_once():
    problem = ConvProblem.of((2, 40, 9, 11), (16, 40, 1, 1), channels_last=False, weight_channels_last=True)
    _, (pack, _) = counted(problem, ImplicitGemmConfig(block_m=256, block_n=16, block_k=64))
    size = 2 * 40 * 9 * 11 * 2
    for kind in (READ, WRITE):
        assert pack.requested(kind) == pack.moved(kind) == pack.distinct(kind) == size
    row = judge(pack, None)
    assert (row.ratio, row.halo, row.compulsory) == (1.0, 0, 2 * size)


def test_implicit_gemm_of_a_pointwise_convolution():
    """3 tiles of 32 pixels, 2 tiles of 16 channels: each pixel tile is read twice, each weight tile three times."""
    problem = ConvProblem.of((1, 32, 8, 10), (32, 32, 1, 1), dtype="float32", precision="ieee")
    tensors, (traffic,) = counted(problem, ImplicitGemmConfig(block_m=32, block_n=16, block_k=16))
    pixels, weights, outputs = 80 * 32 * 4, 32 * 32 * 4, 80 * 32 * 4
    assert len(traffic.programs) == 6
    assert traffic.requested(READ, "input") == traffic.moved(READ, "input") == 2 * pixels
    assert traffic.requested(READ, "weight") == traffic.moved(READ, "weight") == 3 * weights
    assert traffic.requested(WRITE) == outputs
    row = judge(traffic, ConvNeeds(problem, tensors["output"]))
    assert row.moved == row.needed == 2 * pixels + 3 * weights + outputs
    assert (row.halo, row.compulsory) == (pixels, pixels + weights + outputs)


def test_halos_of_a_depthwise_convolution():
    """4 rows of 16 pixels, one program per row: inner rows are read three times, the outer ones twice."""
    problem = ConvProblem.of((1, 1, 4, 16), (1, 1, 3, 3), padding=1, dtype="float32", precision="ieee")
    tensors, (traffic,) = counted(problem, ImplicitGemmConfig(block_m=16, block_n=16, block_k=16))
    assert len(traffic.programs) == 4
    assert traffic.moved(READ, "input") == (2 + 3 + 3 + 2) * 16 * 4
    row = judge(traffic, ConvNeeds(problem, tensors["output"]))
    assert row.halo == 6 * 16 * 4
    assert row.needed == row.moved == row.compulsory + row.halo + 3 * 9 * 4


LAYOUTS = {
    "uniform": GroupLayout.uniform(12, 8, 4),
    "depthwise": GroupLayout.uniform(6, 12, 6),
    "log series": GroupLayout.sizes([6, 3, 2, 1], [4, 4, 2, 2]),
    "overlapping": GroupLayout.overlapping(12, 8, 4, 5),
    "explicit": GroupLayout.explicit(9, [[0, 5, 7], [8, 3], [5, 0, 2, 1, 4, 6]], [3, 1, 4]),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("seed", range(3))
def test_needs_are_the_gradients_support(layout, seed):
    """With weights of one where channels are connected, an output depends on what it has a gradient for."""
    problem = ConvProblem(
        2, layout, (7, 6), (3, 2), stride=(2, 1), padding=(1, 0, 2, 1), dilation=(1, 2), epilogue=Epilogue(bias=True)
    )
    output = torch.empty(problem.output_shape).contiguous(memory_format=torch.channels_last)
    generator = np.random.default_rng(seed)
    stored = np.sort(generator.choice(output.numel(), generator.integers(1, output.numel()), replace=False))
    x = torch.ones(problem.input_shape, requires_grad=True)
    weight = torch.zeros(layout.out_channels, layout.in_channels, 3, 2, requires_grad=True)
    connected, first = torch.zeros(layout.out_channels, layout.in_channels), 0
    for group in range(layout.groups):
        outputs = layout.ragged[group].outputs if layout.ragged else layout.k_per_group
        connected[first : first + outputs, list(layout.inputs_of(group))] = 1
        first += outputs
    dense = (weight + 1) * connected[:, :, None, None]
    y = F.conv2d(F.pad(x, (2, 1, 1, 0)), dense, None, (2, 1), 0, (1, 2))
    chosen = y.permute(0, 2, 3, 1).reshape(-1)[torch.from_numpy(stored)]
    chosen.sum().backward()
    needed = ConvNeeds(problem, output)(stored)
    assert needed["input"] == 2 * int(x.grad.count_nonzero())
    rows = torch.from_numpy(np.unique(stored % layout.out_channels))
    assert needed["bias"] == 2 * len(rows)
    assert needed["weight"] == 2 * 6 * int(connected[rows].sum())  # also a tap that saw only padding
    assert needed["output"] == 2 * len(stored)


@pytest.mark.parametrize("order", ["lrn-pool", "pool-lrn", "lrn", "pool"])
@pytest.mark.parametrize("seed", range(2))
def test_needs_of_lrn_and_pool(order, seed):
    """One output at a time is changed by exactly the inputs under its windows, in reach of its channel."""
    problem = LrnPoolProblem.of(
        (2, 12, 6, 7), order, size=4, groups=2, kernel_size=(3, 2), stride=(2, 1), padding=(1, 0), ceil_mode=True
    )
    output = torch.empty(problem.output_shape).contiguous(memory_format=torch.channels_last)
    generator = np.random.default_rng(seed)
    stored = np.sort(generator.choice(output.numel(), generator.integers(1, 20), replace=False))

    def average(x):
        """Like the problem's steps, each output with a gradient for all that it depends on."""
        down, up = problem.reach
        for step in problem.steps:
            if step == "lrn":
                towers = x.view(2, 2, 6, *x.shape[2:])
                sums = F.pad(towers, (0, 0, 0, 0, down, up)).unfold(2, problem.size, 1).sum(-1)
                x = sums.view(x.shape)
            else:
                ones = torch.ones(12, 1, *problem.kernel_size, dtype=x.dtype)
                rows = (problem.out_size[0] - 1) * 2 + 3 - 1 - x.shape[2]
                x = F.conv2d(F.pad(x, (0, 0, 1, max(rows, 0))), ones, None, problem.stride, 0, 1, 12)
        return x

    x = torch.ones(problem.input_shape, dtype=torch.float64, requires_grad=True)
    y = average(x)
    assert y.shape == problem.output_shape
    y.permute(0, 2, 3, 1).reshape(-1)[torch.from_numpy(stored)].sum().backward()
    needed = LrnPoolNeeds(problem, output)(stored)
    assert needed == {"input": 2 * int(x.grad.count_nonzero()), "output": 2 * len(stored)}


@pytest.mark.parametrize("seed", range(3))
def test_needs_of_a_separable_block(seed):
    """A pixel's outputs depend on all channels of its window, whatever the first convolution's groups."""
    first = ConvProblem.of(
        (2, 6, 7, 6), (12, 3, 3, 2), stride=(2, 1), padding=1, groups=2, epilogue=Epilogue(bias=True)
    )
    problem = SeparableProblem(first, 5, Epilogue(bias=True, residual=True))
    output = torch.empty(problem.output_shape).contiguous(memory_format=torch.channels_last)
    generator = np.random.default_rng(seed)
    stored = np.sort(generator.choice(output.numel(), generator.integers(1, 30), replace=False))
    x = torch.ones(first.input_shape, requires_grad=True)
    hidden = F.conv2d(x, torch.ones(first.weight_shape), None, first.stride, 1, 1, 2)
    y = F.conv2d(hidden, torch.ones(problem.pointwise_shape))
    y.permute(0, 2, 3, 1).reshape(-1)[torch.from_numpy(stored)].sum().backward()
    rows = len(np.unique(stored % 5))
    assert SeparableNeeds(problem, output)(stored) == {
        "input": 2 * int(x.grad.count_nonzero()),
        "weight": 2 * 12 * 3 * 6,
        "bias": 2 * 12,
        "scale": 0,
        "residual": 2 * len(stored),
        "preactivation": 0,
        "second weight": 2 * rows * 12,
        "second bias": 2 * rows,
        "second scale": 0,
        "second preactivation": 0,
        "output": 2 * len(stored),
    }


def test_needs_know_a_shuffled_output():
    problem = ConvProblem.of((1, 12, 3, 3), (24, 3, 1, 1), groups=4, epilogue=Epilogue(shuffle=4))
    output = torch.empty(problem.output_shape).contiguous(memory_format=torch.channels_last)
    source = shuffled(torch.arange(24)[None], 4)[0]
    for channel in range(24):
        needed = ConvNeeds(problem, output)(np.array([channel]))
        group = int(source[channel]) // 6
        assert needed["input"] == 3 * 2
        assert ConvNeeds(problem, output).group_of[int(source[channel])] == group
    first_group = np.flatnonzero(source.numpy() < 6)
    assert ConvNeeds(problem, output)(first_group)["input"] == 3 * 2


def test_logical_index_undoes_any_strides():
    for tensor in (torch.empty(2, 3, 4, 5), torch.empty(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)):
        values = torch.arange(tensor.numel()).view(tensor.shape)
        tensor.copy_(values)
        memory = torch.as_strided(tensor, (tensor.numel(),), (1,))
        assert logical_index(tensor).tolist() == memory.int().tolist()
    assert logical_index(torch.empty(2, 4)[:, ::2]).tolist() == [0, -1, 1, -1, 2, -1, 3]


@pytest.mark.parametrize("last", [True, False])
def test_whole_public_call(last):
    problem = ConvProblem.of(
        (1, 32, 6, 6), (32, 4, 3, 3), padding=1, groups=8, channels_last=last, epilogue=Epilogue("relu", bias=True)
    )
    config = ImplicitGemmConfig(block_m=64, block_n=16, block_k=64)
    rows = count_call(problem, config, "case")
    assert [row.launch for row in rows] == [*([] if last else ["pack_channels_last"] * 2), "implicit_gemm"]
    assert [row.ratio for row in rows] == [1.0] * len(rows)
    assert rows[-1].compulsory == problem.min_bytes
    assert rows[-1].halo == 0
    assert json.loads(json.dumps(rows[-1].to_json()))["ratio"] == 1.0


FULL = Epilogue("relu", bias=True, scale=True, residual=True)
EVERY_FAMILY = {
    "implicit_gemm": ConvProblem.of((1, 32, 6, 6), (32, 16, 3, 3), padding=1, groups=2, epilogue=FULL),
    "packed_groups": ConvProblem.of((1, 32, 6, 6), (32, 4, 3, 3), padding=1, groups=8, epilogue=FULL),
    "depthwise": ConvProblem.of((1, 16, 6, 6), (16, 1, 3, 3), padding=1, groups=16, epilogue=FULL),
    "ragged": ConvProblem(1, GroupLayout.sizes([16, 8], [24, 8]), (6, 6), (3, 3), padding=(1, 1, 1, 1), epilogue=FULL),
    "separable": SeparableProblem(ConvProblem.of((1, 16, 6, 6), (16, 1, 3, 3), groups=16), 24, FULL),
    "lrn_pool": LrnPoolProblem.of((1, 16, 9, 9)),
}


@pytest.mark.parametrize("family", bytes_moved.FORWARD)
def test_every_family_reads_what_its_outputs_need(family):
    """The compute launch comes last; unequal groups read their table besides, a row of int64 per program."""
    problem = EVERY_FAMILY[family]
    row = count_call(problem, best(family, problem, DeviceSpec.get("h100")))[-1]
    assert row.family == row.launch == family
    table = row.programs * 8 * ROW if family == "ragged" else 0
    assert row.needed <= row.moved <= row.needed + table
    assert row.compulsory == problem.min_bytes


def test_each_family_has_cases_of_its_own_kind():
    spec = DeviceSpec.get("h100")
    for family in bytes_moved.FORWARD:
        assert any(best(family, case.problem, spec) for case in bytes_moved.CASES), family
    assert best("separable", EVERY_FAMILY["lrn_pool"], spec) is None
    assert best("lrn_pool", EVERY_FAMILY["depthwise"], spec) is None


def test_waste_is_noticed():
    """A kernel that reads twice as many elements as its outputs need, in a problem of one value per output."""
    problem = ConvProblem.of((1, 1, 1, 64), (1, 1, 1, 1), dtype="float32", precision="ieee")
    traffic = run_sample(count=64, step=1, repeat=1)
    needs = ConvNeeds(problem, torch.empty(problem.output_shape))
    assert judge(traffic, needs).ratio == pytest.approx(1, rel=0.04)  # it reads no weights, which 4 programs need
    (first, *_), *_ = traffic.programs
    wide = replace(first, offsets=np.arange(32))
    wasteful = replace(traffic, programs=tuple((wide, write) for _, write in traffic.programs))
    assert judge(wasteful, needs).ratio > 1.4


def test_command(monkeypatch):
    small = Case("small", ConvProblem.of((1, 8, 4, 4), (8, 4, 1, 1), groups=2))
    monkeypatch.setattr(bytes_moved, "rows", lambda families: bytes_moved.count_call(small.problem, CONFIG, "small"))
    result = CliRunner().invoke(bytes_moved.main, ["--family", "implicit_gemm"])
    assert result.exit_code == 0
    assert "moved/needed 1.000" in result.stdout
    monkeypatch.setattr(bytes_moved, "MEMORY_BOUND", ("implicit_gemm",))
    monkeypatch.setattr(bytes_moved, "LIMIT", 0.9)
    result = CliRunner().invoke(bytes_moved.main, ["--json"])
    assert result.exit_code == 1
    assert [row["case"] for row in json.loads(result.stdout)] == ["small"]
    assert CliRunner().invoke(bytes_moved.main, ["--family", "x"]).exit_code == 2


CONFIG = ImplicitGemmConfig(block_m=16, block_n=16, block_k=16)
