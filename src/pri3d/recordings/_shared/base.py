"""What most readers are: a recording is one scene, or a folder of scenes, each opened when it is first used."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from pri3d.recordings._shared.cameras import Cameras, cameras_for
from pri3d.recordings._shared.files import clean_id, sort_scenes
from pri3d.recordings._shared.scenes import Frames, LazyScene
from pri3d.recordings._shared.splits import of_split


class SceneReader(ABC):
    """A recording of scenes that lie in it, or that is one scene."""

    looks_for: ClassVar[str]
    class_names: Sequence[str] | None = None

    def __init__(self, path: Path, cameras: Path | None = None) -> None:
        """Raises ConfigError where cameras.yaml cannot be understood, DataError where the given one is missing."""
        self._path = path
        stated = cameras_for(cameras, path if path.is_dir() else path.parent)
        self._given = stated if cameras is not None else None

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
    def open(self, source: Path, given: Cameras | None) -> Frames:
        """Open a scene; ``given`` are cameras that win over what it says. Raises DataError where it is damaged."""

    def scenes(self) -> Sequence[LazyScene]:
        """Return the scenes, sorted by id; none is opened yet. Raises DataError where there is none."""
        return sort_scenes(self._path, [self.scene(source) for source in self.find(self._path)], self.looks_for)

    def scene(self, source: Path) -> LazyScene:
        """The scene of a source, opened when it is first used."""
        name = source.resolve().name if source.is_dir() else source.stem
        return LazyScene(clean_id(name), lambda: self.open(source, self.stated(source)))

    def stated(self, source: Path) -> Cameras | None:
        """Cameras of the command line, else of a cameras.yaml of the scene or of the recording, else None."""
        return self._given or cameras_for(None, source, self._path)


class SplitReader(SceneReader):
    """A recording of a data set with official lists of scenes, of which one is read."""

    splits: ClassVar[bool] = True

    def __init__(self, path: Path, cameras: Path | None = None, split: str = "train") -> None:
        """As :class:`SceneReader`; ``split`` is one of :data:`pri3d.recordings.SPLITS`."""
        super().__init__(path, cameras)
        self._split = split

    def scenes(self) -> Sequence[LazyScene]:
        """Return the scenes of the split, sorted by id; none is opened yet. Raises DataError where there is none."""
        scenes = [self.scene(source) for source in self.find(self._path)]
        return sort_scenes(self._path, of_split(self._path, scenes, self._split), self.looks_for)


def entries(folder: Path) -> list[Path]:
    """Files and folders in ``folder``, sorted, but the hidden ones."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []
