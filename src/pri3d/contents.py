"""What the files of a prepared store must hold to be read at all, whatever became of their bytes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pri3d.errors import DataError
from pri3d.files.archive import Column

MODES = {"color": "RGB", "depth": "I;16", "label": "L", "instance": "I;16"}  #: pillow's, of the images of a scene
FRAMES: dict[str, Column] = {
    "names": ("U", (None,)),
    "world_from_camera": ("f", (None, 4, 4)),
    "intrinsics": ("f", (None, 4)),
    "valid": ("b", (None,)),
    "reasons": ("U", (None,)),
    "size": ("i", (2,)),
}
PAIRS: dict[str, Column] = {
    "scene": ("U", (None,)),
    **dict.fromkeys(("i", "j"), ("i", (None,))),
    **dict.fromkeys(("overlap", "baseline", "angle"), ("f", (None,))),
}
SURFACE: dict[str, Column] = {"cells": ("i", (None, 3)), "size": ("f", ()), "color": ("u", (None, 3))}
_COUNTS = ("source_frames", "frames", "rejected", "pairs", "voxels", "bytes")  # of every scene.json
_SCENE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


def read_json(path: Path) -> dict[str, Any]:
    """Keys and values of a file. Raises DataError where it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError("it holds no keys")
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}). Delete it and run `pri3d prepare` again.") from error
    return content


def check_manifest(manifest: dict[str, Any], path: Path) -> None:
    """Raises DataError where a part of dataset.json is missing or of another kind."""
    names, scenes, settings = (manifest.get(key) for key in ("class_names", "scenes", "settings"))
    right = {
        "state": isinstance(manifest.get("state"), str),
        "settings": isinstance(settings, dict) and isinstance(settings.get("pairs"), bool),
        "class_names": names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names)),
        "scenes": isinstance(scenes, dict) and all(_is_scene(*item) for item in scenes.items()),
        "versions": isinstance(manifest.get("versions", {}), dict),
        "failed": isinstance(manifest.get("failed", {}), dict),
    }
    right["class_names"] &= "class_names" in manifest
    _refuse([key for key, fine in right.items() if not fine], path)


def check_record(record: dict[str, Any], path: Path) -> None:
    """Raises DataError where a part of scene.json is missing or of another kind."""
    right = {name: isinstance(record.get(name), int) and record[name] >= 0 for name in _COUNTS}
    right |= {name: isinstance(record.get(name), str) for name in ("source", "hash")}
    right["seconds"] = isinstance(record.get("seconds"), int | float)
    right["cameras"] = isinstance(record.get("cameras", {}), dict)
    _refuse([key for key, fine in right.items() if not fine], path)


def _is_scene(name: str, record: Any) -> bool:
    """Whether it is the name of a folder, and says the digest of what it holds."""
    return bool(_SCENE_ID.fullmatch(name)) and isinstance(record, dict) and isinstance(record.get("hash"), str)


def _refuse(wrong: list[str], path: Path) -> None:
    if wrong:
        raise DataError(
            f"{path}: damaged: {', '.join(wrong)} missing or of another kind. Delete {path.parent} and prepare again."
        )
