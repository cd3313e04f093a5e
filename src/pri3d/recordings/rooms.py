"""Recordings that ``pri3d rooms`` wrote: the folder layout with rooms.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from pri3d.errors import DataError
from pri3d.notation import parse_json
from pri3d.recordings.folder import FolderReader


class RoomsReader(FolderReader):
    """The folder layout whose class names stand in rooms.json."""

    looks_for: ClassVar[str] = "rooms.json, as `pri3d rooms` writes it"

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether the folder has a rooms.json."""
        return (path / "rooms.json").is_file()

    def _class_names(self) -> Sequence[str] | None:
        path = self.path / "rooms.json"
        try:
            names = parse_json(path.read_text(encoding="utf-8"))["class_names"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: is not what `pri3d rooms` writes ({error!r}); write the rooms again.") from error
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise DataError(f"{path}: class_names is {names!r}, expected a list of names; write the rooms again.")
        return names
