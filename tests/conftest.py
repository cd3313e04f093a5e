"""Shared fixtures, the tiers of the suite, and what each test costs.

One thread a process, so that figures and order do not depend on the machine. Tiers: ``-m quick`` is the first case of
each test that takes a moment, for every save; everything but ``-m slow`` is what a change needs; ``slow`` has kills,
several processes, compilers and whole workflows, for CI.
"""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import setuptools  # noqa: F401  # before anything imports distutils: PyTorch's compiler wants the one in here
import torch
from filelock import FileLock
from hypothesis import settings
from numba.core import event

sys.path.insert(0, str(Path(__file__).parent))  # flat.py

from pri3d.api.prepare import prepare
from pri3d.api.rooms import rooms
from pri3d.machine import limit_spinning

#: seconds of CPU that a test without the mark ``slow`` may take; unbounded where a folder is run alone, since there the
#: first test pays for the imports
LIMIT = float(os.environ.get("PRI3D_TEST_SECONDS", "inf"))
SHOWN = 10  #: of the most expensive tests, after a run
TIERS = {"slow", "thorough"}  #: kept out of the quick tier
COST = "CPU seconds"

torch.set_num_threads(1)
# Of a megabyte on, memory is given back as soon as it is free: glibc's own bound grows with what is freed, to 32 MB.
with suppress(AttributeError):  # another C library than GNU's
    ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD
limit_spinning()  # of processes that tests start
# Seeded, so that a run repeats; a busy machine is no failure.
settings.register_profile("pri3d", deadline=None, derandomize=True, database=None)
settings.load_profile("pri3d")


def pytest_configure(config: pytest.Config) -> None:
    """All that a run leaves, caches of libraries and of a browser included, lies in one folder: see the next hook."""
    if "PYTEST_XDIST_WORKER" not in os.environ:  # workers have it from the environment
        os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="pri3d-tests-")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remove that folder; where tests failed, what pytest keeps of them stays for a look."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        kept = [] if exitstatus == pytest.ExitCode.OK else ["pytest-of-*"]
        folder = Path(tempfile.gettempdir())
        for entry in [x for x in folder.iterdir() if not any(map(x.match, kept))]:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that call ``tries`` as ``fuzz``, and as ``quick`` the first case of each that has no mark of ours."""
    seen = set()
    for item in items:
        if "tries" in getattr(item, "function", pytest_collection_modifyitems).__code__.co_names:
            item.add_marker("fuzz")
        function = item.nodeid.partition("[")[0]
        marks = {mark.name for mark in item.iter_markers()}
        if function not in seen and "quick" not in marks and marks.isdisjoint(TIERS):
            item.add_marker("quick")
        seen.add(function)


@contextmanager
def measured(item: pytest.Item) -> Generator[None]:
    """Note the CPU seconds of a block, its child processes' included; compiling numba's functions is left out."""
    with event.install_recorder("numba:compile") as compiled:
        before = sum(os.times()[:4])
        try:
            yield
        finally:
            item.user_properties.append((COST, sum(os.times()[:4]) - before - compile_seconds(compiled.buffer)))


def compile_seconds(events: list[tuple[float, event.Event]]) -> float:
    """Seconds between the first start and the last end of each chain of nested compilations."""
    total, depth, began = 0.0, 0, 0.0
    for when, each in events:
        if each.is_start and depth == 0:
            began = when
        depth += 1 if each.is_start else -1
        if depth == 0:
            total += when - began
    return total


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    with measured(item):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    spent = dict(item.user_properties).get(COST, 0.0)
    if call.when == "call" and report.passed and spent > LIMIT and not any(item.iter_markers("slow")):
        report.outcome = "failed"
        report.longrepr = (
            f"{item.nodeid} took {spent:.1f} s of CPU time, more than {LIMIT:g}: make it faster, or mark it "
            "@pytest.mark.slow; on a machine that is slower in everything, set PRI3D_TEST_SECONDS."
        )
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The tests that cost most, by CPU time: it does not depend on what else the machine does."""
    reports = [each for kind in ("passed", "failed") for each in terminalreporter.stats.get(kind, [])]
    costs = sorted(((dict(each.user_properties).get(COST, 0.0), each.nodeid) for each in reports), reverse=True)
    terminalreporter.section(f"most expensive of {len(costs)} tests, {sum(cost for cost, _ in costs):.0f} s of CPU")
    for cost, name in costs[:SHOWN]:
        terminalreporter.line(f"{cost:6.2f} s  {name}")


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """``built_once(name, build)`` is a folder that ``build`` fills once for all processes. Do not write to it."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def folder(name: str, build: Callable[[Path], object]) -> Path:
        with FileLock(root / f"{name}.lock"):
            if not (root / f"{name}.built").exists():
                (root / name).mkdir()
                build(root / name)
                (root / f"{name}.built").touch()
        return root / name

    return folder


@pytest.fixture(scope="session")
def rooms_store(built_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A prepared store of two small rendered rooms with labels, pairs and surface. Do not write to it.

    A pixel of so small an image is centimetres wide, hence the 10 cm.
    """

    def build(folder: Path) -> None:
        rooms(folder / "raw", rooms=2, frames=8, size="64x48", processes=1)
        options = {"size": "64x48", "voxel": 0.08, "distance": 0.1, "min_overlap": 0.2}
        prepare([folder / "raw"], folder / "store", processes=1, **options)

    return built_once("rooms", build) / "store"


@pytest.fixture(scope="module", autouse=True)
def give_memory_back() -> Generator[None]:
    """Return what a module's networks took to the system, where the C library keeps it otherwise."""
    yield
    gc.collect()
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library than GNU's
            ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def real_data() -> Path:
    """Folder of real recordings; a test that wants it is skipped without it."""
    folder = os.environ.get("PRI3D_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("PRI3D_REAL_DATA names no folder of real recordings")
    return Path(folder)
