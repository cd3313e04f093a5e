"""A recording -> frames. One file per format; nothing after a reader knows which data set it was.

A reader is a class built with the recording's folder. To add one, write such a class, inherit
``tests/recordings/reader_contract.py`` for its tests, and add one line to ``READERS`` (or an entry point
``pri3d.recordings``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pri3d import registry
from pri3d.errors import ConfigError, DataError
from pri3d.recordings._shared.correction import CorrectedReader, Correction, parse_correction
from pri3d.types import Frame

READERS = {
    "rooms": "pri3d.recordings.rooms:RoomsReader",
    "sevenscenes": "pri3d.recordings.sevenscenes:SevenScenesReader",
    "folder": "pri3d.recordings.folder:FolderReader",
    "scannet": "pri3d.recordings.scannet:ScanNetReader",
    "nyuv2": "pri3d.recordings.nyuv2:NYUv2Reader",
    "sunrgbd": "pri3d.recordings.sunrgbd:SunRgbdReader",
    "tum": "pri3d.recordings.tum:TumReader",
    "icl": "pri3d.recordings.icl:IclReader",
    "open3d": "pri3d.recordings.open3d:Open3dReader",
    "matterport3d": "pri3d.recordings.matterport3d:Matterport3dReader",
    "scannetpp": "pri3d.recordings.scannetpp:ScanNetppReader",
    "arkitscenes": "pri3d.recordings.arkitscenes:ARKitScenesReader",
    "stray": "pri3d.recordings.stray:StrayReader",
    "record3d": "pri3d.recordings.record3d:Record3DReader",
    "scanner3d": "pri3d.recordings.scanner3d:Scanner3DReader",
    "polycam": "pri3d.recordings.polycam:PolycamReader",
    "colmap": "pri3d.recordings.colmap:ColmapReader",
    "nerfstudio": "pri3d.recordings.nerfstudio:NerfstudioReader",
    "megadepth": "pri3d.recordings.megadepth:MegaDepthReader",
    "kitti": "pri3d.recordings.kitti:KittiReader",
    "images": "pri3d.recordings.images:ImagesReader",
}


_NAMED = 8  # entries of an unknown folder that an error lists
_TRIED = 20  # and that are looked into
SPLITS = ("train", "val", "test", "all")  #: which of a data set's official lists of scenes is wanted


class Scene(Protocol):
    """One continuous recording: frames that share a world frame.

    It may have ``posed = False`` (its frames have no poses, so that nothing can be paired; ``world_from_camera`` is the
    identity), ``metric = False`` (poses and depth share a unit that is not known), and a method ``pose(index)`` that
    gives the pose of one frame (4, 4) without its pixels, or raises FrameError.
    """

    id: str  #: unique in its recording, made of letters, digits, '-', '_' and '.'
    names: Sequence[str]  #: frame names, sorted = time order; may open the scene's file, and raise DataError

    def frame(self, index: int) -> Frame:
        """Load frame ``names[index]`` with its pixels. Raises FrameError where this one frame is unusable."""
        ...

    def mesh(self) -> Path | None:
        """Return a triangle mesh of the scene's surface in world metres, or None where the source has none."""
        ...


class Recording(Protocol):
    """A recording that is open."""

    class_names: Sequence[str] | None  #: names of the label ids 0..n-1, None where the source has no labels

    def scenes(self) -> Sequence[Scene]:
        """Every scene of the recording, sorted by id."""
        ...


class Reader(Recording, Protocol):
    """A recording's folder, or file -> its scenes. ``__init__`` may read small text files, never images.

    ``cameras`` is a YAML file that states both cameras (docs/own-data.md); without it the reader takes
    ``cameras.yaml`` of the folder where there is one, else what the format itself says.

    A reader of a data set with an official split has ``splits = True``, takes a third argument ``split`` (one of
    :data:`SPLITS`), and its scenes have an attribute ``split``: the official one they belong to, or None.

    One whose recordings may be a single file states their endings in lower case, ``suffixes = (".r3d",)``; without it
    only folders come to :meth:`detect`. One of a video format, some 30 frames a second, states how many to go on with,
    ``frame_step = 25``. One with ``last_resort = True`` is only asked where no other reader knows the layout.
    """

    looks_for: ClassVar[str]  #: what :meth:`detect` looks for, as a phrase for error messages

    def __init__(self, path: Path, cameras: Path | None = None) -> None: ...

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether the folder has this format's layout."""
        ...


def open_recording(
    path: Path, reader: str | None = None, cameras: Path | None = None, split: str = "train", correct: str = ""
) -> Recording:
    """Open a recording with the named reader, or with the only one whose layout it has.

    ``split`` is one of :data:`SPLITS`; without an official split everything is "train". ``correct`` is what
    :func:`pri3d.recordings._shared.correction.parse_correction` takes. Raises DataError where the recording is missing
    or no reader knows it, ConfigError where several do, where it has no such split, or for an unknown correction.
    """
    correction = parse_correction(correct)
    _require(path)
    name = reader or find_reader(path)
    opened = _open(name, registry.load("readers", READERS, name), path, cameras, split)
    return opened if correction == Correction() else CorrectedReader(opened, correction)


def detect(path: Path) -> list[str]:
    """Names of the readers whose layout the file or folder has; the last resorts where no other reader knows it."""
    return _detect(path, last_resort=False) or _detect(path, last_resort=True)


def _detect(path: Path, last_resort: bool) -> list[str]:
    classes = {name: registry.load("readers", READERS, name) for name in registry.names("readers", READERS)}
    asked = {name: cls for name, cls in classes.items() if getattr(cls, "last_resort", False) == last_resort}
    return [name for name, cls in asked.items() if _fits(cls, path)]


def find_reader(path: Path) -> str:
    """Return the name of the only reader that knows the recording.

    Raises DataError where it is missing or no reader knows it, ConfigError where several do.
    """
    _require(path)
    found = detect(path)
    if len(found) > 1:
        raise ConfigError(f"{path}: fits several formats ({', '.join(found)}). Choose one with --reader.")
    if found:
        return found[0]
    wanted = "".join(
        f"\n  {name}: {registry.load('readers', READERS, name).looks_for}"
        for name in registry.names("readers", READERS)
    )
    raise DataError(f"{path}: not a known recording.{_seen(path)} Looked for{wanted}")


def _require(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Give what holds the recording.")


def _fits(cls: Any, path: Path) -> bool:
    if path.is_file() and not path.name.lower().endswith(getattr(cls, "suffixes", ())):
        return False
    return bool(cls.detect(path))


def _seen(path: Path) -> str:
    """What lies there instead, and which folder in it is a recording."""
    if path.is_file():
        return " It is a file."
    inside = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    known = next(((p, names) for p in inside[:_TRIED] if p.is_dir() and (names := _detect(p, False))), None)
    hint = f" {known[0]} is one ({', '.join(known[1])}): did you mean that?" if known else ""
    more = f" and {len(inside) - _NAMED} more" * (len(inside) > _NAMED)
    return f" Found {', '.join(p.name for p in inside[:_NAMED]) or 'nothing'}{more}.{hint}"


def _open(name: str, cls: Any, path: Path, cameras: Path | None, split: str) -> Reader:
    if path.is_file() and not path.name.lower().endswith(getattr(cls, "suffixes", ())):
        raise DataError(f"{path}: is a file; {name} looks for {cls.looks_for}.")
    if split not in SPLITS:
        raise registry.unknown("split", SPLITS, split)
    if getattr(cls, "splits", False):
        return cls(path, cameras, split)  # type: ignore[no-any-return]
    if split not in ("train", "all"):
        raise ConfigError(f"--split {split}: {path} is read as {name}, which has no official split. Leave it out.")
    return cls(path, cameras)  # type: ignore[no-any-return]
