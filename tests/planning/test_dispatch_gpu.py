"""CUDA's side of dispatch, as far as it goes without a GPU: records, captures, devices and streams."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from dispatch_calls import CONFIG, call, operands
from played_gpu import PlayedGpu, conditions_on, playing
from processes import in_threads
from store_cases import measured

import grouped_conv
from grouped_conv.autograd import forward_context
from grouped_conv.autotune.store.store import Store, default_store, triton_version
from grouped_conv.kernels import ABI_VERSION, ConvProblem, DeviceSpec
from grouped_conv.kernels.families import FAMILIES
from grouped_conv.kernels.gradient_call import gradient_problem
from grouped_conv.planning import decisions, live_device, plan, plan_cache, steps
from grouped_conv.planning.decisions import CONVOLUTION, Decision, decide

H100 = DeviceSpec.get("h100")
PROBLEM = ConvProblem.of((2, 16, 6, 6), (8, 8, 3, 3), padding=1, groups=2)


def decided(policy: str, problem: ConvProblem = PROBLEM, spec: DeviceSpec | None = H100, **changes) -> Decision:
    return decide(problem, conditions_on(spec, policy, **changes), CONVOLUTION)


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch, kept: Store) -> DeviceSpec:
    """Device 0 is an H100 with an empty store, as far as decisions are concerned."""
    monkeypatch.setattr(decisions, "_warned", set())
    return H100


def test_measured_falls_to_aten_with_one_warning_that_says_what_to_do(h100: DeviceSpec) -> None:
    with pytest.warns(UserWarning, match="set_policy") as caught:
        decision = decided("measured")
    assert decision.config is None
    assert len(caught) == 1
    assert str(PROBLEM) in str(caught[0].message)
    assert decision.reason in str(caught[0].message)
    with warnings.catch_warnings(action="error"):
        assert decided("measured") == decision


def test_kernels_run_on_a_gpu_when_insisted_on(h100: DeviceSpec) -> None:
    for decision in (decided("kernels"), decided("measured", backend="kernel")):
        assert decision.config is not None
        assert decision.source == "heuristic"
    assert decided("kernels", backend="aten").config is None
    assert decided("measured", given=CONFIG).config == CONFIG


def test_records_decide_on_a_gpu(h100: DeviceSpec) -> None:
    store = default_store()
    before = plan_cache.store_generation()

    def record(aten_us: float) -> None:
        store.put([measured(CONFIG, problem=PROBLEM, device=h100.key, aten_us=aten_us)])

    store.record_self_check(h100.key, "implicit_gemm", "forward", True)
    record(aten_us=20.0)
    assert plan_cache.store_generation() != before
    decision = decided("measured")
    assert (decision.config, decision.source) == (CONFIG, "measured")
    record(aten_us=5.0)
    with warnings.catch_warnings(action="error"):  # ATen was measured to be faster: nothing to warn about
        assert decided("measured").config is None
        assert decided("kernels").config == CONFIG


@pytest.mark.parametrize("direction", ["input_grad", "weight_grad"])
def test_gradients_need_a_self_check_too(h100: DeviceSpec, direction: str) -> None:
    problem = gradient_problem(PROBLEM, direction)
    with pytest.warns(UserWarning, match=f"torch's own convolution runs {direction}"):
        decision = decided("predicted", problem), decided("measured", problem)
    for one in decision:
        assert one.config is None
        assert f"kernel ABI {ABI_VERSION}, Triton {triton_version()}" in one.reason
    assert decided("kernels", problem).config.direction == direction
    default_store().record_self_check(h100.key, "implicit_gemm", "forward", True)
    assert decided("predicted", problem).config is None
    families = [name for name, family in FAMILIES.items() if family.direction == direction]
    for name in families:
        default_store().record_self_check(h100.key, name, direction, True)
    chosen = decided("predicted", problem)
    assert (chosen.config.direction, chosen.source) == (direction, "heuristic")
    with warnings.catch_warnings(action="ignore"):
        assert decided("measured", problem).config is None


@pytest.mark.parametrize("kind", ["equal", "unequal", "separable"])
def test_autograds_thread_of_a_gpu_knows_the_policy_of_the_forward_pass(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Played by a thread on the CPU: what `policy` and `trace()` set reaches the gradients."""
    monkeypatch.setattr(forward_context, "has_thread", lambda input: True)
    layer = {
        "equal": lambda: grouped_conv.GroupedConv2d(8, 16, 3, groups=2),
        "unequal": lambda: grouped_conv.RaggedConv2d(grouped_conv.GroupLayout.sizes([5, 3], [8, 8]), 3),
        "separable": lambda: grouped_conv.SeparableConv2d(8, 16, 3),
    }[kind]()
    with playing(H100), grouped_conv.policy("kernels"), grouped_conv.trace() as calls:
        output = layer(torch.randn(1, 8, 5, 5))
        in_threads(lambda _: output.sum().backward(), 1)
    plan_cache.forget_plans()
    assert calls[-1].problem.direction == "weight_grad"
    assert "aten" not in {call.path for call in calls}


def test_an_unknown_gpu_is_atens() -> None:
    decision = decided("kernels", spec=None)
    assert decision.config is None
    assert "no device of this GPU's architecture" in decision.reason


def test_nothing_is_compiled_during_a_capture(h100: DeviceSpec) -> None:
    gpu = PlayedGpu(H100)
    gpu.captures = True
    barred = gpu.why_nothing_compiles()
    assert "run it once before the capture" in barred
    decision = decided("predicted", barred=barred)
    assert (decision.config, decision.reason) == (None, barred)
    with pytest.raises(
        RuntimeError, match="policy 'kernels' cannot compile a kernel now: a CUDA graph is being captured"
    ):
        decided("kernels", barred=barred)


def test_a_plan_made_for_a_capture_is_not_kept(h100: DeviceSpec) -> None:
    plan_cache.forget_plans()
    with playing(h100) as gpu, grouped_conv.policy("predicted"), grouped_conv.trace() as calls:
        gpu.captures = True
        call(*operands())
        assert plan_cache._plans == {}
        assert plan_cache._making == {}
        gpu.captures = False
        call(*operands())
        assert len(plan_cache._plans) == 1
    assert "a CUDA graph is being captured" in calls[0].reason
    assert "a CUDA graph is being captured" not in calls[1].reason


def test_nothing_is_compiled_for_a_gpu_inside_interpret() -> None:
    assert PlayedGpu(H100).why_nothing_compiles() == ""
    with grouped_conv.interpret():
        assert "inside grouped_conv.interpret()" in PlayedGpu(H100).why_nothing_compiles()


def test_launches_go_to_the_tensors_device_and_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[int] = []

    @contextmanager
    def device(index: int) -> Iterator[None]:
        entered.append(index)
        yield
        entered.append(-1)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", device)
    launched: list[tuple[int, list[int]]] = []
    for index in (0, 1):
        made = steps.Steps.__new__(steps.Steps)
        made.device = index
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
