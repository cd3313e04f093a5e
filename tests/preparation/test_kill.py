"""Twenty SIGKILLs at random moments of `prepare`: the repeated command ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from stores import FLAGS, files

from pri3d.api.prepare import prepare
from pri3d.errors import DataError
from pri3d.store import Store, finished_scenes

KILLS = (1, 2, 3, 4, 4, 6)  # in a row, store by store: 20 in all


@pytest.fixture(scope="module")
def calm(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    """What an undisturbed run leaves, and the seconds that it takes in a process of its own."""
    folder = tmp_path_factory.mktemp("calm")
    prepare([pristine], folder / "first", **FLAGS)  # compiles
    start = time.perf_counter()
    assert run(pristine, folder / "store", None) == 0
    return files(folder / "store"), time.perf_counter() - start


def run(recording: Path, out: Path, after: float | None) -> int | None:
    """Exit code of `prepare` in a process of its own, which is killed ``after`` so many seconds."""
    process = get_context("fork").Process(target=prepare, args=([recording], out), kwargs=FLAGS)
    process.start()
    process.join(after)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode


@pytest.mark.slow
@pytest.mark.parametrize("store", range(len(KILLS)))
def test_killed_at_random_moments(
    pristine: Path, tmp_path: Path, calm: tuple[dict[str, bytes], float], store: int
) -> None:
    wanted, seconds = calm
    rng, out = np.random.default_rng(store), tmp_path / "out"
    kills = 0
    while kills < KILLS[store]:
        code = run(pristine, out, float(rng.uniform(0, seconds)))
        kills += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL)
        for scene in finished_scenes(out):  # whole, whenever it was
            for name, content in files(out / "scenes" / scene).items():
                assert content == wanted[f"scenes/{scene}/{name}"]
        if code == 0:  # it was faster than the moment: what it left is right, and the next store is another
            assert files(out) == wanted
            out = tmp_path / f"out-{kills}"
    with_end = (out / "dataset.json").is_file() and len(finished_scenes(out)) == 2
    if not with_end:
        with pytest.raises(DataError):
            Store(out)
    assert run(pristine, out, None) == 0
    assert files(out) == wanted
    assert not list(tmp_path.glob("**/.*"))
