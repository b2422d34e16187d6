"""What every test shares: the lanes' tools on the path, one thread per worker, reproducible hypothesis runs."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # before numpy loads: the workers share the cores
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from checkout import ROOT, TOOLS

IN_CI = bool(os.environ.get("CI"))

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if IN_CI else "local")

for lane in ("ptxemu", "cpu_native"):
    if (TOOLS / lane).is_dir():
        sys.path.append(str(TOOLS / lane))


SAMPLE = 3
"""Cases of one test function in the quick sample, evenly spread over its table."""


def pytest_configure(config: pytest.Config) -> None:
    """Naming a file or a test runs all of it: the sample is for runs that name none."""
    named = config.args_source is pytest.Config.ArgsSource.ARGS and not hasattr(config, "workerinput")
    if named and config.option.markexpr == "not full and not sweep":
        config.option.markexpr = "not sweep"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `full` the cases that the quick sample leaves out; every test function keeps its share of `SAMPLE`."""
    functions: dict[str, list[pytest.Item]] = {}
    for item in items:
        if not any(item.get_closest_marker(name) for name in ("full", "sweep")):
            functions.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for cases in functions.values():
        kept = {index * len(cases) // SAMPLE for index in range(SAMPLE)} if len(cases) > SAMPLE else range(len(cases))
        for index, item in enumerate(cases):
            if index not in kept:
                item.add_marker(pytest.mark.full)


def _native_home() -> Path:
    return Path(os.environ.get("CPU_NATIVE_HOME") or Path.home() / ".cache" / "cpu_native")


def _missing(lane: str) -> str | None:
    """Why the tests of a lane cannot run here; None when they can."""
    folder = TOOLS / {"native": "cpu_native"}.get(lane, lane)
    if not folder.is_dir():
        return f"needs {os.path.relpath(folder, ROOT)} beside the checkout"
    if lane == "native":
        ready = importlib.util.find_spec("pyopencl") and (_native_home() / "server" / "bin" / "python").exists()
        return None if ready else f"needs the native lane: run {os.path.relpath(folder, ROOT)}/setup.sh"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    for lane in ("ptxemu", "native"):
        if item.get_closest_marker(lane) is None:
            continue
        reason = _missing(lane)
        if reason is None:
            continue
        if IN_CI and TOOLS.is_dir():  # where the tools are, a lane that is not ready is a fault, not an excuse
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tuning store of this test, which commands find as well."""
    from grouped_conv.autotune.store.store import Store

    monkeypatch.setenv("GROUPED_CONV_STORE", str(tmp_path / "tuning.sqlite3"))
    return Store()


@pytest.fixture
def no_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look-ups as if the package shipped no presets, so that the store alone decides."""
    from grouped_conv.autotune.lookup import sources

    monkeypatch.setattr(sources, "shipped", lambda device_key: ())


@pytest.fixture
def no_plans() -> Iterator[None]:
    """No plan of another test is found, and none is left behind."""
    from grouped_conv.planning import plan_cache

    plan_cache.forget_plans()
    yield
    plan_cache.forget_plans()


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    """torch.compile knows nothing of what another test compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Compilation replaced by invented figures; every configuration that was compiled."""
    from fake_compiler import compiling_all

    return compiling_all(monkeypatch)


@pytest.fixture
def native() -> Iterator[ModuleType]:
    """The native lane's driver is Triton's active one inside the test; the process has no device before and after."""
    import triton

    from grouped_conv.planning import executors, plan_cache

    backends, driver = triton.backends.backends, triton.runtime.driver
    active = driver._active
    lane = importlib.import_module("cpu_native")
    backends["cpu_native"] = triton.backends.Backend(compiler=lane.Backend, driver=lane.Driver)
    driver.set_active(lane.driver)
    yield lane
    plan_cache.forget_plans()
    executors.abandon_kernels()  # unloaded while their driver is the active one
    driver._active = active
    del backends["cpu_native"]
