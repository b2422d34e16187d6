"""The engine of the gates: compiles a family's layers, counts instructions and applies the family's rules.

A gate is data. What a kernel must satisfy is written in the module of its family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from grouped_conv.autotune.compiling.offline import gpu_target
from grouped_conv.autotune.machine_code.instructions import Instruction, Mix, loops
from grouped_conv.autotune.machine_code.resources import Resources, disassembled, read_resources
from grouped_conv.autotune.model.heuristic import choose
from grouped_conv.bench.gates.findings import Finding, figure_fault, resource_faults
from grouped_conv.kernels.call import plan
from grouped_conv.kernels.gradient_call import gradient_problem
from grouped_conv.kernels.launching.launch import Launch, compile_launch
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec
from grouped_conv.kernels.values.epilogue import Epilogue
from grouped_conv.kernels.values.problem import ConvProblem


@dataclass(frozen=True)
class Compiled:
    """One layer as compiled for one architecture.

    Attributes:
        layer, problem, config, device: what was compiled, and for which device.
        kernel: Triton's compiled kernel.
        resources: figures of the machine code; `resources.loop` is the loop that the gate looks at.
    """

    layer: str
    problem: Any
    config: Any
    device: DeviceSpec
    kernel: Any
    resources: Resources

    @property
    def threads(self) -> int:
        """Threads of one program."""
        return int(self.config.num_warps * self.device.warp_size)

    @property
    def loop_loads(self) -> Mapping[int, int]:
        """Global loads in the loop: width in bytes to count."""
        return self.resources.loop.load_widths if self.resources.loop else {}

    @cached_property
    def code(self) -> list[Instruction]:
        """All instructions."""
        return disassembled(self.kernel)


Rule = Callable[[Compiled], Iterable[str]]
"""Yields one line for each fault."""


def per_mma(compiled: Compiled) -> float | None:
    """Instructions of the loop per tensor-core instruction."""
    return compiled.resources.loop.per_mma if compiled.resources.loop else None


def per(values: Callable[[Compiled], float]) -> Callable[[Compiled], float | None]:
    """Instructions that a thread issues in one trip of the loop per value of its own, given the program's values."""

    def count(compiled: Compiled) -> float | None:
        loop = compiled.resources.loop
        return loop.instructions * compiled.threads / values(compiled) if loop else None

    return count


def uncounted(compiled: Compiled) -> float | None:
    """No figure: the rules alone judge the kernel."""
    return None


def judged_launches(problem: Any, config: KernelConfig) -> Sequence[Launch]:
    """The family's own kernel, without the passes around it."""
    return [launch for launch in plan(problem, config).launches if launch.name == config.family]


def convolution(problem: ConvProblem, dtype: str, epilogue: Epilogue) -> ConvProblem:
    """The same convolution or gradient with another dtype and epilogue."""
    changed = replace(problem, dtype=dtype, epilogue=epilogue)
    return changed if problem.direction == "forward" else gradient_problem(changed, problem.direction)


def no_limit(layer: str, problem: Any, config: Any, device: DeviceSpec) -> float | None:
    """The figure is shown and not judged."""
    return None


@dataclass(frozen=True, slots=True)
class Tile:
    """A configuration to compile, with what its code may cost on each architecture where that is known.

    Attributes:
        layers: with which layers to compile it.
        config: the configuration.
        limits: by architecture, the instructions per unit that it may take.
    """

    layers: tuple[str, ...]
    config: Any
    limits: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What a family compiles and what its code must satisfy.

    Attributes:
        family: the family that is judged.
        kernel: name of the kernel that is judged; by default the family's own.
        unit: what instructions are counted per: a tensor-core instruction, an output value.
        layers: problems by name.
        variants: dtypes and epilogues with which each layer is compiled; without any, each layer as it is.
        tiles: configurations to compile; without any, the default.
        choose: (problem, device) to the default; without it, the heuristic chooses among the family's configurations.
        rivals: the heuristic chooses among all families, and must choose this one.
        limit: (layer, problem, configuration, device) to the limit of a default; `None` where no limit is known.
        launches: (problem, configuration) to the launch to judge and others, of which only the resources are judged.
        loop: code to the loop that is judged; by default the shortest with a tensor-core instruction.
        count: the figure that the limit is compared with.
        rules: hold for every layer. No kernel may spill or use more shared memory than there is, whatever its rules.
        wide: rules about the width of memory accesses, for layers without an exemption.
        exemption: why a layer is exempt from `wide`; an empty string where it is not.
        varied: (problem, dtype, epilogue) to the changed problem.
    """

    family: str
    kernel: str = ""
    unit: str
    layers: Mapping[str, Any]
    variants: tuple[tuple[str, Epilogue], ...] = ()
    tiles: tuple[Tile, ...] = ()
    choose: Callable[[Any, DeviceSpec], Any] | None = None
    rivals: bool = False
    limit: Callable[[str, Any, Any, DeviceSpec], float | None] = no_limit
    launches: Callable[[Any, Any], Sequence[Launch]] = judged_launches
    loop: Callable[[Sequence[Instruction]], Sequence[Instruction]] | None = None
    count: Callable[[Compiled], float | None] = per_mma
    rules: tuple[Rule, ...] = ()
    wide: tuple[Rule, ...] = ()
    exemption: Callable[[Compiled], str] = lambda compiled: ""
    varied: Callable[[Any, str, Epilogue], Any] = convolution

    def problems(self) -> Iterator[tuple[str, Any]]:
        """Every layer in every variant, by name."""
        for layer, problem in self.layers.items():
            for dtype, epilogue in self.variants:
                name = layer if len(self.variants) == 1 else f"{layer} {dtype} {epilogue}"
                yield name, self.varied(problem, dtype, epilogue)
            if not self.variants:
                yield layer, problem

    def default(self, problem: Any, device: DeviceSpec) -> Any:
        """The configuration that is used where nothing was tuned."""
        if self.choose:
            return self.choose(problem, device)
        return choose(problem, device, None if self.rivals else frozenset({self.family}))

    def choices(self, layer: str, problem: Any, device: DeviceSpec) -> Iterator[tuple[Any, float | None]]:
        """The configurations to compile a layer with, each with its limit."""
        for tile in self.tiles:
            if layer in tile.layers and device.arch_name in tile.limits:
                yield tile.config, tile.limits[device.arch_name]
        if not self.tiles:
            config = self.default(problem, device)
            yield config, self.limit(layer, problem, config, device)

    def findings(self, arch: str, wanted: Callable[[Any], bool] = lambda problem: True) -> Iterator[Finding]:
        """Compile and judge every layer on one architecture.

        Args:
            wanted: which problems to compile; by default all.
        """
        device = DeviceSpec.get(arch)
        for layer, problem in self.problems():
            if wanted(problem):
                for config, limit in self.choices(layer, problem, device):
                    yield self.judge(layer, problem, config, device, limit)

    def judge(self, layer: str, problem: Any, config: Any, device: DeviceSpec, limit: float | None = None) -> Finding:
        """Compile one layer with one configuration and judge its code."""
        main, *others = self.launches(problem, config)
        compiled = self.compile(layer, problem, main, device)
        figure = self.count(compiled)
        faults = [*self.faults(compiled, figure, limit)]
        for launch in others:
            faults += resource_faults(read_resources(compile_launch(launch, gpu_target(device))), device)
        if main.name != (self.kernel or self.family):
            faults.append(f"the heuristic chose {main.name}")
        words = (device.arch_name, main.name, layer, str(main.config))
        return Finding(*words, compiled.resources, figure, limit, self.unit, tuple(faults), self.exemption(compiled))

    def compile(self, layer: str, problem: Any, launch: Launch, device: DeviceSpec) -> Compiled:
        """Compile one launch and find its loop."""
        kernel = compile_launch(launch, gpu_target(device))
        compiled = Compiled(layer, problem, launch.config, device, kernel, read_resources(kernel))
        if self.loop is None:
            return compiled
        found = self.loop(compiled.code)
        return replace(compiled, resources=replace(compiled.resources, loop=Mix.of(found) if found else None))

    def faults(self, compiled: Compiled, figure: float | None, limit: float | None) -> Iterator[str]:
        """One line for each rule that the code breaks."""
        yield from resource_faults(compiled.resources, compiled.device)
        yield from figure_fault(figure, limit, self.unit)
        for rule in self.rules if self.exemption(compiled) else (*self.rules, *self.wide):
            yield from rule(compiled)


def first_loop(*kinds: str) -> Callable[[Sequence[Instruction]], Sequence[Instruction]]:
    """Finds the first loop that holds instructions of all these kinds; cold branches come later in the code."""

    def find(code: Sequence[Instruction]) -> Sequence[Instruction]:
        return next((loop for loop in loops(code) if set(kinds) <= {i.kind for i in loop}), [])

    return find


def square(
    c: int, k: int, groups: int, size: int, kernel: int, stride: int = 1, batch: int = 128, **keywords: Any
) -> ConvProblem:
    """A convolution of square images, padded by half its kernel, with `c` and `k` channels per group."""
    shapes = (batch, c * groups, size, size), (k * groups, c, kernel, kernel)
    return ConvProblem.of(*shapes, stride, kernel // 2, groups=groups, **keywords)


def gradients(layers: Mapping[str, ConvProblem], direction: str) -> dict[str, ConvProblem]:
    """One gradient of each layer."""
    return {name: gradient_problem(problem, direction) for name, problem in layers.items()}
