"""NYU Depth v2 (Silberman et al. 2012): the labelled .mat file, and images exported from it."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import yaml
from numpy.typing import NDArray

from pri3d.datasets import LabelledImages, Split
from pri3d.datasets.images import SUFFIXES, check_headers, read_ids, read_rgb
from pri3d.datasets.spaces import LabelSpace, load_space, parse_space, shipped_spaces
from pri3d.errors import ConfigError, DataError

IMAGES, LABELS = 1449, 894  #: of the .mat file
_MAT = "nyu_depth_v2_labeled.mat"
_COLOR = ("train/color", "val/color", "test/color", "image")
_LABEL40 = ("label40",)
_LABEL13 = ("labels13_train", "labels13_test", "labels13")
_AXES = {"images": 4, "labels": 3, "instances": 3}  # of what is read of the .mat
_LARGEST = 1 << 14  # pixels along a side; a damaged header may state any number
_SPACE = "nyu13"


class NYUImages(LabelledImages):
    """nyu_depth_v2_labeled.mat (or a folder holding it), or a folder of exported images.

    Exported: .png or .jpg in train/color, val/color, test/color or image, and labels as .png: NYU40 ids 1..40 in
    label40, else ids 1..13 in labels13_train, labels13_test or labels13; 0 = unlabelled. The number that ends a file
    name is the image's of the .mat, counted from 1. Images without labels are left out.

    The split is the official one by number, 795 train and 654 test images; ``val`` and ``test`` are both the latter.
    The default classes are the 13 of the paper's Table 5, of which 9 are countable (Tables 6 and 7). A label space
    counts NYU40 ids, a user's one for a folder of 13-class labels counts theirs. Only the .mat has objects: every
    pair of a label and an instance number, since the numbers begin anew in every label.

    Raises DataError where the file or folder is damaged or has other contents, ConfigError where 13-class labels are
    to become other classes.
    """

    looks_for: ClassVar[str] = f"{_MAT}, or image or train/color and label40 or labels13_test (NYUv2)"

    def __init__(self, path: Path, split: Split, labels: str | None = None) -> None:
        self.path = path
        mat = _mat(path)
        self._mat = None if mat is None else MatFile(mat)
        thirteen = self._mat is None and not _numbered(path, _LABEL40)
        self.space: LabelSpace = _thirteen(path, labels) if thirteen else load_space(labels or _SPACE)
        self._colors = {} if self._mat else _numbered(path, _COLOR)
        self._labels = {} if self._mat else _numbered(path, _LABEL13 if thirteen else _LABEL40)
        there = range(1, self._mat.count + 1) if self._mat else sorted(self._colors.keys() & self._labels.keys())
        train = official_train()
        self._numbers = [n for n in there if split == "all" or (n in train) == (split == "train")]
        self.names = [f"{number:04d}" for number in self._numbers]
        self.class_names, self.things = self.space.names, self.space.things

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether it is the .mat file, holds it, or holds exported images with NYU labels."""
        if _mat(path) is not None:
            return True
        return path.is_dir() and any((path / name).is_dir() for name in (*_LABEL40, *_LABEL13))

    @classmethod
    def states_split(cls, path: Path) -> bool:
        """Always: the numbers of the images state it."""
        return True

    def color(self, k: int) -> NDArray[np.uint8]:
        """RGB (H, W, 3) of image k."""
        return read_rgb(self._colors[self._numbers[k]]) if self._mat is None else self._mat.color(self._numbers[k])

    def color_file(self, k: int) -> Path | None:
        """Exported file of image k; None in the .mat."""
        return self._colors.get(self._numbers[k])

    def check_size(self, k: int) -> None:
        """Compare the headers of exported files; the arrays of the .mat were compared when it was opened."""
        if self._mat is None:
            check_headers(self._colors[self._numbers[k]], self._labels[self._numbers[k]])

    def label(self, k: int) -> NDArray[np.uint8]:
        """Class ids (H, W) of image k, 255 = ignored."""
        number = self._numbers[k]
        if self._mat is not None:
            ids = _classes_of_labels()[self._mat.label(number)]
            return self.space.apply(ids, f"{self._mat.path}: image {number}")
        file = self._labels[number]
        return self.space.apply(read_ids(file, like=self._colors[number]), str(file))

    @property
    def has_objects(self) -> bool:
        """Whether it is the .mat."""
        return self._mat is not None

    def instance(self, k: int) -> NDArray[np.int32] | None:
        """Object ids (H, W) of image k, 0 = none; None in exported images."""
        return None if self._mat is None else self._mat.instance(self._numbers[k])


class MatFile:
    """The .mat file, which is HDF5 with MATLAB's axes in reverse. Opened once in every process that reads it.

    Raises DataError where it is no such file or has arrays of another kind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: tuple[int, h5py.File] | None = None  # process and handle: a forked handle reads nonsense
        shapes = {name: self._shape(name) for name in _AXES}
        count, *size = shapes["labels"]
        if shapes != {"images": (count, 3, *size), "labels": (count, *size), "instances": (count, *size)}:
            raise DataError(f"{path}: images, labels and instances have shapes {shapes}, which do not fit together.")
        if not (0 < count <= IMAGES and min(size) > 0 and max(size) <= _LARGEST):
            raise DataError(f"{path}: has {count} images of {size} pixels; expected are {IMAGES} of [640, 480].")
        self.count: int = count

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def color(self, number: int) -> NDArray[np.uint8]:
        """RGB (H, W, 3) of an image, numbered from 1. Raises DataError where the file is damaged, as those below."""
        return np.ascontiguousarray(self._read("images", number).transpose(2, 1, 0).astype(np.uint8))

    def label(self, number: int) -> NDArray[np.int64]:
        """Labels (H, W) 1..894, 0 = unlabelled."""
        labels = self._read("labels", number).T.astype(np.int64)
        if labels.max(initial=0) > LABELS:
            raise DataError(f"{self.path}: image {number} has label {labels.max()}; 0 to {LABELS} are possible.")
        return labels

    def instance(self, number: int) -> NDArray[np.int32]:
        """Object ids (H, W), 0 = unlabelled: one for each pair of label and instance, as in the authors' toolbox."""
        instances = self._read("instances", number).T.astype(np.int64)
        if instances.max(initial=0) >= 1 << 16:
            raise DataError(f"{self.path}: image {number} has instance {instances.max()}; a few hundred are usual.")
        labels = self.label(number)
        return np.where(labels > 0, (labels << 16) + instances, 0).astype(np.int32)

    def _shape(self, name: str) -> tuple[int, ...]:
        try:
            array = self._file()[name]
            shape, kind = tuple(int(n) for n in array.shape), array.dtype.kind
        # Each damaged byte makes the library raise another kind of error.
        except Exception as error:
            raise self._damaged(name, error) from error
        if len(shape) != _AXES[name] or kind != "u" or (name == "images" and array.dtype != np.uint8):
            raise DataError(f"{self.path}: {name} is {array.dtype} of shape {shape}, which is not as published.")
        return shape

    def _read(self, name: str, number: int) -> NDArray[Any]:
        try:
            return np.asarray(self._file()[name][number - 1])
        except Exception as error:  # as above
            raise self._damaged(f"{name} of image {number}", error) from error

    def _file(self) -> h5py.File:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), h5py.File(self.path, "r")
        return self._opened[1]

    def _damaged(self, what: str, error: Exception) -> DataError:
        return DataError(f"{self.path}: {what} cannot be read ({error}). Fetch {_MAT} again.")


@cache
def official_train() -> frozenset[int]:
    """Numbers of the 795 images of the official training set, counted from 1; the other 654 are the test set."""
    return frozenset(_runs(_facts()["train"]))


@cache
def _classes_of_labels() -> NDArray[np.uint8]:
    """Label of the .mat -> NYU40 id (895,); 0 stays 0, which is unlabelled."""
    table = np.full(LABELS + 1, 40, np.uint8)
    table[0] = 0
    for number, text in _facts()["classes"].items():
        table[_runs(text)] = number
    return table


def _facts() -> dict[str, Any]:
    stated: dict[str, Any] = yaml.safe_load((files("pri3d.datasets") / "nyuv2.yaml").read_text(encoding="utf-8"))
    return stated


def _runs(text: str) -> list[int]:
    """``3-5 8`` -> [3, 4, 5, 8]."""
    ends = [[int(end) for end in word.split("-")] for word in text.split()]
    return [number for run in ends for number in range(run[0], run[-1] + 1)]


def _mat(path: Path) -> Path | None:
    file = path / _MAT if path.is_dir() else path
    return file if file.is_file() and file.suffix.lower() == ".mat" else None


def _numbered(path: Path, folders: Sequence[str]) -> dict[int, Path]:
    """Number that ends its name -> image file of the folders. Raises DataError where two have one number."""
    found: dict[int, Path] = {}
    inside = [file for name in folders if (path / name).is_dir() for file in sorted((path / name).iterdir())]
    for file in inside:
        digits = re.search(r"(\d+)$", file.stem)
        if file.suffix.lower() not in SUFFIXES or file.name.startswith(".") or digits is None:
            continue
        number = int(digits[1])
        if number in found or not 0 < number <= IMAGES:
            twice = f"is image {number} again, as {found[number]}" if number in found else f"is no image of 1..{IMAGES}"
            raise DataError(f"{file}: {twice}. Remove or rename it.")
        found[number] = file
    return found


def _thirteen(path: Path, labels: str | None) -> LabelSpace:
    """Label space of images that hold the ids 1..13: the places in our list, plus 1."""
    if labels not in (None, _SPACE):
        if labels in shipped_spaces():
            raise ConfigError(f"--labels {labels}: {path} has labels of 13 classes only. Leave --labels out.")
        return load_space(str(labels))
    space = load_space(_SPACE)
    things = [space.names[k] for k in space.things]
    return parse_space({"classes": {n: k + 1 for k, n in enumerate(space.names)}, "things": things, "ignored": [0]})
