"""7-Scenes and recordings named like it (Shotton et al. 2013; also the TSDF demo's RedKitchen)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from pri3d.errors import ConfigError, FrameError
from pri3d.recordings import Reader, folders_above
from pri3d.recordings._shared.cameras import Cameras, Intrinsics, cameras_for, from_matrix, same_camera
from pri3d.recordings._shared.files import read_matrix
from pri3d.recordings._shared.scenes import FileScene, FrameFiles, check_scenes
from pri3d.recordings._shared.text import absolute, clean_id

_COLOR = ".color."
_PATTERN = "frame-*.color.*"


class SevenScenesReader(Reader):
    """frame-NNNNNN.color.png|jpg, .depth.png (mm, 65535 = invalid), .pose.txt; flat, in seq-XX or in SCENE/seq-XX.

    Every folder with frames is a scene. Cameras: ``cameras.yaml``, else ``camera-intrinsics.txt`` (3 x 3) of the
    scene's folder or above it, up to the folder above a scene that is given alone, else f = 585, centre (320, 240) of
    640 x 480, for colour and depth alike, which is then said. The
    intrinsics of this format count pixel centres at integers, so cx and cy get 0.5 more on our grid; those of a
    cameras.yaml do not.

    As published, colour is NOT registered to depth and poses are the depth camera's: state both cameras and
    ``pose_of: depth`` in cameras.yaml (docs/own-data.md has the numbers).
    """

    parts = ((_PATTERN,), ("frame-*.depth.png",), ("frame-*.pose.txt",))
    looks_for: ClassVar[str] = "frame-000000.color.png (or .jpg), .depth.png and .pose.txt, flat or in seq-XX"
    takes_cameras: ClassVar[bool] = True

    def __init__(self, path: Path, cameras: Path | None = None, split: str = "train") -> None:
        """Raises ConfigError where cameras.yaml or camera-intrinsics.txt cannot be understood."""
        super().__init__(path, cameras, split)
        self._scenes = [(folder, *self._stated(folder)) for folder in _scene_folders(path)]

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether the folder, or one up to two levels down, holds frame-*.color.* files."""
        return bool(_scene_folders(path))

    def scenes(self) -> Sequence[FileScene]:
        """Return every folder of frames as a scene, sorted by id. Raises DataError for two equal ids."""
        scenes = []
        for folder, cameras, assumed in self._scenes:
            parts = folder.relative_to(self.path).parts or (absolute(folder).name,)
            files = {}
            for color in folder.glob(_PATTERN):
                stem = color.name.split(_COLOR)[0]
                files[stem] = FrameFiles(color, folder / f"{stem}.depth.png", folder / f"{stem}.pose.txt")
            scenes.append(FileScene(clean_id("-".join(parts)), files, cameras, assumed=assumed))
        return check_scenes(self.path, scenes, self.looks_for)

    def _stated(self, folder: Path) -> tuple[Cameras, str]:
        """Cameras of a scene, and what is assumed where nothing states them."""
        path = self.path
        folders = [f for f in (folder, *folder.parents) if f == path or path in f.parents] + folders_above(folder, path)
        stated = self.given or cameras_for(None, *folders)
        if stated is not None:
            return stated, ""
        for candidate in folders:
            if (candidate / "camera-intrinsics.txt").is_file():
                return same_camera(_intrinsics(candidate / "camera-intrinsics.txt")), ""
        return same_camera(Intrinsics(585.0, 585.0, 320.5, 240.5, 640, 480)), (
            "no camera-intrinsics.txt or cameras.yaml states its camera: f = 585, centre (320.5, 240.5), the data "
            "set's depth camera, is assumed for colour and depth."
        )


def _scene_folders(path: Path) -> list[Path]:
    """Folders with frames: the recording's own, or those up to two levels down."""
    if next(path.glob(_PATTERN), None) is not None:
        return [path]
    below = [p for level in ("*", "*/*") for p in sorted(path.glob(level)) if p.is_dir() and not p.name.startswith(".")]
    return [folder for folder in below if next(folder.glob(_PATTERN), None) is not None]


def _intrinsics(path: Path) -> Intrinsics:
    try:
        return from_matrix(read_matrix(path, (3, 3)), str(path))
    except FrameError as error:
        raise ConfigError(str(error)) from error
