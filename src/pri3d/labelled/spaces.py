"""Label maps: ids of label images -> classes. Shipped as YAML in ``spaces/``, or a user's file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from pri3d import registry
from pri3d.errors import ConfigError, DataError
from pri3d.notation import parse_yaml

IGNORED = 255  #: label of pixels that neither train nor count
_UNKNOWN = 254  # never a class: at most 254 of them


class LabelSpace(NamedTuple):
    """Classes, and which ids stand for them.

    The YAML file has ``classes``: name -> id or ids, in the order of the classes; ``things``: names of the countable
    objects, all where it is missing; ``ignored``: ids that neither train nor count, or ``rest`` for every other id.
    255 is ignored where it is no class.
    """

    names: tuple[str, ...]
    things: tuple[int, ...]  #: places of the countable ones in ``names``
    table: NDArray[np.uint8]  #: (65536,) id -> class, 255 ignored, 254 unknown

    def apply(self, ids: NDArray[Any], what: str) -> NDArray[np.uint8]:
        """Ids (H, W) -> classes (H, W), 255 = ignored. Raises DataError naming ``what`` and the unknown ids."""
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) > 65535):
            raise DataError(f"{what}: holds ids {ids.min()} to {ids.max()}; 0 to 65535 are possible.")
        classes: NDArray[np.uint8] = self.table[ids]
        if (classes == _UNKNOWN).any():
            unknown = np.unique(ids[classes == _UNKNOWN])[:8].tolist()
            raise DataError(
                f"{what}: holds ids {unknown}, which have no class. Add them to a file for --label-map, with their "
                "class or under `ignored`."
            )
        return classes


def shipped_spaces() -> list[str]:
    """Names of the label maps that come with the package."""
    folder = resources.files("pri3d.labelled") / "spaces"
    return sorted(Path(str(file)).stem for file in folder.iterdir() if str(file).endswith(".yaml"))


def load_space(name: str) -> LabelSpace:
    """Read a shipped label map by name, or a YAML file by path. Raises ConfigError naming what is wrong with it."""
    if name in shipped_spaces():
        text = (resources.files("pri3d.labelled") / "spaces" / f"{name}.yaml").read_bytes()
    elif Path(name).is_file():
        text = Path(name).read_bytes()  # its encoding is YAML's matter
    else:
        raise registry.unknown("label map", [*shipped_spaces(), "a YAML file"], name)
    try:
        return parse_space(parse_yaml(text))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ConfigError(f"--label-map {name}: {error}. See docs/labelled-data.md for the format.") from error


def parse_space(stated: Any) -> LabelSpace:
    """Label space of a file's content, see :class:`LabelSpace`. Raises TypeError or ValueError for anything else."""
    classes, things, ignored = _parts(stated)
    table = np.full(65536, IGNORED if ignored == "rest" else _UNKNOWN, np.uint8)
    taken: dict[int, str] = {}
    for place, (name, ids) in enumerate(classes.items()):
        for number in _ids(name, ids):
            if number in taken:
                raise ValueError(f"id {number} is {taken[number]} and {name}")
            taken[number] = name
            table[number] = place
    for number in _ids("ignored", [] if ignored == "rest" else ignored):
        if number in taken:
            raise ValueError(f"id {number} is {taken[number]} and ignored")
        table[number] = IGNORED
    if IGNORED not in taken:
        table[IGNORED] = IGNORED
    names = tuple(classes)
    return LabelSpace(names, tuple(k for k, name in enumerate(names) if things is None or name in things), table)


def _parts(stated: Any) -> tuple[dict[str, Any], list[str] | None, Any]:
    if not isinstance(stated, dict) or not isinstance(stated.get("classes"), dict) or not stated["classes"]:
        raise TypeError("expected `classes:` with a line `name: id` each")
    unknown = set(stated) - {"classes", "things", "ignored"}
    if unknown:
        raise ValueError(f"unknown key {', '.join(sorted(map(str, unknown)))}; known are classes, things, ignored")
    if len(stated["classes"]) > _UNKNOWN:
        raise ValueError(f"{len(stated['classes'])} classes, at most {_UNKNOWN} are possible")
    unquoted = [name for name in stated["classes"] if not isinstance(name, str)]
    if unquoted:
        raise TypeError(f"the class name {unquoted[0]} is not a text: put quotes around it, as in 'no' or '1'")
    things = stated.get("things")
    if things is not None and not isinstance(things, list):
        raise TypeError(f"things is {things!r}, expected a list of class names")
    strange = [str(name) for name in things or [] if name not in stated["classes"]]
    if strange:
        raise ValueError(f"things names {', '.join(strange)}, which is not a class")
    return stated["classes"], things, stated.get("ignored", [])


def _ids(name: str, value: Any) -> list[int]:
    ids = value if isinstance(value, list) else [value]
    if not all(type(number) is int and 0 <= number <= 65535 for number in ids):
        raise ValueError(f"{name}: {value!r} is not an id or a list of ids between 0 and 65535")
    return ids
