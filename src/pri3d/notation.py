"""YAML and JSON of untrusted files: reading them always ends.

A few hundred bytes can state a list of thousands of millions of entries by aliases, one that holds itself, or a number
of a million digits; whoever walks through such a value, prints it or compares it does not come back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

_MOST = 1_000_000  # values that the aliases of a YAML file may stand for
_DEEPEST = 100  # levels of nesting; files of ours have seven
_LARGEST = 2**63  # of whole numbers
_DIGITS, _DIGITS_OF_BYTES = re.compile(r"\d{19}"), re.compile(rb"\d{19}")  # of a larger one, or of a fraction


def parse_yaml(text: str | bytes) -> Any:
    """The value of a YAML text. Raises yaml.YAMLError, also where it is nested too deep, too large or holds itself."""
    import yaml  # noqa: PLC0415 (weights are read where there is no PyYAML)

    try:
        value = yaml.safe_load(text)
        _check(value, {})
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deep") from error
    except ValueError as error:  # PyYAML's own for dates and numbers that are none
        raise yaml.YAMLError(str(error)) from error
    return value


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError, also where it is nested too deep or a number is too large."""
    try:
        value = json.loads(text)
        if _DIGITS.search(text) if isinstance(text, str) else _DIGITS_OF_BYTES.search(text):
            waiting = [value]  # JSON has no aliases, so that its size is that of the text
            while waiting:
                one = waiting.pop()
                if isinstance(one, dict):
                    waiting.extend(one.values())
                elif isinstance(one, list):
                    waiting.extend(one)
                elif isinstance(one, int) and not -_LARGEST <= one < _LARGEST:
                    raise ValueError("a whole number in it has more than 64 bits")
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return value


def _check(value: Any, sizes: dict[int, int], depth: int = 0) -> int:
    """Number of values that a value stands for. ``sizes``: of the lists and mappings that were counted, by identity."""
    if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        raise ValueError("a whole number in it has more than 64 bits")
    if not isinstance(value, dict | list | set | tuple):
        return 1
    if depth > _DEEPEST:
        raise ValueError("it is nested too deep, or holds itself")
    if (known := sizes.get(id(value))) is not None:
        return known
    parts: Iterable[Any] = (*value.keys(), *value.values()) if isinstance(value, dict) else value
    size = 1 + sum(_check(part, sizes, depth + 1) for part in parts)
    if size > _MOST:
        raise ValueError(f"its aliases expand to more than {_MOST:,} values")
    sizes[id(value)] = size
    return size
