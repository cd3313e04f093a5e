"""NYU Depth v2 (Silberman et al. 2012): its labelled .mat file, numbers of exported files, and the official split."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml
from numpy.typing import NDArray

from pri3d.errors import DataError

IMAGES, LABELS = 1449, 894  #: of the .mat file
MAT = "nyu_depth_v2_labeled.mat"
SUFFIXES = (".jpeg", ".jpg", ".png")  #: of exported images
COLOR = ("train/color", "val/color", "test/color", "image")  #: folders that exported images may lie in
_AXES = {"images": 4, "labels": 3, "instances": 3}  # of what every user reads of the .mat
_LARGEST = 1 << 14  # pixels along a side; a damaged header may state any number
_FARTHEST = 9.99  # metres; the published conversion cuts off at 10, which stands for no measurement too


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
        self.size: tuple[int, ...] = (size[1], size[0])  #: height and width

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

    def depth(self, number: int) -> NDArray[np.float32]:
        """Depth (H, W) in metres that was measured (rawDepths), else the filled-in one (depths); 0 = invalid."""
        name = "rawDepths" if self._holds("rawDepths") else "depths"
        shape, dtype = self._stated(name)
        if shape != (self.count, *self.size[::-1]) or dtype.kind != "f":
            raise DataError(f"{self.path}: {name} is {dtype} of shape {shape}, which is not as published.")
        depth = self._read(name, number).T
        return np.where((depth > 0) & (depth < _FARTHEST), depth, 0).astype(np.float32)

    def _shape(self, name: str) -> tuple[int, ...]:
        shape, dtype = self._stated(name)
        if len(shape) != _AXES[name] or dtype.kind != "u" or (name == "images" and dtype != np.uint8):
            raise DataError(f"{self.path}: {name} is {dtype} of shape {shape}, which is not as published.")
        return shape

    def _stated(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        try:
            array = self._file()[name]
            return tuple(int(n) for n in array.shape), np.dtype(array.dtype)
        except Exception as error:  # each damaged byte makes the library raise another kind of error
            raise self._damaged(name, error) from error

    def _holds(self, name: str) -> bool:
        try:
            return name in self._file()
        except Exception as error:  # as above
            raise self._damaged(name, error) from error

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
        return DataError(f"{self.path}: {what} cannot be read ({error}). Fetch {MAT} again.")


@cache
def official_train() -> frozenset[int]:
    """Numbers of the 795 images of the official training set, counted from 1; the other 654 are the test set."""
    stated = yaml.safe_load((files("pri3d.recordings._shared") / "nyuv2.yaml").read_text(encoding="utf-8"))
    return frozenset(expand(stated["train"]))


def expand(text: str) -> list[int]:
    """``3-5 8`` -> [3, 4, 5, 8]."""
    ends = [[int(end) for end in word.split("-")] for word in text.split()]
    return [number for run in ends for number in range(run[0], run[-1] + 1)]


def mat_file(path: Path) -> Path | None:
    """The .mat file that the path is or holds."""
    file = path / MAT if path.is_dir() else path
    return file if file.is_file() and file.suffix.lower() == ".mat" else None


def numbered(path: Path, folders: Sequence[str]) -> dict[int, Path]:
    """Number that ends its name -> image file of the folders within ``path``.

    Raises DataError where two have one number, or one is none of the data set.
    """
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
