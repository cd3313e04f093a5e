"""The prepared dataset: the only place that knows its layout.

    OUT/dataset.json                manifest: state, settings, versions, class names, and every scene.json
    OUT/pairs.npz                   overlapping pairs of all scenes, in the order of the scenes
    OUT/scenes/ID/scene.json        where the scene comes from, its counts, and the hash of its files
    OUT/scenes/ID/frames.npz        names, poses, intrinsics, validity and reasons of rejection
    OUT/scenes/ID/frames.zip        color/*.jpg, depth/*.png (16-bit mm), label/*.png, instance/*.png; not compressed
    OUT/scenes/ID/pairs.npz         this scene's pairs
    OUT/scenes/ID/surface.npz       cells of the voxelised surface, sorted, and their colour where there is one; not
                                    compressed, so that training reads the part that a camera sees

The settings stand once, in the manifest: all scenes of a store are made with the same.
Everything is written to a temporary name (:func:`pri3d.files.atomic.temporary`) and renamed: a killed run leaves
nothing half-written, and two that write to one store do not meet.
The same input gives the same bytes: archives carry no time stamps.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Container
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from pri3d.api.results import Output
from pri3d.errors import DataError
from pri3d.files.archive import Column, ImageArchive, encode, read_arrays
from pri3d.files.atomic import put_folder, temporary, write_atomic
from pri3d.files.kinds import is_id
from pri3d.notation import parse_json
from pri3d.types import View, Voxels

FORMAT = 1
MANIFEST = "dataset.json"
_SCENE_FILES = ("frames.npz", "frames.zip", "pairs.npz", "surface.npz")
_KEPT = 64  # scenes in memory: their tables are small, their surfaces are 10 MB each at 2 cm
_MILLIMETRE = np.float32(0.001)
_LARGEST = 10**8  # pixels of a stored image; a damaged table can claim any size
_MODES = {"color": "RGB", "depth": "I;16", "label": "L", "instance": "I;16"}  # pillow's, of the images of a scene
_FRAMES: dict[str, Column] = {
    "names": ("U", (None,)),
    "world_from_camera": ("f", (None, 4, 4)),
    "intrinsics": ("f", (None, 4)),
    "valid": ("b", (None,)),
    "reasons": ("U", (None,)),
    "size": ("i", (2,)),
}
_PAIRS: dict[str, Column] = {
    "scene": ("U", (None,)),
    **dict.fromkeys(("i", "j"), ("i", (None,))),
    **dict.fromkeys(("overlap", "baseline", "angle"), ("f", (None,))),
}
_SURFACE: dict[str, Column] = {"cells": ("i", (None, 3)), "size": ("f", ()), "color": ("u", (None, 3))}
_COUNTS = ("source_frames", "frames", "rejected", "pairs", "voxels", "bytes")  # of every scene.json
T = TypeVar("T")


class FrameTable(NamedTuple):
    """All N frames of a scene in time order, rejected ones included."""

    names: NDArray[np.str_]  #: (N,)
    world_from_camera: NDArray[np.float64]  #: (N, 4, 4) colour camera; NaN where rejected
    intrinsics: NDArray[np.float64]  #: (N, 4) fx, fy, cx, cy in pixels of ``size``; NaN where rejected
    valid: NDArray[np.bool_]  #: (N,) False where the frame was rejected: it has no images
    reasons: NDArray[np.str_]  #: (N,) why it was rejected, "" where valid
    size: tuple[int, int]  #: width, height in pixels of every stored image


class PairTable(NamedTuple):
    """P overlapping pairs of frames; rows i < j of the scene's :class:`FrameTable`."""

    scene: NDArray[np.str_]  #: (P,) scene ids
    i: NDArray[np.int32]  #: (P,)
    j: NDArray[np.int32]  #: (P,)
    overlap: NDArray[np.float32]  #: (P,) share of points with a partner, see :mod:`pri3d.preparation.overlap`
    baseline: NDArray[np.float32]  #: (P,) metres between the two camera centres
    angle: NDArray[np.float32]  #: (P,) radians between the two viewing directions

    @classmethod
    def empty(cls) -> PairTable:
        """Return a table of no pairs."""
        return cls(*(np.zeros(0, dtype) for dtype in _PAIR_TYPES))

    @classmethod
    def concatenate(cls, tables: list[PairTable]) -> PairTable:
        """All rows of the tables, in order."""
        columns = zip(*(tables or [cls.empty()]), strict=True)
        return cls(*(np.concatenate(column) for column in columns))


_PAIR_TYPES = ("<U1", np.int32, np.int32, np.float32, np.float32, np.float32)


class SceneStore:
    """Read side of one scene. Cheap to pickle; files are opened where they are read, so any process may use it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name

    def __reduce__(self) -> tuple[type[SceneStore], tuple[Path]]:
        return SceneStore, (self.path,)  # caches stay behind

    @cached_property
    def frames(self) -> FrameTable:
        """The scene's frames. Raises DataError where frames.npz is missing or damaged."""
        path = self.path / "frames.npz"
        data = read_arrays(path, _FRAMES, _again(path))
        width, height = (int(value) for value in data.pop("size"))
        known = data["world_from_camera"][data["valid"]], data["intrinsics"][data["valid"]]
        if not (0 < width * height <= _LARGEST and width > 0 and all(np.isfinite(x).all() for x in known)):
            raise DataError(f"{path}: damaged: images of {width}x{height}, or invalid poses. {_again(path)}")
        return FrameTable(**data, size=(width, height))

    def view(self, row: int) -> View:
        """Frame ``row`` with colour and depth of the stored size.

        Raises DataError where the frame was rejected, or naming archive and entry where the file is damaged.
        """
        table = self.frames
        name = self._name(row)
        color, depth = self._images.read([f"color/{name}.jpg", f"depth/{name}.png"], table.size)
        metres = depth.astype(np.float32) * _MILLIMETRE
        return View(color, metres, table.intrinsics[row], table.world_from_camera[row], name)

    def color(self, row: int) -> NDArray[np.uint8]:
        """RGB (H, W, 3) of frame ``row`` alone. Raises DataError as `view`."""
        pixels: NDArray[np.uint8] = self._images.read([f"color/{self._name(row)}.jpg"], self.frames.size)[0]
        return pixels

    def has_label(self, row: int) -> bool:
        """Whether frame ``row`` was kept and has a label image; no image is read.

        Raises DataError where the row does not exist or the archive is damaged.
        """
        name = self._row(row)
        return bool(self.frames.valid[row]) and f"label/{name}.png" in self._images

    def label(self, row: int) -> NDArray[np.uint8] | None:
        """Class ids (H, W) of frame ``row``, 255 = ignored; None where it has none. Raises DataError as `view`."""
        pixels: NDArray[np.uint8] | None = self._optional(f"label/{self._name(row)}.png")
        return pixels

    def instance(self, row: int) -> NDArray[np.uint16] | None:
        """Instance ids (H, W) of frame ``row``, 0 = none; None where it has none. Raises DataError as `view`."""
        pixels: NDArray[np.uint16] | None = self._optional(f"instance/{self._name(row)}.png")
        return pixels

    def surface(self) -> Voxels:
        """Occupied cells of the whole scene, possibly none; read anew by each call. Raises DataError."""
        return self._surface(mapped=False)

    def surface_map(self) -> Voxels:
        """As :meth:`surface`, mapped into memory: of a large scene only what is looked at is read, and nothing is kept.

        Its content is not verified; stores that were written compressed are read whole. Raises DataError.
        """
        return self._surface(mapped=True)

    def _surface(self, mapped: bool) -> Voxels:
        path = self.path / "surface.npz"
        data = read_arrays(path, _SURFACE, _again(path), optional=("color",), mapped=mapped)
        size = float(data["size"])
        if not 0 < size < np.inf:
            raise DataError(f"{path}: damaged: cells of {size} m. {_again(path)}")
        return Voxels(data["cells"], size, data.get("color"))

    def pairs(self) -> PairTable:
        """Return this scene's pairs. Raises DataError where pairs.npz is missing or damaged."""
        return _read_pairs(self.path / "pairs.npz")

    @cached_property
    def _images(self) -> ImageArchive:
        return ImageArchive(self.path / "frames.zip", _again(self.path / "frames.zip"), _MODES)

    def _optional(self, entry: str) -> Any:
        return self._images.read([entry], self.frames.size)[0] if entry in self._images else None

    def _name(self, row: int) -> str:
        name, table = self._row(row), self.frames
        if not table.valid[row]:
            raise DataError(f"{self.path}: frame {name} was rejected: {table.reasons[row]}")
        return name

    def _row(self, row: int) -> str:
        names = self.frames.names
        if not 0 <= row < len(names):
            raise DataError(f"{self.path}: frame row {row} does not exist; rows are 0..{len(names) - 1}.")
        return str(names[row])


class Store(Output):
    """Read side of a prepared folder."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the folder. Raises DataError where it is no prepared dataset, unfinished or damaged."""
        super().__init__(path)
        self.manifest = read_manifest(self.path)
        if self.manifest["state"] != "finished":
            raise DataError(f"{self.path}: its preparation was not finished. Run the same `pri3d prepare` again.")
        for file in (scene_folder(self.path, scene) / name for scene in self.scenes for name in _SCENE_FILES):
            if not file.is_file():
                raise DataError(f"{file}: missing from the prepared dataset. {_again(file)}")
        self._cache: dict[str, SceneStore] = {}

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return Store, (self.path,)

    def facts(self) -> list[str]:
        """How much there is."""
        pairs = [f"{len(self.pairs().i)} pairs"] if self.manifest["settings"]["pairs"] else []
        return [f"{len(self.scenes)} scenes", *pairs]

    @property
    def scenes(self) -> list[str]:
        """Ids of the finished scenes, sorted."""
        return sorted(self.manifest["scenes"])

    @property
    def surfaces(self) -> dict[str, int]:
        """How many scenes have their surface from a mesh, fused from depth, or none; unknown of older stores."""
        return dict(Counter(str(record.get("surface", "unknown")) for record in self.manifest["scenes"].values()))

    @property
    def class_names(self) -> list[str] | None:
        """Names of the label ids 0..n-1, None where the source has no labels."""
        return self.manifest["class_names"]  # type: ignore[no-any-return]

    @property
    def hash(self) -> str:
        """Digest of what decides the content: the scenes' hashes and the settings, not times or versions."""
        content = {"scenes": {k: v["hash"] for k, v in self.manifest["scenes"].items()}}
        content["settings"] = self.manifest["settings"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def scene(self, scene_id: str) -> SceneStore:
        """Return the read side of one scene; the last used ones are kept. Raises DataError for an unknown id."""
        if scene_id not in self.manifest["scenes"]:
            raise DataError(f"{self.path}: has no scene {scene_id!r}. It has {', '.join(self.scenes)}.")
        return remember(self._cache, scene_id, lambda: SceneStore(scene_folder(self.path, scene_id)))

    def pairs(self) -> PairTable:
        """All overlapping pairs. Raises DataError where it was prepared without pairs or pairs.npz is damaged."""
        if not self.manifest["settings"]["pairs"]:
            raise DataError(f"{self.path}: was prepared with --pairs false. Prepare it with pairs, in another folder.")
        return _read_pairs(self.path / "pairs.npz", self.manifest["scenes"])


class SceneWriter:
    """Write side of one scene: a folder beside the target, renamed by :meth:`finish`, removed on any error.

    Use as a context manager: ``add`` or ``reject`` every frame in time order, then ``finish``.
    """

    def __init__(self, root: Path, scene_id: str, size: tuple[int, int] = (0, 0)) -> None:
        """Prepare to write scene ``scene_id`` of the store ``root``; ``size`` is width, height of its images."""
        self.target = scene_folder(root, scene_id)
        self.path = temporary(self.target)
        self.size = size
        self._rows: list[tuple[str, NDArray[np.float64], NDArray[np.float64], bool, str]] = []

    def __enter__(self) -> Self:
        self._replaces = self.target.exists()
        shutil.rmtree(self.path, ignore_errors=True)  # left by a killed process of the same number
        self.path.mkdir(parents=True)
        self._zip = zipfile.ZipFile(self.path / "frames.zip", "w", zipfile.ZIP_STORED)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        try:
            self._zip.close()
        finally:  # closing writes too: on a full disk it raises, and the folder must still go
            shutil.rmtree(self.path, ignore_errors=True)

    def add(
        self,
        view: View,
        label: NDArray[np.uint8] | None = None,
        instance: NDArray[np.uint16] | None = None,
        color_jpeg: bytes | None = None,
    ) -> None:
        """Store a frame: depth rounded to millimetres, colour as ``color_jpeg``, else as JPEG of quality 95.

        All images are of ``size``.
        """
        images = {"label": label, "instance": instance, "depth": millimetres(view.depth)}
        data = {f"{kind}/{view.name}.png": encode(x, "PNG") for kind, x in images.items() if x is not None}
        data[f"color/{view.name}.jpg"] = color_jpeg or encode(view.color, "JPEG")
        for entry in sorted(data):
            self._zip.writestr(zipfile.ZipInfo(entry), data[entry])
        self._rows.append((view.name, view.world_from_camera, view.intrinsics, True, ""))

    def reject(self, name: str, reason: str) -> None:
        """Record a frame that is left out, and why."""
        self._rows.append((name, np.full((4, 4), np.nan), np.full(4, np.nan), False, reason))

    def finish(self, pairs: PairTable, surface: Voxels, record: dict[str, Any]) -> dict[str, Any]:
        """Write the tables and rename. Return ``record`` with the scene's ``hash`` and ``bytes`` added (scene.json).

        A scene that was there before is replaced; raises DataError where it appeared meanwhile.
        """
        self._zip.close()
        columns = [np.array(column) for column in zip(*self._rows, strict=True)]
        table: dict[str, Any] = dict(zip(FrameTable._fields, [*columns, np.array(self.size)], strict=True))
        np.savez(self.path / "frames.npz", **table)
        np.savez_compressed(self.path / "pairs.npz", **pairs._asdict())
        cells: dict[str, Any] = {name: value for name, value in surface._asdict().items() if value is not None}
        np.savez(self.path / "surface.npz", **cells)  # not compressed: training maps it and reads parts
        files = [self.path / name for name in _SCENE_FILES]
        digest = hashlib.sha256()
        for file in files:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        size = sum(file.stat().st_size for file in files)
        record = {**record, "hash": digest.hexdigest(), "bytes": size}
        (self.path / "scene.json").write_text(json.dumps(record, indent=1) + "\n")
        if self._replaces:
            shutil.rmtree(self.target, ignore_errors=True)
        put_folder(self.path, self.target)
        return record


def remember(cache: dict[str, T], key: str, make: Callable[[], T], most: int = _KEPT) -> T:
    """Return ``cache[key]``, made where it is missing; of more than ``most`` entries the longest unused one goes."""
    value = cache.pop(key) if key in cache else make()
    cache[key] = value  # a dict keeps the order of insertion: the last used is last
    if len(cache) > most:
        del cache[next(iter(cache))]
    return value


def millimetres(depth: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Depth in metres, 0 = invalid -> whole millimetres; what does not fit 16 bits becomes 0."""
    values = np.rint(depth * np.float32(1000))
    return np.where((values > 0) & (values <= 65535), values, 0).astype(np.uint16)


def scene_folder(root: Path, scene_id: str) -> Path:
    """Return where the scene lies in the store."""
    return root / "scenes" / scene_id


def read_scene_record(root: Path, scene_id: str) -> dict[str, Any] | None:
    """Return what :meth:`SceneWriter.finish` wrote, or None where the scene is not finished. Raises DataError."""
    path = scene_folder(root, scene_id) / "scene.json"
    if not path.is_file():
        return None
    record = _read_json(path)
    right = {name: isinstance(record.get(name), int) and record[name] >= 0 for name in _COUNTS}
    right |= {name: isinstance(record.get(name), str) for name in ("source", "hash")}
    right["seconds"] = isinstance(record.get("seconds"), int | float)
    right["cameras"] = isinstance(record.get("cameras", {}), dict)
    _refuse([key for key, fine in right.items() if not fine], path)
    return record


def finished_scenes(root: Path) -> list[str]:
    """Ids of the finished scenes of a store that may itself be unfinished, sorted."""
    return sorted(p.parent.name for p in (root / "scenes").glob("*/scene.json") if not p.parent.name.startswith("."))


def read_manifest(root: Path) -> dict[str, Any]:
    """Return the manifest. Raises DataError where there is none or it is of another kind or format."""
    path = root / MANIFEST
    if not path.is_file():
        raise DataError(f"{root}: not a prepared dataset (no {MANIFEST}). Make one: pri3d prepare RECORDING {root}")
    manifest = _read_json(path)
    if manifest.get("format") != FORMAT:
        found = manifest.get("format")
        raise DataError(f"{path}: format {found!r}, this version reads {FORMAT}. Prepare the recording again.")
    names, scenes, settings = (manifest.get(key) for key in ("class_names", "scenes", "settings"))
    right = {
        "state": isinstance(manifest.get("state"), str),
        "settings": isinstance(settings, dict) and isinstance(settings.get("pairs"), bool),
        "class_names": names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names)),
        "scenes": isinstance(scenes, dict)
        and all(
            is_id(name) and isinstance(record, dict) and isinstance(record.get("hash"), str)
            for name, record in scenes.items()
        ),
        "versions": isinstance(manifest.get("versions", {}), dict),
        "failed": isinstance(manifest.get("failed", {}), dict),
    }
    right["class_names"] &= "class_names" in manifest
    _refuse([key for key, fine in right.items() if not fine], path)
    return {"versions": {}, "failed": {}, **manifest}


def write_manifest(root: Path, manifest: dict[str, Any]) -> None:
    """Write dataset.json at once; ``format`` is added. Nothing is touched where the content is the same."""
    text = json.dumps({"format": FORMAT, **manifest}, indent=1) + "\n"
    path = root / MANIFEST
    if not path.is_file() or path.read_text() != text:
        write_atomic(path, text.encode())


def write_pairs(root: Path, pairs: PairTable) -> None:
    """Write the whole store's pairs.npz at once. Nothing is touched where the content is the same."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **pairs._asdict())
    path = root / "pairs.npz"
    if not path.is_file() or path.read_bytes() != buffer.getvalue():
        write_atomic(path, buffer.getvalue())


def _read_pairs(path: Path, scenes: Container[str] | None = None) -> PairTable:
    """Raises DataError where the file is damaged, or names a scene that is none of ``scenes``."""
    table = PairTable(**read_arrays(path, _PAIRS, _again(path)))
    changes = np.flatnonzero(table.scene[1:] != table.scene[:-1]) + 1  # pairs of a scene stand together
    named = {str(table.scene[k]) for k in (0, *changes) if len(table.scene)}
    finite = all(np.isfinite(column).all() for column in (table.overlap, table.baseline, table.angle))
    if not finite or min(table.i.min(initial=0), table.j.min(initial=0)) < 0:
        raise DataError(f"{path}: damaged: it does not contain valid pairs. {_again(path)}")
    if scenes is not None and not all(name in scenes for name in named):
        raise DataError(f"{path}: damaged: it names scenes that do not exist. {_again(path)}")
    return table


def _again(path: Path) -> str:
    folder = path.parent if path.suffix else path
    return f"Delete {folder} and run the same `pri3d prepare` again: it prepares only what is missing."


def _read_json(path: Path) -> dict[str, Any]:
    """Keys and values of a file. Raises DataError where it is missing or damaged."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError("it holds no keys")
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}). Delete it and run `pri3d prepare` again.") from error
    return content


def _refuse(wrong: list[str], path: Path) -> None:
    if wrong:
        raise DataError(
            f"{path}: damaged: {', '.join(wrong)} missing or of another kind. Delete {path.parent} and prepare again."
        )
