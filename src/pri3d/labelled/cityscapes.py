"""Cityscapes: fine annotations of street scenes (Cordts et al. 2016)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError
from pri3d.labelled import LabelledImages, Split, find_objects
from pri3d.labelled._shared.decoding import check_headers, read_ids, read_rgb
from pri3d.labelled.spaces import LabelSpace, load_space
from pri3d.types import Instances

_IMAGE = "_leftImg8bit.png"
_NUMBERED = 1000  # an id of so much or more is class * 1000 + object, one below it a class or a group of it


class CityscapesImages(LabelledImages):
    """The official train and val images; ``all`` is both. Groups that are not told apart ("cargroup") are crowds.

    The label space has the 34 ids of ``*_labelIds.png``; without one it is ``cityscapes19``.
    Raises DataError for the test split, whose published maps are blank, and where an image has no class map.
    """

    looks_for: ClassVar[str] = "leftImg8bit/train/CITY/*_leftImg8bit.png beside gtFine/train/CITY/*_gtFine_labelIds.png"
    has_objects = True

    def __init__(self, path: Path, split: Split, labels: str | None = None) -> None:
        if split == "test":
            raise DataError(f"{path}: Cityscapes does not publish the labels of its test split. Use val.")
        self.path = path
        self.space: LabelSpace = load_space(labels or "cityscapes19")
        self.class_names, self.things = self.space.names, self.space.things
        wanted = ["train", "val"] if split == "all" else [split]
        files = [file for part in wanted for file in sorted((path / "leftImg8bit" / part).glob(f"*/*{_IMAGE}"))]
        # SPLIT/CITY/NAME: what the two trees share
        self._frames = [file.relative_to(path / "leftImg8bit").as_posix().removesuffix(_IMAGE) for file in files]
        self.names = [frame.rpartition("/")[2] for frame in self._frames]
        missing = [frame for k, frame in enumerate(self._frames) if not self._map(k, "labelIds").is_file()]
        if missing:
            raise DataError(
                f"{path}: {len(missing)} of {len(files)} images have no class map, such as "
                f"gtFine/{missing[0]}_gtFine_labelIds.png. Unpack gtFine_trainvaltest.zip here."
            )

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether both trees are there."""
        return (path / "leftImg8bit").is_dir() and (path / "gtFine").is_dir()

    @classmethod
    def states_split(cls, path: Path) -> bool:
        """It does."""
        return True

    def color(self, k: int) -> NDArray[np.uint8]:
        """RGB (H, W, 3) of image k."""
        return read_rgb(self._image(k))

    def color_file(self, k: int) -> Path:
        """Where image k lies."""
        return self._image(k)

    def check_size(self, k: int) -> None:
        """Compare the headers of image k and its class map."""
        check_headers(self._image(k), self._map(k, "labelIds"))

    def label(self, k: int) -> NDArray[np.uint8]:
        """Class ids (H, W) of image k, 255 = ignored."""
        file = self._map(k, "labelIds")
        return self.space.apply(read_ids(file, like=self._image(k)), str(file))

    def instances(self, k: int) -> Instances:
        """Objects of image k, and as crowds its groups."""
        file = self._map(k, "instanceIds")
        return numbered_objects(read_ids(file, like=self._image(k)), self.space, str(file))

    def _image(self, k: int) -> Path:
        return self.path / "leftImg8bit" / f"{self._frames[k]}{_IMAGE}"

    def _map(self, k: int, what: str) -> Path:
        return self.path / "gtFine" / f"{self._frames[k]}_gtFine_{what}.png"


def numbered_objects(ids: NDArray[np.int32], space: LabelSpace, what: str) -> Instances:
    """Ids (H, W) of ``*_instanceIds.png`` -> objects; class * 1000 + number is one, a bare class a crowd of it.

    Raises DataError naming ``what`` and an unknown class id.
    """
    label = space.apply(np.where(ids >= _NUMBERED, ids // _NUMBERED, ids), what)
    found = find_objects(label, ids, space.things)
    bare = np.unique(ids[(ids > 0) & (ids < _NUMBERED) & np.isin(label, space.things)])
    return found._replace(crowd=np.arange(len(found.classes)) < len(bare))  # objects come in the order of ids
