"""The `DeviceSpec` of a GPU in this machine: the table's entry for its model, updated with what its driver reports."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import torch

from grouped_conv.kernels.values.device import DeviceSpec


@cache
def live_device(index: int) -> DeviceSpec | None:
    """The specification of CUDA (or HIP) device `index`; None when nothing of its architecture is in the table."""
    return spec_of(torch.cuda.get_device_properties(index), hip=torch.version.hip is not None)


def spec_of(properties: Any, hip: bool = False) -> DeviceSpec | None:
    """The specification that fits `torch.cuda.get_device_properties`: peak rates of the table, limits of the driver.

    A model that is not in the table takes the rates of one of its architecture, under a key of its own, so that what is
    recorded for one is not believed of the other.
    """
    arch: int | str = properties.major * 10 + properties.minor
    if hip:
        arch = properties.gcnArchName.split(":")[0]
    relatives = [spec for spec in DeviceSpec.all() if spec.arch == arch]
    if not relatives:
        return None
    words = set(re.findall(r"[a-z]+\d+[a-z]*|pcie|nvl|\d{4}", properties.name.lower()))
    named = [spec for spec in relatives if set(_model_words(spec.key)) <= words]
    best = max(named, key=lambda spec: len(_model_words(spec.key)), default=None)
    facts: dict[str, Any] = {"name": properties.name, "sm_count": properties.multi_processor_count}
    for ours, theirs in (
        ("shared_per_block", "shared_memory_per_block_optin"),
        ("shared_per_sm", "shared_memory_per_multiprocessor"),
        ("registers_per_sm", "regs_per_multiprocessor"),
        ("l2_bytes", "L2_cache_size"),
    ):
        if getattr(properties, theirs, 0):
            facts[ours] = getattr(properties, theirs)
    if best is None:
        facts["key"] = re.sub(r"[^a-z0-9]+", "-", properties.name.lower()).strip("-")
    return (best or relatives[0]).with_driver_facts(**facts)


def _model_words(key: str) -> list[str]:
    """`h100-pcie` -> [h100, pcie]; the SXM form has no word of its own in the driver's names; `rtx4090` -> [4090]."""
    return [word.removeprefix("rtx") for word in key.split("-") if word != "sxm"]
