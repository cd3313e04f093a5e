"""A recording -> frames. One file per format; nothing after a reader knows which data set it was.

A reader is a class built with the recording's folder. To add one, write such a class, inherit
``tests/readers/reader_contract.py`` for its tests, and add one line to ``READERS`` (or an entry point
``pri3d.readers``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pri3d import registry
from pri3d.errors import ConfigError, DataError
from pri3d.types import Frame

READERS = {
    "rooms": "pri3d.readers.rooms:RoomsReader",
    "sevenscenes": "pri3d.readers.sevenscenes:SevenScenesReader",
    "folder": "pri3d.readers.folder:FolderReader",
    "scannet": "pri3d.readers.scannet:ScanNetReader",
}


SPLITS = ("train", "val", "test", "all")  #: which of a data set's official lists of scenes is wanted


class Scene(Protocol):
    """One continuous recording: frames that share a world frame."""

    id: str  #: unique in its recording, made of letters, digits, '-', '_' and '.'
    names: Sequence[str]  #: frame names, sorted = time order; may open the scene's file, and raise DataError

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

    A reader of a data set with an official split has ``splits = True``, takes a third argument ``split`` (one of
    :data:`SPLITS`), and its scenes have an attribute ``split``: the official one they belong to, or None.
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


def open_recording(path: Path, reader: str | None = None, cameras: Path | None = None, split: str = "train") -> Reader:
    """Open a recording with the named reader, or with the only one whose layout it has.

    ``split`` is one of :data:`SPLITS`; without an official split everything is "train". Raises DataError where the
    folder is missing or no reader knows it, ConfigError where several do, or where it has no such split.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such folder. Give the folder that holds the recording.")
    if reader is not None:
        return _open(reader, registry.load("readers", READERS, reader), path, cameras, split)
    found = {}
    for name in registry.names("readers", READERS):
        cls = registry.load("readers", READERS, name)
        if cls.detect(path):
            found[name] = cls
    if len(found) == 1:
        return _open(*next(iter(found.items())), path, cameras, split)
    if found:
        raise ConfigError(f"{path}: fits several formats ({', '.join(found)}). Choose one with --reader.")
    wanted = "; ".join(
        f"{name}: {registry.load('readers', READERS, name).looks_for}" for name in registry.names("readers", READERS)
    )
    seen = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
    raise DataError(f"{path}: not a known recording. Looked for {wanted}. Found {seen}.")


def _open(name: str, cls: Any, path: Path, cameras: Path | None, split: str) -> Reader:
    if split not in SPLITS:
        raise registry.unknown("split", SPLITS, split)
    if getattr(cls, "splits", False):
        return cls(path, cameras, split)  # type: ignore[no-any-return]
    if split not in ("train", "all"):
        raise ConfigError(f"--split {split}: {path} is read as {name}, which has no official split. Leave it out.")
    return cls(path, cameras)  # type: ignore[no-any-return]
