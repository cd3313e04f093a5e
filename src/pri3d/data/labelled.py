"""Labelled images -> batches: with class maps for semantic segmentation, with objects for instance segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from pri3d.data.augment import ColorRecipe, augment_color, to_tensor, uniform
from pri3d.data.sampler import Draw, derive
from pri3d.errors import DataError
from pri3d.geometry.resize import resize_color, resize_nearest
from pri3d.labelled import LabelledImages
from pri3d.types import Instances, LabelledBatch

LabelledItem = tuple[Tensor, Tensor, str]


class LabelledDataset(Dataset[LabelledItem]):
    """Images with class maps.

    Args:
        images: the labelled set.
        size: (width, height).
        rows: images of the set that are used, in this order; all where it is None.
        seed: of the run.
        recipe: colour augmentation, None for none.
        mirror: whether half of the images are mirrored left-right.
    """

    def __init__(
        self,
        images: LabelledImages,
        size: tuple[int, int],
        rows: Sequence[int] | None = None,
        seed: int = 0,
        recipe: ColorRecipe | None = None,
        mirror: bool = False,
    ) -> None:
        self.images, self.size, self.seed = images, size, seed
        self.recipe, self.mirror = recipe, mirror
        self.rows = list(range(len(images.names)) if rows is None else rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw) -> LabelledItem:
        row = self.rows[draw.item]
        generator = torch.Generator().manual_seed(derive(self.seed, draw.epoch, draw.item))
        color = to_tensor(resize_color(self.images.color(row), self.size))
        color = augment_color(color, self.recipe, generator)
        target = torch.from_numpy(resize_nearest(self.images.label(row), self.size).astype(np.int64))
        if self.mirror and float(torch.rand((), generator=generator)) < 0.5:
            color, target = color.flip(-1), target.flip(-1)
        return color, target, self.images.names[row]


def collate(items: list[LabelledItem]) -> LabelledBatch:
    """Stack labelled items; colour becomes float 0..1."""
    colors, labels, names = zip(*items, strict=True)
    return LabelledBatch(torch.stack(colors).float() / 255, torch.stack(labels), list(names))


class InstanceItem(NamedTuple):
    """One image with its objects."""

    image: Tensor  #: (3, H, W) uint8 RGB
    boxes: Tensor  #: (N, 4) float x0, y0, x1, y1 in pixels of (H, W)
    classes: Tensor  #: (N,) int64 0..K-1 of the countable classes
    masks: Tensor  #: (N, H, W) uint8 0 or 1
    name: str


class InstanceDataset(Dataset[InstanceItem]):
    """Images with their objects, at the size they have on disk: the detector resizes them.

    An object that is a crowd, or smaller than ``min_area``, is left out; an image without objects stays, for there is
    nothing to be found in it.

    Args:
        images: the labelled set.
        rows: images of the set that are used, in this order; all where it is None.
        seed: of the run.
        recipe: colour augmentation, None for none.
        mirror: whether half of the images are mirrored left-right.
        min_area: pixels of a mask on disk.
        objects: whether objects are read; without, an item has none, and predictions are made of it as fast as it goes.
    """

    def __init__(
        self,
        images: LabelledImages,
        rows: Sequence[int] | None = None,
        seed: int = 0,
        recipe: ColorRecipe | None = None,
        mirror: bool = False,
        min_area: int = 0,
        objects: bool = True,
    ) -> None:
        self.images, self.seed = images, seed
        self.recipe, self.mirror, self.min_area, self.objects = recipe, mirror, min_area, objects
        self.rows = list(range(len(images.names)) if rows is None else rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw) -> InstanceItem:
        row = self.rows[draw.item]
        name = self.images.names[row]
        color = self.images.color(row)
        if self.objects:
            found = self.images.instances(row)
        else:
            masks, boxes = np.zeros((0, *color.shape[:2]), bool), np.zeros((0, 4), np.float32)
            found = Instances(masks, boxes, np.zeros(0, np.int64), np.zeros(0, bool))
        if found.masks.shape[1:] != color.shape[:2]:
            raise DataError(
                f"{self.images.path}: image {name} is {color.shape[1]}x{color.shape[0]} pixels, its objects are of "
                f"{found.masks.shape[2]}x{found.masks.shape[1]}. Give both in one size."
            )
        # A box without an area cannot be learnt.
        keep = ~found.crowd & (found.masks.sum((1, 2)) >= max(self.min_area, 1))
        keep &= (found.boxes[:, 2:] > found.boxes[:, :2]).all(1)
        image, objects = to_tensor(color), torch.from_numpy(found.masks[keep].astype(np.uint8))
        corners, size = torch.from_numpy(found.boxes[keep]), (color.shape[0], color.shape[1])
        framed: Tensor = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=size)
        generator = torch.Generator().manual_seed(derive(self.seed, draw.epoch, draw.item))
        image = augment_color(image, self.recipe, generator)
        if self.mirror and uniform(generator) < 0.5:
            image, objects, framed = (F.horizontal_flip(part) for part in (image, objects, framed))
        return InstanceItem(image, framed.as_subclass(Tensor), torch.from_numpy(found.classes[keep]), objects, name)
