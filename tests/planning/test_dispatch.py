"""Plans: what their keys hold, threads and forks that need them, and how they launch through a driver."""

import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import triton
from dispatch_calls import CONFIG, SPLIT, call, operands
from processes import in_child, in_threads, run_python
from torch import Tensor
from torch_paths import by

import grouped_conv
from grouped_conv.bench.noop_driver import noop_driver
from grouped_conv.call_values.geometry import Geometry
from grouped_conv.call_values.request import Operands, Request
from grouped_conv.context.overrides import using_config
from grouped_conv.kernels import ConvProblem, DeviceSpec
from grouped_conv.kernels.packed import forward_rules as packed_groups_rules
from grouped_conv.planning import executors, plan, plan_cache
from grouped_conv.planning.decisions import describe
from grouped_conv.planning.executors import DriverExecutor, InterpreterExecutor, native_config
from grouped_conv.planning.interpreting import through_driver

H100 = DeviceSpec.get("h100")
pytestmark = pytest.mark.usefixtures("no_plans")


def plan_count() -> int:
    return len(plan_cache._plans)


def test_a_plan_is_made_once_and_shared() -> None:
    input, weight, bias = operands()
    for _ in range(3):
        call(input, weight, bias)
        call(input.clone(), weight.clone(), bias.clone())
    assert plan_count() == 1


def shifted(offset: int) -> Tensor:
    """An input that begins some elements after an aligned address."""
    return torch.randn(2 * 16 * 36 + 8).half()[offset : offset + 2 * 16 * 36].view(2, 6, 6, 16).permute(0, 3, 1, 2)


CHANGES: dict[str, Callable[[Tensor, Tensor, Tensor], object]] = {
    "batch": lambda x, w, b: call(operands(batch=3)[0], w, b),
    "input strides": lambda x, w, b: call(x.contiguous(), w, b),
    "weight strides": lambda x, w, b: call(x, w.contiguous(), b),
    "bias strides": lambda x, w, b: call(x, w, torch.randn(16).half()[::2]),
    "dtype": lambda x, w, b: call(*operands(dtype=torch.bfloat16)),
    "no bias": lambda x, w, b: call(x, w, None),
    "input address": lambda x, w, b: call(shifted(1), w, b),
    "activation": lambda *t: call(*t, activation="relu"),
    "backend": lambda *t: call(*t, backend="aten"),
    "precision": lambda *t: call(*t, precision="ieee"),
    "residual": lambda *t: call(*t, residual=torch.zeros(2, 8, 6, 6).half()),
    "benchmark": lambda *t: under(t, benchmark=True),
    "cudnn off": lambda *t: under(t, enabled=False),
    "cudnn deterministic": lambda *t: under(t, deterministic=True),
    "deterministic": lambda *t: under(t, everywhere=True),
}
"""Calls that need another plan than `under(operands())`."""


def under(tensors: tuple[Tensor, ...], everywhere: bool = False, **changes: bool) -> None:
    """A call under these of cuDNN's flags; `everywhere`: with torch's deterministic algorithms."""
    flags = {"enabled": True, "benchmark": False, "deterministic": False, "allow_tf32": True, **changes}
    torch.use_deterministic_algorithms(everywhere)
    try:
        with torch.backends.cudnn.flags(**flags):
            call(*tensors)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_the_answer_is_in_the_key(name: str) -> None:
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=True):
        for _ in range(2):
            under(operands())
        assert plan_count() == 1
        CHANGES[name](*operands())
    assert plan_count() == 2


def test_policy_configuration_and_interpreter_are_in_the_key() -> None:
    tensors = operands()
    call(*tensors)
    with grouped_conv.policy("predicted"):
        call(*tensors)
    for config in (CONFIG, SPLIT, CONFIG):
        with grouped_conv.interpret(config):
            call(*tensors)
    assert plan_count() == 4


def test_the_place_where_kernels_run_is_in_the_key() -> None:
    tensors = operands()
    with using_config(CONFIG), grouped_conv.trace() as calls:
        call(*tensors)
        with grouped_conv.interpret():
            call(*tensors)
        with grouped_conv.interpret(device="a100"):
            call(*tensors)
        with noop_driver(H100) as log, through_driver():
            call(*tensors)
        call(*tensors)
    assert [c.path for c in calls] == ["aten", "implicit_gemm", "implicit_gemm", "implicit_gemm", "aten"]
    assert len(log) == 1
    assert plan_count() == 4


def test_float32s_flag_is_in_the_key_of_float32_only() -> None:
    for dtype, expected in ((torch.float32, 2), (torch.float16, 3)):
        for flag in ("ieee", "tf32"):
            with plan.cudnn_precision(flag):
                call(*operands(dtype=dtype))
        assert plan_count() == expected


def test_misaligned_operands_are_planned_with_their_alignment() -> None:
    input, weight, bias = operands()
    for offset, alignment in ((0, 16), (1, 2), (2, 4), (4, 8)):
        moved = shifted(offset)
        made = plan.plan_operands(describe_half(moved, weight, bias), CONFIG, Operands(moved, weight, bias))
        (x,) = (buffer for buffer in made.launches[0].buffers if buffer.name == "input")
        whole = moved.data_ptr() - 2 * offset
        assert x.alignment == min(alignment, whole & -whole)
    assert input.shape == moved.shape


def describe_half(*tensors: Tensor) -> ConvProblem:
    problem = describe(Operands(*tensors), Request(Geometry((1, 1), (1, 1, 1, 1), (1, 1)), precision="ieee"))
    assert isinstance(problem, ConvProblem)
    return problem


def reachable(value: object, depth: int = 6) -> list[object]:
    if depth == 0 or isinstance(value, (str, bytes, int, float, type)):
        return [value]
    if isinstance(value, (tuple, list, set, frozenset)):
        inside = list(value)
    elif isinstance(value, dict):
        inside = [*value, *value.values()]
    else:
        inside = [getattr(value, name) for name in (*getattr(value, "__dict__", ()), *getattr(value, "__slots__", ()))]
    return [value, *(found for item in inside for found in reachable(item, depth - 1))]


def test_plans_and_keys_hold_no_tensors() -> None:
    tensors = operands(nhwc=False)
    with noop_driver(H100), through_driver(SPLIT), grouped_conv.trace() as calls:
        call(*tensors, activation="gelu", residual=torch.zeros(2, 8, 6, 6).half())
    assert len(calls[0].launches) == 4
    call(*tensors)
    assert not [found for found in reachable(plan_cache._plans) if isinstance(found, Tensor)]


def test_old_plans_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_cache, "MAX_PLANS", 2)
    for batch in (1, 2, 3, 4):
        call(*operands(batch=batch))
    assert plan_count() == 2


def test_threads_racing_on_the_first_miss_make_one_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    plan_aten = plan.AtenPlan.__init__
    monkeypatch.setattr(plan.AtenPlan, "__init__", lambda *arguments: made.append(1) or plan_aten(*arguments))
    tensors = operands(dtype=torch.float32)
    wanted = F.conv2d(*tensors, padding=1, groups=2)
    together = threading.Barrier(8)

    def work(_: int) -> Tensor:
        together.wait(60)
        return call(*tensors)

    results = in_threads(work, 8)
    assert len(made) == 1
    assert all(torch.equal(result, wanted) for result in results)
    assert plan_cache._making == {}


def test_a_failed_plan_leaves_nothing_behind() -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError):
            call(*operands(), residual=torch.zeros(1).half())
    assert plan_count() == 0
    assert plan_cache._making == {}


def test_threads_may_interpret_at_the_same_time() -> None:
    tensors = operands()
    wanted = F.conv2d(*tensors, padding=1, groups=2)

    def work(_: int) -> None:
        with by("implicit_gemm"):
            ours = call(*tensors)
        torch.testing.assert_close(ours, wanted, rtol=1e-2, atol=1e-2)

    in_threads(work, 3)


def test_a_forked_child_makes_its_own_plans() -> None:
    tensors = operands()
    with grouped_conv.interpret(CONFIG):
        call(*tensors)
    call(*tensors)
    assert plan_count() == 2

    def work() -> tuple[int, int, int]:
        fresh = plan_count(), len(executors._kernels)
        with by("implicit_gemm"):
            call(*tensors)
        return *fresh, plan_count()

    with plan_cache._lock:  # held by a parent's thread, as it may be
        assert in_child(work) == (0, 0, 1)
    assert plan_count() == 2


def test_a_users_own_interpreter_variable_does_no_harm() -> None:
    script = """
import torch, grouped_conv
x, w = torch.randn(1, 4, 5, 5), torch.randn(4, 2, 3, 3)
with grouped_conv.trace() as calls:
    y = grouped_conv.grouped_conv2d(x, w, groups=2)
assert calls[0].path == "aten", calls
torch.testing.assert_close(y, torch.nn.functional.conv2d(x, w, groups=2))
"""
    assert run_python(script, TRITON_INTERPRET="1") == ""


def test_a_plan_launches_what_triton_would_launch() -> None:
    """Grid and arguments reach the driver as from `kernel[grid](...)` of the same launches."""
    input, weight, bias = operands(nhwc=False)
    with noop_driver(H100) as log, through_driver(SPLIT), grouped_conv.trace() as calls:
        call(input, weight, bias, activation="silu")
        made = plan.plan_operands(calls[0].problem, SPLIT, Operands(input, weight, bias))
    assert [name for name, _, _ in log] == list(calls[0].launches)
    assert calls[0].reason == "a configuration was given"
    for (_, grid, arguments), launch in zip(log, made.launches, strict=True):
        assert grid == launch.grid
        given = dict(zip(launch.kernel.arg_names, arguments, strict=True))
        assert {n: given[n] for n in launch.constants} == dict(launch.constants)
        assert all(given[i.parameter] == i.value for i in launch.integers)
        pointers = {b.name: given[b.parameter] for b in launch.buffers}
        for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
            assert pointers.get(name, tensor).data_ptr() == tensor.data_ptr()


def test_the_drivers_heuristic_is_its_targets() -> None:
    with noop_driver(DeviceSpec.get("a100")), through_driver(), grouped_conv.trace() as calls:
        call(*operands())
    assert "cuda:80" in calls[0].reason
    assert calls[0].source == "heuristic"


def test_compiled_kernels_are_shared_by_plans_and_kept() -> None:
    with noop_driver(H100), through_driver(CONFIG):
        before = len(executors._kernels)
        for batch in (2, 2, 4):
            call(*operands(batch=batch))
        assert plan_count() == 2
        plan_cache.forget_plans()
        call(*operands())
        assert len(executors._kernels) - before == 1


def test_a_profilers_hooks_see_launches() -> None:
    seen: list[str] = []
    hooks = triton.knobs.runtime.launch_enter_hook
    with noop_driver(H100), through_driver(CONFIG):
        call(*operands())
        hook = lambda metadata: seen.append(metadata.get()["name"])  # noqa: E731
        hooks.add(hook)
        try:
            call(*operands())
        finally:
            hooks.remove(hook)
        call(*operands())
    assert seen == ["implicit_gemm"]


@pytest.mark.parametrize("channels", [1, 3, 16, 40, 100, 256])
def test_the_native_lanes_tile_is_one_its_lowering_gets_right(channels: int) -> None:
    problem = ConvProblem.of((1, channels, 8, 8), (channels, channels, 3, 3))
    config = native_config(problem)
    assert config.num_warps == 1
    if config.family == "packed_groups":
        columns = packed_groups_rules.block_n(problem, config)
    else:
        columns = max(config.block_m, config.block_n, config.block_k)
    assert columns <= 64


@pytest.mark.native
@pytest.mark.parametrize(
    "dtype", [torch.float16, *(pytest.param(t, marks=pytest.mark.sweep) for t in (torch.float32, torch.bfloat16))]
)
def test_the_native_lane_runs_our_plans(native, dtype: torch.dtype) -> None:
    input, weight, bias = operands(dtype=dtype, nhwc=False)
    with through_driver(), grouped_conv.trace() as calls:
        ours = call(input, weight, bias, activation="relu")
        plan_cache.forget_plans()
        executors.abandon_kernels()  # unloaded while their driver is the active one
    assert len(calls[0].launches) == 3
    assert calls[0].problem.precision == "ieee"
    wanted = F.relu(F.conv2d(input.double(), weight.double(), bias.double(), padding=1, groups=2))
    torch.testing.assert_close(ours.double(), wanted, rtol=2e-2, atol=2e-2)


def test_executors_compare_by_what_they_run_on() -> None:
    driver = object()
    assert DriverExecutor(driver) == DriverExecutor(driver)
    assert hash(DriverExecutor(driver)) == hash(DriverExecutor(driver))
    assert DriverExecutor(driver) != DriverExecutor(object())
    assert InterpreterExecutor("a100") != InterpreterExecutor("h100-sxm")
