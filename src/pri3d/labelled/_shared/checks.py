"""Checks before training: unreadable, wrong or empty labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.progress import Progress

from pri3d.errors import DataError, Problems
from pri3d.labelled import LabelledImages
from pri3d.labelled._shared.decoding import check_size
from pri3d.labelled.spaces import IGNORED
from pri3d.terminal import Terminal
from pri3d.types import Instances

#: split -> what a message calls its images
PURPOSES = {"train": "training ", "val": "validation ", "test": "test ", "all": ""}
SAMPLE = 200  #: images that are read in full
_SHOWN = 5  # problems that are named at once
_NAMED = 12  # classes that are named at once
_MANY = 500  # images from which on progress is shown


def check_images(images: LabelledImages, rows: Sequence[int], objects: bool, min_area: int = 0) -> list[str]:
    """Look through images of a labelled set before a network is trained or scored on them.

    The files of every row must state one size in their headers; up to 200 evenly spaced rows are read in full, colours
    and class maps, or colours and objects. If these hold nothing to be learnt, the others are read up to the first that
    does. Of class maps at least two classes must occur, or any constant answer would be right everywhere; in images
    that are not trained on, one is enough.

    Args:
        images: the labelled set.
        rows: images of the set that will be used.
        objects: whether objects are needed instead of class maps.
        min_area: objects of fewer pixels do not count, as in training.

    Returns what the user must know to read the scores: which classes occur in none of the images that were read.
    Raises the first few DataErrors of images (as SeveralProblemsError where there is more than one), or DataError where
    no pixel has a class, only one class occurs, or no object is large enough.
    """
    rows = list(rows)
    spaced = np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).round().astype(int).tolist()
    sample = {rows[k] for k in spaced}
    found = _Found(images, objects, min_area)
    with Progress(console=Terminal(stderr=True), transient=True, disable=len(rows) < _MANY) as progress:
        problems = Problems()
        for row in progress.track(rows, description="checking labels"):
            with problems.collect():
                images.check_size(row)
                if row in sample:
                    found.read(row)
            if len(problems.found) >= _SHOWN:
                break
        problems.refuse()
        rest = [] if found.is_useful() else [row for row in rows if row not in sample]
        for row in progress.track(rest, description="searching for labels"):
            found.read(row)
            if found.is_useful():
                break
    if not found.is_useful():
        raise found.nothing()
    return found.notes(len(rows))


class _Found:
    """What the images that were read hold."""

    def __init__(self, images: LabelledImages, objects: bool, min_area: int) -> None:
        self.images, self.objects, self.min_area = images, objects, min_area
        names = images.thing_names if objects else images.class_names
        self._where = np.zeros(max(len(names), 256), np.int64)  # images that hold each class
        self._names = list(names)
        self._read = self._objects = self._crowds = 0
        self._largest = 0  # pixels of the largest object

    def is_useful(self) -> bool:
        """Whether there was something to learn."""
        if self.objects:
            return self._largest >= max(self.min_area, 1)
        return int(np.count_nonzero(self._where)) >= (1 if self._is_held_out() else 2)

    def read(self, row: int) -> None:
        """Read an image with its labels. Raises DataError where it is damaged, or both have different sizes."""
        height, width, _ = self.images.color(row).shape
        if self.objects:
            found = self.images.instances(row)
            shape: tuple[int, ...] = found.masks.shape[1:]
            self._count(found)
        else:
            label = self.images.label(row)
            shape = label.shape
            present = np.unique(label)
            self._where[present[present != IGNORED]] += 1
        name = self.images.names[row]
        check_size(shape, f"{self.images.path}: the labels of {name}", (height, width), name)
        self._read += 1

    def _count(self, found: Instances) -> None:
        areas = found.masks[~found.crowd].sum((1, 2))
        self._where[np.unique(found.classes[~found.crowd])] += 1
        self._crowds += int(found.crowd.sum())
        self._objects += len(areas)
        self._largest = max(self._largest, int(areas.max(initial=0)))

    def _is_held_out(self) -> bool:
        return self.images.purpose in ("val", "test")

    def notes(self, rows: int) -> list[str]:
        """Classes that do not occur, and what that means for the scores; ``rows`` is how many images are used."""
        present = [name for k, name in enumerate(self._names) if self._where[k]]
        absent = [name for k, name in enumerate(self._names) if not self._where[k]]
        which = f"{self._read} {PURPOSES[self.images.purpose]}images"
        found = []
        alone = self._is_held_out() and len(present) == 1 and not self.objects
        if absent and not alone:
            which += "" if self._read >= rows else f" checked (of {rows})"
            listed = ", ".join(absent[:_NAMED]) + (f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else "")
            result = "is not scored" if self._is_held_out() else "cannot be learnt"
            found.append(
                f"{self.images.path}: {len(absent)} of {len(self._names)} classes occur in none of the {which}: "
                f"{listed}. A class that does not occur {result}"
            )
        if alone:
            found.append(
                f"{self.images.path}: {present[0]} is the only class in the {which}: a network that always predicts "
                f"it scores 1.000"
            )
        return found

    def nothing(self) -> DataError:
        """Why there is nothing to learn."""
        where = f"{self.images.path}: nothing to learn in {self._read} {PURPOSES[self.images.purpose]}images:"
        if not self.objects and not self._where.any():
            return DataError(
                f"{where} every pixel is ignored (255). Check the masks, and whether the label map has their ids "
                f"(--label-map)."
            )
        if not self.objects:
            only = next(name for k, name in enumerate(self._names) if self._where[k])
            others = [name for name in self._names if name != only]
            never = f", and no pixel is {' or '.join(others[:_NAMED])}" if others else ""
            return DataError(
                f"{where} every pixel that has a class is {only}{never}. 255 in a mask is ignored: if it means a "
                f"class, assign it to that class in a file for --label-map."
            )
        if self._objects:
            return DataError(
                f"{where} --min-area {self.min_area} leaves out all {self._objects} objects; the largest has "
                f"{self._largest} pixels. Give a smaller value."
            )
        crowds = f" but {self._crowds} crowds" if self._crowds else ""
        return DataError(
            f"{where} they have no objects{crowds}. Check the instance maps, and which classes are countable (`things` "
            "of --label-map)."
        )
