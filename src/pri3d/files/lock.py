"""One writer at a time: a lock file in a folder, or beside a file, with the name of the writing process.

The lock appears by a hard link, or by exclusive creation where the file system has no links; both are atomic on
network file systems too, and neither needs a lock server. A killed process leaves its lock behind: the next one on
the same host sees that the process is gone and takes the lock over, and so does a Slurm job that was requeued, on
whatever host. Of any other host nobody can tell whether its process lives: such a lock is refused with its holder's
name and the file to delete.
"""

from __future__ import annotations

import errno
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from pri3d.errors import ConfigError
from pri3d.files.atomic import host_name, process_lives, replacing, temporary, usable

LOCK = ".lock"  #: of a folder
_NO_LINKS = frozenset((errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EINVAL))
_UNWRITTEN = 60.0  # seconds after which a lock that says nothing counts as left by a killed process
_TRIES = 20  # of reading a lock that others take over at this moment


class Holder(NamedTuple):
    """A process that writes, as its lock says it."""

    host: str
    pid: int
    began: str  #: when the process began, as the system counts it; "" where it does not say
    since: str  #: local time at which it took the lock
    job: str  #: Slurm's job, "" outside of one
    restarts: str  #: how often Slurm has restarted that job
    token: str  #: of this lock alone

    def is_gone(self) -> bool:
        """Whether the process has ended, as far as this host can tell."""
        if self.job and self.job == os.environ.get("SLURM_JOB_ID", "") and self.restarts != _restarts():
            return True  # Slurm runs a job once at a time: the earlier start of this one is over
        if self.host != host_name() or os.name != "posix":  # elsewhere signal 0 would end the process that is asked
            return False
        return not process_lives(self.pid) or _began(self.pid) != self.began  # the number may be another's by now


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Context in which this process alone writes ``folder``, which is created where it is missing.

    Raises ConfigError naming the process that writes there now, or where the folder cannot be written.
    """
    with usable(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    with _hold(folder / LOCK, folder):
        yield


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Context in which this process alone writes the file ``path``. Raises ConfigError as :func:`lock_folder`."""
    with usable(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _hold(path.with_name(f".{path.name}{LOCK}"), path):
        yield


def clear_lock(folder: Path) -> None:
    """Remove the lock that a killed process has left in the folder; one that is held, or cannot be removed, stays."""
    if (folder / LOCK).exists():
        with suppress(ConfigError), lock_folder(folder):
            pass


@contextmanager
def _hold(lock: Path, subject: Path) -> Iterator[None]:
    mine = Holder(
        host_name(),
        os.getpid(),
        _began(os.getpid()),
        time.strftime("%Y-%m-%d %H:%M:%S"),
        os.environ.get("SLURM_JOB_ID", ""),
        _restarts(),
        uuid.uuid4().hex,
    )
    with usable(str(subject)):
        _take(lock, subject, mine)
    try:
        yield
    finally:
        if _read(lock) == mine:  # else somebody has removed it by hand
            lock.unlink(missing_ok=True)


def _take(lock: Path, subject: Path, mine: Holder) -> None:
    """Create the lock, or take over that of a process which is gone. Raises ConfigError where it is held.

    Of several processes that find the same dead holder one creates the file ``LOCK.TOKEN-OF-THE-DEAD``; it alone may
    replace the lock. Should it die before it does, its own token leads to the next such file.
    """
    for _ in range(_TRIES):
        if _create(lock, mine):
            return
        first = holder = _read(lock)
        claims: list[Path] = []
        while holder is not None and holder.is_gone():
            claims.append(lock.with_name(f"{lock.name}.{holder.token}"))
            if _create(claims[-1], mine):
                # An earlier claim may have been won, used and cleared since the lock was read.
                won = _read(lock) == first
                if won:
                    with replacing(lock) as part:
                        part.write_bytes(json.dumps(mine._asdict()).encode())
                for claim in claims if won else claims[-1:]:
                    claim.unlink(missing_ok=True)
                if won:
                    return
                break
            holder = _read(claims[-1])
        else:
            if holder is not None:
                job = f", Slurm job {holder.job}" if holder.job else ""
                away = "" if holder.host == host_name() else f" If {holder.host} no longer runs it, delete {lock}."
                raise ConfigError(
                    f"{subject}: process {holder.pid} on {holder.host}{job} has been writing there since "
                    f"{holder.since}. Wait for it, or stop it, then run the same command again.{away}"
                )
            _remove_unwritten(lock)
        time.sleep(0.05)
    raise ConfigError(
        f"{subject}: cannot be locked, since other processes are trying it, too. Wait for them, or delete {lock}."
    )


def _create(path: Path, mine: Holder) -> bool:
    """Write the lock, unless there is one: the whole of it or nothing."""
    part = temporary(path)
    content = json.dumps(mine._asdict()).encode()
    try:
        part.write_bytes(content)
        try:
            os.link(part, path)
        except FileExistsError:
            return part.stat().st_nlink == 2  # a server that was slow to answer may have made it and be asked again
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            try:  # a kill between creating and writing leaves an empty file
                number = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                return False
            with os.fdopen(number, "wb") as file:
                file.write(content)
            return True
        return True
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path) -> Holder | None:
    """Who holds the lock; None where there is none, or it is not written yet."""
    try:
        stated: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Holder(*(stated[name] for name in Holder._fields))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _remove_unwritten(lock: Path) -> None:
    """Remove a lock that says nothing once nobody can be writing it any more, by the clock of the file system."""
    part = temporary(lock)
    try:
        part.write_bytes(b"")
        if part.stat().st_mtime - lock.stat().st_mtime > _UNWRITTEN:
            lock.unlink()
    except FileNotFoundError:  # gone since it was read
        return
    finally:
        part.unlink(missing_ok=True)


def _began(pid: int) -> str:
    """When a process began, in the system's ticks since the start of the machine; "" where it does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError, UnicodeDecodeError):
        return ""


def _restarts() -> str:
    return os.environ.get("SLURM_RESTART_COUNT", "0")
