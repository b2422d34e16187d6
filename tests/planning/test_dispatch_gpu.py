"""CUDA's side of dispatch, as far as it goes without a GPU: records, captures, devices and streams."""

import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import grouped_conv
from grouped_conv.autotune.records.record import Record
from grouped_conv.autotune.store.store import default_store, triton_version
from grouped_conv.by_torch import forward_context
from grouped_conv.context import policies
from grouped_conv.kernels import ABI_VERSION, ConvProblem, DeviceSpec, ImplicitGemmConfig
from grouped_conv.kernels.families import FAMILIES
from grouped_conv.kernels.gradient_call import gradient_problem
from grouped_conv.ops import conv2d as ops
from grouped_conv.planning import backward, decisions, live_device, plan, plan_cache, records
from grouped_conv.planning import forward as dispatch
from grouped_conv.planning.decisions import Conditions, Decision, decide
from grouped_conv.planning.executors import DriverExecutor

CONFIG = ImplicitGemmConfig(block_m=64, block_n=16, block_k=32, num_warps=4)
H100 = DeviceSpec.get("h100")
PROBLEM = ConvProblem.of((2, 16, 6, 6), (8, 8, 3, 3), padding=1, groups=2)
ATTRIBUTES = ((1, 1), (1, 1, 1, 1), (1, 1), "default", "auto")


def gpu_conditions(policy: str, **changes) -> Conditions:
    return Conditions(
        **{"policy": policy, "backend": "auto", "executor": DriverExecutor(None), "given": None, **changes}
    )


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> DeviceSpec:
    """Device 0 is an H100 with an empty store, as far as decisions are concerned."""
    monkeypatch.setenv("GROUPED_CONV_STORE", str(tmp_path / "store.sqlite3"))
    monkeypatch.setattr(records, "live_device", lambda index: H100)
    monkeypatch.setattr(records, "_warned", set())
    return H100


def test_measured_falls_to_aten_with_one_warning_that_says_what_to_do(h100: DeviceSpec) -> None:
    with pytest.warns(UserWarning, match="set_policy") as caught:
        decision = decide(PROBLEM, gpu_conditions("measured"), 0)
    assert decision.config is None
    assert len(caught) == 1
    assert str(PROBLEM) in str(caught[0].message)
    assert decision.reason in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decide(PROBLEM, gpu_conditions("measured"), 0) == decision


def test_kernels_run_on_a_gpu_when_insisted_on(h100: DeviceSpec) -> None:
    for conditions in (gpu_conditions("kernels"), gpu_conditions("measured", backend="kernel")):
        decision = decide(PROBLEM, conditions, 0)
        assert decision.config is not None
        assert decision.source == "heuristic"
    assert decide(PROBLEM, gpu_conditions("kernels", backend="aten"), 0).config is None
    assert decide(PROBLEM, gpu_conditions("measured", given=CONFIG), 0).config == CONFIG


def test_records_decide_on_a_gpu(h100: DeviceSpec) -> None:
    store = default_store()
    before = records.generation()

    def record(aten_us: float) -> None:
        store.put([Record(PROBLEM, CONFIG, h100.key, ABI_VERSION, triton_version(), "measured", 9.0, 10.0, aten_us)])

    store.record_self_check(h100.key, "implicit_gemm", "forward", True)
    record(aten_us=20.0)
    assert records.generation() != before
    decision = decide(PROBLEM, gpu_conditions("measured"), 0)
    assert (decision.config, decision.source) == (CONFIG, "measured")
    record(aten_us=5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # ATen was measured to be faster: nothing to warn about
        assert decide(PROBLEM, gpu_conditions("measured"), 0).config is None
        assert decide(PROBLEM, gpu_conditions("kernels"), 0).config == CONFIG


@pytest.mark.parametrize("direction", ["input_grad", "weight_grad"])
def test_gradients_need_a_self_check_too(h100: DeviceSpec, direction: str) -> None:
    problem = gradient_problem(PROBLEM, direction)
    with pytest.warns(UserWarning, match=f"torch's own convolution runs {direction}"):
        decision = decide(problem, gpu_conditions("predicted"), 0), decide(problem, gpu_conditions("measured"), 0)
    for one in decision:
        assert one.config is None
        assert f"kernel ABI {ABI_VERSION}, Triton {triton_version()}" in one.reason
    assert decide(problem, gpu_conditions("kernels"), 0).config.direction == direction
    default_store().record_self_check(h100.key, "implicit_gemm", "forward", True)
    assert decide(problem, gpu_conditions("predicted"), 0).config is None
    families = [name for name, family in FAMILIES.items() if family.direction == direction]
    for name in families:
        default_store().record_self_check(h100.key, name, direction, True)
    chosen = decide(problem, gpu_conditions("predicted"), 0)
    assert (chosen.config.direction, chosen.source) == (direction, "heuristic")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decide(problem, gpu_conditions("measured"), 0).config is None


@pytest.mark.parametrize("unequal", [False, True])
def test_autograds_thread_of_a_gpu_knows_the_policy_of_the_forward_pass(
    monkeypatch: pytest.MonkeyPatch, unequal: bool
) -> None:
    """Played by a thread on the CPU: what `policy` and `trace()` set reaches the gradients."""
    seen: list[str] = []
    monkeypatch.setattr(forward_context, "has_thread", lambda input: True)
    monkeypatch.setattr(backward, "get_policy", lambda: seen.append(policies.get_policy()) or policies.get_policy())
    layer: torch.nn.Module = grouped_conv.GroupedConv2d(8, 16, 3, groups=2)
    if unequal:
        layer = grouped_conv.RaggedConv2d(grouped_conv.GroupLayout.sizes([5, 3], [8, 8]), 3)
    monkeypatch.setattr(backward.executors, "executor_of_cpu_tensors", lambda: DriverExecutor(None))
    monkeypatch.setattr(backward.decisions, "decide", lambda *arguments: Decision(None, "none here"))
    with grouped_conv.policy("predicted"), grouped_conv.trace() as calls:
        output = layer(torch.randn(1, 8, 5, 5))
        thread = threading.Thread(target=output.sum().backward)
        thread.start()
        thread.join()
    plan_cache.forget_plans()
    assert calls[-1].problem.direction == "weight_grad"
    assert seen == ["predicted"]


def test_an_unknown_gpu_is_atens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "live_device", lambda index: None)
    decision = decide(PROBLEM, gpu_conditions("kernels"), 0)
    assert decision.config is None
    assert "no device of this GPU's architecture" in decision.reason


def test_nothing_is_compiled_during_a_capture(monkeypatch: pytest.MonkeyPatch, h100: DeviceSpec) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    barred = decisions.why_nothing_compiles()
    assert "run it once before the capture" in barred
    decision = decide(PROBLEM, gpu_conditions("predicted", barred=barred), 0)
    assert (decision.config, decision.reason) == (None, barred)
    with pytest.raises(
        RuntimeError, match="policy 'kernels' cannot compile a kernel now: a CUDA graph is being captured"
    ):
        decide(PROBLEM, gpu_conditions("kernels", barred=barred), 0)


def test_a_plan_made_for_a_capture_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "why_nothing_compiles", lambda: "captured")
    fake = SimpleNamespace(input=SimpleNamespace(is_cuda=True))
    monkeypatch.setattr(dispatch, "_make", lambda given, request, barred: (given is fake, barred))
    assert dispatch._first("key", fake, ops.plain_request(*ATTRIBUTES)) == (True, "captured")
    assert plan_cache._plans == {}
    assert plan_cache._making == {}


def test_nothing_is_compiled_for_a_gpu_inside_interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert decisions.why_nothing_compiles() == ""
    with grouped_conv.interpret():
        assert "inside grouped_conv.interpret()" in decisions.why_nothing_compiles()


def test_launches_go_to_the_tensors_device_and_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[int] = []

    class Device:
        def __init__(self, index: int) -> None:
            self.index = index

        def __enter__(self) -> None:
            entered.append(self.index)

        def __exit__(self, *_: object) -> None:
            entered.append(-1)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", Device)
    launched: list[tuple[int, list[int]]] = []
    for device in (0, 1):
        made = plan.Steps.__new__(plan.Steps)
        made.device = device
        made.stream = lambda index: 100 + index
        made.steps = (lambda stream, buffers: launched.append((stream, list(entered))),)
        made.launch([])
    assert launched == [(100, []), (101, [1])]
    assert entered == [1, -1]


LIVE = {
    "NVIDIA H100 80GB HBM3": (9, 0, 132, "h100-sxm"),
    "NVIDIA H100 PCIe": (9, 0, 114, "h100-pcie"),
    "NVIDIA H100 NVL": (9, 0, 132, "h100-nvl"),
    "NVIDIA H200": (9, 0, 132, "h200"),
    "NVIDIA A100-SXM4-80GB": (8, 0, 108, "a100"),
    "NVIDIA A10": (8, 6, 72, "a10"),
    "NVIDIA A10G": (8, 6, 80, "nvidia-a10g"),
    "NVIDIA L40S": (8, 9, 142, "l40s"),
    "NVIDIA L4": (8, 9, 58, "l4"),
    "NVIDIA GeForce RTX 4090": (8, 9, 128, "rtx4090"),
    "NVIDIA GeForce RTX 4080": (8, 9, 76, "nvidia-geforce-rtx-4080"),
    "NVIDIA B200": (10, 0, 148, "b200"),
}


@pytest.mark.parametrize("name", LIVE)
def test_a_live_gpu_is_recognised(name: str) -> None:
    major, minor, processors, key = LIVE[name]
    properties = SimpleNamespace(
        name=name, major=major, minor=minor, multi_processor_count=processors, L2_cache_size=123 << 20
    )
    spec = live_device.spec_of(properties)
    assert spec is not None
    assert (spec.key, spec.sm_count, spec.l2_bytes, spec.arch) == (key, processors, 123 << 20, major * 10 + minor)


def test_other_live_devices() -> None:
    amd = SimpleNamespace(
        name="AMD Instinct MI300X", major=9, minor=4, multi_processor_count=304, gcnArchName="gfx942:sramecc+:xnack-"
    )
    spec = live_device.spec_of(amd, hip=True)
    assert spec is not None
    assert spec.key == "mi300x"
    turing = SimpleNamespace(name="Tesla T4", major=7, minor=5, multi_processor_count=40)
    assert live_device.spec_of(turing) is None


def test_atens_plan_honours_a_given_precision() -> None:
    flags = torch.backends.cudnn.conv
    before = flags.fp32_precision
    other = "ieee" if before != "ieee" else "tf32"
    with plan.cudnn_precision(other):
        assert flags.fp32_precision == other
    assert flags.fp32_precision == before
