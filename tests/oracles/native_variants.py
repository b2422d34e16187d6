"""Random problems for the native lane: a variant is compiled once and run at many sizes, batches and group counts.

Building a kernel takes seconds, running it milliseconds. What is compiled in (channels per group, kernel, stride,
padding, dilation, dtype, loop, epilogue) is drawn once per variant; what is not is drawn for each problem. A `Source`
says how for one kernel family.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from layer_cases import ragged_cases
from native_rules import config_for
from torch import Tensor
from truth import judge

from grouped_conv.kernels import ACTIVATIONS, ConvProblem, Epilogue, KernelConfig
from grouped_conv.kernels.families import FAMILIES, why_invalid
from grouped_conv.kernels.launching.launch import Launch, compile_launch

DTYPES = ("float16", "bfloat16", "float32")
Draw = random.Random


class Runner:
    """Runs launches on the lane and compiles each once whatever its sizes: promises of divisibility are left out.

    `without` has the constants that promise something about sizes, at the values that promise nothing.
    """

    def __init__(self, lane: ModuleType, without: Mapping[str, Any] | None = None) -> None:
        self.kernels: dict[Any, Any] = {}
        self.without = {"X_ALIGN": 1} if without is None else without
        self.target = lane.driver.get_current_target()

    def __call__(self, launch: Launch, tensors: Mapping[str, Tensor]) -> None:
        integers = tuple(replace(integer, divisor=1) for integer in launch.integers)
        constants = {name: self._unpromised(name, value) for name, value in launch.constants.items()}
        launch = replace(launch, integers=integers, constants=constants)
        key = launch.source().hash(), str(launch.config)
        if key not in self.kernels:
            self.kernels[key] = compile_launch(launch, self.target)
        self.kernels[key][launch.grid](*launch.positional(tensors))

    def _unpromised(self, name: str, value: Any) -> Any:
        """A constant, or a bundle of constants, without what it promises about sizes."""
        if hasattr(value, "_fields"):
            return value._replace(**{field: self.without[field] for field in value._fields if field in self.without})
        return self.without.get(name, value)


@dataclass(frozen=True)
class Variant:
    """What is compiled in, at the smallest size, and how; the problems run differ in size."""

    name: str
    problem: ConvProblem
    config: KernelConfig


@dataclass(frozen=True)
class Source:
    """Random problems of one kernel family.

    Attributes:
        variants: what to compile.
        sizes: problems to run of each variant.
        resize: another size of a variant's problem.
    """

    variants: Callable[[], list[Variant]]
    sizes: int
    resize: Callable[[ConvProblem, Draw], ConvProblem]


def run_variant(source: Source, variant: Variant, lane: ModuleType) -> Runner:
    """All sizes of a variant, compared with float64; the runner says how many kernels were built."""
    run, draw = Runner(lane), random.Random(variant.name)
    for seed in range(source.sizes):
        problem = source.resize(variant.problem, draw)
        assert why_invalid(problem, variant.config) is None, problem
        judge(problem, variant.config, run, f"{variant.name}: {problem}", seed)
    return run


def equal_groups(
    shapes: Sequence[tuple[int, int]],
    kernels: Sequence[tuple[int, int]],
    configure: Callable[[ConvProblem, int], KernelConfig],
    variants: int,
    sizes: int,
    *,
    groups: tuple[int, int] = (1, 5),
) -> Source:
    """Problems of equal groups: (channels, filters) per group and kernels in turn, the rest at random.

    Args:
        configure: a configuration for the problem of the variant with this number.
        groups: least and most groups of a problem; one number where channels are compiled in.
    """

    def all_variants() -> list[Variant]:
        return [_variant(index, shapes, kernels, configure, groups[0]) for index in range(variants)]

    return Source(all_variants, sizes, lambda problem, draw: resized(problem, draw, groups))


def _variant(
    index: int,
    shapes: Sequence[tuple[int, int]],
    kernels: Sequence[tuple[int, int]],
    configure: Callable[[ConvProblem, int], KernelConfig],
    groups: int,
) -> Variant:
    draw = random.Random(1605 + index)
    (c, k), kernel = shapes[index % len(shapes)], kernels[index % len(kernels)]
    dilation = (draw.randint(1, 2), draw.randint(1, 3))
    window = tuple(d * (r - 1) + 1 for d, r in zip(dilation, kernel, strict=True))
    problem = ConvProblem.of(
        (1, groups * c, *(size + 2 for size in window)),
        (groups * k, c, *kernel),
        groups=groups,
        stride=(draw.randint(1, 3), draw.randint(1, 2)),
        padding=tuple(draw.randint(0, 3) for _ in range(4)),
        dilation=dilation,
        dtype=DTYPES[index % 3],
        precision="ieee",
        channels_last=index % 4 != 1,
        weight_channels_last=index % 4 != 2,
        epilogue=Epilogue(
            ACTIVATIONS[index % len(ACTIVATIONS)], bias=index % 2 == 0, scale=index % 3 == 0, residual=index % 5 == 0
        ),
    )
    config = configure(problem, index)
    return Variant(f"{index}-C{c}-K{k}-{kernel[0]}x{kernel[1]}-{problem.dtype}-{config}", problem, config)


def resized(problem: ConvProblem, draw: Draw, groups: tuple[int, int]) -> ConvProblem:
    """The same compiled variant at another batch, image and number of groups."""
    count = draw.randint(*groups)
    height, width = (least + draw.randint(0, 14) for least in problem.in_size)
    _, c, r, s = problem.weight_shape
    return ConvProblem.of(
        (draw.randint(1, 4), count * c, height, width),
        (count * problem.k_per_group, c, r, s),
        problem.stride,
        problem.padding,
        problem.dilation,
        count,
        problem.dtype,
        problem.input_channels_last,
        epilogue=problem.epilogue,
        precision="ieee",
        weight_channels_last=problem.weight_channels_last,
    )


def _implicit_gemm(problem: ConvProblem, index: int) -> KernelConfig:
    order, split = ("flat", "taps_inner", "channels_inner")[index % 3], 1 + index % 2
    wishes = (config_for(problem, order, split), config_for(problem))
    return next(wish for wish in wishes if why_invalid(problem, wish) is None)


def one_warp(family: str) -> Callable[[ConvProblem, int], KernelConfig]:
    """The family's own small configuration."""
    return lambda problem, index: FAMILIES[family].one_warp(problem)


def _packed_groups(problem: ConvProblem, index: int) -> KernelConfig:
    """Without the branch that recomputes tiles: it alone takes minutes to build on the lane."""
    return replace(FAMILIES["packed_groups"].one_warp(problem), isolate=False)  # type: ignore[call-arg]


def _ragged_variants() -> list[Variant]:
    """Every layout of `layer_cases.RAGGED`: tables are data, so layouts of the same alignments share a kernel."""
    variants = []
    for case in ragged_cases():
        problem = replace(case.problem, precision="ieee", weight_channels_last=True)
        variants.append(Variant(case.layer, problem, FAMILIES["ragged"].one_warp(problem)))
    return variants


def _other_image(problem: ConvProblem, draw: Draw) -> ConvProblem:
    height, width = (least + draw.randint(0, 14) for least in problem.kernel_size)
    return replace(problem, batch=draw.randint(1, 4), in_size=(height, width))


_ALL: dict[str, Source] = {
    "implicit_gemm": equal_groups(
        shapes=[(1, 1), (1, 3), (3, 8), (4, 4), (5, 7), (8, 24), (16, 16), (24, 40), (32, 20), (48, 64), (16, 64)],
        kernels=[(1, 1), (3, 3), (5, 5), (1, 4), (3, 2), (7, 7), (17, 2)],
        configure=_implicit_gemm,
        variants=14,
        sizes=72,
    ),
    "packed_groups": equal_groups(
        shapes=[(2, 2), (4, 4), (8, 8), (3, 5), (16, 16), (2, 4), (8, 4), (6, 10)],
        kernels=[(3, 3), (1, 1), (5, 5), (2, 3), (3, 1)],
        configure=_packed_groups,
        variants=12,
        sizes=40,
        groups=(11, 11),
    ),
    "depthwise": equal_groups(
        shapes=[(1, 1), (1, 2), (1, 3)],
        kernels=[(3, 3), (5, 5), (7, 7), (1, 5), (4, 1)],
        configure=one_warp("depthwise"),
        variants=12,
        sizes=40,
        groups=(21, 21),
    ),
    "ragged": Source(_ragged_variants, 40, _other_image),
}
SOURCES = {family: source for family, source in _ALL.items() if family in FAMILIES}
"""By family, for those that are registered."""
