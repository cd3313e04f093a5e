"""The recorded settings of a folder or file: compared before anything is added to it.

Every verb that continues what is there states the settings that decide its content. Where they differ, the work is
refused in one wording, which lists what was stated and what is now: ``seed was 0, now 1``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pri3d.errors import ConfigError
from pri3d.files.atomic import write_atomic
from pri3d.notation import parse_json

_LONGEST = 60  # characters of a value that are shown


def differences(before: Mapping[str, Any], now: Mapping[str, Any], ignore: Collection[str] = ()) -> list[str]:
    """``name was A, now B`` for every setting of ``now`` that ``before`` states otherwise, in the order of ``now``.

    Nested mappings are compared value by value, under names joined by dots. A setting that ``before`` does not state
    counts as None, and a tuple equals a list, as JSON and YAML keep it. ``ignore``: names that may differ.
    """
    stated = dict(_leaves(before))
    return [
        f"{name} was {_shown(stated.get(name))}, now {_shown(value)}"
        for name, value in _leaves(now)
        if name not in ignore and stated.get(name) != value
    ]


def refuse_other_settings(
    where: Path, before: Mapping[str, Any], now: Mapping[str, Any], fix: str, ignore: Collection[str] = ()
) -> None:
    """Raise ConfigError where ``where`` was made with other settings, listing those that differ and then ``fix``."""
    refuse_differences(where, differences(before, now, ignore), fix)


def refuse_differences(where: Path, differ: Sequence[str], fix: str) -> None:
    """Raise ConfigError as :func:`refuse_other_settings` where there are :func:`differences`."""
    if differ:
        raise ConfigError(f"{where}: was made with other settings: {'; '.join(differ)}. {fix}")


def read_stamp(path: Path, fix: str) -> dict[str, Any] | None:
    """Settings that the JSON file ``path`` states; None where there is no such file.

    Raises ConfigError, which ends with ``fix``, where it cannot be read.
    """
    if not path.is_file():
        return None
    try:
        stated = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(stated, dict):
            raise TypeError("it holds no keys")
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}). {fix}") from error
    return stated


def stamp(path: Path, settings: Mapping[str, Any], fix: str) -> None:
    """Write the settings to the JSON file ``path``, or compare them where it is there.

    Raises ConfigError as :func:`refuse_other_settings`, naming the folder of ``path``, and :func:`read_stamp`.
    """
    before = read_stamp(path, fix)
    if before is None:
        write_atomic(path, (json.dumps(settings, indent=1) + "\n").encode())
    else:
        refuse_other_settings(path.parent, before, settings, fix)


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _plain(value)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
