"""Labelled images on disk -> colour, class maps and objects. One file per format; nothing after it knows the format.

A format is a class built with a path. To add one, inherit :class:`LabelledImages`, and for its tests
:class:`pri3d.testing.LabelledSetContract`; add one line to ``DATASETS``, or to the entry points ``pri3d.datasets`` of a
package of yours.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pri3d import registry
from pri3d.errors import ConfigError, DataError
from pri3d.labelled.spaces import LabelSpace
from pri3d.types import Instances

DATASETS = {
    "prepared": "pri3d.labelled.prepared:PreparedImages",
    "scannet": "pri3d.labelled.scannet:ScanNetImages",
    "nyuv2": "pri3d.labelled.nyuv2:NYUImages",
    "coco": "pri3d.labelled.coco:CocoImages",
    "cityscapes": "pri3d.labelled.cityscapes:CityscapesImages",
    "kitti": "pri3d.labelled.kitti:KittiImages",
    "folder": "pri3d.labelled.folder:FolderImages",
}

Split = Literal["train", "val", "test", "all"]

#: Classes that are no countable objects where nothing else says so.
STUFF = frozenset({"wall", "floor", "ceiling"})


class LabelledImages(ABC):
    """One split of a labelled image set. ``__init__`` reads lists and small text files, never images.

    A subclass sets the attributes, takes the same arguments, and writes ``detect``, ``color``, and ``label`` where it
    has classes and ``instance`` (or ``instances``) where it has objects.

    Args of ``__init__``:
        path: the set's folder or file.
        split: what of it; a set that states no split of its own deals one out (:func:`deal`).
        labels: label space: a name of ``labelled/spaces`` or a YAML file of the user's; None for the format's own.
    """

    looks_for: ClassVar[str]  #: what :meth:`detect` looks for, as a phrase for error messages
    path: Path
    purpose: Split = "all"  #: what it is opened for, by :func:`open_labelled`
    names: Sequence[str]  #: one per image, unique; what messages, predictions and COCO files call it
    class_names: Sequence[str]  #: of the ids 0.. in :meth:`label`
    things: Sequence[int]  #: ids of the classes that are countable objects; :meth:`instances` numbers them from 0
    space: LabelSpace | None = None  #: what makes the files' ids classes; None where they are classes already
    has_classes: bool = True  #: whether there are class maps, :meth:`label`
    has_objects: bool = (
        False  #: whether there are objects, in some image at least: :meth:`instance` or :meth:`instances`
    )

    @abstractmethod
    def __init__(self, path: Path, split: Split, labels: str | None = None) -> None: ...

    @classmethod
    @abstractmethod
    def detect(cls, path: Path) -> bool:
        """Whether the path has this format's layout."""

    @classmethod
    def states_split(cls, path: Path) -> bool:
        """Whether the set itself says what is train and what is val."""
        return False

    @abstractmethod
    def color(self, k: int) -> NDArray[np.uint8]:
        """Image k as RGB (H, W, 3), upright. Raises DataError naming the file that is missing or damaged."""

    def color_file(self, k: int) -> Path | None:
        """Image file that :meth:`color` reads for image k; None where the pixels lie in no file of their own."""
        return None

    def check_size(self, k: int) -> None:  # noqa: B027  # nothing to compare where one array holds all sizes
        """Compare what the headers of image k's files say of its size. Raises DataError where one differs."""

    def label(self, k: int) -> NDArray[np.uint8]:
        """Class ids (H, W) of image k, 255 = ignored. Raises DataError naming the file, its size or an unknown id."""
        raise DataError(f"{self.path}: has no class maps, which semantic segmentation needs.")

    def instance(self, k: int) -> NDArray[np.int32] | None:
        """Object ids (H, W) of image k, 0 = none; None where the set has no such maps. Raises as :meth:`label`."""
        return None

    def instances(self, k: int) -> Instances:
        """Objects of image k. Raises DataError where the set has none, or as :meth:`label`."""
        ids = self.instance(k)
        if ids is None and self.has_objects:
            raise DataError(f"{self.path}: {self.names[k]} has no instance map, but other images have one. Add it.")
        if ids is None:
            raise self._without_objects()
        return find_objects(self.label(k), ids, self.things)

    def require_objects(self) -> None:
        """Raise DataError where the set has no objects, or no class of countable ones."""
        if not self.has_objects:
            raise self._without_objects()
        if not self.things:
            raise DataError(f"{self.path}: none of its classes is countable. State `things` in a file for --label-map.")

    def _without_objects(self) -> DataError:
        return DataError(f"{self.path}: has no instance maps, which instance segmentation needs.")

    @property
    def thing_names(self) -> list[str]:
        """Names of the ids in :attr:`pri3d.types.Instances.classes`."""
        return [self.class_names[k] for k in self.things]

    def subset(self, fraction: float) -> list[int]:
        """Rows of a nested share of the images, ascending: 0.2 holds all of 0.1. The same for every seed of a run."""
        if not 0 < fraction <= 1:
            raise ConfigError(f"--fraction {fraction}: give a fraction of the labelled images between 0 and 1.")
        # The subset is part of the protocol, not of the run: its order has a seed of its own.
        order = np.random.default_rng(0).permutation(len(self.names))
        return sorted(order[: max(1, round(fraction * len(order)))].tolist())

    @property
    def hash(self) -> str:
        """Changes with the names of images and classes, and with what makes ids classes; the same in any folder."""
        text = "\0".join([*self.names, "", *self.class_names, "", *map(str, self.things), ""])
        table = b"" if self.space is None else self.space.table.tobytes()
        return hashlib.sha256(text.encode(errors="surrogatepass") + table).hexdigest()


def find_objects(label: NDArray[np.uint8], instance: NDArray[np.int32], things: Sequence[int]) -> Instances:
    """Every instance id > 0 whose class is one of ``things`` -> an object.

    ``label`` (H, W) class ids, ``instance`` (H, W) ids. An id that covers several classes has the most frequent one.
    Objects come in the order of their ids; boxes enclose the masks.
    """
    height, width = label.shape
    masks, boxes, classes = [], [], []
    for number in np.unique(instance[instance > 0]):
        mask = instance == number
        kind = int(np.bincount(label[mask]).argmax())
        if kind not in things:
            continue
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        masks.append(mask)
        boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        classes.append(list(things).index(kind))
    return Instances(
        np.array(masks, bool).reshape(-1, height, width),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(classes, np.int64),
        np.zeros(len(masks), bool),
    )


def deal(groups: Sequence[str], split: Split) -> list[int]:
    """Rows of a set without a split of its own: a fifth of the groups for val, the rest for train.

    ``groups`` says for each image what it belongs to, such as its scene: views of one room must not lie on both sides.
    The draw has a fixed seed, so that everyone has the same split. Raises DataError where a side stays empty, and for
    test, which would be val under another name.
    """
    if split == "test":
        raise DataError("the labelled images state no test split; val is a held-out fifth of them. Use val.")
    if split == "all":
        return list(range(len(groups)))
    distinct = sorted(set(groups))
    order = np.random.default_rng(0).permutation(len(distinct))
    held = {distinct[k] for k in order[: max(1, round(len(distinct) / 5))]}
    rows = [k for k, group in enumerate(groups) if (group in held) == (split != "train")]
    if not rows:
        raise DataError(
            f"{len(distinct)} group(s) of images cannot be split into train and val. Give the val set, too."
        )
    return rows


def open_labelled(
    path: Path, split: Split, dataset: str | None = None, labels: str | None = None, whole: bool = False
) -> LabelledImages:
    """Open a labelled set as the named format, or as the only one whose layout it has.

    ``whole``: take all of a set that states no split itself (there is another set for the other side).
    Raises DataError where the path is missing or of no known format, ConfigError where it fits several.
    """
    if split not in get_args(Split):
        raise registry.unknown("split", get_args(Split), split)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Give the labelled images.")
    cls = load_dataset(dataset) if dataset else _detect(path)
    found = cls(path, "all" if whole and not cls.states_split(path) else split, labels)
    found.purpose = split
    if not found.names:
        fix = f"It has its own splits: give another dataset for {split}." if cls.states_split(path) else ""
        raise DataError(f"{path}: no labelled image in split {split}. Looked for {cls.looks_for}. {fix}".rstrip())
    return found


def load_dataset(name: str) -> type[LabelledImages]:
    """Class of the format of this name. Raises ConfigError for an unknown name, and for a class that is no such set."""
    cls = registry.load("datasets", DATASETS, name)
    if not (isinstance(cls, type) and issubclass(cls, LabelledImages)):
        raise ConfigError(
            f"dataset {name!r}: {cls!r} does not inherit pri3d.labelled.LabelledImages (docs/extending/dataset.md)."
        )
    return cls


def _detect(path: Path) -> type[LabelledImages]:
    classes = {name: load_dataset(name) for name in registry.names("datasets", DATASETS)}
    found = [name for name, cls in classes.items() if cls.detect(path)]
    if len(found) == 1:
        return classes[found[0]]
    if found:
        raise ConfigError(f"{path}: matches several formats ({', '.join(found)}). Choose one with --dataset.")
    wanted = "; ".join(f"{name}: {cls.looks_for}" for name, cls in classes.items())
    seen = ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else path.name
    raise DataError(f"{path}: not a known set of labelled images. Looked for {wanted}. Found {seen or 'nothing'}.")
