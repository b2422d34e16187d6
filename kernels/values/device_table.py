"""Published figures of the GPUs we name, one entry each with its source.

Shared-memory limits, registers and warps per multiprocessor are those of NVIDIA's CUDA C++ Programming Guide, table
"Technical Specifications per Compute Capability", and of AMD's CDNA2/CDNA3 ISA documents. Rates are dense
(no structured sparsity) and with fp32 accumulation.
"""

from __future__ import annotations

from grouped_conv.kernels.values.device import DeviceSpec

MB = 1 << 20
TERA = 1e12
GIGA = 1e9

# (shared memory per block, per multiprocessor, resident warps) by compute capability
_NVIDIA_LIMITS = {
    80: (166_912, 167_936, 64),
    86: (101_376, 102_400, 48),
    89: (101_376, 102_400, 48),
    90: (232_448, 233_472, 64),
    100: (232_448, 233_472, 64),
    120: (101_376, 102_400, 48),
}


def _nvidia(
    key: str,
    name: str,
    arch: int,
    sms: int,
    ghz: float,
    l2_mb: int,
    gb_s: float,
    rates: tuple[float, float, float],
    source: str,
) -> DeviceSpec:
    per_block, per_sm, warps = _NVIDIA_LIMITS[arch]
    half, tf32, fp32 = (rate * TERA for rate in rates)
    return DeviceSpec(
        key,
        name,
        "cuda",
        arch,
        sms,
        ghz * GIGA,
        per_block,
        per_sm,
        65_536,
        warps,
        l2_mb * MB,
        gb_s * GIGA,
        half,
        tf32,
        fp32,
        source,
    )


def _amd(
    key: str,
    name: str,
    arch: str,
    cus: int,
    ghz: float,
    l2_mb: int,
    gb_s: float,
    rates: tuple[float, float, float],
    source: str,
) -> DeviceSpec:
    half, tf32, fp32 = (rate * TERA for rate in rates)
    return DeviceSpec(
        key,
        name,
        "hip",
        arch,
        cus,
        ghz * GIGA,
        65_536,
        65_536,
        131_072,
        32,
        l2_mb * MB,
        gb_s * GIGA,
        half,
        tf32,
        fp32,
        source,
    )


DEVICES = (
    _nvidia(
        "a100",
        "NVIDIA A100-SXM4-80GB",
        80,
        108,
        1.410,
        40,
        2039,
        (312, 156, 19.5),
        "NVIDIA A100 80GB datasheet; GA100 whitepaper",
    ),
    _nvidia(
        "h100-sxm",
        "NVIDIA H100 SXM5 80GB",
        90,
        132,
        1.830,
        50,
        3352,
        (989.4, 494.7, 66.9),
        "NVIDIA H100 whitepaper v1.04, SXM5 column",
    ),
    _nvidia(
        "h100-pcie",
        "NVIDIA H100 PCIe 80GB",
        90,
        114,
        1.755,
        50,
        2039,
        (756, 378, 51.2),
        "NVIDIA H100 whitepaper v1.04, PCIe column",
    ),
    _nvidia(
        "h100-nvl",
        "NVIDIA H100 NVL 94GB",
        90,
        132,
        1.785,
        50,
        3938,
        (835.5, 417.5, 60),
        "NVIDIA H100 datasheet, NVL column",
    ),
    _nvidia(
        "h200",
        "NVIDIA H200 SXM 141GB",
        90,
        132,
        1.830,
        50,
        4800,
        (989.4, 494.7, 66.9),
        "NVIDIA H200 datasheet, SXM column",
    ),
    _nvidia("l4", "NVIDIA L4", 89, 58, 2.040, 48, 300, (121, 60, 30.3), "NVIDIA L4 datasheet"),
    _nvidia("l40s", "NVIDIA L40S", 89, 142, 2.520, 96, 864, (362, 183, 91.6), "NVIDIA L40S datasheet; Ada whitepaper"),
    _nvidia("a10", "NVIDIA A10", 86, 72, 1.695, 6, 600, (125, 62.5, 31.2), "NVIDIA A10 datasheet"),
    _nvidia(
        "rtx3090",
        "NVIDIA GeForce RTX 3090",
        86,
        82,
        1.695,
        6,
        936,
        (71, 35.6, 35.6),
        "NVIDIA GA102 whitepaper, appendix A",
    ),
    _nvidia(
        "rtx4090",
        "NVIDIA GeForce RTX 4090",
        89,
        128,
        2.520,
        72,
        1008,
        (165.2, 82.6, 82.6),
        "NVIDIA Ada whitepaper, appendix A",
    ),
    _nvidia(
        "rtx5090",
        "NVIDIA GeForce RTX 5090",
        120,
        170,
        2.407,
        96,
        1792,
        (209.5, 104.8, 104.8),
        "NVIDIA RTX Blackwell whitepaper, appendix A",
    ),
    _nvidia(
        "b200",
        "NVIDIA B200",
        100,
        148,
        1.965,
        126,
        8000,
        (2250, 1125, 75),
        "NVIDIA Blackwell datasheet, HGX B200 figures / 8",
    ),
    _amd(
        "mi210",
        "AMD Instinct MI210",
        "gfx90a",
        104,
        1.700,
        8,
        1638,
        (181, 0, 22.6),
        "AMD Instinct MI210 datasheet; CDNA2 whitepaper",
    ),
    _amd(
        "mi300x",
        "AMD Instinct MI300X",
        "gfx942",
        304,
        2.100,
        32,
        5325,
        (1307.4, 653.7, 163.4),
        "AMD Instinct MI300X datasheet; CDNA3 whitepaper",
    ),
)

ALIASES = {
    "a100-sxm": "a100",
    "h100": "h100-sxm",
    "h200-sxm": "h200",
    "rtx-3090": "rtx3090",
    "rtx-4090": "rtx4090",
    "rtx-5090": "rtx5090",
    "sm-80": "a100",
    "sm-86": "rtx3090",
    "sm-89": "rtx4090",
    "sm-90": "h100-sxm",
    "sm-100": "b200",
    "sm-120": "rtx5090",
    "gfx90a": "mi210",
    "gfx942": "mi300x",
}
