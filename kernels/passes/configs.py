"""The configurations of the passes around a kernel; no kernel is loaded here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from grouped_conv.kernels.values.config import KernelConfig, power_of_two


@dataclass(frozen=True, slots=True, kw_only=True)
class PackConfig(KernelConfig):
    """Tile of the pass that moves channels innermost: `block_p` positions by `block_c` channels."""

    family: ClassVar[str] = "pack"

    block_p: int = 64
    block_c: int = 64

    def __post_init__(self) -> None:
        KernelConfig.__post_init__(self)
        power_of_two(block_p=self.block_p, block_c=self.block_c)

    def __str__(self) -> str:
        return f"{self.block_p}x{self.block_c} w{self.num_warps}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceConfig(KernelConfig):
    """Tile of the pass that adds the parts of a split reduction: `block_m` pixels by `block_n` channels."""

    family: ClassVar[str] = "split_reduce"

    block_m: int = 16
    block_n: int = 64

    def __post_init__(self) -> None:
        KernelConfig.__post_init__(self)
        power_of_two(block_m=self.block_m, block_n=self.block_n)

    def __str__(self) -> str:
        return f"{self.block_m}x{self.block_n} w{self.num_warps}"
