"""Scenes on a cluster: real schedulers, real workers, ones that are killed, and Slurm's commands by stand-ins."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import dask
import distributed
import numpy as np
import pytest
from PIL import Image
from stores import FLAGS, files

from pri3d.api.prepare import prepare
from pri3d.cli import main
from pri3d.errors import ConfigError, DataError
from pri3d.files.atomic import write_atomic
from pri3d.preparation import executors as executors_module
from pri3d.preparation.executors import attempt, check_cluster
from pri3d.preparation.pipeline import SceneJob
from pri3d.store import MANIFEST, Store

ON_CLUSTER = {**FLAGS, "processes": 0}
#: a worker with this is lost, or loses something, at the fourth frame it writes
PRELOAD = """
import itertools, os, signal
from pri3d.store import SceneWriter
add, count = SceneWriter.add, itertools.count()
def deadly(*args):
    if next(count) == 3:
        os.kill(int(os.environ.get("VICTIM", os.getpid())), signal.SIGKILL)
    add(*args)
SceneWriter.add = deadly
"""


@contextmanager
def program(*words: str | Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """One of dask's programs, ended with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def scheduler(folder: Path) -> Iterator[tuple[str, int]]:
    """Address and process id of a scheduler on the loopback device."""
    file = folder / "scheduler.json"
    file.unlink(missing_ok=True)
    loopback = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard")
    with program("scheduler", *loopback, "--scheduler-file", file) as process:
        wait_for(lambda: file.is_file() and file.read_text().endswith("}"))
        yield json.loads(file.read_text())["address"], process.pid


def wait_for(happened: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with scheduler(tmp_path_factory.mktemp("scheduler")) as (place, _):
        yield place


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a worker, a deadly one where ``preload`` is true, and wait until the scheduler has it."""
    with ExitStack() as stack:

        def worker(place: str, preload: bool = False, **environment: str) -> subprocess.Popen[bytes]:
            with distributed.Client(place, set_as_default=False) as client:
                before = len(client.scheduler_info(n_workers=-1)["workers"])
                words: list[str | Path] = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"]
                if preload:
                    write_atomic(tmp_path / "preload.py", PRELOAD.encode())
                    words += ["--preload", tmp_path / "preload.py"]
                words += ["--local-directory", tmp_path / "scratch"]
                process = stack.enter_context(program("worker", place, *words, **environment))
                client.wait_for_workers(before + 1, timeout=60)
                Thread(target=process.wait).start()  # else a killed one stays a zombie, which counts as alive
                return process

        yield worker


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(
    recording: Path, out: Path, tmp_path: Path, address: str, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """SIGKILL in the middle of a scene: another worker makes it, and the store has the bytes of a local run."""
    doomed, _ = start(address, preload=True), start(address)
    prepare([recording], out, **ON_CLUSTER, cluster=f"dask:{address}")
    assert doomed.wait(10) == -signal.SIGKILL
    prepare([recording], tmp_path / "here", **FLAGS)
    assert files(out) == files(tmp_path / "here")  # no hidden folder of the dead one either
    assert len(Store(out).scenes) == 2


@pytest.mark.slow
def test_a_failing_scene_is_listed_and_the_others_go_on(
    recording: Path, out: Path, address: str, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    for image in (recording / "room-0000" / "depth").iterdir():
        Image.fromarray(np.zeros((60, 80), np.uint16)).save(image)
    start(address)
    with pytest.raises(DataError, match=r"1 of 2 scenes failed[^$]*room-0000: none of 6 frames is usable"):
        prepare([recording], out, **ON_CLUSTER, cluster=f"dask:{address}")
    assert Store(out).scenes == ["room-0001"]
    assert "none of 6" in Store(out).manifest["failed"]["room-0000"]


@pytest.mark.slow
def test_a_lost_scheduler_says_that_finished_scenes_stay(
    recording: Path, out: Path, tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    with scheduler(tmp_path) as (place, pid):
        start(place, preload=True, VICTIM=str(pid))
        begin = time.monotonic()
        with pytest.raises(DataError, match=r"lost the connection to the scheduler\. Finished scenes are kept"):
            prepare([recording], out, **ON_CLUSTER, cluster=f"dask:{place}")
        assert time.monotonic() - begin < 60
    prepare([recording], out, **FLAGS)
    assert len(Store(out).scenes) == 2


@pytest.mark.slow
def test_an_interruption_cancels_what_waits(
    recording: Path, out: Path, address: str, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    start(address)
    flags = [f"--{name}={value}" for name, value in FLAGS.items() if name != "processes"]
    words = [sys.executable, "-m", "pri3d", "prepare", recording, out, *flags, f"--cluster=dask:{address}"]
    # What a shell starts in the background ignores interruptions, and so would what it starts.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(list(map(str, words)), stderr=subprocess.PIPE, preexec_fn=heed)  # noqa: PLW1509
    wait_for(lambda: list(out.glob("scenes/.room*")))
    process.send_signal(signal.SIGINT)
    assert b"the same command continues" in process.communicate(timeout=60)[1]
    assert process.returncode == 130
    with distributed.Client(address, set_as_default=False) as client:
        wait_for(lambda: not any(client.processing().values()))
    prepare([recording], out, **ON_CLUSTER, cluster=f"dask:{address}")  # the worker may still be at the first scene
    assert len(Store(out).scenes) == 2
    assert Store(out).manifest["failed"] == {}


@pytest.mark.slow
def test_slurm_jobs_are_submitted_and_cancelled(
    recording: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)
    """Stand-ins for sbatch and scancel, which keep the script and really start and end what it says."""
    programs = {
        "sbatch": '[ "$1" = --test-only ] && exit; f="$KEPT/script.$$"; cp "$1" "$f"; '
        'setsid bash "$f" >/dev/null 2>&1 & echo "Submitted batch job $!"',
        "scancel": 'for job in "$@"; do echo "$job" >> "$KEPT/cancelled"; kill -- "-$job"; done',
    }
    slurm_on_path(programs, tmp_path, monkeypatch)
    options = {"cores": 1, "memory": "2GB", "interface": "lo", "walltime": "00:10:00", "queue": "short"}
    with configured(**options, **{"local-directory": str(tmp_path), "log-directory": None}):
        prepare([recording], out, **{**FLAGS, "processes": 2}, cluster="slurm")
    assert len(Store(out).scenes) == 2
    scripts = [path.read_text() for path in tmp_path.glob("script.*")]
    assert len(scripts) == 2
    for script in scripts:
        assert "#SBATCH -p short" in script
        assert f"{sys.executable} -m distributed.cli.dask_worker tcp://127.0.0.1:" in script
    assert len((tmp_path / "cancelled").read_text().split()) == 2
    assert signal.getsignal(signal.SIGINT) is before


def test_slurm_that_refuses_the_job_is_told(
    recording: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm_on_path({"sbatch": "echo Invalid account >&2; exit 1"}, tmp_path, monkeypatch)
    with (
        configured(cores=1, memory="2GB", interface="lo"),
        pytest.raises(ConfigError, match=r"sbatch refuses the job: Invalid account .*jobqueue\.yaml"),
    ):
        prepare([recording], out, **{**FLAGS, "processes": 1}, cluster="slurm")
    with (
        configured(cores=None),
        pytest.raises(ConfigError, match=r"cores.*jobqueue\.yaml"),
    ):
        prepare([recording], out, **{**FLAGS, "processes": 1}, cluster="slurm")


def slurm_on_path(programs: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "bin").mkdir()
    for name, text in programs.items():
        path = folder / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("KEPT", str(folder))


@contextmanager
def configured(**options: Any) -> Iterator[None]:
    """What a user's jobqueue.yaml says."""
    check_cluster("slurm", 1)  # brings its defaults
    with dask.config.set({f"jobqueue.slurm.{name}": value for name, value in options.items()}):
        yield


def write_record(out: Path) -> None:
    numbers = ("source_frames", "frames", "rejected", "pairs", "voxels", "bytes", "seconds")
    record = {"source": "", "hash": "", **dict.fromkeys(numbers, 1)}
    write_atomic(out / "scenes" / "room" / "scene.json", json.dumps(record).encode())


def test_an_attempt_leaves_a_finished_scene_alone(out: Path) -> None:
    job = SceneJob(out / "absent", None, None, "room", out, None)  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        attempt(job)
    write_record(out)
    attempt(job)


@pytest.mark.parametrize("finished", [True, False])
def test_an_attempt_may_be_overtaken(finished: bool, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one that was cancelled or taken for dead, and went on until it was done."""

    def late(job: SceneJob) -> None:
        if finished:
            write_record(out)
        raise DataError("was created by another process")

    monkeypatch.setattr(executors_module, "prepare_scene", late)
    with nullcontext() if finished else pytest.raises(DataError, match="was created"):
        attempt(SceneJob(out, None, None, "room", out, None))  # type: ignore[arg-type]


def test_workers_have_to_see_the_store(tmp_path: Path) -> None:
    assert executors_module._blind(tmp_path) == socket.gethostname()
    write_atomic(tmp_path / MANIFEST, b"{}")
    assert not executors_module._blind(tmp_path)


@pytest.mark.parametrize(
    ("cluster", "workers", "message"),
    [
        ("sge", 0, "choose slurm, or dask:"),
        ("dask:", 0, "choose slurm, or dask:"),
        ("slurm", 0, "number of jobs with --processes"),
        ("slurm", 3, "sbatch was not found"),
        ("dask:tcp://127.0.0.1:1", 2, "Leave out --processes"),
    ],
)
def test_wrong_flags(cluster: str, workers: int, message: str, recording: Path, out: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare([recording], out, **{**FLAGS, "processes": workers}, cluster=cluster)
    assert not out.exists()


def test_no_scheduler_there(recording: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors_module, "_CONNECT", 1)
    with pytest.raises(ConfigError, match=r"no scheduler answers .*Is it running\?"):
        prepare([recording], out, **ON_CLUSTER, cluster="dask:tcp://127.0.0.1:1")


@pytest.mark.parametrize("missing", ["distributed", "dask_jobqueue"])
def test_without_dask(missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError, match=r'needs dask: pip install "pri3d\[cluster\]"'):
        check_cluster("slurm", 2)
    if missing == "distributed":
        assert main(["prepare", "absent", "out", "--cluster", "dask:tcp://127.0.0.1:1"]) == 1
        assert 'pip install "pri3d[cluster]"' in capsys.readouterr().err
