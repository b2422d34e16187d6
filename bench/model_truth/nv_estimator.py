"""NVIDIA's estimator of matrix multiplications, `nvMatmulHeuristics`: what it would run, and how long it expects.

The library is an optional extra (`pip install grouped-conv[estimate]`). It is proprietary, under NVIDIA's own licence,
so it is imported where it is installed and never copied. It needs no GPU, because it knows GPUs by name. We use its
Triton target, with fp16 operands and results and fp32 sums (`HSH`), and k innermost in both operands (`NT` in row-major
terms).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Protocol

from grouped_conv.autotune.model.implicit_gemm.forward_axes import axes, why_redundant
from grouped_conv.autotune.model.implicit_gemm.forward_terms import warp_grid
from grouped_conv.bench.model_truth.gemm_shapes import Gemm
from grouped_conv.kernels.families import why_invalid
from grouped_conv.kernels.implicit_gemm.forward_rules import ImplicitGemmConfig
from grouped_conv.kernels.values.device import DeviceSpec

GPUS = {"a100": "A100_SXM_80GB", "h100-sxm": "H100_SXM"}
"""Our device keys and NVIDIA's names."""
DISTRIBUTION = "nvidia-matmul-heuristics"
PRECISION = "HSH"
MMA = (16, 8, 16)
"""The instruction that the Triton target reports for fp16. It does so for H100 too, where Triton itself uses wgmma."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """One kernel that the estimator proposes.

    Attributes:
        tile: in its own words.
        us: its estimate.
        config: the same kernel as our configuration; `None` where our space has none.
    """

    tile: str
    us: float
    config: ImplicitGemmConfig | None


class Estimator(Protocol):
    """What the comparison needs from an estimator; `name` identifies it in the output."""

    name: str

    def ranked(self, gemm: Gemm, count: int) -> list[Estimate]:
        """At most `count` proposals, the fastest first."""
        ...

    def time_us(self, gemm: Gemm, config: Any) -> float | None:
        """The estimate for a configuration of the implicit GEMM; `None` where it gives none."""
        ...


class NvEstimator:
    """`nvMatmulHeuristics` for one device."""

    def __init__(self, device: DeviceSpec) -> None:
        """Loads the library.

        Raises:
            ImportError: where the extra is not installed.
            ValueError: for a device that it does not know, naming those that it knows.
        """
        import nvMatmulHeuristics as library

        if device.key not in GPUS:
            raise ValueError(f"{device.key} is not among the compared devices: {', '.join(GPUS)}")
        self.name = f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}"
        self._device = device
        self._layout = library.NvMatmulHeuristicsMatmulLayout.NT_ROW_MAJOR
        self._interface: Any = library.NvMatmulHeuristicsInterfaceEx(
            backend=library.NvMatmulHeuristicsTarget.TRITON,
            flags=library.NvMatmulHeuristicsFlags.PERF_MODEL_BASED_AUTO_TUNING,
            gpu=getattr(library.NvMatmulHeuristicsNvidiaGpu, GPUS[device.key]),
        )

    def ranked(self, gemm: Gemm, count: int) -> list[Estimate]:
        """At most `count` proposals, the fastest first."""
        found = self._interface.get(self._problem(gemm), count, precision=PRECISION)
        estimates = [
            Estimate(_words(one["kernel"]), 1e6 * one["runtime"], self._ours(gemm, one["kernel"])) for one in found
        ]
        return sorted(estimates, key=lambda estimate: estimate.us)

    def time_us(self, gemm: Gemm, config: Any) -> float | None:
        """The estimate for a configuration of the implicit GEMM; `None` where it gives none."""
        rows, columns = warp_grid(config)
        kernel = self._interface.nvmmhKernelConfiguration()
        kernel.cta[:] = (config.block_m, config.block_n, config.block_k)
        kernel.warp[:] = (config.block_m // rows, config.block_n // columns, config.block_k)
        kernel.instr[:] = MMA
        kernel.cluster[:] = (1, 1)
        kernel.splitK, kernel.loadStages = config.split_k, config.num_stages
        kernel.gridSwizzle, kernel.ctaOrder = config.swizzle_m, 0
        # as the library's wrapper calls it for its proposals: the wrapper's method for a given kernel fails in 0.1.0.27
        seconds = self._interface.nvMatmulHeuristicsEstimateRuntime(
            self._interface.handle,
            PRECISION.encode("ascii"),
            ctypes.c_int(self._interface.target),
            ctypes.byref(self._problem(gemm)),
            ctypes.byref(kernel),
            self._interface.hardware_descriptor,
        )
        return 1e6 * seconds if 0 < seconds < 1 else None

    def _problem(self, gemm: Gemm) -> Any:
        return self._interface.makeNvMatmulHeuristicsProblem(gemm.m, gemm.n, gemm.k, self._layout, gemm.groups)

    def _ours(self, gemm: Gemm, kernel: Any) -> ImplicitGemmConfig | None:
        """The same kernel in our space, with a pipeline no deeper than our space allows."""
        problem = gemm.problem()
        offered = axes(problem, self._device)
        blocks = (kernel.cta_tile_m, kernel.cta_tile_n, kernel.cta_tile_k)
        warps = blocks[0] // kernel.warp_tile_m * (blocks[1] // kernel.warp_tile_n)
        knobs = dict(zip(("block_m", "block_n", "block_k"), blocks, strict=True)) | {
            "num_warps": warps,
            "num_stages": min(kernel.stages, max(offered.num_stages)),
            "split_k": kernel.split_k,
            "swizzle_m": kernel.swizzle_factor,
        }
        if any(value not in getattr(offered, name) for name, value in knobs.items()):
            return None
        config = ImplicitGemmConfig(**knobs, loop_order="flat" if gemm.k % blocks[2] else "channels_inner")
        held = why_redundant(problem, config) is None and why_invalid(problem, config, self._device) is None
        return config if held else None


def _words(kernel: Any) -> str:
    """`128x128x64 w4 s3 split2`."""
    warps = kernel.cta_tile_m // kernel.warp_tile_m * (kernel.cta_tile_n // kernel.warp_tile_n)
    words = f"{kernel.cta_tile_m}x{kernel.cta_tile_n}x{kernel.cta_tile_k} w{warps} s{kernel.stages}"
    return words + (f" split{kernel.split_k}" if kernel.split_k > 1 else "")
