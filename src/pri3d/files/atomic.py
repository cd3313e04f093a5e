"""Atomic files and folders: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pri3d.errors import ConfigError, DataError

#: a place that cannot be written, whatever the room on the disk
_NO_PLACE = frozenset(
    (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
)
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))  #: no space, over the quota, over the largest file allowed
_PART = re.compile(r"\..+\.(?P<host>[A-Za-z0-9_-]+)\.(?P<pid>[0-9]+)\.part")


def temporary(path: Path) -> Path:
    """Return a hidden name beside ``path`` that no other process on any host takes: ``.NAME.HOST.PID.part``."""
    return path.with_name(f".{path.name}.{host_name()}.{os.getpid()}.part")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context that gives a temporary name, and puts the file written there in the place of ``path`` on success."""
    part = temporary(path)
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room for a file: a full disk, a quota, a limit of the file's size."""
    return isinstance(error, OSError) and error.errno in _FULL


@contextmanager
def usable(what: str) -> Iterator[None]:
    """Context that raises ConfigError, beginning with ``what``, where a place cannot be written; a full disk passes."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        raise ConfigError(f"{what}: cannot be written ({error}). Choose a folder with write permission.") from error


def write_atomic(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all, and return ``path``; its folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_bytes(content)
    return path


def put_folder(part: Path, path: Path) -> None:
    """Rename the finished folder ``part`` to ``path``. Raises DataError where there is one by now."""
    try:
        part.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise DataError(
            f"{path}: was created by another process during this command. Wait for that process, then run the "
            f"command again: it adds only what is missing."
        ) from error


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes of this host left in ``folder`` under :func:`temporary` names.

    Processes of other hosts cannot be asked whether they live: what is theirs stays, hidden and without effect.
    """
    if os.name != "posix" or not folder.is_dir():  # elsewhere signal 0 would end the process that is asked
        return
    for path in folder.iterdir():
        match = _PART.fullmatch(path.name)
        if match is None or match["host"] != host_name() or process_lives(int(match["pid"])):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)  # another process may be removing the same
        else:
            path.unlink(missing_ok=True)


def host_name() -> str:
    """Name of this host, of letters, digits, - and _ only."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname()) or "localhost"


def process_lives(pid: int) -> bool:
    """Whether a process of this host lives; on POSIX systems only."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True
