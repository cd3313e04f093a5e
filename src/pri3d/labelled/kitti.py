"""KITTI semantic and instance segmentation benchmark: 200 street scenes with the classes of Cityscapes."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError
from pri3d.labelled import LabelledImages, Split, deal
from pri3d.labelled._shared.decoding import check_headers, read_ids, read_rgb
from pri3d.labelled.cityscapes import numbered_objects
from pri3d.labelled.spaces import LabelSpace, load_space
from pri3d.types import Instances

_PER_CLASS = 256  # an id of the instance maps is class * 256 + object, 0 = not told apart


class KittiImages(LabelledImages):
    """The training images; a fifth of them, dealt out, is val. Pixels of a countable class without a number are crowds.

    The label space has the ids of Cityscapes; without one it is ``cityscapes19``.
    Raises DataError for the test split, which has no labels, and where an image has no class map.
    """

    looks_for: ClassVar[str] = "training/image_2/*.png beside training/semantic/*.png (KITTI data_semantics)"

    def __init__(self, path: Path, split: Split, labels: str | None = None) -> None:
        if split == "test":
            raise DataError(f"{path}: the images of KITTI's testing folder have no labels. Use val.")
        self.path = path
        self.space: LabelSpace = load_space(labels or "cityscapes19")
        self.class_names, self.things = self.space.names, self.space.things
        files = [file.name for file in sorted((path / "training" / "image_2").glob("*.png"))]
        missing = [file for file in files if not self._file("semantic", file).is_file()]
        if missing:
            raise DataError(
                f"{path}: {len(missing)} of {len(files)} images have no class map, such as "
                f"training/semantic/{missing[0]}. Unpack data_semantics.zip here."
            )
        self._files = [files[k] for k in deal(files, split)] if files else []
        self.names = [Path(file).stem for file in self._files]
        self.has_objects = (self.path / "training" / "instance").is_dir()

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether there are training images with class maps."""
        return (path / "training" / "image_2").is_dir() and (path / "training" / "semantic").is_dir()

    def color(self, k: int) -> NDArray[np.uint8]:
        """RGB (H, W, 3) of image k."""
        return read_rgb(self.color_file(k))

    def color_file(self, k: int) -> Path:
        """Where image k lies."""
        return self._file("image_2", self._files[k])

    def check_size(self, k: int) -> None:
        """Compare the headers of image k and its class map."""
        check_headers(self.color_file(k), self._file("semantic", self._files[k]))

    def label(self, k: int) -> NDArray[np.uint8]:
        """Class ids (H, W) of image k, 255 = ignored."""
        file = self._file("semantic", self._files[k])
        return self.space.apply(read_ids(file, like=self.color_file(k)), str(file))

    def instances(self, k: int) -> Instances:
        """Objects of image k, and as crowds those that are not told apart."""
        file = self._file("instance", self._files[k])
        kind, number = np.divmod(read_ids(file, like=self._file("image_2", self._files[k])), _PER_CLASS)
        return numbered_objects(np.where((kind > 0) & (number > 0), kind * 1000 + number, kind), self.space, str(file))

    def _file(self, folder: str, name: str) -> Path:
        return self.path / "training" / folder / name
