"""Base classes of most readers: scenes of a recording, opened lazily, and their frames by name."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError, FrameError
from pri3d.geometry.pose import check_rigid
from pri3d.recordings import Reader, Scene
from pri3d.recordings._shared.cameras import Cameras
from pri3d.recordings._shared.files import (
    Origin,
    build_frame,
    read_color,
    read_depth,
    read_frame_ids,
    read_pose,
)
from pri3d.recordings._shared.text import absolute, clean_id
from pri3d.types import Frame

SceneT = TypeVar("SceneT", bound=Scene)


class OpenFrames(Protocol):
    """The frames of a scene that is open."""

    names: Sequence[str]

    @property
    def times(self) -> Sequence[float] | None:
        """Seconds at which the frames were taken, None where they are not known."""
        ...

    @property
    def assumed(self) -> str:
        """What is taken for the cameras because nothing states them, "" where something does."""
        ...

    def frame(self, index: int) -> Frame:
        """Load frame ``names[index]``. Raises FrameError where it is unusable."""
        ...

    def pose(self, index: int) -> NDArray[np.float64]:
        """``world_from_camera`` (4, 4) of frame ``names[index]``. Raises FrameError where it is unusable."""
        ...


class FrameList:
    """Frames that a function loads by name."""

    times: Sequence[float] | None = None
    assumed = ""

    def __init__(self, names: Sequence[str], load: Callable[[str], Frame]) -> None:
        self.names: Sequence[str] = sorted(names)
        self._load = load

    def frame(self, index: int) -> Frame:
        """Load frame ``names[index]``. Raises FrameError where it is unusable."""
        return self._load(self.names[index])

    def pose(self, index: int) -> NDArray[np.float64]:
        """Return the pose (4, 4) of the frame, which is loaded. Raises FrameError where it is unusable."""
        return self.frame(index).world_from_camera


class PosedList(FrameList):
    """Frames that a function loads by name, and whose poses are known without them."""

    def __init__(
        self,
        names: Sequence[str],
        load: Callable[[str], Frame],
        pose: Callable[[str], NDArray[np.float64]],
        cameras: Cameras | None = None,
        what: str = "",
        time: Callable[[str], float | None] = lambda _name: None,
        assumed: str = "",
        pose_at: Callable[[str, float], NDArray[np.float64]] | None = None,
    ) -> None:
        """``pose`` gives the (4, 4), by the file ``what``, of the camera that ``cameras`` says, None for colour.

        ``time`` gives the seconds at which a frame was taken, None or a FrameError where it is not known;
        ``assumed`` says what is taken for the cameras where nothing states them. ``pose_at`` gives the pose so many
        seconds after a frame, where the source has poses between those of its frames.
        """
        super().__init__(names, load)
        self._pose, self._cameras, self._what, self._time = pose, cameras, what, time
        self.assumed, self._pose_at = assumed, pose_at

    @cached_property
    def times(self) -> Sequence[float] | None:  # type: ignore[override]
        """Seconds at which the frames were taken, None where they are not known of all, or do not increase."""
        found = []
        for name in self.names:
            try:
                found.append(self._time(name))
            except FrameError:
                return None
            if found[-1] is None:
                return None
        times = np.array(found, np.float64)
        return times.tolist() if np.isfinite(times).all() and (np.diff(times) > 0).all() else None

    def pose(self, index: int) -> NDArray[np.float64]:
        """Return ``world_from_camera`` (4, 4) of the colour camera. Raises FrameError where it is not rigid."""
        name = self.names[index]
        pose = check_rigid(self._pose(name), f"{self._what}: frame {name}")
        return pose if self._cameras is None else self._cameras.world_from_color(pose)

    def pose_at(self, index: int, seconds: float) -> NDArray[np.float64] | None:
        """Return the pose (4, 4) of the colour camera so many seconds later, None where only the frames' are known."""
        if self._pose_at is None:
            return None
        name = self.names[index]
        pose = check_rigid(self._pose_at(name, seconds), f"{self._what}: frame {name} {seconds:+g} s")
        return pose if self._cameras is None else self._cameras.world_from_color(pose)


class LazyScene(Scene):
    """A scene that is opened when it is first asked for frames: a damaged one must not stop the thousand others."""

    def __init__(
        self,
        scene_id: str,
        opener: Callable[[], OpenFrames],
        mesh: Path | None = None,
        *,
        posed: bool = True,
        metric: bool = True,
        split: str | None = None,
    ) -> None:
        """``opener`` may raise DataError, as asking for ``names`` then does."""
        self.id = scene_id
        self.posed, self.metric, self.split = posed, metric, split
        self._mesh = mesh
        self._opener = opener

    @cached_property
    def _opened(self) -> OpenFrames:
        return self._opener()

    @property
    def names(self) -> Sequence[str]:  # type: ignore[override]
        """Names of the frames. Raises DataError where the scene cannot be opened."""
        return self._opened.names

    @property
    def times(self) -> Sequence[float] | None:  # type: ignore[override]
        """Seconds at which the frames were taken. Raises DataError where the scene cannot be opened."""
        return self._opened.times

    @property
    def assumed(self) -> str:  # type: ignore[override]
        """What is taken for the cameras because nothing states them. Raises DataError as `names`."""
        return self._opened.assumed

    def frame(self, index: int) -> Frame:
        """Load frame ``names[index]``. Raises FrameError naming the file that is missing or damaged."""
        return self._opened.frame(index)

    def pose(self, index: int) -> NDArray[np.float64]:
        """Return the frame's pose (4, 4). Raises FrameError where it is unusable."""
        return self._opened.pose(index)

    def pose_at(self, index: int, seconds: float) -> NDArray[np.float64]:
        """Return the pose (4, 4) so many seconds after the frame was taken. Raises FrameError where it is not known."""
        between = self._opened.pose_at(index, seconds) if isinstance(self._opened, PosedList) else None
        return super().pose_at(index, seconds) if between is None else between

    def mesh(self) -> Path | None:
        """Return the scene's triangle mesh in world metres, None where there is none."""
        return self._mesh if self._mesh is not None and self._mesh.is_file() else None


class FrameFiles(NamedTuple):
    """Where the parts of one frame lie."""

    color: Path
    depth: Path
    pose: Path
    label: Path | None = None
    instance: Path | None = None


class FileScene(Scene):
    """A scene whose frames are single files."""

    def __init__(
        self,
        scene_id: str,
        files: dict[str, FrameFiles],
        cameras: Cameras,
        mesh: Path | None = None,
        classes: int | None = None,
        assumed: str = "",
    ) -> None:
        """``files``: frame name -> files; ``classes``: number of label ids, None where it is not stated.

        ``assumed`` says what is taken for the cameras where nothing states them.
        """
        self.assumed = assumed
        self.id = scene_id
        self.names = sorted(files)
        self._files = files
        self._cameras = cameras
        self._mesh = mesh
        self._classes = classes

    def frame(self, index: int) -> Frame:
        """Load frame ``names[index]``. Raises FrameError naming a file that is missing, damaged or of another size."""
        name, cameras = self.names[index], self._cameras
        files = self._files[name]
        pose = read_pose(files.pose)
        color = read_color(files.color)
        depth = read_depth(files.depth, cameras.depth_scale)
        height, width = color.shape[:2]
        cameras.color.of_image(width, height, str(files.color))  # before labels are blamed for another size
        label = read_frame_ids(files.label, (height, width)) if files.label else None
        if label is not None:
            largest, classes = int(label[label != 255].max(initial=0)), self._classes
            if largest > 255 or (classes is not None and largest >= classes):
                named = f"{classes} classes are named" if classes is not None else "labels end at 254"
                raise FrameError(f"{files.label}: holds class id {largest}, but {named}; 255 means ignored.")
        instance = read_frame_ids(files.instance, (height, width)) if files.instance else None
        return build_frame(
            name,
            color,
            depth,
            pose,
            cameras,
            Origin(str(files.color), str(files.depth), str(files.pose)),
            label=None if label is None else label.astype(np.uint8),
            instance=None if instance is None else instance.astype(np.uint16),
        )

    def pose(self, index: int) -> NDArray[np.float64]:
        """Read ``world_from_camera`` (4, 4) alone. Raises FrameError naming a pose file that is missing or damaged."""
        return self._cameras.world_from_color(read_pose(self._files[self.names[index]].pose))

    def mesh(self) -> Path | None:
        """Return the scene's triangle mesh in world metres, None where there is none."""
        return self._mesh if self._mesh is not None and self._mesh.is_file() else None


class SceneReader(Reader):
    """A recording of scenes that lie in it, or that is one scene; each is opened when it is first used."""

    takes_cameras: ClassVar[bool] = True

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether the recording is a scene or holds some."""
        return next(cls.find(path), None) is not None

    @classmethod
    def find(cls, path: Path) -> Iterator[Path]:
        """The recording itself where it is a scene, else the scenes directly in it."""
        if cls.is_scene(path):
            yield path
        else:
            yield from filter(cls.is_scene, entries(path))

    @staticmethod
    @abstractmethod
    def is_scene(path: Path) -> bool:
        """Whether a file or folder has the layout of a scene."""

    @abstractmethod
    def open(self, source: Path, given: Cameras | None) -> OpenFrames:
        """Open a scene; ``given`` are cameras that win over what it says. Raises DataError where it is damaged."""

    def scenes(self) -> Sequence[LazyScene]:
        """Return the scenes of the split, sorted by id; none is opened yet. Raises DataError where there is none."""
        scenes = [self.scene(source) for source in self.find(self.path)]
        return sort_scenes(self.path, scenes_of_split(self.path, scenes, self.split), self.looks_for)

    def scene(self, source: Path) -> LazyScene:
        """The scene of a source, opened when it is first used."""
        name = absolute(source).name if source.is_dir() else source.stem
        return LazyScene(clean_id(name), lambda: self.open(source, self.stated(source)))


def entries(folder: Path) -> list[Path]:
    """Files and folders in ``folder``, sorted, but the hidden ones."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []


def has_images(folder: Path) -> bool:
    """Whether it has folders rgb and depth."""
    return (folder / "rgb").is_dir() and (folder / "depth").is_dir()


def scenes_of_split(path: Path, scenes: Sequence[SceneT], split: str) -> list[SceneT]:
    """Scenes of the recording ``path`` that belong to ``split``; those in no official list count as train.

    Raises DataError, which says what there is instead, where there are scenes but none of this split.
    """
    wanted = [scene for scene in scenes if split in ("all", scene.split or "train")]
    if scenes and not wanted:
        there = sorted({scene.split or "train" for scene in scenes})
        raise DataError(
            f"{path}: none of its {len(scenes)} scenes is in the official {split} list. Choose "
            f"{' or '.join(f'--split {other}' for other in there)} to take them."
        )
    return wanted


def check_scenes(path: Path, scenes: Sequence[FileScene], looked_for: str) -> list[FileScene]:
    """Sort scenes by id. Raises DataError where there is none, one is empty or two have the same id."""
    for scene in scenes:
        if not scene.names:
            raise DataError(f"{path}: scene {scene.id} has no frame. Looked for {looked_for}.")
    return sort_scenes(path, scenes, looked_for)


def sort_scenes(path: Path, scenes: Sequence[SceneT], looked_for: str) -> list[SceneT]:
    """Sort scenes by id without opening any. Raises DataError where there is none or two have the same id."""
    if not scenes:
        raise DataError(f"{path}: holds no scene. Looked for {looked_for}.")
    ids = [scene.id for scene in scenes]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise DataError(f"{path}: two folders give the scene id {', '.join(twice)}; rename one.")
    return sorted(scenes, key=lambda scene: scene.id)
