"""pri3d's own layout, for recordings of any source: docs/own-data.md describes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from pri3d.errors import DataError
from pri3d.files.kinds import count_kinds
from pri3d.notation import parse_yaml
from pri3d.recordings import Reader
from pri3d.recordings._shared.cameras import Cameras
from pri3d.recordings._shared.files import COLOR
from pri3d.recordings._shared.scenes import FileScene, FrameFiles, check_scenes
from pri3d.recordings._shared.text import absolute, clean_id

PARTS = ("color", "depth", "pose")  #: what a scene must have


class FolderReader(Reader):
    """RECORDING[/SCENE]/color/*.jpg|png|webp, depth/*.png (16-bit), pose/*.txt (4 x 4 camera to world), cameras.yaml.

    Optional: label/*.png, instance/*.png, mesh.ply; classes.txt or classes.yaml beside the scenes name the labels.
    ``cameras.yaml`` may lie in each scene or once in the recording; its cx, cy count pixel centres at +0.5.
    """

    parts = tuple((part,) for part in PARTS)
    signs = ("cameras.yaml",)
    looks_for: ClassVar[str] = "folders color, depth and pose (or scenes of them), see docs/own-data.md"
    takes_cameras: ClassVar[bool] = True

    def __init__(self, path: Path, cameras: Path | None = None, split: str = "train") -> None:
        """Raises DataError where no camera is stated, ConfigError where cameras.yaml cannot be understood."""
        super().__init__(path, cameras, split)
        self.class_names = self._class_names()
        self._scenes = [(folder, self._cameras(folder)) for folder in _scene_folders(path)]

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether the folder, or one in it, has color, depth and pose, and is no ScanNet export."""
        return not (path / "rooms.json").exists() and any(not is_scannet(folder) for folder in _scene_folders(path))

    def scenes(self) -> Sequence[FileScene]:
        """Return every scene, sorted by id. Raises DataError where one has no frames."""
        classes = len(self.class_names) if self.class_names else None
        scenes = [
            FileScene(clean_id(absolute(folder).name), frame_files(folder), cameras, folder / "mesh.ply", classes)
            for folder, cameras in self._scenes
        ]
        return check_scenes(self.path, scenes, self.looks_for)

    def _cameras(self, folder: Path) -> Cameras:
        cameras = self.stated(folder)
        if cameras is None:
            raise DataError(
                f"{folder}: states no cameras. Write a cameras.yaml there, or give one with --cameras; "
                "docs/own-data.md shows an example."
            )
        return cameras

    def _class_names(self) -> Sequence[str] | None:
        """Names from classes.txt (one a line) or classes.yaml (a list, or id: name)."""
        text, mapping = self.path / "classes.txt", self.path / "classes.yaml"
        try:
            if text.is_file():
                return [line.strip() for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
            if mapping.is_file():
                return _listed(parse_yaml(mapping.read_text(encoding="utf-8")), mapping)
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise DataError(f"{self.path}: the file of class names is not readable: {error}") from error
        return None


def _listed(value: Any, path: Path) -> list[str]:
    """Names of ids 0..n-1 from a list or a mapping id -> name."""
    if isinstance(value, dict) and sorted(value, key=str) == sorted(range(len(value)), key=str):
        value = [value[k] for k in range(len(value))]
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise DataError(f"{path}: expected a list of names, or names for ids 0, 1, 2 and so on without gaps.")
    return value


def _scene_folders(path: Path) -> list[Path]:
    """The folder itself where it is a scene, else the scenes directly in it."""
    candidates = [path, *sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))]
    found = [folder for folder in candidates if all((folder / part).is_dir() for part in PARTS)]
    return [path] if path in found else found


def is_scannet(folder: Path) -> bool:
    """Whether a folder with color, depth and pose says its cameras as ScanNet's exports do."""
    return (folder / "intrinsic").is_dir() or (folder / "intrinsics_color.txt").is_file()


def frame_files(folder: Path) -> dict[str, FrameFiles]:
    """Frame name -> files, one frame a colour image. Names of digits are padded: sorted names are in time order."""
    images = [p for p in (folder / "color").iterdir() if p.suffix.lower() in COLOR and not p.name.startswith(".")]
    if not images and (kinds := count_kinds(p for p in (folder / "color").iterdir() if p.is_file())):
        raise DataError(f"{folder / 'color'}: holds {kinds}; colour is read from {', '.join(COLOR)}.")
    digits = max((len(p.stem) for p in images), default=0) if all(p.stem.isdecimal() for p in images) else 0
    files: dict[str, FrameFiles] = {}
    for image in images:
        name = image.stem.zfill(digits)
        if name in files:
            raise DataError(f"{image}: frame {name} has two colour images, {files[name].color.name} too; remove one.")
        label, instance = (folder / part / f"{image.stem}.png" for part in ("label", "instance"))
        files[name] = FrameFiles(
            color=image,
            depth=folder / "depth" / f"{image.stem}.png",
            pose=folder / "pose" / f"{image.stem}.txt",
            label=label if label.is_file() else None,
            instance=instance if instance.is_file() else None,
        )
    return files
