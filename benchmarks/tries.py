"""Commands in processes that are forked, killed, raced and starved, and what they leave."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import safe_open

from pri3d.cli import main as run_command

SECONDS = 120.0  # after which a command counts as hanging, on a busy machine too
GRACE = 20.0  # seconds in which processes end after their parent was killed
RAW = "Traceback (most recent call last)"
_FORKS = multiprocessing.get_context("fork")

Words = Sequence[str]
#: what a try can end with, worst last
OUTCOMES = ("found", "harmless", "memory", "hang", "traceback", "lost")


class Ended(NamedTuple):
    """A command that is over."""

    code: int | None  #: None where it had to be ended
    text: str  #: what it said

    def is_clean(self) -> bool:
        """Whether it ended by itself, with what a user can read."""
        return self.code is not None and RAW not in self.text


class Running:
    """One command in a process of its own, the leader of a session by which all its children are found."""

    def __init__(self, words: Words, log: Path, setup: Callable[[], None] | None = None) -> None:
        self.log = log
        self.process = _FORKS.Process(target=_work, args=(list(words), log, setup))
        self.process.start()
        self.pid = int(self.process.pid or 0)

    def members(self) -> list[int]:
        """Living processes of the session."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.pid and state != "Z":
                    found.append(int(path.parent.name))
        return sorted(found)

    def send(self, number: int, to_child: int | None = None) -> bool:
        """Send a signal to the command, or to one of its children (counted round), where there is one."""
        pids = [self.pid] if to_child is None else [pid for pid in self.members() if self._works(pid)]
        if not pids or not self.process.is_alive():
            return False
        with suppress(ProcessLookupError):
            os.kill(pids[(to_child or 0) % len(pids)], number)
        return True

    def _works(self, pid: int) -> bool:
        """Whether a process is a child that works: Python's own watcher of semaphores is none."""
        with suppress(OSError):
            return pid != self.pid and b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        return False

    def wait(self, seconds: float) -> bool:
        """Whether it has ended by then."""
        self.process.join(seconds)
        return not self.process.is_alive()

    def end(self) -> Ended:
        """Wait for the command and its children; what hangs is killed and counts as such."""
        hangs = not self.wait(SECONDS)
        limit = time.monotonic() + GRACE
        while not hangs and self.members() and time.monotonic() < limit:
            time.sleep(0.05)
        left = self.members()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.join()
        return Ended(None if hangs or left else self.process.exitcode, self.log.read_text(errors="replace"))


def _work(words: Words, log: Path, setup: Callable[[], None] | None) -> None:
    os.setsid()
    # Processes that begin anew import what the command needs, as they do for a user, and not this script.
    script = sys.modules["__main__"]
    script.__spec__, script.__file__ = None, None
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.close(0)
    os.open(os.devnull, os.O_RDONLY)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    code = 70
    try:
        if setup is not None:
            setup()
        code = run_command(words)
        if sys.stdout is not None:
            sys.stdout.flush()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.exit(code)


def run(words: Words, log: Path, setup: Callable[[], None] | None = None) -> Ended:
    """Run a command to its end."""
    return Running(words, log, setup).end()


class Command(NamedTuple):
    """A command that writes into ``{out}``, and how its result is told from another."""

    name: str
    words: tuple[str, ...]
    again: tuple[str, ...] = ()  #: words that the repeated command has in addition

    def to(self, out: Path, again: bool = False) -> list[str]:
        """Words of the command that writes there."""
        return [word.replace("{out}", str(out)) for word in (*self.words, *(self.again if again else ()))]


#: what differs between two runs that made the same: clocks, memory, paths, and checksums of headers that hold them
_VARIES = re.compile(
    rb'"(?:seconds|minutes|since|started|finished|date|run|source|out|init|pid|host)": (?:[\d.]+|"[^"]*"|null)'
)


def content_of(path: Path) -> dict[str, str]:
    """What a folder or file holds, as digests by name; without clocks and what is hidden or only said."""
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    found = {}
    for file in files:
        name = str(file.relative_to(path)) if file != path else "file"
        if any(part.startswith(".") for part in Path(name).parts) or file.suffix in (".txt", ".md", ".yaml"):
            continue
        if file.suffix == ".safetensors":
            found[name] = _digest_tensors(file)
        elif file.suffix == ".npz":
            found[name] = _digest_arrays(file)
        elif file.suffix == ".csv":
            lines = file.read_text().splitlines()
            found[name] = " ".join(",".join(line.split(",")[:2]) for line in lines)  # step and loss
        elif file.suffix == ".ckpt" or file.name.startswith("events.out"):
            continue  # seen by what is made of it
        else:
            content = _VARIES.sub(b"", file.read_bytes())
            found[name] = hashlib.sha256(content).hexdigest()
    return found


def _digest_tensors(path: Path) -> str:
    digest = hashlib.sha256()
    with safe_open(path, framework="np") as file:
        for key in sorted(file.keys()):
            digest.update(key.encode())
            digest.update(np.ascontiguousarray(file.get_tensor(key)).tobytes())
    return digest.hexdigest()


def _digest_arrays(path: Path) -> str:
    digest = hashlib.sha256()
    with np.load(path, allow_pickle=False) as file:
        for key in sorted(file.files):
            digest.update(key.encode())
            digest.update(_VARIES.sub(b"", np.ascontiguousarray(file[key]).tobytes()))
    return digest.hexdigest()


def judge(path: Path, whole: dict[str, str], ends: Sequence[Ended], must: int = 0) -> str:
    """Compare what commands left with what an undisturbed one leaves; the last must have ended with ``must``."""
    if any(RAW in end.text for end in ends):
        return "traceback"
    if any(end.code is None for end in ends):
        return "hang"
    if ends[-1].code != must:
        return "lost"
    try:
        return "harmless" if content_of(path) == whole else "lost"
    except Exception:  # whatever a damaged file makes libraries raise
        return "lost"


class Score:
    """Outcomes of the tries of one kind, and the texts of those that were not as they must be."""

    def __init__(self, group: str, what: str) -> None:
        self.group, self.what = group, what
        self.counts = dict.fromkeys(OUTCOMES, 0)
        self.said: list[str] = []

    def add(self, outcome: str, said: str = "") -> None:
        """Count one."""
        self.counts[outcome] += 1
        if OUTCOMES.index(outcome) >= OUTCOMES.index("memory"):
            self.said.append(f"{self.group}, {self.what}: {outcome}: {said[-1500:]}")

    def row(self) -> str:
        """Row of the table."""
        cells = [str(self.counts[outcome]) for outcome in OUTCOMES]
        return f"| {self.group} | {self.what} | {sum(self.counts.values())} | {' | '.join(cells)} |"


def difference(path: Path, whole: dict[str, str], ends: Sequence[Ended]) -> str:
    """Say what is not as it must be, for who looks into it."""
    try:
        now = content_of(path)
    except Exception as error:
        now = {"unreadable": str(error)}
    names = sorted(name for name in {*now, *whole} if now.get(name) != whole.get(name))
    codes = [end.code for end in ends]
    return json.dumps({"differ": names[:6], "codes": codes}) + "\n" + "\n".join(end.text[-700:] for end in ends)
