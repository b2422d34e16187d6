"""How a kernel is compiled for one problem: one frozen value per kernel family behind the name `KernelConfig`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

LOOP_ORDERS = ("flat", "channels_inner", "taps_inner")
CACHE_POLICIES = ("", ".ca", ".cg")


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """What all families share; `KernelConfig.from_json` gives back the right family by its tag.

    Attributes:
        family: the kernel's name.
        direction: what it computes: `forward`, `input_grad` or `weight_grad`.
        num_warps: warps per program (32 threads each on NVIDIA, 64 on AMD).
        num_stages: buffers of the software pipeline of the inner loop.
    """

    family: ClassVar[str] = ""
    direction: ClassVar[str] = "forward"

    num_warps: int = 4
    num_stages: int = 1

    def __post_init__(self) -> None:
        power_of_two(num_warps=self.num_warps)
        if self.num_stages < 1:
            raise ValueError(f"num_stages must be at least 1, but got {self.num_stages}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data with the family's tag."""
        return {"family": self.family, **asdict(self)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> KernelConfig:
        """The configuration that `to_json` described."""
        from grouped_conv.kernels.families import CONFIGS

        family = CONFIGS.get(data.get("family", ""))
        if family is None:
            raise ValueError(f"unknown kernel family {data.get('family')!r}; accepted: {', '.join(CONFIGS)}")
        values = {name: value for name, value in data.items() if name != "family"}
        unknown = set(values) - {field.name for field in fields(family)}
        if unknown:
            raise ValueError(f"unknown fields {sorted(unknown)} for a {family.family} configuration")
        return family(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImplicitGemmConfig(KernelConfig):
    """Block sizes and knobs of the implicit-GEMM kernel.

    Attributes:
        block_m: output pixels per tile.
        block_n: output channels of one group per tile.
        block_k: depth of one step of the reduction.
        split_k: programs that share one tile's reduction; a second kernel adds their parts in a fixed order.
        swizzle_m: pixel tiles walked before the next channel tile (L2 reuse); 1 walks the channel tiles first.
        loop_order: `flat` walks (kernel row, kernel column, channel) as one index; `channels_inner` and `taps_inner`
            step through whole channel blocks of one tap, and need `C_PER_GROUP % block_k == 0`.
        cache_a: cache modifier of the input loads, `""`, `.ca` (L1 and L2) or `.cg` (L2 only).
        static_trips: compile the number of loop trips in. A 128x128x64 loop of AlexNet's conv3 has 173 instructions
            with it and 198 without on sm_80 (8 warps, Triton 3.8), but 109 and 100 on sm_90.
    """

    family: ClassVar[str] = "implicit_gemm"

    block_m: int = 128
    block_n: int = 128
    block_k: int = 64
    split_k: int = 1
    swizzle_m: int = 1
    loop_order: str = "flat"
    cache_a: str = ""
    static_trips: bool = True

    def __post_init__(self) -> None:
        KernelConfig.__post_init__(self)
        power_of_two(block_m=self.block_m, block_n=self.block_n, block_k=self.block_k)
        if min(self.block_m, self.block_n, self.block_k) < 16:
            raise ValueError(f"blocks must be at least 16, but got {self.block_m}x{self.block_n}x{self.block_k}")
        if self.split_k < 1 or self.swizzle_m < 1:
            raise ValueError(f"split_k and swizzle_m must be at least 1, but got {self.split_k} and {self.swizzle_m}")
        if self.loop_order not in LOOP_ORDERS or self.cache_a not in CACHE_POLICIES:
            raise ValueError(
                f"loop_order {self.loop_order!r} must be one of {LOOP_ORDERS} "
                f"and cache_a {self.cache_a!r} one of {CACHE_POLICIES}"
            )

    def __str__(self) -> str:
        words = [
            f"{self.block_m}x{self.block_n}x{self.block_k}",
            f"w{self.num_warps}",
            f"s{self.num_stages}",
            self.loop_order,
        ]
        words += [f"split{self.split_k}"] if self.split_k > 1 else []
        words += [f"sw{self.swizzle_m}"] if self.swizzle_m > 1 else []
        words += [self.cache_a] if self.cache_a else []
        return " ".join(words + ([] if self.static_trips else ["dyn"]))


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


def power_of_two(**values: int) -> None:
    """Refuse a named value that is not a power of two."""
    for name, value in values.items():
        if value < 1 or value & (value - 1):
            raise ValueError(f"{name} must be a power of two, but got {value}")
