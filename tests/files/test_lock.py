"""One writer at a time, with real processes: who holds, who waits in vain, and what a kill leaves behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pri3d.errors import ConfigError
from pri3d.files import lock
from pri3d.files.atomic import host_name
from pri3d.files.lock import LOCK, clear_lock, lock_file, lock_folder

HOLD = """
import sys, time
from pathlib import Path
from pri3d.files.lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""
#: takes the lock ten times, unless it is killed inside; a file that two processes would make at once shows any mistake
CONTEND = """
import os, random, signal, sys, time
from pathlib import Path
from pri3d.errors import ConfigError
from pri3d.files.lock import lock_folder
folder, chance, taken = Path(sys.argv[1]), random.Random(int(sys.argv[2])), 0
inside = folder.with_name("inside")
while taken < 10:
    try:
        with lock_folder(folder):
            number = os.open(inside, os.O_CREAT | os.O_EXCL)
            os.close(number)
            time.sleep(0.001)
            inside.unlink()
            taken += 1
            if chance.random() < 0.2:
                os.kill(os.getpid(), signal.SIGKILL)
    except ConfigError:
        time.sleep(0.001)
print(taken)
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder's lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder, "60"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def held_by(folder: Path, **other: object) -> Path:
    """Write a lock that states something else than this process's own."""
    with lock_folder(folder):
        stated = json.loads((folder / LOCK).read_text())
    path = folder / LOCK
    path.write_text(json.dumps({**stated, **other}))
    return path


def test_the_second_of_two_processes_is_refused_and_told_who_holds(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with holder(out) as process:
        wanted = (
            rf"^{out}: process {process.pid} on {host_name()} has been writing there since 20.*Wait for it, or stop"
        )
        with pytest.raises(ConfigError, match=wanted), lock_folder(out):
            pytest.fail("both hold it")
        assert json.loads((out / LOCK).read_text())["pid"] == process.pid  # still theirs
        process.kill()
        process.wait()
        with lock_folder(out):  # killed: taken over
            assert json.loads((out / LOCK).read_text())["pid"] == os.getpid()
    assert list(out.iterdir()) == []


def test_a_lock_that_is_left_is_cleared_and_one_that_is_held_is_not(tmp_path: Path) -> None:
    clear_lock(tmp_path)
    held_by(tmp_path, began="1", pid=2**22 + 1)
    clear_lock(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with lock_folder(tmp_path):
        clear_lock(tmp_path)
        assert (tmp_path / LOCK).exists()


def test_it_is_let_go_after_an_error_and_taken_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock_folder(tmp_path / "out"):
        raise ZeroDivisionError
    with lock_folder(tmp_path / "out"), pytest.raises(ConfigError), lock_folder(tmp_path / "out"):
        pytest.fail("twice in one process")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_has_a_lock_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "folder" / "out.npz"
    with lock_file(out):
        assert [path.name for path in out.parent.iterdir()] == [f".out.npz{LOCK}"]
        with lock_file(out.with_name("other.npz")):
            pass
        with pytest.raises(ConfigError, match="has been writing there"), lock_file(out):
            pytest.fail("both hold it")
    assert list(out.parent.iterdir()) == []


def test_a_number_that_another_process_has_by_now_is_no_holder(tmp_path: Path) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("the system does not say when a process began")
    held_by(tmp_path, began="1", token="old")
    with lock_folder(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["token"] != "old"


def test_another_host_cannot_be_asked(tmp_path: Path) -> None:
    path = held_by(tmp_path, host="elsewhere", pid=2**22 + 1, job="77")
    wanted = rf"on elsewhere, Slurm job 77 .*no longer runs it, delete {path}"
    with pytest.raises(ConfigError, match=wanted), lock_folder(tmp_path):
        pytest.fail("it may live")
    path.unlink()
    with lock_folder(tmp_path):
        pass


@pytest.mark.parametrize(("job", "restarts", "free"), [("77", "1", True), ("77", "0", False), ("78", "1", False)])
def test_a_requeued_job_takes_over_from_its_earlier_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, restarts: str, free: bool
) -> None:
    held_by(tmp_path, host="elsewhere", job="77", restarts="0", token="old")
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
    if not free:
        with pytest.raises(ConfigError, match="elsewhere"), lock_folder(tmp_path):
            pytest.fail("another job's")
        return
    with lock_folder(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["restarts"] == "1"


def test_a_take_over_that_was_killed_itself_is_taken_over(tmp_path: Path) -> None:
    path = held_by(tmp_path, pid=2**22 + 1, token="dead")
    claim = json.dumps({**json.loads(path.read_text()), "token": "dead too"})
    path.with_name(f"{path.name}.dead").write_text(claim)
    with lock_folder(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_says_nothing_goes_once_nobody_can_be_writing_it(tmp_path: Path) -> None:
    path = tmp_path / LOCK
    path.touch()
    with pytest.raises(ConfigError, match=f"delete {path}"), lock_folder(tmp_path):
        pytest.fail("it may be written just now")
    os.utime(path, (1e9, 1e9))
    with lock_folder(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(lock.os, "link", refuse)
    with lock_folder(tmp_path), pytest.raises(ConfigError, match="has been writing"), lock_folder(tmp_path):
        pytest.fail("both hold it")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written"), lock_folder(tmp_path):
        pytest.fail("not writable")


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(ConfigError, match="cannot be written"), lock_folder(tmp_path / "out"):
        pytest.fail("no folder")


@pytest.mark.thorough
def test_processes_that_are_killed_while_they_hold_it_never_meet(tmp_path: Path) -> None:
    """Of four that contend at a time, some are killed inside; none of the others ever finds another one inside."""
    out, inside = tmp_path / "out", tmp_path / "inside"
    command = [sys.executable, "-c", CONTEND, str(out)]
    waiting = [[*command, str(seed)] for seed in range(10)]
    running: list[subprocess.Popen[str]] = []
    killed = 0
    while waiting or running:
        while waiting and len(running) < 4:
            words = waiting.pop()
            running.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        # Whichever ends first: a killed one that nobody has waited for still counts as living, and holds the lock.
        ended = next((process for process in running if process.poll() is not None), None)
        if ended is None:
            time.sleep(0.01)
            continue
        running.remove(ended)
        said, errors = ended.communicate()
        assert ended.returncode in (0, -signal.SIGKILL), errors
        assert ended.returncode or said == "10\n"
        killed += ended.returncode < 0
    assert 0 < killed < 10 and not inside.exists()
    with lock_folder(out):
        pass
