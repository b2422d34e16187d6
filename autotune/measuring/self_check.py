"""The self-check of a device: does every kernel family compute rightly there, on small odd problems, in each direction?

A look-up under the policies `measured` and `predicted` takes a family's kernels only where its check passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from grouped_conv.autotune.measuring.live_runner import LiveRunner
from grouped_conv.autotune.model import native_lane
from grouped_conv.autotune.model.families import MODELS
from grouped_conv.autotune.search.runner import Trial
from grouped_conv.autotune.store.store import Store
from grouped_conv.kernels.families import FAMILIES, why_invalid
from grouped_conv.kernels.gradient_call import gradient_problem
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.layout import GroupLayout
from grouped_conv.kernels.values.problem import ConvProblem

DTYPES = (("float16", "ieee"), ("bfloat16", "ieee"), ("float32", "ieee"), ("float32", "tf32"))
NATIVE_DTYPES = (("float32", "ieee"), ("float16", "ieee"))
"""The native lane takes TF32 products exactly, and builds each kernel for seconds: one problem of each dtype there."""
_FUSED = Epilogue("relu", bias=True)
_SHAPES = (
    (3, GroupLayout.uniform(40, 40, 10), (7, 10), (3, 3), (2, 2), (1, 1, 1, 1)),
    (2, GroupLayout.uniform(38, 42, 2), (9, 7), (3, 3), (1, 1), (1, 1, 1, 1)),
    (1, GroupLayout.uniform(64, 96, 2), (11, 13), (5, 5), (2, 1), (2, 1, 0, 2)),
    (2, GroupLayout.uniform(24, 48, 24), (13, 9), (5, 5), (2, 2), (2, 2, 2, 2)),
    (2, GroupLayout.sizes([3, 5, 8], [4, 2, 6]), (9, 7), (3, 3), (1, 1), (1, 1, 1, 1)),
)
"""(batch, layout, size, kernel, stride, padding): no size is a multiple of a tile; the first suits most families."""

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class FamilyCheck:
    """What a check found.

    Attributes:
        family, direction: whose kernels ran.
        problems: how many were computed.
        detail: what went wrong first; empty when all results were right.
    """

    family: str
    direction: str
    problems: int
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Right on every problem, and there was one."""
        return not self.detail


def families() -> tuple[Pair, ...]:
    """Every kernel family with its direction."""
    return tuple((name, family.direction) for name, family in FAMILIES.items() if family.problem is ConvProblem)


def check_kernels(
    device: DeviceSpec,
    store: Store,
    pairs: Iterable[Pair] | None = None,
    *,
    index: int = 0,
    runner: LiveRunner | None = None,
    progress: Callable[[Trial], None] | None = None,
) -> list[FamilyCheck]:
    """Run the kernels of families on the device, compare with float64, and record the outcome of each in the store.

    Args:
        pairs: (family, direction); by default all.
        index: number of the CUDA device.
        runner: an open runner of the device; by default a new one.
        progress: called before each computation.

    Raises:
        ValueError: for a family that does not exist.
    """
    wanted = families() if pairs is None else tuple(pairs)
    unknown = [pair for pair in wanted if pair not in families()]
    if unknown:
        raise ValueError(f"no such kernel families: {unknown}; known: {list(families())}")
    if runner is not None:
        return [_check(runner, device, store, pair, progress) for pair in wanted]
    with LiveRunner(device, index) as own:
        return [_check(own, device, store, pair, progress) for pair in wanted]


def _check(
    runner: LiveRunner, device: DeviceSpec, store: Store, pair: Pair, progress: Callable[[Trial], None] | None
) -> FamilyCheck:
    family, direction = pair
    count, detail = 0, ""
    for trial in trials(family, direction, device):
        if progress is not None:
            progress(trial)
        outcome = runner.verify(trial)
        count += 1
        if outcome is not None:
            detail = f"{outcome.failure} on {trial}: {outcome.detail}"
            break
    if not count:
        detail = "no configuration of this family can run any of the problems of the check"
    store.record_self_check(device.key, family, direction, not detail, detail)
    return FamilyCheck(family, direction, count, detail)


def trials(family: str, direction: str, device: DeviceSpec) -> Iterator[Trial]:
    """The problems that the family can run, in each dtype, with a configuration of the family for the device."""
    native = device.key == native_lane.KEY
    for dtype, precision in NATIVE_DTYPES if native else DTYPES:
        for batch, layout, size, kernel, stride, padding in _SHAPES:
            forward = ConvProblem(
                batch, layout, size, kernel, stride, padding, dtype=dtype, precision=precision, epilogue=_FUSED
            )
            problem = forward if direction == "forward" else gradient_problem(forward, direction)
            config = _config(family, problem, device)
            if config is not None:
                yield Trial(problem, config)
                if native:
                    break


def _config(family: str, problem: ConvProblem, device: DeviceSpec) -> KernelConfig | None:
    """The first of the family's defaults that can run the problem there; None when none can."""
    if device.key == native_lane.KEY:
        return native_lane.smallest(family, problem)
    offered = MODELS[family].defaults(problem, device)
    return next((config for config in offered if why_invalid(problem, config, device) is None), None)
