"""Who started the processes, what asks them to stop, and how a Slurm job comes back."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from processes import finish, start, wait_until
from small import run_small, same, stop_after

from pri3d.data.loading import outlive_stopping
from pri3d.errors import ConfigError, Pri3DError
from pri3d.networks.state_files import read_state
from pri3d.runs import read_metrics
from pri3d.training.launch import STOPPING, Launch, find_launch, on_stop, requeue

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has none of these signals")

STARTERS = ("TORCHELASTIC", "SLURM", "RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "NODE_RANK")


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment in which nobody has started anything."""
    for name in [name for name in os.environ if name.startswith(STARTERS)]:
        monkeypatch.delenv(name)
    return monkeypatch


def put(env: pytest.MonkeyPatch, **values: object) -> None:
    for name, value in values.items():
        env.setenv(name, str(value))


def torchrun(env: pytest.MonkeyPatch, rank: int, local: int, world: int) -> None:
    put(env, TORCHELASTIC_RUN_ID="none", RANK=rank, LOCAL_WORLD_SIZE=local, WORLD_SIZE=world, LOCAL_RANK=rank % local)


def srun(env: pytest.MonkeyPatch, rank: int, tasks: int, nodes: int) -> None:
    put(env, SLURM_JOB_ID=71, SLURM_NTASKS=tasks, SLURM_NTASKS_PER_NODE=tasks // nodes, SLURM_NNODES=nodes)
    put(env, SLURM_STEP_ID=0, SLURM_STEP_NUM_TASKS=tasks, SLURM_STEP_NUM_NODES=nodes, SLURM_PROCID=rank)


def test_a_process_that_nobody_started_is_alone(env: pytest.MonkeyPatch) -> None:
    assert find_launch() == Launch(0, 1, 1, "Lightning")
    assert find_launch(4, 2).world == 8


@pytest.mark.parametrize(("node", "local"), [(0, 0), (0, 3), (2, 1)])
def test_lightning_numbers_the_processes_it_starts(env: pytest.MonkeyPatch, node: int, local: int) -> None:
    put(env, NODE_RANK=node, LOCAL_RANK=local)
    assert find_launch(4, 3) == Launch(4 * node + local, 4, 3, "Lightning")


@pytest.mark.parametrize(("rank", "local", "world"), [(0, 1, 1), (1, 2, 2), (5, 4, 8)])
def test_torchrun_says_how_many(env: pytest.MonkeyPatch, rank: int, local: int, world: int) -> None:
    torchrun(env, rank, local, world)
    assert find_launch() == Launch(rank, local, world // local, "torchrun")
    assert find_launch().world == world


@pytest.mark.parametrize(("rank", "tasks", "nodes"), [(0, 2, 1), (3, 4, 1), (9, 16, 4)])
def test_srun_says_how_many(env: pytest.MonkeyPatch, rank: int, tasks: int, nodes: int) -> None:
    srun(env, rank, tasks, nodes)
    assert find_launch() == Launch(rank, tasks // nodes, nodes, "srun")


def test_torchrun_within_srun_wins(env: pytest.MonkeyPatch) -> None:
    """One task a node, in each of which torchrun starts four processes."""
    srun(env, 1, 2, 2)
    torchrun(env, 6, 4, 8)
    assert find_launch() == Launch(6, 4, 2, "torchrun")


def test_a_batch_script_without_srun_is_one_process(env: pytest.MonkeyPatch) -> None:
    """A job of four tasks whose script calls pri3d itself: only one was started, which must not wait for three."""
    put(env, SLURM_JOB_ID=71, SLURM_NTASKS=4, SLURM_NTASKS_PER_NODE=4, SLURM_NNODES=1, SLURM_PROCID=0)
    assert find_launch() == Launch(0, 1, 1, "Lightning")
    assert find_launch(4).devices == 4


def test_numbers_that_contradict_the_starter_are_refused(env: pytest.MonkeyPatch) -> None:
    torchrun(env, 5, 4, 8)
    assert find_launch(4, 2).world == 8
    with pytest.raises(ConfigError, match="--devices 2 --nodes 1: torchrun started 4 processes on each of 2 nodes"):
        find_launch(2)
    srun(env, 0, 2, 1)
    env.delenv("TORCHELASTIC_RUN_ID")
    with pytest.raises(ConfigError, match=r"srun started 2 processes on each of 1 nodes\. Leave both flags out"):
        find_launch(2, 2)


def test_a_slurm_job_must_say_how_many_tasks_a_node(env: pytest.MonkeyPatch) -> None:
    srun(env, 0, 2, 1)
    env.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(ConfigError, match="--ntasks-per-node"):
        find_launch()


@pytest.mark.parametrize(("devices", "nodes"), [(0, 1), (1, 0), (-2, 1)])
def test_no_process_is_refused(env: pytest.MonkeyPatch, devices: int, nodes: int) -> None:
    with pytest.raises(ConfigError, match="at least 1 of each"):
        find_launch(devices, nodes)


@pytest.fixture
def heeded() -> Iterator[None]:
    """SIGHUP as a terminal's programs have it: under nohup the tests themselves ignore it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize("name", STOPPING)
def test_the_first_signal_is_told_once_and_handlers_come_back(name: str) -> None:
    before = [signal.getsignal(getattr(signal, stopping)) for stopping in STOPPING]
    heard: list[str] = []
    with on_stop(heard.append):
        signal.raise_signal(getattr(signal, name))
        assert heard == [name]
        signal.raise_signal(signal.SIGTERM)
        assert heard == [name]
    assert [signal.getsignal(getattr(signal, stopping)) for stopping in STOPPING] == before


def test_a_second_ctrl_c_stops_at_once() -> None:
    heard: list[str] = []
    with pytest.raises(KeyboardInterrupt), on_stop(heard.append):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second had no effect")
    assert heard == ["SIGINT"]


@pytest.mark.usefixtures("heeded")
def test_under_nohup_a_closed_terminal_stops_nothing() -> None:
    heard: list[str] = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with on_stop(heard.append):
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
    assert heard == ["SIGTERM"]
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_outside_the_main_thread_signals_stay_with_their_owner() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def work() -> None:
        with on_stop(print):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def loader(ready: threading.Event) -> None:
    """A loader process: it survives the signals of its group, and ends itself some time after SIGTERM."""
    outlive_stopping(0)
    ready.set()
    while signal.getitimer(signal.ITIMER_REAL)[0] == 0:
        pass
    left = signal.getitimer(signal.ITIMER_REAL)[0]
    signal.alarm(0)
    os._exit(7 if 20 < left <= 30 else 8)


def test_a_loader_process_outlives_what_stops_its_group() -> None:
    context = get_context("fork")
    ready = context.Event()
    process = context.Process(target=loader, args=(ready,))
    process.start()
    assert ready.wait(30)
    for name in ("SIGINT", "SIGUSR1", "SIGHUP", "SIGTERM"):
        os.kill(process.pid or 0, getattr(signal, name))
    process.join(30)
    assert process.exitcode == 7


def complain() -> None:
    """A loader process whose threads end with errors."""
    said: list[type[BaseException]] = []
    sys.excepthook = lambda kind, *_: said.append(kind)
    outlive_stopping(0)
    for kind in (ConnectionResetError, ValueError, BrokenPipeError):
        sys.excepthook(kind, kind(), None)
    os._exit(7 if said == [ValueError] else 8)


def test_a_loader_process_says_nothing_of_a_lost_connection() -> None:
    """Whoever wanted its data has ended, and that is said there."""
    process = get_context("fork").Process(target=complain)
    process.start()
    process.join(30)
    assert process.exitcode == 7


@pytest.mark.usefixtures("heeded")
def test_sighup_at_the_first_batch_costs_nothing(
    rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"steps": 2, "workers": 2}
    stop_after(1, rooms_store, tmp_path / "run", monkeypatch, by=signal.SIGHUP, **options)
    run_small(rooms_store, tmp_path / "run", resume=True, **options)
    whole = run_small(rooms_store, tmp_path / "whole", **options)
    assert same(tmp_path / "run" / "weights.safetensors", whole / "weights.safetensors")


@pytest.mark.slow
def test_sighup_stops_a_run_after_its_step(rooms_store: Path, tmp_path: Path) -> None:
    """A real process whose loaders read ahead, from its first batch on; nothing but the reason is said."""
    run = tmp_path / "run"
    process = start(rooms_store, run, workers=2, steps=2000, objectives={"view": 1})
    wait_until(lambda: (run / "metrics.csv").exists() and len(read_metrics(run / "metrics.csv")) > 0, process)
    process.send_signal(signal.SIGHUP)
    output = finish(process, code=9)
    done = torch.load(run / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < done < 2000
    assert f"SIGHUP: stopped at step {done}." in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_terminal_that_is_closed_stops_a_run_after_its_step(rooms_store: Path, tmp_path: Path) -> None:
    """Nothing can be said there any more; the checkpoint is written all the same."""
    run = tmp_path / "run"
    screen, inside = os.openpty()
    words = [str(Path(__file__).with_name("on_terminal.py")), str(rooms_store), str(run)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *words], env=environment, stdin=inside, stdout=inside, stderr=inside, start_new_session=True
    )
    os.close(inside)
    os.set_blocking(screen, False)
    end = time.monotonic() + 600
    while not ((run / "metrics.csv").exists() and read_metrics(run / "metrics.csv")):
        assert process.poll() is None and time.monotonic() < end
        with suppress(BlockingIOError):
            os.read(screen, 10_000)  # a terminal that nobody reads fills up
        time.sleep(0.02)
    os.close(screen)
    assert process.wait(600) == 9
    assert 0 < torch.load(run / "last.ckpt", weights_only=True)["global_step"] < 2000


def slurm(folder: Path, code: int = 0) -> Path:
    """A stand-in for Slurm's ``scontrol`` that notes what it is asked; returns the notes."""
    folder.mkdir(exist_ok=True)
    command = folder / "scontrol"
    command.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\necho "not permitted" >&2\nexit {code}\n')
    command.chmod(0o755)
    return folder / "asked"


@pytest.mark.parametrize(
    ("job", "number"),
    [({"SLURM_JOB_ID": 71}, "71"), ({"SLURM_JOB_ID": 75, "SLURM_ARRAY_JOB_ID": 71, "SLURM_ARRAY_TASK_ID": 4}, "71_4")],
)
def test_a_job_is_queued_again(env: pytest.MonkeyPatch, tmp_path: Path, job: dict[str, int], number: str) -> None:
    asked = slurm(tmp_path)
    put(env, PATH=f"{tmp_path}:{os.environ['PATH']}", **job)
    assert requeue() == number
    assert asked.read_text() == f"requeue {number}\n"


def test_slurms_refusal_is_told(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slurm(tmp_path, code=1)
    put(env, PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_ID=71)
    with pytest.raises(Pri3DError, match=re.escape("scontrol requeue 71 failed (not permitted). Submit the job again")):
        requeue()


def test_outside_slurm_nothing_is_queued(env: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = slurm(tmp_path)
    put(env, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert requeue() is None
    put(env, SLURM_JOB_ID=71, PATH=tmp_path / "empty")
    assert requeue() is None
    assert not asked.exists()


@pytest.mark.slow
def test_slurms_warning_saves_the_run_and_brings_the_job_back(rooms_store: Path, tmp_path: Path) -> None:
    """SIGUSR1 in the middle: the step is finished, the job queued again, and its second start ends as one alone."""
    asked = slurm(tmp_path / "bin")
    job = {"PATH": f"{asked.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "71"}
    options = {"steps": 12, "workers": 1, "resume": True, "objectives": {"view": 1}, "encoder": "test_resnet"}
    run, alone = tmp_path / "run", tmp_path / "alone"
    process = start(rooms_store, run, env=job, **options, save_every=100)
    wait_until(lambda: (run / "metrics.csv").exists() and len(read_metrics(run / "metrics.csv")) >= 2, process)
    process.send_signal(signal.SIGUSR1)
    output = finish(process, code=9)
    done = torch.load(run / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < done < 12
    assert f"stopped at step {done}. Slurm job 71 is queued again; give its command --resume" in output
    assert asked.read_text() == "requeue 71\n"
    finish(start(rooms_store, run, env=job, **options, save_every=100))
    finish(start(rooms_store, alone, **options))
    first, second = (read_state(path / "weights.safetensors") for path in (run, alone))
    assert all(torch.equal(first[key], second[key]) for key in second)
    curves = [[row["loss"] for row in read_metrics(path / "metrics.csv")] for path in (run, alone)]
    assert curves[0] == curves[1]
    assert len(curves[0]) == 12
