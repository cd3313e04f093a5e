"""A recording -> frames. One file per format; nothing after a reader knows which data set it was.

A reader is a class built with the recording's folder. To add one, write such a class, inherit
``tests/readers/reader_contract.py`` for its tests, and add one line to ``READERS`` (or an entry point
``pri3d.readers``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from pri3d import registry
from pri3d.errors import ConfigError, DataError
from pri3d.types import Frame

READERS = {
    "rooms": "pri3d.readers.rooms:RoomsReader",
    "sevenscenes": "pri3d.readers.sevenscenes:SevenScenesReader",
    "folder": "pri3d.readers.folder:FolderReader",
}


class Scene(Protocol):
    """One continuous recording: frames that share a world frame."""

    id: str  #: unique in its recording, made of letters, digits, '-', '_' and '.'
    names: Sequence[str]  #: frame names, sorted = time order

    def frame(self, index: int) -> Frame:
        """Load frame ``names[index]`` with its pixels. Raises FrameError where this one frame is unusable."""
        ...

    def mesh(self) -> Path | None:
        """Return a triangle mesh of the scene's surface in world metres, or None where the source has none."""
        ...


class Reader(Protocol):
    """A recording's folder -> its scenes. ``__init__`` may read small text files, never images.

    ``cameras`` is a YAML file that states both cameras (docs/own-data.md); without it the reader takes
    ``cameras.yaml`` of the folder where there is one, else what the format itself says.
    """

    looks_for: ClassVar[str]  #: what :meth:`detect` looks for, as a phrase for error messages
    class_names: Sequence[str] | None  #: names of the label ids 0..n-1, None where the source has no labels

    def __init__(self, path: Path, cameras: Path | None = None) -> None: ...

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether the folder has this format's layout."""
        ...

    def scenes(self) -> Sequence[Scene]:
        """Every scene of the recording, sorted by id."""
        ...


def open_recording(path: Path, reader: str | None = None, cameras: Path | None = None) -> Reader:
    """Open a recording with the named reader, or with the only one whose layout it has.

    Raises DataError where the folder is missing or no reader knows it, ConfigError where several do.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such folder. Give the folder that holds the recording.")
    if reader is not None:
        return registry.load("readers", READERS, reader)(path, cameras)  # type: ignore[no-any-return]
    found = {}
    for name in registry.names("readers", READERS):
        cls = registry.load("readers", READERS, name)
        if cls.detect(path):
            found[name] = cls
    if len(found) == 1:
        return next(iter(found.values()))(path, cameras)  # type: ignore[no-any-return]
    if found:
        raise ConfigError(f"{path}: fits several formats ({', '.join(found)}). Choose one with --reader.")
    wanted = "; ".join(
        f"{name}: {registry.load('readers', READERS, name).looks_for}" for name in registry.names("readers", READERS)
    )
    seen = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    raise DataError(f"{path}: not a known recording. Looked for {wanted}. Found {seen}.")
