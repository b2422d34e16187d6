"""What an install puts where, and what an import costs and touches."""

import ast
import configparser
import importlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import tomllib
import zipfile
from pathlib import Path

import pytest
from checkout import ROOT

import grouped_conv

LINKS = ("autotune", "bench", "kernels")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, SETUPTOOLS = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]


def extras() -> list[str]:
    """The modules of the packages that only an extra for users installs."""
    declared = PROJECT["optional-dependencies"]
    packages = {re.split(r"[<>=;\[ ]", line)[0] for name in ("plot", "estimate", "nvml") for line in declared[name]}
    imported_as = {"nvidia-ml-py": "pynvml", "nvidia-matmul-heuristics": "nvMatmulHeuristics"}
    return sorted(imported_as.get(package, package) for package in packages)


def packaged_files(root: Path = ROOT) -> set[str]:
    """Every file of the package's folders, by the name it has once installed."""
    files = set()
    for package, folder in SETUPTOOLS["package-dir"].items():
        for parent, folders, names in os.walk(root / folder):  # does not follow the links
            folders[:] = [f for f in folders if f != "__pycache__" and not (Path(parent) / f).is_symlink()]
            inside = Path(*package.split("."), Path(parent).relative_to(root / folder))
            files |= {str(inside / name) for name in names if not (Path(parent) / name).is_symlink()}
    return files


def run_python(code: str, cwd: Path = ROOT) -> str:
    """Standard output of a fresh interpreter that sees the package as an uninstalled checkout at `cwd`."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}  # a user's TRITON_INTERPRET=1
    code = f"import sys; sys.path.insert(0, {str(cwd)!r})\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a build reads, so that building leaves nothing in the checkout."""
    copy = tmp_path / "tree"
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist")
    for folder in ("grouped_conv", *LINKS):
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def links_become_text(tree: Path) -> None:
    """What a zip download, or git with core.symlinks=false, leaves in the links' place."""
    for name in LINKS:
        link = tree / "grouped_conv" / name
        target = os.readlink(link)
        link.unlink()
        link.write_text(target)


def build(tree: Path, kind: str) -> Path:
    code = f"from setuptools import build_meta; print('built', build_meta.build_{kind}('out'))"
    return tree / "out" / run_python(code, tree).split()[-1]


def test_every_folder_is_packaged():
    folders = {".".join(Path(file).parent.parts) for file in packaged_files()}
    assert folders == set(SETUPTOOLS["packages"])


@pytest.mark.parametrize("name", LINKS)
def test_links_lead_to_the_folders(name):
    link = ROOT / "grouped_conv" / name
    if link.is_symlink():
        assert os.readlink(link) == f"../{name}"
    assert Path(importlib.import_module(f"grouped_conv.{name}").__file__).resolve().parent == ROOT / name


@pytest.mark.parametrize("source", ["checkout", "links as text", "sdist"])
def test_wheel_contents(tree, source, tmp_path):
    if source == "links as text":
        links_become_text(tree)
    if source == "sdist":
        with tarfile.open(build(tree, "sdist")) as archive:
            archive.extractall(tmp_path / "unpacked", filter="data")
        (tree,) = (tmp_path / "unpacked").iterdir()
    with zipfile.ZipFile(build(tree, "wheel")) as wheel:
        names = [name for name in wheel.namelist() if not name.endswith("/")]
        info = f"grouped_conv-{grouped_conv.__version__}.dist-info"
        scripts = configparser.ConfigParser()
        scripts.read_file(io.StringIO(wheel.read(f"{info}/entry_points.txt").decode()))
    assert len(names) == len(set(names))
    assert {name.split("/")[0] for name in names} == {"grouped_conv", info}
    assert {name for name in names if name.startswith("grouped_conv/")} == packaged_files()
    assert f"{info}/licenses/LICENSE" in names
    assert dict(scripts["console_scripts"]) == {"grouped-conv": "grouped_conv.cli.main:main"}


def test_tree_without_links_finds_the_three_folders_only(tree):
    links_become_text(tree)
    (tree / "tests").mkdir()
    (tree / "tests" / "__init__.py").touch()
    out = run_python(
        """
        import importlib, importlib.util, grouped_conv
        for name in ("autotune", "bench", "kernels"):
            print(importlib.import_module(f"grouped_conv.{name}").__file__)
        assert importlib.util.find_spec("grouped_conv.tests") is None
        assert importlib.util.find_spec("grouped_conv.grouped_conv") is None
        """,
        cwd=tree,
    )
    assert out.split() == [str(tree / name / "__init__.py") for name in LINKS]


def test_public_names_have_one_table():
    assert grouped_conv.__all__ == sorted({*grouped_conv._HOMES, *grouped_conv._SUBPACKAGES, "__version__"})


def test_type_checkers_find_every_name_where_it_is():
    """The block for type checkers says what `_HOMES` says."""
    source = ast.parse(Path(grouped_conv.__file__).read_text())
    (block,) = (node for node in source.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert len(imports) == len(block.body)
    found = [(alias.asname or alias.name, node.module) for node in imports for alias in node.names]
    subpackages = dict.fromkeys(grouped_conv._SUBPACKAGES, "grouped_conv")
    assert dict(found) == grouped_conv._HOMES | subpackages
    assert len(found) == len(dict(found))


@pytest.mark.smoke
@pytest.mark.parametrize("name", grouped_conv.__all__)
def test_public_name_loads(name):
    value = getattr(grouped_conv, name)
    assert name in dir(grouped_conv)
    if name in grouped_conv._HOMES:
        assert value is getattr(importlib.import_module(grouped_conv._HOMES[name]), name)
        assert value is getattr(grouped_conv, name), "loading its module hid the name"


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'conv3d'"):
        _ = grouped_conv.conv3d


def test_package_alone_loads_nothing_and_reads_no_environment():
    out = run_python(
        """
        import os
        import importlib.machinery, importlib.abc, pathlib  # the standard library may read what it likes
        class Environment(dict):
            def __getitem__(self, key): print("read", key); return super().__getitem__(key)
            def __contains__(self, key): print("read", key); return super().__contains__(key)
            def get(self, key, default=None): print("read", key); return super().get(key, default)
        os.environ = Environment(os.environ)
        import grouped_conv
        dir(grouped_conv)
        for name in ("torch", "triton", "numpy", "pandas", "rich", "kernels", "autotune", "bench"):
            assert name not in sys.modules, name
        """
    )
    assert out == ""


# Every module but the command itself, one after the other, in one process: who asks for an environment variable, what
# was registered by then, and what is loaded at the end.
IMPORT_EVERYTHING = """
import importlib, os, pkgutil
import torch, triton

class Environment(dict):
    def note(self, key):
        frame = sys._getframe(2)
        while frame.f_code.co_filename == os.__file__ or "<frozen" in frame.f_code.co_filename:
            frame = frame.f_back
        if frame.f_globals.get("__name__", "").partition(".")[0] == "grouped_conv":
            print("read", key, frame.f_code.co_filename, frame.f_lineno)
    def __getitem__(self, key): self.note(key); return super().__getitem__(key)
    def __contains__(self, key): self.note(key); return super().__contains__(key)
    def get(self, key, default=None): self.note(key); return super().get(key, default)

def ops():
    return [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("grouped_conv")]

os.environ = Environment(os.environ)
import grouped_conv, grouped_conv.kernels
assert ops() == [], ops()
modules = [m.name for m in pkgutil.walk_packages(grouped_conv.__path__, "grouped_conv.") if "__main__" not in m.name]
for name in modules:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert error.name in EXTRAS, error
        print(name)
assert {"grouped_conv.kernels", "grouped_conv.autotune", "grouped_conv.bench"} < set(modules)
assert not torch.cuda.is_initialized()
assert triton.runtime.driver._active is None, "a GPU driver was made"
assert any(name == "grouped_conv::conv2d" for name in ops()), ops()
for name in ("kernels", "autotune", "bench"):
    assert name not in sys.modules, name
"""


@pytest.mark.smoke
@pytest.mark.parametrize("installed", [True, False], ids=["as installed", "without extras"])
def test_importing_every_module_touches_no_gpu_and_reads_no_environment(installed):
    """Only the report's pages and pictures need a package of an extra, and they say so only when they are used."""
    absent = () if installed else extras()  # None in sys.modules: Python says that there is no such module
    code = f"EXTRAS = {extras()}\nsys.modules.update(dict.fromkeys({absent}))\n" + IMPORT_EVERYTHING
    out = run_python(code).split()
    assert set(out) <= {"grouped_conv.autotune.report.page", "grouped_conv.autotune.report.plots"}
    assert out or installed
