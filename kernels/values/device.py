"""What a GPU offers a kernel: the value `DeviceSpec`, passed in wherever device facts matter, never queried inside."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any


@dataclass(frozen=True, slots=True)
class DeviceSpec:
    """Limits and peak rates of one GPU model.

    Attributes:
        key: short name used on the command line and in stores, e.g. `h100-sxm`.
        name: the vendor's name, e.g. `NVIDIA H100 SXM5 80GB`.
        backend: `cuda`, `hip`, or `cpu_native` for the development lane that compiles for the CPU.
        arch: compute capability as an integer (`90`) or AMD's name (`"gfx942"`), as Triton's `GPUTarget` takes it.
        sm_count: streaming multiprocessors (compute units on AMD).
        clock_hz: boost clock in Hz.
        shared_per_block: bytes of shared memory one program may use.
        shared_per_sm: bytes of shared memory of one multiprocessor.
        registers_per_sm: 32-bit registers of one multiprocessor.
        max_warps_per_sm: resident warps of one multiprocessor.
        l2_bytes: size of the L2 cache.
        dram_bytes_per_s: peak memory bandwidth.
        half_flops: peak dense FLOP/s of fp16 and bf16 tensor cores with fp32 accumulation.
        tf32_flops: the same for TF32 (0 where it does not exist).
        fp32_flops: peak FLOP/s of fp32 multiply-adds outside the tensor cores.
        source: where the figures come from.
    """

    key: str
    name: str
    backend: str
    arch: int | str
    sm_count: int
    clock_hz: float
    shared_per_block: int
    shared_per_sm: int
    registers_per_sm: int
    max_warps_per_sm: int
    l2_bytes: int
    dram_bytes_per_s: float
    half_flops: float
    tf32_flops: float
    fp32_flops: float
    source: str

    def __post_init__(self) -> None:
        if self.backend not in ("cuda", "hip", "cpu_native"):
            raise ValueError(f"backend must be 'cuda', 'hip' or 'cpu_native', but got {self.backend!r}")
        for name in ("sm_count", "clock_hz", "shared_per_block", "shared_per_sm", "dram_bytes_per_s", "half_flops"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, but got {getattr(self, name)!r} for {self.key}")

    @property
    def warp_size(self) -> int:
        """Threads per warp: 32 on NVIDIA, 64 on AMD's data-centre GPUs, 16 lanes of the native lane."""
        return {"hip": 64, "cpu_native": 16}.get(self.backend, 32)

    @property
    def arch_name(self) -> str:
        """`sm_90` or `gfx942`."""
        return f"sm_{self.arch}" if self.backend == "cuda" else str(self.arch)

    @property
    def known_as(self) -> str:
        """The key with the architecture, for tables: `h100-sxm (sm_90)`."""
        return f"{self.key} ({self.arch_name})"

    def peak_flops(self, dtype: str, precision: str = "ieee") -> float:
        """Peak dense FLOP/s for products of `dtype` at `precision`, summed in fp32."""
        if dtype != "float32":
            return self.half_flops
        return self.tf32_flops if precision == "tf32" and self.tf32_flops else self.fp32_flops

    @classmethod
    def get(cls, name: str) -> DeviceSpec:
        """The device called `name`: a key (`h100-sxm`), an alias (`h100`), or an architecture (`sm_90`, `gfx942`).

        Raises:
            ValueError: naming the known devices.
        """
        known = _by_name()
        spec = known.get(name.strip().lower().replace("_", "-").replace(" ", "-"))
        if spec is None:
            keys = sorted({spec.key for spec in known.values()})
            raise ValueError(f"unknown device {name!r}; known: {', '.join(keys)} (or an architecture such as sm_90)")
        return spec

    @classmethod
    def all(cls) -> tuple[DeviceSpec, ...]:
        """Every device of the table."""
        return tuple(dict.fromkeys(_by_name().values()))

    def with_driver_facts(self, **facts: Any) -> DeviceSpec:
        """This specification with figures replaced by what a live driver reports."""
        return replace(self, **facts)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data; `from_json` gives the value back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DeviceSpec:
        """The inverse of `to_json`."""
        return cls(**data)


@cache
def _by_name() -> dict[str, DeviceSpec]:
    from grouped_conv.kernels.values.device_table import ALIASES, DEVICES

    known = {spec.key: spec for spec in DEVICES}
    return known | {alias: known[key] for alias, key in ALIASES.items()}
