"""NYU Depth v2 (Silberman et al. 2012): the labelled .mat file, and images exported from it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import ClassVar

import numpy as np
import yaml
from numpy.typing import NDArray

from pri3d.errors import ConfigError
from pri3d.labelled import LabelledImages, Split
from pri3d.labelled._shared.decoding import check_headers, read_ids, read_rgb
from pri3d.labelled.spaces import LabelSpace, load_space, parse_space, shipped_spaces
from pri3d.recordings._shared.nyu_mat import COLOR, LABELS, MAT, MatFile, expand, mat_file, numbered, official_train

_LABEL40 = ("label40",)
_LABEL13 = ("labels13_train", "labels13_test", "labels13")
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

    looks_for: ClassVar[str] = f"{MAT}, or image or train/color and label40 or labels13_test (NYUv2)"

    def __init__(self, path: Path, split: Split, labels: str | None = None) -> None:
        self.path = path
        mat = mat_file(path)
        self._mat = None if mat is None else MatFile(mat)
        self.has_objects = self._mat is not None
        thirteen = self._mat is None and not numbered(path, _LABEL40)
        if thirteen and labels != _SPACE and labels in shipped_spaces():
            raise ConfigError(f"--label-map {labels}: {path} has labels of 13 classes only. Leave --label-map out.")
        self.space: LabelSpace = load_space(labels or _SPACE)
        if thirteen and (labels or _SPACE) == _SPACE:  # ids 1..13: the places in our list, plus 1
            classes = {name: k + 1 for k, name in enumerate(self.space.names)}
            things = [self.space.names[k] for k in self.space.things]
            self.space = parse_space({"classes": classes, "things": things, "ignored": [0]})
        self._colors = {} if self._mat else numbered(path, COLOR)
        self._labels = {} if self._mat else numbered(path, _LABEL13 if thirteen else _LABEL40)
        there = range(1, self._mat.count + 1) if self._mat else sorted(self._colors.keys() & self._labels.keys())
        train = official_train()
        self._numbers = [n for n in there if split == "all" or (n in train) == (split == "train")]
        if self._mat:
            self._nyu40 = np.full(LABELS + 1, 40, np.uint8)  # label of the .mat -> NYU40 id; 0 stays 0: unlabelled
            self._nyu40[0] = 0
            stated = yaml.safe_load((files("pri3d.labelled._shared") / "nyuv2.yaml").read_text(encoding="utf-8"))
            for label, text in stated["classes"].items():
                self._nyu40[expand(text)] = label
        self.names = [f"{number:04d}" for number in self._numbers]
        self.class_names, self.things = self.space.names, self.space.things

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether it is the .mat file, holds it, or holds exported images with NYU labels."""
        if mat_file(path) is not None:
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
            return self.space.apply(self._nyu40[self._mat.label(number)], f"{self._mat.path}: image {number}")
        file = self._labels[number]
        return self.space.apply(read_ids(file, like=self._colors[number]), str(file))

    def instance(self, k: int) -> NDArray[np.int32] | None:
        """Object ids (H, W) of image k, 0 = none; None in exported images."""
        return None if self._mat is None else self._mat.instance(self._numbers[k])
