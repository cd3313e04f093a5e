"""COCO json (Lin et al. 2014) with its images."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import ConfigError, DataError
from pri3d.labelled import LabelledImages, Split, deal
from pri3d.labelled._shared.decoding import image_size, read_rgb
from pri3d.labelled.convert import decode_mask
from pri3d.labelled.spaces import load_space
from pri3d.types import Instances

_PREFIX = "instances_"
_FIELDS: dict[str, dict[str, type]] = {
    "categories": {"id": int, "name": str},
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"id": int, "image_id": int, "category_id": int},
}


class CocoImages(LabelledImages):
    """A COCO json, or a folder with one of each split: annotations/instances_train*.json, instances_val*.json.

    A single json is dealt out image by image. An image is looked for, under its ``file_name``, in the json's folder,
    the folder above it, ``images`` in either, and the folder of the json's name without ``instances_`` (``val2017``)
    in any of these.

    Classes are the categories in the order of their ids, all countable; the name of several gets the id at its end.
    A label space counts category ids. Boxes are the stated ones, cut to the image; objects are left out where their
    box is less than a pixel wide or high or their mask is empty. There are no class maps.

    Raises DataError where the json is damaged, lacks a key or names an image or category that it does not list,
    ConfigError where the folder has several files of the split.
    """

    looks_for: ClassVar[str] = "a COCO .json file, or a folder with annotations/instances_train*.json"
    has_classes = False
    has_objects = True
    category_ids: list[int]  #: the file's id of each class; 1..K where a label space made the classes
    image_ids: list[int]  #: the file's id of each image

    def __init__(self, path: Path, split: Split, labels: str | None = None) -> None:
        self.path = path
        self.file, whole = _choose(path, split)
        content, self._digest = _read(self.file)
        categories = sorted(content["categories"], key=lambda entry: int(entry["id"]))
        ids = [entry["id"] for entry in categories]
        places: dict[int, int | None]  # category id -> place in ``things``, None for those that are left out
        if labels is not None:
            space = load_space(labels)
            self.space, self.class_names, self.things = space, space.names, space.things
            self.category_ids = list(range(1, len(space.names) + 1))
            kinds = space.apply(np.array(ids, np.int64), f"{self.file}: its categories").tolist()
            placed = {kind: place for place, kind in enumerate(space.things)}  # no thing has the id of ignored pixels
            places = {number: placed.get(kind) for number, kind in zip(ids, kinds, strict=True)}
        else:
            seen = Counter(entry["name"] for entry in categories)
            named = [
                entry["name"] if seen[entry["name"]] == 1 else f"{entry['name']} {entry['id']}" for entry in categories
            ]
            _unique(self.file, "category name", named)
            self.class_names, self.things, self.category_ids = named, range(len(named)), ids
            places = {number: place for place, number in enumerate(ids)}
        grouped: dict[int, list[dict[str, Any]]] = {entry["id"]: [] for entry in content["images"]}
        for entry in content["annotations"]:
            grouped[entry["image_id"]].append(_compact(entry, places, self.file))
        names = [entry["file_name"] for entry in content["images"]]
        rows = range(len(names)) if whole else deal(names, split)
        self.names = [names[k] for k in rows]
        self.image_ids = [content["images"][k]["id"] for k in rows]
        self._sizes = [(content["images"][k]["height"], content["images"][k]["width"]) for k in rows]
        # As text: a million annotations as Python objects would be copied into every loading process.
        self._objects = [json.dumps(grouped[number]).encode() for number in self.image_ids]

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether it is a .json file or a folder with instances_*.json."""
        return bool(_files(path))

    @classmethod
    def states_split(cls, path: Path) -> bool:
        """Whether it is a folder, whose files are named after their split."""
        return path.is_dir()

    def color(self, k: int) -> NDArray[np.uint8]:
        """RGB (H, W, 3) of image k. Raises DataError where it is missing, damaged or not of the json's size."""
        file = self.color_file(k)
        color = read_rgb(file)
        self._check_size(k, file, color.shape[:2])
        return color

    def color_file(self, k: int) -> Path:
        """File of image k. Raises DataError naming image and folders where there is none."""
        folders = _folders(self.file)
        found = next((folder / self.names[k] for folder in folders if (folder / self.names[k]).is_file()), None)
        if found is None:
            what = f"{self.file}: image {self.names[k]} (id {self.image_ids[k]})"
            raise DataError(f"{what} is in none of {', '.join(map(str, folders))}. Put the images there.")
        return found

    def check_size(self, k: int) -> None:
        """Compare the header of image k with the json."""
        file = self.color_file(k)
        self._check_size(k, file, image_size(file))

    def instances(self, k: int) -> Instances:
        """Objects of image k. Raises DataError naming the annotation whose mask cannot be read."""
        height, width = self._sizes[k]
        self.check_size(k)
        masks, boxes, classes, crowd = [], [], [], []
        for entry in json.loads(self._objects[k]):
            if entry["class"] is None:
                continue
            x, y, w, h = entry["bbox"]
            box = (max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height))
            mask = decode_mask(entry["segmentation"], (height, width), f"{self.file}: annotation {entry['id']}")
            if box[2] - box[0] < 1 or box[3] - box[1] < 1 or not mask.any():
                continue
            masks.append(mask)
            boxes.append(box)
            classes.append(entry["class"])
            crowd.append(entry["iscrowd"])
        return Instances(
            np.array(masks, bool).reshape(-1, height, width),
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(classes, np.int64),
            np.array(crowd, bool),
        )

    @property
    def hash(self) -> str:
        """Changes with whatever the json says, too."""
        return hashlib.sha256(f"{self._digest}-{super().hash}".encode()).hexdigest()

    def _check_size(self, k: int, file: Path, size: tuple[int, ...]) -> None:
        if size != self._sizes[k]:
            stated = self._sizes[k]
            raise DataError(
                f"{file}: is {size[1]}x{size[0]} pixels upright, {self.file} states {stated[1]}x{stated[0]} (image id "
                f"{self.image_ids[k]}). Its objects would be at wrong positions: give the annotated images."
            )


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".json" else []
    return sorted([*path.glob(f"annotations/{_PREFIX}*.json"), *path.glob(f"{_PREFIX}*.json")])


def _choose(path: Path, split: Split) -> tuple[Path, bool]:
    """The json of a split, and whether all of it belongs to the split."""
    files = _files(path)
    if not files:
        raise DataError(f"{path}: has no {_PREFIX}*.json. Give a COCO json or the folder with its annotations.")
    if path.is_file() or (split == "all" and len(files) == 1):
        return files[0], split == "all"
    wanted: dict[Split, list[str]] = {"train": ["train"], "val": ["val"], "test": ["test"], "all": []}
    for name in wanted[split]:
        found = [file for file in files if file.stem.startswith(_PREFIX + name)]
        if len(found) == 1:
            return found[0], True
        if found:
            raise ConfigError(f"{path}: has {', '.join(file.name for file in found)}. Give the one file to read.")
    there = ", ".join(file.name for file in files)
    raise DataError(f"{path}: has no one {_PREFIX}*.json for split {split}, but {there}. Give the file to read.")


def _folders(file: Path) -> list[Path]:
    """Where images of a json are looked for."""
    here, name = file.parent, file.stem.removeprefix(_PREFIX)
    roots = [here, here.parent, here / "images", here.parent / "images"]
    return [*roots, *(root / name for root in roots)]


def _read(file: Path) -> tuple[dict[str, list[dict[str, Any]]], str]:
    """Content of a json with the keys that are needed, each of its kind; ids are unique and refer to something.

    With it the hash of the file's bytes.
    """
    try:
        raw = file.read_bytes()
        content = json.loads(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: not a readable json file ({error}). Download or write it again.") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: is not a COCO json: expected an object with {', '.join(_FIELDS)}.")
    for key, fields in _FIELDS.items():
        if not isinstance(content.get(key), list):
            raise DataError(f"{file}: has no list `{key}`, so it is not a COCO json with objects.")
        for place, entry in enumerate(content[key]):
            _check_entry(f"{file}: {key}[{place}]", entry, fields)
        _unique(file, f"id of {key}", [entry["id"] for entry in content[key]])
    _unique(file, "file_name", [entry["file_name"] for entry in content["images"]])
    if not content["categories"]:
        raise DataError(f"{file}: its list `categories` is empty. List the classes of the objects.")
    for key, target in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in content[target]}
        for entry in content["annotations"]:
            if entry[key] not in known:
                raise DataError(f"{file}: annotation {entry['id']} has {key} {entry[key]}, which `{target}` lacks.")
    return content, hashlib.sha256(raw).hexdigest()


def _check_entry(what: str, entry: Any, fields: dict[str, type]) -> None:
    for key, kind in fields.items():
        if not isinstance(entry, dict) or type(entry.get(key)) is not kind:
            found = repr(entry.get(key, "nothing") if isinstance(entry, dict) else entry)[:40]
            raise DataError(f"{what}: its `{key}` is {found}, expected {'a number' if kind is int else 'a text'}.")
    if "width" in fields and not (entry["file_name"] and min(entry["width"], entry["height"]) > 0):
        raise DataError(f"{what}: {entry['file_name']!r} of {entry['width']}x{entry['height']} pixels is no image.")


def _unique(file: Path, what: str, values: Iterable[Hashable]) -> None:
    value, count = max(Counter(values).items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise DataError(f"{file}: {what} {value!r} is there {count} times. Each must be unique.")


def _compact(entry: dict[str, Any], places: dict[int, int | None], file: Path) -> dict[str, Any]:
    """What is kept of an annotation."""
    what = f"{file}: annotation {entry['id']}"
    box, crowd = entry.get("bbox"), entry.get("iscrowd", 0)
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        raise DataError(f"{what}: its bbox is {repr(box)[:40]}, expected x, y, width and height in pixels.")
    if crowd not in (0, 1):
        raise DataError(f"{what}: its iscrowd is {repr(crowd)[:40]}, expected 0 or 1.")
    if "segmentation" not in entry:
        raise DataError(f"{what}: has no segmentation. Masks are needed, boxes are not enough.")
    segmentation, kind = entry["segmentation"], places[entry["category_id"]]
    return {"id": entry["id"], "class": kind, "bbox": box, "iscrowd": int(crowd), "segmentation": segmentation}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
