"""The activation's gradient, written by one pass for the kernels that follow: right, as in the loads, and chosen."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from case import Case
from gradient_cases import INPUT_CONFIGS, WEIGHT_CONFIGS, cases, conv, fitted, shuffled_cases
from gradient_oracle import check_gradient, gradient_tensors, run_gradient, run_written_gradient
from torch import Tensor
from training_calls import BY_KERNEL, directions, operands, ours, torchs
from truth import ORDERS

import grouped_conv
from grouped_conv import ragged_conv2d
from grouped_conv.autotune.model.families import predict
from grouped_conv.autotune.model.heuristic import choose
from grouped_conv.autotune.model.shared.machine import DRAM_SHARE
from grouped_conv.autotune.workloads.named import workload
from grouped_conv.by_torch.gradients import shuffle_channels
from grouped_conv.context.tracing import CallRecord
from grouped_conv.kernels import ACTIVATIONS, ConvProblem, DeviceSpec, Epilogue, GroupLayout
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.gradient_call import gradient_problem, written_problem
from grouped_conv.kernels.interpreting.interpreter import interpret_launch
from grouped_conv.planning import written_gradient

BEHIND = [c for c in (*cases(), *shuffled_cases()) if c.gradient != written_problem(c.gradient)]
SOME = [case if index % 4 == 0 else pytest.param(case, marks=pytest.mark.sweep) for index, case in enumerate(BEHIND)]
BOTH = pytest.mark.parametrize("written", [True, False], ids=["written", "in the loads"])
DEVICES = ("a100", "h100", "mi300x")


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch, no_plans: None, written: bool) -> Iterator[list[CallRecord]]:
    """What was traced with the choice made beforehand, which a plan's key does not hold."""
    if not written:
        monkeypatch.setattr(written_gradient, "why_in_loads", lambda *_: "this test")
    with grouped_conv.interpret(), grouped_conv.trace() as calls:
        yield calls


def check_path(calls: list[CallRecord], written: bool) -> None:
    """Launches, problems and reasons say which it was."""
    gradients = [call for call in calls if call.problem.direction != "forward"]
    names = [[name for name in call.launches if not name.startswith("copy")] for call in gradients]
    assert sum(launches.count("channel_sums") for launches in names) == 1
    assert (names[0][0] == "channel_sums") == written
    assert ("channel_sums" in names[-1]) == (not written or len(names) == 1)
    assert all((call.problem == written_problem(call.problem)) == written for call in gradients)
    said = written_gradient.WRITTEN if written else written_gradient.IN_LOADS
    assert all(said in call.reason for call in gradients)


def check_results(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close([mine.double() for mine in found], list(wanted), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.id)
def test_agrees_with_float64_and_with_the_loads(case: Case) -> None:
    """Without a scale, which is applied to a gradient that is rounded already, the same bit for bit."""
    tensors, direction = gradient_tensors(case.problem), case.config.direction.removesuffix("_grad")
    scaled = case.problem.epilogue.scale and direction == "weight"
    run_written_gradient(case.gradient, case.config, tensors, interpret_launch, grad_scale=scaled)
    for name in (direction, "bias", "residual", *(["scale"] if scaled else [])):
        check_gradient(case.problem, tensors, name, case.id)
    if not case.problem.epilogue.scale or direction == "weight":
        loaded = gradient_tensors(case.problem)
        run_gradient(case.gradient, case.config, loaded, interpret_launch)
        assert torch.equal(loaded[f"grad_{direction}"], tensors[f"grad_{direction}"])


@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_every_activation_and_dtype(activation: str, dtype: str) -> None:
    for scale, config in ((True, INPUT_CONFIGS[0]), (True, WEIGHT_CONFIGS[0]), (False, INPUT_CONFIGS[1])):
        epilogue = Epilogue(activation, scale=scale, bias=True, residual=True)
        problem = conv((3, 21, 5, 4), (35, 3, 3, 3), padding=1, dtype=dtype, precision="ieee", epilogue=epilogue)
        gradient, tensors = gradient_problem(problem, config.direction), gradient_tensors(problem)
        scaled = scale and config.direction == "weight_grad"
        run_written_gradient(gradient, fitted(problem, config), tensors, interpret_launch, grad_scale=scaled)
        named = config.direction.removesuffix("_grad")
        for name in (named, "bias", "residual", *(["scale"] if scaled else [])):
            check_gradient(problem, tensors, name, activation)


@pytest.mark.parametrize("case", BEHIND[::12], ids=lambda case: case.id)
def test_the_order_of_programs_changes_no_bit(case: Case) -> None:
    results = []
    for run in ORDERS:
        tensors = gradient_tensors(case.problem)
        run_written_gradient(case.gradient, case.config, tensors, run)
        names = ("grad_bias", "grad_residual", f"grad_{case.config.direction.removesuffix('_grad')}")
        results.append([tensors[name] for name in names])
    for first, second, third in zip(*results, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)


@BOTH
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu"])
@pytest.mark.parametrize("how", ["channels_last", "NCHW", "expanded", "sliced"])
def test_any_memory_layout(how: str, activation: str, written: bool, forced: list) -> None:
    leaves = operands()
    output = ours(*leaves, activation, precision="ieee")
    grad = {
        "channels_last": torch.randn(output.shape).contiguous(memory_format=torch.channels_last),
        "NCHW": torch.randn(output.shape),
        "expanded": torch.randn(1, 1, 1, 1).expand(output.shape),
        "sliced": torch.randn(2, 96, 4, 3).contiguous(memory_format=torch.channels_last)[:, ::2],
    }[how]
    before = grad.clone()
    found = torch.autograd.grad(output, leaves, grad)
    check_path(forced, written)
    assert directions(forced) == BY_KERNEL
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    check_results(found, torch.autograd.grad(torchs(*exact, activation), exact, grad.double()))
    assert torch.equal(grad, before)
    assert found[4].stride() == leaves[4].stride()


@BOTH
@pytest.mark.parametrize("wanted", [[0, 2], [1, 2], [0, 1, 2], [0, 4], [0, 1, 4], [0, 1, 2, 3, 4]], ids=str)
def test_whatever_else_is_wanted(wanted: list[int], written: bool, forced: list) -> None:
    leaves = operands()
    for index, leaf in enumerate(leaves):
        leaf.requires_grad_(index in wanted)
    ours(*leaves, "tanh", precision="ieee").square().sum().backward()
    check_path(forced, written)
    exact = [leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in leaves]
    torchs(*exact, "tanh").square().sum().backward()
    assert [leaf.grad is not None for leaf in leaves] == [index in wanted for index in range(5)]
    check_results([leaves[i].grad for i in wanted], [exact[i].grad for i in wanted])


@BOTH
@pytest.mark.parametrize("activation", ["none", "relu6", "silu"])
def test_output_shuffle(activation: str, written: bool, forced: list) -> None:
    """The written gradient is in the filters' order, whatever order the output has."""
    leaves = operands()[:3]
    arguments = dict(padding=1, groups=2, activation=activation, output_shuffle=3, precision="ieee")
    output = grouped_conv.grouped_conv2d(*leaves, **arguments)
    grad = torch.randn(output.shape).contiguous(memory_format=torch.channels_last)
    found = torch.autograd.grad(output, leaves, grad)
    check_path(forced, written)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    plain = F.conv2d(exact[0], exact[1], exact[2], 1, 1, 1, 2)
    value = shuffle_channels(plain if activation == "none" else getattr(F, activation)(plain), 3)
    check_results(found, torch.autograd.grad(value, exact, grad.double()))


@BOTH
def test_unequal_groups(written: bool, forced: list) -> None:
    layout = GroupLayout.sizes([8, 24], [16, 8])
    x = torch.randn(2, 32, 6, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    weights = [torch.randn(16, 8, 3, 3, requires_grad=True), torch.randn(8, 24, 3, 3, requires_grad=True)]
    bias = torch.randn(24, requires_grad=True)
    leaves = [x, *weights, bias]
    output = ragged_conv2d(x, weights, layout, bias, padding=1, activation="silu", precision="ieee")
    found = torch.autograd.grad(output.square().sum(), leaves)
    check_path(forced, written)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    parts = [
        F.conv2d(one, weight, None, 1, 1) for one, weight in zip(exact[0].split((8, 24), 1), exact[1:3], strict=True)
    ]
    value = F.silu(torch.cat(parts, 1) + exact[3][:, None, None])
    for mine, true in zip(found, torch.autograd.grad(value.square().sum(), exact), strict=True):
        torch.testing.assert_close(mine.double() / true.abs().max(), true / true.abs().max(), rtol=1e-5, atol=1e-6)


@BOTH
@pytest.mark.parametrize("config", [INPUT_CONFIGS[2], WEIGHT_CONFIGS[0]], ids=str)
def test_a_given_configuration_runs_either_way(config, written: bool, forced: list) -> None:
    leaves = operands()
    with grouped_conv.using_config(fitted(conv((2, 40, 7, 6), (48, 20, 3, 3)), config)):
        ours(*leaves, precision="ieee").sum().backward()
    check_path(forced, written)
    assert [call.config for call in forced if call.source == "given"] == [config if config.family == "weight_grad" else
        fitted(conv((2, 40, 7, 6), (48, 20, 3, 3)), config)]  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("written", [True])
def test_the_limit_of_the_workspace_holds_the_written_gradient(written: bool, forced: list) -> None:
    size = 4 * 2 * 48 * 4 * 3
    part = 4 * 48 * 9 * 20
    for limit, residual, writes, splits in (
        (size - 1, False, False, 1),
        (size, False, True, 1),
        (size + 2 * part - 1, False, True, 1),
        (size + 2 * part, False, True, 2),
        (0, True, True, 1),
        (2 * part, True, True, 2),
    ):
        forced.clear()
        leaves = operands()
        leaves[4].requires_grad_(residual)
        with grouped_conv.max_workspace(limit), grouped_conv.using_config(WEIGHT_CONFIGS[0]):
            ours(*leaves, precision="ieee").sum().backward()
        check_path(forced, writes)
        assert forced[-1].config.splits == splits, limit
        assert ("more than the workspace's" in forced[-1].reason) == (not writes)


@pytest.mark.parametrize("written", [True])
def test_a_residual_with_channels_outermost_is_not_read(written: bool, forced: list) -> None:
    leaves = operands(last=False)
    ours(*leaves, precision="ieee").sum().backward()
    check_path(forced, False)
    assert "channels outermost" in forced[-1].reason
    forced.clear()
    leaves = operands(last=False)
    leaves[4].requires_grad_(False)
    ours(*leaves, precision="ieee").sum().backward()
    check_path(forced, True)


@pytest.mark.parametrize("written", [True])
@pytest.mark.parametrize("wanted", [[0], [1], [0, 1], [1, 3], [2], [4], [2, 4]], ids=str)
def test_no_pass_is_added_and_none_writes_for_nobody(wanted: list[int], written: bool, forced: list) -> None:
    leaves = operands()
    for index, leaf in enumerate(leaves):
        leaf.requires_grad_(index in wanted)
    ours(*leaves, precision="ieee").sum().backward()
    gradients = forced[1:]
    assert any("channel_sums" in call.launches for call in gradients) == bool({2, 4} & set(wanted))
    assert all(call.problem.epilogue.activation == "relu" for call in gradients)
    assert not any(written_gradient.WRITTEN in call.reason for call in gradients)


def test_what_was_measured_runs_as_it_was_measured() -> None:
    problem = gradient_problem(workload("alexnet")["conv2"], "input_grad")
    device = DeviceSpec.get("h100")
    config = choose(problem, device)

    def decide(problem: ConvProblem, direction: str, limit: int) -> CallRecord:
        return CallRecord(problem, "input_grad", "again", (), choose(problem, device), "heuristic")

    for source, writes in (("measured", False), ("predicted", True), ("given", True)):
        loading = {"input_grad": CallRecord(problem, config.family, "", (), config, source)}
        records, found = written_gradient.choose(loading, decide, None, 2**30)
        assert found == writes, source
        assert (records["input_grad"].problem == problem) == (not writes)


def refuse(problem: ConvProblem, direction: str, limit: int) -> CallRecord:
    return CallRecord(problem, "aten", "not here")


def test_a_policy_that_bars_the_other_kernels_keeps_these() -> None:
    problem = gradient_problem(workload("alexnet")["conv2"], "input_grad")
    device = DeviceSpec.get("h100")
    loading = {"input_grad": CallRecord(problem, "input_grad", "", (), choose(problem, device), "predicted")}
    records, found = written_gradient.choose(loading, refuse, None, 2**30)
    assert not found
    assert records["input_grad"].config is not None
    assert "not all kernels may read a written gradient" in records["input_grad"].reason


def takes(problem: ConvProblem, device: DeviceSpec) -> float:
    """Predicted microseconds at the heuristic's configuration."""
    return predict(problem, choose(problem, device), device).us


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("model", "batch"), [("alexnet", 128), ("alexnet", 1), ("mobilenet_v2", 8)])
def test_writing_is_predicted_to_pay(model: str, batch: int, dtype: str, device: str) -> None:
    """What the rule rests on: a model that says otherwise, even for small calls, asks for another look at it."""
    spec, gains = DeviceSpec.get(device), []
    for problem in [one for one in workload(model, batch, dtype).values() if one.groups > 1]:
        loading = [gradient_problem(problem, direction) for direction in ("input_grad", "weight_grad")]
        stored = 1e6 * written_gradient.written_bytes(problem) / spec.dram_bytes_per_s / DRAM_SHARE
        written = stored + sum(takes(written_problem(one), spec) for one in loading)
        gains.append(sum(takes(one, spec) for one in loading) / written)
    assert min(gains) > (1 if batch > 1 else 0.95)
    assert sum(gains) / len(gains) > (1.05 if batch > 1 else 1)


@pytest.mark.parametrize("device", DEVICES)
def test_more_costly_derivatives_are_predicted_to_take_longer(device: str) -> None:
    spec = DeviceSpec.get(device)
    for direction in ("input_grad", "weight_grad"):
        times = []
        for activation in ("none", "relu", "leaky_relu", "silu", "gelu"):
            problem = replace(workload("alexnet")["conv3"], epilogue=Epilogue(activation))
            problem = gradient_problem(problem, direction)
            times.append(predict(problem, choose(problem, spec), spec).us)
        assert times == sorted(times)
        assert times[-1] > 1.5 * times[0]


def test_whatever_loads_through_an_activation_can_read_without() -> None:
    """So a given configuration never stands in the way of a written gradient."""
    for case in BEHIND:
        assert why_invalid(written_problem(case.gradient), case.config) is None
