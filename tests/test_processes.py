"""Items in real processes: what is said of one that fails or is killed, and that nobody outlives the parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from pri3d.processes import KilledError, Outcome, process_pool, run_apart, run_in_processes, run_on

#: a command with two processes, each of which writes its number and sleeps
PARENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background has it ignored
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_processes import note_and_sleep
from pri3d.processes import run_in_processes
if __name__ == "__main__":
    for outcome in run_in_processes(note_and_sleep, [Path({folder!r}) / "a", Path({folder!r}) / "b"], 2):
        pass
"""


def square_or_fail(number: int) -> int:
    """Task: a fault for 3, a kill for 4."""
    if number == 3:
        raise ValueError("three")
    if number == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def note_and_sleep(path: Path) -> None:
    """Task that says where it runs and takes long."""
    path.with_suffix(".part").write_text(str(os.getpid()))
    path.with_suffix(".part").rename(path)
    time.sleep(120)


def threads(_: object) -> tuple[int, int]:
    """Task: PyTorch's threads, and the process."""
    import torch  # noqa: PLC0415 (every process of these tests would load it)

    return torch.get_num_threads(), os.getpid()


def wait_for(paths: Sequence[Path]) -> list[int]:
    """Numbers of the processes that note them."""
    end = time.monotonic() + 600
    while not all(path.exists() for path in paths):
        assert time.monotonic() < end, "no process has begun"
        time.sleep(0.05)
    return [int(path.read_text()) for path in paths]


def is_gone(pid: int) -> bool:
    """Whether the process ends within some seconds."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return True
        if state == "Z":  # ended, and nobody has asked how
            return True
        time.sleep(0.1)
    return False


@pytest.mark.thorough
def test_items_that_fail_are_named_and_the_others_go_on() -> None:
    found = {outcome.item: outcome for outcome in run_in_processes(square_or_fail, [1, 2, 3, 5, 6], 2)}
    assert {item: outcome.result() for item, outcome in found.items() if item != 3} == {1: 1, 2: 4, 5: 25, 6: 36}
    assert isinstance(found[3].error, ValueError) and found[1].error is None
    with pytest.raises(ValueError, match="three"):
        _ = found[3].result()


@pytest.mark.thorough
def test_a_kill_is_said_to_be_one() -> None:
    errors = [outcome.error for outcome in run_in_processes(square_or_fail, [4], 1)]
    assert isinstance(errors[0], KilledError) and "memory" in str(errors[0])


@pytest.mark.slow
def test_apart_a_kill_takes_no_other_along_and_items_wait_for_each_other() -> None:
    done: list[int] = []
    waiting = [4, 1, 2, 5]

    def ready(count: int) -> list[int]:
        free = [item for item in waiting if item != 5 or 2 in done][:count]
        for item in free:
            waiting.remove(item)
        return free

    found = {}
    for outcome in run_apart(square_or_fail, ready, 2, 1):
        done.append(outcome.item)
        found[outcome.item] = outcome.error or outcome.result()
    assert isinstance(found.pop(4), KilledError)
    assert found == {1: 1, 2: 4, 5: 25} and done.index(5) > done.index(2)


@pytest.mark.slow
def test_threads_and_processes_of_items() -> None:
    items = [1, 2]
    outcomes = run_apart(threads, lambda _: [items.pop()] if items else [], 1, 3)
    found = [outcome.result() for outcome in outcomes]
    assert [count for count, _ in found] == [3, 3]
    assert len({pid for _, pid in found} | {os.getpid()}) == 3


def test_items_are_handed_over_a_few_at_a_time() -> None:
    asked: list[int] = []

    def items() -> object:
        for number in range(100):
            asked.append(number)
            yield number

    with ThreadPoolExecutor(1) as pool, closing(run_on(pool, abs, items(), most=4)) as outcomes:  # type: ignore[arg-type, type-var]
        assert next(outcomes).item == 0
        assert len(asked) == 4
        assert next(outcomes).item == 1
        assert len(asked) == 5


def test_a_cancelled_item_is_an_error() -> None:
    future: Future[int] = Future()
    future.cancel()
    assert isinstance(Outcome(1, future).error, CancelledError)


@pytest.mark.thorough
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux whether a process lives")
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_its_parent(tmp_path: Path, kind: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    parent = subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE)
    children = wait_for([tmp_path / "a", tmp_path / "b"])
    parent.send_signal(kind)  # to the parent alone, unlike CTRL-C of a terminal
    assert all(is_gone(pid) for pid in children)
    parent.communicate(timeout=30)
    assert parent.returncode in (-kind, 1, 130)


@pytest.mark.thorough
def test_an_error_ends_what_runs_and_drops_what_waits(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b")]
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError), process_pool(1) as pool:
        futures = [pool.submit(note_and_sleep, path) for path in paths]
        (pid,) = wait_for(paths[:1])
        raise ZeroDivisionError
    assert time.monotonic() - began < 60 and is_gone(pid)
    assert not paths[1].exists() and all(future.done() for future in futures)


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_what_it_lacks(tmp_path: Path) -> None:
    """Each new process imports the script; the verb that it would call again says what is to be done."""
    call = "pri3d.rooms('rooms', rooms=2, frames=2, size='32x24', processes=2)"
    (tmp_path / "script.py").write_text(f"import pri3d\n{call}\n")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "rooms: called while a new process imports the script" in done.stderr
    assert "ended by an error that is printed above" in done.stderr.splitlines()[-1]
    (tmp_path / "script.py").write_text(f"import pri3d\nif __name__ == '__main__':\n    {call}\n")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
