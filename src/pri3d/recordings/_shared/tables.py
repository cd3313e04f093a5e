"""Numbers and JSON in text files: rows of a table, values of a given shape, each checked where it is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError, FrameError


def read_text(path: Path) -> str:
    """Read a UTF-8 file. Raises DataError for a missing file and for one that is no text."""
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    try:
        return path.read_text(encoding="utf-8")
    except ValueError as error:
        raise DataError(f"{path}: is not text ({error}).") from error


def read_words(path: Path) -> list[list[str]]:
    """Words of every line that is neither empty nor a '#' comment. Raises DataError as :func:`read_text`."""
    lines = (line.split("#", 1)[0].split() for line in read_text(path).splitlines())
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
        value = json.loads(read_text(path))
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
    """Path of a file that the list ``what`` names. Raises DataError for one that lies outside of the folder."""
    if Path(listed).is_absolute() or ".." in Path(listed).parts:
        raise DataError(f"{what}: names {listed[:80]}, which is not in {folder}.")
    return folder / listed
