"""Text files of a recording: words, numbers and JSON, checked when read; names of files."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable
from itertools import takewhile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError, FrameError
from pri3d.files.kinds import is_id
from pri3d.notation import parse_json

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  #: of images, in the order in which they are looked for
_MOST_DIGITS = 20  # to which numbers are padded; longer ones are damaged
_LONGEST = 1024  # letters of a path
_LONGEST_PART = 240  # bytes of one of its folders; file systems have 255, some of which endings of depth maps take
_LAST_NUMBER = re.compile(r"\d+(?!.*\d)", re.ASCII)


def read_text(path: Path) -> str:
    """Read a file of UTF-8, or of UTF-16 with its mark, as Windows writes it.

    Raises DataError for a missing file and for one that is no text.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        data = path.read_bytes()
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except ValueError as error:
        raise DataError(f"{path}: is not text ({error}).") from error


def read_words(path: Path) -> list[list[str]]:
    """Words, between white space or commas, of every line that is neither empty nor a '#' comment.

    Raises DataError as :func:`read_text`.
    """
    lines = (line.split("#", 1)[0].replace(",", " ").split() for line in read_text(path).splitlines())
    return [words for words in lines if words]


def read_rows(path: Path, columns: int) -> NDArray[np.float64]:
    """Read a table of numbers (N, columns) with '#' comments; NaN is a number. Raises DataError for other contents."""
    rows = read_words(path)
    wrong = next((words for words in rows if len(words) != columns), None)
    if wrong is not None:
        raise DataError(f"{path}: a line has {len(wrong)} words ({' '.join(wrong)[:80]}), expected {columns} numbers.")
    return numbers(rows, (len(rows), columns), str(path))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises DataError for a missing or damaged file and for other JSON."""
    try:
        value = parse_json(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is damaged ({error}).") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds {type(value).__name__}, expected a JSON object.")
    return value


def frame_json(path: Path) -> dict[str, Any]:
    """Read the JSON object of one frame. Raises FrameError for a missing or damaged file."""
    result: dict[str, Any] = framed(lambda: read_json(path))
    return result


def framed(read: Callable[[], Any]) -> Any:
    """What ``read`` returns; its DataError concerns one frame, so that it becomes a FrameError."""
    try:
        return read()
    except DataError as error:
        raise FrameError(str(error)) from error


def numbers(value: Any, shape: tuple[int, ...], what: str) -> NDArray[np.float64]:
    """Return ``value``, nested lists, as an array of this shape; ``what`` names it. Raises DataError for another."""
    try:
        result = np.array(value, dtype=np.float64).reshape(shape if 0 in shape else -1)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{what}: holds something that is no number ({error}).") from error
    if result.size != np.prod(shape):
        raise DataError(f"{what}: holds {result.size} numbers, expected {' x '.join(map(str, shape))}.")
    return result.reshape(shape)


def inside(folder: Path, listed: str, what: Path) -> Path:
    """Path of a file that the list ``what`` names. Raises DataError for one that lies outside of the folder.

    Backslashes of Windows part folders too; of a path from the root of another machine the end that is in the folder
    counts.
    """
    if "\\" in listed and not (folder / listed).is_file():
        listed = listed.replace("\\", "/")
    rooted = PurePosixPath(listed).is_absolute() or PureWindowsPath(listed).is_absolute()
    if rooted and ".." not in PurePosixPath(listed).parts:
        parts = PurePosixPath(listed).parts
        ends = ("/".join(parts[-count:]) for count in (3, 2))
        listed = next((end for end in ends if not end.startswith("/") and (folder / end).is_file()), listed)
    if Path(listed).is_absolute() or ".." in Path(listed).parts:
        raise DataError(f"{what}: names {listed[:80]}, which is not in {folder}.")
    return folder / listed


def absolute(path: Path) -> Path:
    """Return the path from the root, without . and .., and with the names of symbolic links as they are given."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - pathlib keeps .., or follows links


def clean_id(text: str) -> str:
    """Return ``text`` as a scene id: other characters than letters and digits of any script, '-', '_', '.' become '_'.

    Where that loses characters beyond ASCII a few letters of a digest keep ids apart: a name gives the same id always.
    """
    plain = unicodedata.normalize("NFC", text)
    cleaned = "".join(letter if is_id(letter) or letter == "." else "_" for letter in plain).lstrip(".") or "scene"
    lost = any(a != b and not a.isascii() for a, b in zip(plain, cleaned, strict=False))
    return f"{cleaned}-{hashlib.sha256(plain.encode('utf-8', 'replace')).hexdigest()[:6]}" if lost else cleaned


def frame_names(listed: Iterable[str], what: Path) -> dict[str, str]:
    """Frame name -> path as it is listed. Raises DataError naming the list ``what`` where two give one name.

    The name is the path without its ending and without the folders that all share, '-' between the rest; its last
    number is padded with zeros as the longest needs, so that sorted names count up.
    """
    paths = {path: PurePosixPath(path) for path in listed}
    levels = zip(*(path.parts[:-1] for path in paths.values()), strict=False)
    shared = sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, levels))  # leading folders
    plain = {}
    for path, pure in paths.items():
        stem = pure.stem if pure.suffix.lower() in SUFFIXES else pure.name
        plain[path] = "-".join((*pure.parts[shared:-1], stem))
    counts = (_LAST_NUMBER.search(name) for name in plain.values())
    digits = min(max((len(found[0]) for found in counts if found), default=0), _MOST_DIGITS)
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
