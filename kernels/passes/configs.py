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
class TileConfig(KernelConfig):
    """What the passes over matrices share: tiles of `block_m` rows by `block_n` columns."""

    block_m: int = 16
    block_n: int = 64

    def __post_init__(self) -> None:
        KernelConfig.__post_init__(self)
        power_of_two(block_m=self.block_m, block_n=self.block_n)

    def __str__(self) -> str:
        return f"{self.block_m}x{self.block_n} w{self.num_warps}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReduceConfig(TileConfig):
    """Tile of the pass that adds the parts of a split reduction: output pixels by output channels."""

    family: ClassVar[str] = "split_reduce"


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientReduceConfig(TileConfig):
    """Tile of the pass that adds the splits of a weight gradient: output channels by weights of each."""

    family: ClassVar[str] = "gradient_reduce"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSumsConfig(TileConfig):
    """Tile of the pass that sums the output's gradient for the bias: output pixels by output channels."""

    family: ClassVar[str] = "channel_sums"


@dataclass(frozen=True, slots=True, kw_only=True)
class RaggedGatherConfig(TileConfig):
    """Tile of the pass that adds the parts of groups that share channels: input pixels by input channels."""

    family: ClassVar[str] = "ragged_gather"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockConfig(KernelConfig):
    """What the passes over vectors share: programs that take `block` values at a time."""

    block: int = 256

    def __post_init__(self) -> None:
        KernelConfig.__post_init__(self)
        power_of_two(block=self.block)

    def __str__(self) -> str:
        return f"{self.block} w{self.num_warps}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RaggedWeightReduceConfig(BlockConfig):
    """Weights of an output channel that a program of the second pass of the ragged weight gradient adds at a time."""

    family: ClassVar[str] = "ragged_weight_reduce"


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelTableConfig(BlockConfig):
    """Entries of the table of pixels that a program fills."""

    family: ClassVar[str] = "pixel_table"
