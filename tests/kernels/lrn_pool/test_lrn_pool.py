"""The LRN + pool kernel in Triton's interpreter against float64, and the value that describes it."""

import pytest
import torch
import torch.nn.functional as F
from case import Case
from lrn_pool_cases import ORDERS, all_cases
from lrn_pool_oracle import check_output, make_tensors, reference, run_launch
from torch import Tensor

import grouped_conv
from grouped_conv.autotune.model.lrn_pool import forward as lrn_pool_model
from grouped_conv.bench.bytes_moved import judge
from grouped_conv.bench.traffic.compulsory import LrnPoolNeeds
from grouped_conv.kernels import DeviceSpec, KernelConfig
from grouped_conv.kernels.interpreting.counting import READ, counting
from grouped_conv.kernels.interpreting.interpreter import interpret_launch
from grouped_conv.kernels.launching.operands import Operand
from grouped_conv.kernels.lrn_pool.forward import plan_lrn_pool
from grouped_conv.kernels.lrn_pool.forward_rules import LrnPoolConfig, why_invalid, why_not_on
from grouped_conv.kernels.lrn_pool.problem import LrnPoolProblem


def call(problem: LrnPoolProblem, x: Tensor) -> Tensor:
    """The problem as one call of the public function."""
    return grouped_conv.lrn_max_pool2d(
        x,
        problem.size,
        problem.alpha,
        problem.beta,
        problem.k,
        problem.kernel_size,
        problem.stride,
        problem.padding,
        problem.ceil_mode,
        groups=problem.groups,
        order=problem.order,
    )


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.id)
def test_agrees_with_float64(case: Case) -> None:
    tensors = make_tensors(case.problem)
    with grouped_conv.interpret(case.config), grouped_conv.trace() as calls:
        tensors["output"] = call(case.problem, tensors["input"])
    (record,) = calls
    assert (record.path, record.launches, record.config) == ("lrn_pool", ("lrn_pool",), case.config), record
    assert record.problem == case.problem
    check_output(case.problem, tensors, case.id)


NON_FINITE = (float("inf"), float("-inf"), float("nan"))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_infinities_and_nan_come_out_where_torch_puts_them(dtype: str, order: str) -> None:
    """A NaN wins every maximum; an infinity makes NaN of itself and zeros of its neighbours in the channel window."""
    problem = LrnPoolProblem.of((1, 24, 9, 9), order, dtype=dtype, alpha=0.3, groups=2, padding=1)
    tensors = make_tensors(problem)
    for channel, row, column, value in ((3, 2, 2, NON_FINITE[0]), (9, 5, 7, NON_FINITE[1]), (20, 8, 0, NON_FINITE[2])):
        tensors["input"][0, channel, row, column] = value
    run_launch(problem, LrnPoolConfig(block=128, strip=2, rows=3), tensors, interpret_launch)
    exact = reference(problem, tensors["input"])
    assert not exact.isfinite().all()
    check_output(problem, tensors)


def test_sums_of_squares_beyond_float16() -> None:
    problem = LrnPoolProblem.of((1, 16, 5, 5), alpha=1e-4)
    tensors = make_tensors(problem, scale=10_000.0)
    run_launch(problem, LrnPoolConfig(block=128), tensors, interpret_launch)
    assert tensors["output"].isfinite().all()
    check_output(problem, tensors)


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_output_size_is_torchs(ceil_mode: bool) -> None:
    for size in range(1, 12):
        for kernel in range(1, 6):
            for stride in range(1, 5):
                for padding in range(kernel // 2 + 1):
                    arguments = {"kernel_size": kernel, "stride": stride, "padding": padding, "ceil_mode": ceil_mode}
                    try:
                        expected = F.max_pool2d(torch.empty(1, 1, size, size), **arguments).shape
                    except RuntimeError:
                        with pytest.raises(ValueError, match="does not fit"):
                            LrnPoolProblem.of((1, 1, size, size), **arguments)
                        continue
                    assert LrnPoolProblem.of((1, 1, size, size), **arguments).output_shape == expected, arguments


def test_value_goes_to_json_and_back() -> None:
    for case in all_cases():
        assert LrnPoolProblem.from_json(case.problem.to_json()) == case.problem
        assert KernelConfig.from_json(case.config.to_json()) == case.config
    problem = LrnPoolProblem.of((2, 96, 55, 55), alpha=5e-4, k=2.0, groups=2, ceil_mode=True)
    assert str(problem) == (
        "lrn-pool N=2 C=96 H=55 W=55 size=5 alpha=0.0005 beta=0.75 k=2 groups=2 pool=3x3/2x2 pad=0x0 ceil float16 NHWC"
    )
    assert len({problem, LrnPoolProblem.from_json(problem.to_json())}) == 1


def test_values_without_a_step_do_not_differ() -> None:
    first = LrnPoolProblem.of((1, 8, 5, 5), "pool", size=5, alpha=1.0, groups=2)
    assert first == LrnPoolProblem.of((1, 8, 5, 5), "pool", size=3, beta=0.5)
    assert LrnPoolProblem.of((1, 8, 5, 5), "lrn").output_shape == (1, 8, 5, 5)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"order": "relu"}, "'relu'.*relu, lrn, pool.*with lrn or pool"),
        ({"order": "lrn-lrn"}, "each once"),
        ({"order": "lrn-softmax"}, "'lrn-softmax'"),
        ({"groups": 3}, "groups=3.*channels=8"),
        ({"size": 0}, "size=0"),
        ({"padding": 2}, r"padding=\(2, 2\).*half of \(3, 3\)"),
        ({"kernel_size": 9}, r"\(9, 9\).*does not fit maps of \(5, 5\)"),
        ({"stride": 0}, r"stride=\(0, 0\)"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"dtype": "float64"}, "float64"),
    ],
)
def test_refuses_what_is_no_problem(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LrnPoolProblem.of((1, 8, 5, 5), **values)


def test_says_why_a_configuration_cannot_run() -> None:
    wide = LrnPoolProblem.of((1, 32, 5, 5), size=19)
    assert "window of 19 channels is more than 17" in (why_invalid(wide, LrnPoolConfig()) or "")
    planar = LrnPoolProblem.of((1, 32, 5, 5), channels_last=False)
    assert "innermost" in (why_invalid(planar, LrnPoolConfig()) or "")
    huge = LrnPoolProblem.of((2**20, 4096, 55, 55))
    assert "more than the grid" in (why_invalid(huge, LrnPoolConfig(strip=1, rows=1)) or "")
    with pytest.raises(ValueError, match=r"cannot run .* window of 19"):
        plan_lrn_pool(wide, LrnPoolConfig(), {"input": Operand((1, 1, 1, 1)), "output": Operand((1, 1, 1, 1))})
    with pytest.raises(ValueError, match="channels must be innermost"):
        plan_lrn_pool(
            LrnPoolProblem.of((1, 32, 5, 5)),
            LrnPoolConfig(),
            {"input": Operand((800, 25, 5, 1)), "output": Operand((128, 1, 64, 32))},
        )
    sliding = LrnPoolProblem.of((1, 32, 9, 9), kernel_size=5, stride=1)
    reason = why_not_on(sliding, LrnPoolConfig(strip=4), DeviceSpec.get("a100"))
    assert reason == "160 row maxima per thread spill (at most 120)"
    with pytest.raises(ValueError, match="power of two"):
        LrnPoolConfig(block=96)


@pytest.mark.parametrize("device", ["a100", "h100", "gfx942"])
def test_there_is_always_a_default(device: str) -> None:
    spec = DeviceSpec.get(device)
    for case in all_cases():
        config = lrn_pool_model.choose(case.problem, spec)
        assert why_invalid(case.problem, config) is None
        prediction = lrn_pool_model.predict(case.problem, config, spec)
        assert prediction.us >= prediction.floor_us > 0


def test_gaps_between_pixels_are_stepped_over() -> None:
    """Channels 8 to 24 of a wider tensor: read in place, 16 bytes at a time; from channel 3 on, 2 bytes at a time."""
    wide = (20 * torch.randn(2, 40, 7, 7)).half().contiguous(memory_format=torch.channels_last)
    for first, width in ((8, 8), (3, 1)):
        problem = LrnPoolProblem.of((2, 16, 7, 7), alpha=0.3)
        tensors = make_tensors(problem)
        tensors["input"] = wide[:, first : first + 16]
        launch, _ = run_launch(problem, LrnPoolConfig(block=128), tensors, interpret_launch)
        assert launch.constants["VEC"] == width
        check_output(problem, tensors)


@pytest.mark.full
def test_each_pixel_of_a_walk_is_read_once() -> None:
    """Besides, a vector of 8 channels asks for 2 neighbours on each side, but for those beyond its tower."""
    problem = LrnPoolProblem.of((1, 128, 55, 49), alpha=5e-4, k=2.0, groups=2)
    tensors = make_tensors(problem)
    with counting() as launches:
        run_launch(problem, LrnPoolConfig(block=128, strip=3, rows=9), tensors, interpret_launch)
    check_output(problem, tensors)
    (traffic,) = launches
    walks = 8 * 3 * (2 * 9 + 1) * (2 * 3 + 1)  # strips, chunks, rows, columns
    assert traffic.requested(READ) == walks * (128 + 16 * 4 - 2 * 4) * 2
    assert traffic.moved(READ) <= 1.15 * 2 * tensors["input"].numel()
    assert judge(traffic, LrnPoolNeeds(problem, tensors["output"])).ratio == 1.0
