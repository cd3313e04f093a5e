"""Labelled images with class maps -> batches for semantic segmentation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pri3d.data.augment import ColorRecipe, augment_color, to_tensor
from pri3d.data.sampler import Draw, derive
from pri3d.geometry.resize import resize_color, resize_nearest
from pri3d.labelled import LabelledImages
from pri3d.types import LabelledBatch

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
