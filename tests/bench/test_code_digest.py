"""The digest of machine code changes with the code, not with names and lines of the source."""

import json
from dataclasses import dataclass

import pytest
from click.testing import CliRunner

from grouped_conv.bench import code_digest
from grouped_conv.bench.code_digest import Digest, differences, digest, launches
from grouped_conv.kernels.families import FAMILIES
from grouped_conv.kernels.launching.launch import Buffer, Launch
from grouped_conv.kernels.values.config import KernelConfig
from grouped_conv.kernels.values.device import DeviceSpec

SOURCE = """
import triton
import triton.language as tl

@triton.jit
def doubled(x_ptr, y_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value = tl.load(x_ptr + i)
    tl.store(y_ptr + i, value * 2.0)
"""
RENAMED = SOURCE.replace("value", "loaded").replace("    i = ", "    # moves the lines below\n    i = ")


@dataclass(frozen=True, slots=True, kw_only=True)
class DoubledConfig(KernelConfig):
    pass


@pytest.fixture
def digest_of(tmp_path, monkeypatch):
    """Digests a kernel from its source, for one architecture."""
    monkeypatch.syspath_prepend(tmp_path)

    def run(name, source, arch):
        (tmp_path / f"{name}.py").write_text(source)
        kernel = __import__(name).doubled
        buffers = (Buffer("x_ptr", "input", "float32"), Buffer("y_ptr", "output", "float32"))
        return digest(Launch(kernel, DoubledConfig(), (1, 1, 1), buffers, (), {"BLOCK": 256}), DeviceSpec.get(arch))

    return run


@pytest.mark.parametrize("arch", ["sm_80", "gfx942"])
def test_a_renamed_local_keeps_the_digest_and_a_changed_constant_does_not(digest_of, arch):
    plain = digest_of(f"plain_{arch}", SOURCE, arch)
    assert digest_of(f"renamed_{arch}", RENAMED, arch) == plain
    assert plain.lines > plain.instructions > 0
    changed = digest_of(f"changed_{arch}", SOURCE.replace("2.0", "3.0"), arch)
    assert changed.code != plain.code


def test_differences_are_listed_with_their_figures():
    one, other = Digest("a", 100, 60, 32, 0, 0), Digest("b", 90, 50, 30, 0, 0)
    assert list(differences({"same": one, "gone": one}, {"same": one, "new": one})) == [
        "gone: only before",
        "new: only after",
    ]
    (line,) = differences({"kernel": one}, {"kernel": other})
    assert "instructions 60 -> 50, registers 32 -> 30" in line


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_launches_of_its_own_kernel(family):
    planned = dict(launches(family, DeviceSpec.get("a100")))
    own = [name for name, launch in planned.items() if launch.name == family]
    assert len(own) >= 12
    assert len({launch.config for launch in planned.values()}) > 1


def test_command_writes_and_compares(tmp_path, monkeypatch):
    found = {"sm_80 depthwise": {"layer": Digest("a", 100, 60, 32, 0, 0)}}
    monkeypatch.setattr(code_digest, "digests", lambda families, archs: found)
    path = str(tmp_path / "before.json")
    assert CliRunner().invoke(code_digest.main, ["--write", path]).exit_code == 0
    same = CliRunner().invoke(code_digest.main, ["--compare", path, "--family", "depthwise"])
    assert (same.exit_code, same.stdout.splitlines()[-1]) == (0, "0 launches differ")
    saved = json.loads((tmp_path / "before.json").read_text())
    saved["sm_90 depthwise"] = {"not compared": {}}
    saved["sm_80 depthwise"]["layer"]["code"] = "b"
    (tmp_path / "before.json").write_text(json.dumps(saved))
    result = CliRunner().invoke(code_digest.main, ["--compare", path])
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (1, "1 launches differ")
