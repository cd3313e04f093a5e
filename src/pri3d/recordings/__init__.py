"""A recording -> frames. One file per format; nothing after a reader knows which data set it was.

A reader is a class built with the recording's folder. To add one, inherit :class:`Reader` (or
:class:`pri3d.recordings._shared.scenes.SceneReader`), inherit :class:`pri3d.testing.ReaderContract` for its tests, and
add one line to ``READERS``, or to the entry points ``pri3d.readers`` of a package of yours.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path, PurePath
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pri3d import registry
from pri3d.errors import ConfigError, DataError, FrameError
from pri3d.files.kinds import count_kinds
from pri3d.geometry.pose import blend_poses
from pri3d.recordings._shared.cameras import Cameras, cameras_for, registered
from pri3d.recordings._shared.correction import Correction, parse_correction
from pri3d.recordings._shared.files import COLOR, DEPTH, MILLIMETRES, Origin, build_frame
from pri3d.recordings._shared.nearest import find_near_misses
from pri3d.recordings._shared.text import absolute
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

#: endings of files that some reader takes, or that lie beside what it takes in data sets as they are published
_KNOWN = {
    *(*COLOR, *DEPTH, ".ppm", ".npz", ".mat", ".h5", ".bin", ".sens", ".r3d", ".mp4"),
    *("", ".txt", ".json", ".yaml", ".yml", ".csv", ".log", ".conf", ".ini", ".xml", ".freiburg", ".traj", ".pincam"),
    *(".ply", ".obj", ".mtl", ".off", ".stl", ".glb", ".gltf", ".md", ".html", ".pdf", ".zip", ".db", ".list"),
}
SPLITS = ("train", "val", "test", "all")  #: which of a data set's official lists of scenes is wanted
#: seconds between the frames of a video to go on by: every 25th of 30 a second, as the paper does with ScanNet
VIDEO_SECONDS = 25 / 30
APART = 0.25  #: seconds between two poses beyond which nothing is said of what lies between
_SOUND = 5  # frames of which one must be readable
_WALKED = 20_000  # files of a recording that are looked at for kinds that no reader takes
_NAMED = 8  # entries of an unknown folder that an error lists
_TRIED = 20  # and that are looked into


class Scene(ABC):
    """One continuous recording: frames that share a world frame."""

    id: str  #: unique in its recording, made of letters, digits, '-', '_' and '.'
    names: Sequence[str]  #: frame names, sorted = time order; may open the scene's file, and raise DataError
    posed: bool = True  #: False: frames have no poses (``world_from_camera`` is the identity), nothing can be paired
    metric: bool = True  #: False: poses and depth share a unit that is not known
    split: str | None = None  #: the official list that it belongs to, None for none
    #: seconds at which the frames were taken, increasing; None where the source does not say; may open it as `names`
    times: Sequence[float] | None = None
    #: what is taken for the cameras because nothing states them, "" where something does; may open it as `names`
    assumed: str = ""

    @abstractmethod
    def frame(self, index: int) -> Frame:
        """Load frame ``names[index]`` with its pixels. Raises FrameError where this one frame is unusable."""

    def pose(self, index: int) -> NDArray[np.float64]:
        """``world_from_camera`` (4, 4) of frame ``names[index]``; written where it can be had without the pixels.

        Raises FrameError where it is unusable.
        """
        return self.frame(index).world_from_camera

    def pose_at(self, index: int, seconds: float) -> NDArray[np.float64]:
        """``world_from_camera`` (4, 4) so many seconds after the frame was taken, between the poses of two frames.

        Formats whose poses come more often than their frames take those. Raises FrameError where it is not known.
        """
        times, name = self.times, self.names[index]
        if times is None:
            raise FrameError(f"{name}: it has no time stamp, so --correct time= cannot shift its pose.")
        wanted = times[index] + seconds
        after = bisect_left(times, wanted)
        if after < len(times) and times[after] == wanted:
            return self.pose(after)
        if not 0 < after < len(times) or times[after] - times[after - 1] > APART:
            raise FrameError(f"{name}: no poses within {APART} s of its time {seconds:+g} s.")
        share = (wanted - times[after - 1]) / (times[after] - times[after - 1])
        return blend_poses(self.pose(after - 1), self.pose(after), share)

    def mesh(self) -> Path | None:
        """A triangle mesh of the scene's surface in world metres; None where the source has none."""
        return None


class Recording(ABC):
    """A recording that is open."""

    class_names: Sequence[str] | None = None  #: names of the label ids 0..n-1, None where the source has no labels
    frame_step: int = 1  #: frames to go on by where nothing else is said; about 25 for a video, 1: all are wanted
    frame_seconds: float = VIDEO_SECONDS  #: seconds to go on by instead, in scenes that state their times

    @abstractmethod
    def scenes(self) -> Sequence[Scene]:
        """Every scene of the recording, sorted by id."""


class Reader(Recording):
    """A recording's folder, or file -> its scenes. A format writes ``looks_for``, ``detect`` and ``scenes``.

    What else it can do it declares in the attributes below. ``__init__`` may be extended to read small text files,
    never images.
    """

    looks_for: ClassVar[str]  #: what :meth:`detect` looks for, as a phrase for error messages
    #: parts of a scene as patterns of names, each one of several, and files that only this format has: of a folder
    #: that no reader knows the message says which of them are missing
    parts: ClassVar[Sequence[Sequence[str]]] = ()
    signs: ClassVar[Sequence[str]] = ()
    splits: ClassVar[bool] = False  #: whether the data set has an official split: :meth:`scenes` returns ``split``
    suffixes: ClassVar[tuple[str, ...]] = ()  #: lower-case endings of recordings that are a file; else only folders
    last_resort: ClassVar[bool] = False  #: whether it is only asked where no other reader knows the layout
    #: whether its frames have the cameras of :meth:`stated` already; else those of the recording are put on them
    takes_cameras: ClassVar[bool] = False

    def __init__(self, path: Path, cameras: Path | None = None, split: str = "train") -> None:
        """Raises ConfigError where cameras.yaml cannot be understood, DataError where the given one is missing.

        ``cameras`` is a YAML file that states both cameras (docs/own-data.md); without it ``cameras.yaml`` of the
        folder is taken where there is one. ``split`` is one of :data:`SPLITS`.
        """
        self.path, self.split = path, split
        #: what the command line, else the recording's own cameras.yaml states
        self.cameras: Cameras | None = cameras_for(cameras, path if path.is_dir() else path.parent)
        self.given = self.cameras if cameras is not None else None  #: what the command line states

    @classmethod
    @abstractmethod
    def detect(cls, path: Path) -> bool:
        """Whether the folder, or file of :attr:`suffixes`, has this format's layout."""

    def stated(self, folder: Path) -> Cameras | None:
        """Cameras of the command line, else of a cameras.yaml of the scene's folder or of the recording, else None.

        Of a scene that is given alone the folder above it is the recording, and may state them too.
        """
        return self.given or cameras_for(None, folder, self.path, *folders_above(folder, self.path))


class ChangedScene(Scene):
    """Another scene in some way changed: what a subclass does not write is that scene's own."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.id, self.posed, self.metric, self.split = scene.id, scene.posed, scene.metric, scene.split

    def __copy__(self) -> Self:
        """Return one whose scene is a copy too: what it opens stays with it."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, scene=copy(self.scene))
        return other

    @cached_property
    def names(self) -> Sequence[str]:  # type: ignore[override]
        """Names of the frames. Raises DataError where the scene cannot be opened."""
        return self.scene.names

    @property
    def times(self) -> Sequence[float] | None:  # type: ignore[override]
        """When the frames were taken. Raises DataError where the scene cannot be opened."""
        return self.scene.times

    @property
    def assumed(self) -> str:  # type: ignore[override]
        """What is taken for the cameras because nothing states them. Raises DataError as `times`."""
        return self.scene.assumed

    def frame(self, index: int) -> Frame:
        """Load frame ``names[index]``. Raises FrameError where it is unusable."""
        return self.scene.frame(index)

    def pose_at(self, index: int, seconds: float) -> NDArray[np.float64]:
        """Return the pose (4, 4) so many seconds after the frame was taken. Raises FrameError where it is not known."""
        return self.scene.pose_at(index, seconds)

    def mesh(self) -> Path | None:
        """Return the scene's triangle mesh in world metres, None where it has none."""
        return self.scene.mesh()


class CorrectedScene(ChangedScene):
    """A scene whose frames are corrected."""

    def __init__(self, scene: Scene, correction: Correction) -> None:
        super().__init__(scene)
        self._correction = correction

    def frame(self, index: int) -> Frame:
        """Load and correct frame ``names[index]``. Raises FrameError where it, or the one its depth is of, is bad."""
        frame = self.scene.frame(index)
        shift = self._correction.shift
        if shift:
            if not 0 <= index + shift < len(self.names):
                raise FrameError(f"{frame.name}: has no depth, shifted by {shift} frames.")
            other = self.scene.frame(index + shift)
            frame = frame._replace(depth=other.depth, confidence=other.confidence)
        if self._correction.time:
            frame = frame._replace(world_from_camera=self.scene.pose_at(index, self._correction.time))
        return self._correction.apply(frame)

    def pose(self, index: int) -> NDArray[np.float64]:
        """Return the frame's corrected pose (4, 4). Raises FrameError where it is unusable."""
        late = self._correction.time
        pose = self.scene.pose_at(index, late) if late else self.scene.pose(index)
        return self._correction.apply_to_pose(pose, self.names[index])

    def pose_at(self, index: int, seconds: float) -> NDArray[np.float64]:
        """Return the corrected pose (4, 4) so many seconds later. Raises FrameError where it is not known."""
        pose = self.scene.pose_at(index, self._correction.time + seconds)
        return self._correction.apply_to_pose(pose, self.names[index])


class StatedScene(ChangedScene):
    """A scene whose frames get the cameras of a cameras.yaml instead of those of their format.

    ``depth_scale`` is metres per millimetre of the format, as for any that does not store whole numbers.
    """

    def __init__(self, scene: Scene, cameras: Cameras) -> None:
        super().__init__(scene)
        self._cameras = cameras

    @property
    def assumed(self) -> str:  # type: ignore[override]
        """Nothing: the cameras are stated."""
        return ""

    def frame(self, index: int) -> Frame:
        """Load frame ``names[index]``. Raises FrameError where it is unusable, or not of the cameras' size."""
        frame = self.scene.frame(index)
        what = f"{self.id}: frame {frame.name}"
        return build_frame(
            frame.name,
            frame.color,
            frame.depth * np.float32(self._cameras.depth_scale / MILLIMETRES),
            frame.world_from_camera,
            registered(self._cameras, frame.color.shape, frame.depth.shape, f"{what}: depth"),
            Origin(f"{what}: colour", f"{what}: depth", f"{what}: pose"),
            confidence=frame.confidence,
            label=frame.label,
            instance=frame.instance,
            color_jpeg=frame.color_jpeg,
        )

    def pose(self, index: int) -> NDArray[np.float64]:
        """Return the pose (4, 4) of the colour camera. Raises FrameError where it is unusable."""
        return self._cameras.world_from_color(self.scene.pose(index))

    def pose_at(self, index: int, seconds: float) -> NDArray[np.float64]:
        """Return the colour camera's pose (4, 4) so many seconds later. Raises FrameError where it is not known."""
        return self._cameras.world_from_color(self.scene.pose_at(index, seconds))


class ChangedRecording(Recording):
    """A recording whose scenes are changed."""

    def __init__(self, recording: Recording, change: Callable[[Scene], Scene]) -> None:
        self.class_names = recording.class_names
        self.frame_step, self.frame_seconds = recording.frame_step, recording.frame_seconds
        self._recording, self._change = recording, change

    def scenes(self) -> Sequence[Scene]:
        """Every scene of the recording, sorted by id."""
        return [self._change(scene) for scene in self._recording.scenes()]


def folders_above(scene: Path, recording: Path) -> list[Path]:
    """The folder above a scene that is given alone: it may hold what is stated once for several scenes."""
    return [absolute(scene).parent] if scene == recording else []


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
    cls = load_reader(name)
    if path.is_file() and not path.name.lower().endswith(cls.suffixes):
        raise DataError(f"{path}: is a file; {name} looks for {cls.looks_for}.")
    if split not in SPLITS:
        raise registry.unknown("split", SPLITS, split)
    if not cls.splits and split not in ("train", "all"):
        raise ConfigError(f"--split {split}: {path} is read as {name}, which has no official split. Leave it out.")
    opened = cls(path, cameras, split)
    recording: Recording = opened
    stated = opened.cameras
    if stated is not None and not opened.takes_cameras:
        recording = ChangedRecording(recording, lambda scene: StatedScene(scene, stated))
    if correction != Correction():
        recording = ChangedRecording(recording, lambda scene: CorrectedScene(scene, correction))
    return recording


def load_reader(name: str) -> type[Reader]:
    """Class of the reader of this name. Raises ConfigError for an unknown name, and for a class that is no reader."""
    cls = registry.load("readers", READERS, name)
    if not (isinstance(cls, type) and issubclass(cls, Reader)):
        raise ConfigError(
            f"reader {name!r}: {cls!r} does not inherit pri3d.recordings.Reader (docs/extending/reader.md)."
        )
    return cls


def detect(path: Path) -> list[str]:
    """Names of the readers whose layout the file or folder has; the last resorts where no other reader knows it."""
    return _detect(path, last_resort=False) or _detect(path, last_resort=True)


def _detect(path: Path, last_resort: bool) -> list[str]:
    classes = {name: load_reader(name) for name in registry.names("readers", READERS)}
    return [
        name
        for name, cls in classes.items()
        if cls.last_resort == last_resort
        and (path.is_dir() or path.name.lower().endswith(cls.suffixes))
        and cls.detect(path)
    ]


def find_reader(path: Path) -> str:
    """Return the name of the only reader that knows the recording.

    Raises DataError where it is missing or no reader knows it, ConfigError where several do.
    """
    _require(path)
    found = detect(path)
    if len(found) > 1:  # what looks like several is what can be read
        found = [name for name in found if _opens(name, path)] or found
    if len(found) > 1:
        raise ConfigError(f"{path}: matches several formats ({', '.join(found)}). Choose one with --reader.")
    if found:
        return found[0]
    seen, near = " It is a file.", ""
    if path.is_dir():  # what lies there instead, and which folder in it is a recording
        inside = sorted(p for p in path.iterdir() if not p.name.startswith("."))
        known = next(((p, names) for p in inside[:_TRIED] if p.is_dir() and (names := _detect(p, False))), None)
        hint = f" {known[0]} is a recording ({', '.join(known[1])}): did you mean that?" if known else ""
        more = f" and {len(inside) - _NAMED} more" * (len(inside) > _NAMED)
        seen = f" Found {', '.join(p.name for p in inside[:_NAMED]) or 'nothing'}{more}.{hint}"
        classes = {name: load_reader(name) for name in registry.names("readers", READERS)}
        near = "".join(
            f"\n  {miss.format} of {miss.folder}: {', '.join(miss.lacks)} missing. It looks for "
            f"{classes[miss.format].looks_for}"
            for miss in find_near_misses(path, {name: (c.parts, c.signs) for name, c in classes.items() if c.parts})
        )
    if near:
        raise DataError(f"{path}: not a known recording.{seen} Nearest are{near}")
    wanted = "".join(f"\n  {name}: {load_reader(name).looks_for}" for name in registry.names("readers", READERS))
    raise DataError(f"{path}: not a known recording.{seen} Looked for{wanted}")


def name_left_out(path: Path) -> str:
    """Files of a recording that no reader takes, counted by kind, in a sentence; "" where there are none.

    Of very many files the first are looked at: a network's file system lists a thousand scenes slowly.
    """
    known = _KNOWN.union(*(load_reader(name).suffixes for name in registry.names("readers", READERS)))
    others, seen = [], 0
    for _, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if name[:1] != ".")
        others += [name for name in names if PurePath(name).suffix.lower() not in known]
        seen += len(names)
        if seen >= _WALKED:
            break
    found = count_kinds(others)
    return f"{path}: left out, since no reader takes files of this kind: {found}" if found else ""


def _opens(name: str, path: Path) -> bool:
    """Whether a reader opens the first scene of a recording and its first frame that is sound."""
    try:
        scene = next(iter(load_reader(name)(path, split="all").scenes()), None)
        for index in range(min(_SOUND, len(scene.names) if scene else 0)):
            try:
                return bool(scene and scene.frame(index))
            except FrameError:
                continue
    except (DataError, ConfigError):
        return False
    return False


def _require(path: Path) -> None:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Give the folder or file of the recording.")
