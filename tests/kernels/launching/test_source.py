"""The key under which Triton caches a kernel's compiled code."""

import importlib

import pytest

from grouped_conv.kernels.launching.launch import Buffer, Launch
from grouped_conv.kernels.passes.configs import PackConfig

KERNEL = """
from typing import NamedTuple

import triton
import triton.language as tl

from bundles_of_{name} import Ends


@triton.jit
def ends(x_ptr, y_ptr):
    both = Ends(tl.load(x_ptr), tl.load(x_ptr + 1))
    tl.store(y_ptr, both.first)
"""
BUNDLES = """
from typing import NamedTuple
class Ends(NamedTuple):
    {fields}
"""


@pytest.fixture
def key_of(tmp_path, monkeypatch):
    """The cache's key of the same kernel with the fields of its bundle in the order given."""
    monkeypatch.syspath_prepend(tmp_path)

    def key(name: str, *fields: str) -> str:
        lines = "\n    ".join(f"{field}: object" for field in fields)
        (tmp_path / f"bundles_of_{name}.py").write_text(BUNDLES.format(fields=lines))
        (tmp_path / f"kernel_of_{name}.py").write_text(KERNEL.format(name=name))
        bundle = importlib.import_module(f"bundles_of_{name}").Ends
        bundle.__module__ = "bundles"  # the same name in both, as after an upgrade
        kernel = importlib.import_module(f"kernel_of_{name}").ends
        buffers = tuple(Buffer(f"{letter}_ptr", letter, "float32") for letter in "xy")
        return Launch(kernel, PackConfig(), (1, 1, 1), buffers, (), {}).source().hash()

    return key


def test_the_order_of_a_bundles_fields_changes_the_key(key_of):
    assert key_of("one", "first", "last") == key_of("same", "first", "last")
    assert key_of("one_more", "first", "last") != key_of("other", "last", "first")
