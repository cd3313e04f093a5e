"""Photographs that a list names by their paths: names of frames, and their files."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from pri3d.errors import DataError
from pri3d.recordings._shared.files import clean_id
from pri3d.recordings._shared.tables import inside

SUFFIXES = (".png", ".jpg", ".jpeg")  #: of images, in the order in which they are looked for
_MOST_DIGITS = 20  # to which numbers are padded; longer ones are damaged
_LONGEST = 1024  # letters of a path
_LONGEST_PART = 240  # bytes of one of its folders; file systems have 255, some of which endings of depth maps take
_LAST_NUMBER = re.compile(r"\d+(?!.*\d)", re.ASCII)


def frame_names(listed: Iterable[str], what: Path) -> dict[str, str]:
    """Frame name -> path as it is listed. Raises DataError naming the list ``what`` where two give one name.

    The name is the path without its ending and without the folders that all share, '-' between the rest; its last
    number is padded with zeros as the longest needs, so that sorted names count up.
    """
    paths = {path: PurePosixPath(path) for path in listed}
    shared = _shared([path.parts[:-1] for path in paths.values()])
    plain = {path: "-".join((*pure.parts[shared:-1], _stem(pure.name))) for path, pure in paths.items()}
    numbers = (_LAST_NUMBER.search(name) for name in plain.values())
    digits = min(max((len(found[0]) for found in numbers if found), default=0), _MOST_DIGITS)
    names: dict[str, str] = {}
    for path, name in plain.items():
        padded = clean_id(_LAST_NUMBER.sub(lambda found: found[0].zfill(digits), name))
        if padded in names:
            raise DataError(f"{what}: {names[padded]} and {path} both give the frame name {padded}; rename one.")
        names[padded] = path
    return names


def listed_file(folder: Path, listed: str, what: Path) -> Path:
    """Path of a file that the list ``what`` names. Raises DataError where no file in ``folder`` can be called so."""
    parts = listed.encode("utf-8", "replace").split(b"/")
    if not listed.isprintable() or max(map(len, parts)) > _LONGEST_PART or len(listed) > _LONGEST:
        raise DataError(f"{what}: names {listed[:80]!a}, which no file can be called; it is damaged.")
    return inside(folder, listed, what)


def _stem(name: str) -> str:
    ending = PurePosixPath(name).suffix
    return name.removesuffix(ending) if ending.lower() in SUFFIXES else name


def _shared(folders: list[tuple[str, ...]]) -> int:
    """How many leading folders all of them have in common."""
    count = 0
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        count += 1
    return count
