"""ScanNet v2 (Dai et al. 2017) as labelled images: ``scannet_frames_25k``, and frames exported in its layout."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from pri3d.errors import DataError
from pri3d.geometry.resize import resize_nearest
from pri3d.labelled import LabelledImages, Split, deal
from pri3d.labelled._shared.decoding import SUFFIXES, image_size, read_ids, read_rgb
from pri3d.labelled.spaces import IGNORED, LabelSpace, load_space
from pri3d.recordings.scannet import official_split
from pri3d.terminal import Terminal

_INSIDE = ("scannet_frames_25k", "scans", "scans_test")  # folders of scans within the one that is given
_NYU40 = 40  # largest id of the label images
_PER_LABEL = 1000  # an instance image holds label * 1000 + number of the instance, which is 0 on walls and floors
_ASPECT = 0.02  # by which label and colour images of one view differ at most: 1296x968 and 640x480 do by 0.4 %


class _Image(NamedTuple):
    scan: str
    color: Path
    label: Path
    instance: Path | None


class ScanNetImages(LabelledImages):
    """SCAN/color/*.jpg, SCAN/label/*.png (NYU40 ids) and, for objects, SCAN/instance/*.png (label * 1000 + instance).

    Scans lie in the path or its ``scannet_frames_25k``, ``scans`` or ``scans_test``, or it is one. Images without a
    label image are left out. Of the scans that are there those in the official list of the split are taken, in its
    order; others count as train. Where none is in any official list, a fifth of the rooms is dealt out for val.

    The default classes are the benchmark's 20, all countable but wall and floor; a label space counts NYU40 ids.
    Label and instance images of another size than the colour image (frames exported at several sizes) are brought to
    it by nearest pixel where they show the same view, that is within 2 % of its aspect.

    Raises DataError where an image is missing or damaged, or label ids are no NYU40 ids.
    """

    looks_for: ClassVar[str] = "folders sceneNNNN_NN with color and label (ScanNet frames)"

    def __init__(self, path: Path, split: Split, labels: str | None = None) -> None:
        self.path, self._split = path, split
        self.space: LabelSpace = load_space(labels or "scannet20")
        self.class_names, self.things = self.space.names, self.space.things
        order = {scan: rank for rank, scan in enumerate(official_split())}
        images = [image for scan, folder in _scans(path).items() for image in _images(scan, folder)]
        images.sort(key=lambda image: (order.get(image.scan, len(order)), image.scan))
        self._images = [images[k] for k in rows_of_split([image.scan for image in images], split)]
        self.names = [f"{image.scan}/{image.color.stem}" for image in self._images]
        self.has_objects = any(image.instance is not None for image in self._images)
        listed = {scan for scan, name in official_split().items() if name == split}
        count = len(listed & {image.scan for image in self._images})
        if 0 < count < len(listed):
            text = f"{path}: has {count} of the {len(listed)} scans of the official {split} list."
            Terminal(stderr=True).print(text, soft_wrap=True)

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether it holds scans with ScanNet's names that have colour and label images."""
        return any(re.fullmatch(r"scene\d{4}_\d\d", scan) for scan in _scans(path))

    @classmethod
    def states_split(cls, path: Path) -> bool:
        """Whether a scan of the official lists' rooms is there."""
        return any_official(_scans(path))

    def color(self, k: int) -> NDArray[np.uint8]:
        """RGB (H, W, 3) of image k."""
        return read_rgb(self._images[k].color)

    def color_file(self, k: int) -> Path:
        """Colour image k."""
        return self._images[k].color

    def check_size(self, k: int) -> None:
        """Compare the headers of image k's files, which must show one view."""
        image = self._images[k]
        for file in (image.label, image.instance):
            if file is not None:
                self._check_view(k, file, image_size(file))

    def label(self, k: int) -> NDArray[np.uint8]:
        """Class ids (H, W) of image k, 255 = ignored."""
        file = self._images[k].label
        ids = read_ids(file)
        largest = int(ids[ids != IGNORED].max(initial=0))
        if largest > _NYU40:
            raise DataError(
                f"{file}: holds id {largest}; expected are NYU40 ids, 0..{_NYU40}. Convert labels of scans with the "
                "benchmark's own script."
            )
        return self.space.apply(self._fit(k, ids, file), str(file))

    def instance(self, k: int) -> NDArray[np.int32] | None:
        """Object ids (H, W) of image k, 0 = none; None where it has no instance image."""
        file = self._images[k].instance
        if file is None:
            return None
        ids = self._fit(k, read_ids(file), file)
        ids[ids % _PER_LABEL == 0] = 0
        return ids

    def subset(self, fraction: float) -> list[int]:
        """Rows of a nested share of the scans, ascending: the first ones of the official order.

        For train, 1, 5, 10, 20, 40, 60 and 80 % are the official data-efficient lists, and other shares end between
        theirs. Of a folder that holds only some of the scans, those of them are taken that the list names, at least
        one. Raises ConfigError for no share between 0 and 1.
        """
        super().subset(fraction)  # says what is no share
        listed = [scan for scan, name in official_split().items() if self._split in (name, "all")]
        there = dict.fromkeys(image.scan for image in self._images)
        if there.keys().isdisjoint(listed):
            listed = []
        rank = {scan: k for k, scan in enumerate(dict.fromkeys([*listed, *there]))}
        steps: dict[int, int] = {}  # per cent of the training scans -> how many, from the top of the official list
        if listed and self._split == "train":
            official = (files("pri3d.labelled._shared") / "scannet_subsets.yaml").read_text(encoding="utf-8")
            steps = {int(share): int(scans) for share, scans in yaml.safe_load(official).items()}
        count = round(float(np.interp(100 * fraction, [0, *steps, 100], [0, *steps.values(), len(rank)])))
        count = max(count, 1 + min((rank[scan] for scan in there), default=0))
        return [k for k, image in enumerate(self._images) if rank[image.scan] < count]

    def _fit(self, k: int, ids: NDArray[np.int32], file: Path) -> NDArray[np.int32]:
        """Bring ids (h, w) to the size of colour image k. Raises DataError where they show another view."""
        height, width = self._check_view(k, file, ids.shape)
        return resize_nearest(ids, (width, height))

    def _check_view(self, k: int, file: Path, found: tuple[int, ...]) -> tuple[int, int]:
        """Size (H, W) of colour image k. Raises DataError where a map of size ``found`` (h, w) shows another view."""
        color = self._images[k].color
        height, width = image_size(color)
        if abs(found[1] * height / (found[0] * width) - 1) > _ASPECT:
            raise DataError(
                f"{file}: is {found[1]}x{found[0]}, its image {color} is {width}x{height}: they show different views. "
                "Export both again."
            )
        return height, width


def any_official(scans: Iterable[str]) -> bool:
    """Whether a scan is of a room in the official lists."""
    return not _split_of_rooms().keys().isdisjoint(map(_room, scans))


def rows_of_split(scans: Sequence[str], split: Split) -> list[int]:
    """Rows of the images of these scans that belong to a split.

    sceneNNNN_00 and sceneNNNN_01 are scans of one room, which stays on one side: that of the official lists where they
    have a room of these, and train for rooms in none; else a fifth of the rooms is dealt out for val.
    """
    rooms = [_room(scan) for scan in scans]
    if any_official(scans):
        return [k for k, room in enumerate(rooms) if split in (_split_of_rooms().get(room, "train"), "all")]
    return deal(rooms, split)


def _room(scan: str) -> str:
    return re.sub(r"^(scene\d{4})_\d\d$", r"\1", scan)


@cache
def _split_of_rooms() -> dict[str, str]:
    """Room -> split; no room of the official lists is in two."""
    return {_room(scan): split for scan, split in official_split().items()}


def _scans(path: Path) -> dict[str, Path]:
    """Scan -> folder with its images: the path, those in it, and those in its folders of scans."""
    if not path.is_dir():
        return {}
    inner = [path / name for name in _INSIDE if (path / name).is_dir()]
    folders = [path, *_folders(path), *(scan for place in inner for scan in _folders(place))]
    # The name of the folder itself, wherever links lead, so that it is found in the official lists.
    return {f.resolve().name: f for f in folders if (f / "color").is_dir() and (f / "label").is_dir()}


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(scan: str, folder: Path) -> list[_Image]:
    """Images of a scan that have a label, by name."""
    colors, labels, instances = (_stems(folder / part) for part in ("color", "label", "instance"))
    return [_Image(scan, colors[k], labels[k], instances.get(k)) for k in sorted(colors.keys() & labels.keys())]


def _stems(folder: Path) -> dict[str, Path]:
    inside = folder.iterdir() if folder.is_dir() else []
    return {p.stem: p for p in inside if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")}
