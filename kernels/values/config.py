"""How a kernel is compiled for one problem: `KernelConfig`, the base of the configurations of all families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar

CACHE_POLICIES = ("", ".ca", ".cg")
_classes: dict[str, type[KernelConfig]] = {}
CONFIGS: Mapping[str, type[KernelConfig]] = MappingProxyType(_classes)
"""Every configuration class by its tag, as far as its module is loaded; `kernels.families` loads them all."""


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """What the configurations of all families share.

    Import the name from `grouped_conv.kernels`: then `from_json` knows every family.

    Attributes:
        family: the kernel's name, the tag of the JSON form.
        direction: what it computes: `forward`, `input_grad` or `weight_grad`.
        num_warps: warps per program (32 threads each on NVIDIA, 64 on AMD).
        num_stages: buffers of the software pipeline of the inner loop.
    """

    family: ClassVar[str] = ""
    direction: ClassVar[str] = "forward"

    num_warps: int = 4
    num_stages: int = 1

    def __init_subclass__(cls) -> None:
        if "family" in vars(cls):  # a base of several families has no tag
            _classes[cls.family] = cls  # twice for each class: `slots=True` makes it anew

    def __post_init__(self) -> None:
        power_of_two(num_warps=self.num_warps)
        if self.num_stages < 1:
            raise ValueError(f"num_stages must be at least 1, but got {self.num_stages}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data with the family's tag."""
        return {"family": self.family, **asdict(self)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> KernelConfig:
        """The configuration that `to_json` described, of the class that its tag names.

        Raises:
            ValueError: for an unknown tag or field.
        """
        family = CONFIGS.get(data.get("family", ""))
        if family is None:
            raise ValueError(f"unknown kernel family {data.get('family')!r}; accepted: {', '.join(CONFIGS)}")
        values = {name: value for name, value in data.items() if name != "family"}
        unknown = set(values) - {field.name for field in fields(family)}
        if unknown:
            raise ValueError(f"unknown fields {sorted(unknown)} for a {family.family} configuration")
        return family(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmConfig(KernelConfig):
    """What the families that multiply by matrix instructions share: the three sides of a tile."""

    block_m: int = 128
    block_n: int = 64
    block_k: int = 64

    def __post_init__(self) -> None:
        KernelConfig.__post_init__(self)
        check_blocks(self.block_m, self.block_n, self.block_k)

    def __str__(self) -> str:
        return f"{self.block_m}x{self.block_n}x{self.block_k} w{self.num_warps} s{self.num_stages}"


def check_blocks(block_m: int, block_n: int, block_k: int) -> None:
    """Refuse a tile of matrix products with a side that is not a power of two of at least 16."""
    power_of_two(block_m=block_m, block_n=block_n, block_k=block_k)
    if min(block_m, block_n, block_k) < 16:
        raise ValueError(f"blocks must be at least 16, but got {block_m}x{block_n}x{block_k}")


def power_of_two(**values: int) -> None:
    """Refuse a named value that is not a power of two."""
    for name, value in values.items():
        if value < 1 or value & (value - 1):
            raise ValueError(f"{name} must be a power of two, but got {value}")
