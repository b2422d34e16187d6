"""Rules that several families share; each yields one line for each fault in compiled code."""

from __future__ import annotations

from collections.abc import Iterator

from grouped_conv.bench.gates.engine import Compiled
from grouped_conv.bench.gates.findings import VECTOR_BYTES, width_fault
from grouped_conv.kernels.values.epilogue import Epilogue

PLAIN, RELU, BIAS_RELU = Epilogue(), Epilogue("relu"), Epilogue("relu", bias=True)
EPILOGUES = (PLAIN, RELU, Epilogue("silu"), Epilogue(scale=True))
"""What a gradient may have to undo as it loads: nothing, a choice, a derivative in fp32, a product in fp32."""
GRADIENT_VARIANTS = (*(("float16", epilogue) for epilogue in EPILOGUES), ("bfloat16", PLAIN))
ATOMICS = ("atom.", "red.global", "global_atomic", "buffer_atomic")


def tensor_cores(compiled: Compiled) -> Iterator[str]:
    """The loop multiplies on tensor cores."""
    if not (compiled.resources.loop and compiled.resources.loop.mma):
        yield "no loop with a tensor-core instruction"


def wide_loop_loads(compiled: Compiled) -> Iterator[str]:
    """All loads in the loop are 16 bytes wide."""
    return width_fault("loads in the inner loop", compiled.loop_loads)


def tile_loads(compiled: Compiled) -> Iterator[str]:
    """All loads in the loop are as wide as the tiles of both operands allow."""
    return width_fault("loads in the inner loop", compiled.loop_loads, least_width(compiled))


def wide_loads(compiled: Compiled) -> Iterator[str]:
    """All loads are 16 bytes wide."""
    return width_fault("loads", compiled.resources.total.load_widths)


def wide_stores(compiled: Compiled) -> Iterator[str]:
    """All stores are 16 bytes wide."""
    return width_fault("stores", compiled.resources.total.store_widths)


def no_atomics(compiled: Compiled) -> Iterator[str]:
    """No atomic instruction: sums are the same in every run."""
    text = str(compiled.kernel.asm.get("ptx", compiled.kernel.asm.get("amdgcn", "")))
    if any(word in text for word in ATOMICS):
        yield "an atomic instruction"


def least_width(compiled: Compiled) -> int:
    """Bytes of a load of the smaller operand's tile: less than 16 if a thread's part of the tile is smaller."""
    config = compiled.config
    smaller = min(config.block_m, config.block_n) * config.block_k * compiled.problem.item_size
    return int(min(VECTOR_BYTES, smaller // compiled.threads))
