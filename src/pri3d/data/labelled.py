"""Prepared frames with labels -> batches for semantic fine-tuning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pri3d.data.augment import ColorRecipe, augment_color, to_tensor
from pri3d.data.sampler import Draw, derive
from pri3d.errors import ConfigError, DataError
from pri3d.geometry.images import resize_color, resize_nearest
from pri3d.store import SceneStore, Store
from pri3d.types import LabelledBatch

LabelledItem = tuple[Tensor, Tensor, str]


class LabelledDataset(Dataset[LabelledItem]):
    """Labelled frames of a prepared store.

    Args:
        folder: the prepared store; its frames without a label image are left out.
        size: (width, height).
        seed: of the run.
        recipe: colour augmentation; with one, images are also mirrored left-right half of the time.
        fraction: seeded, nested share of the labelled frames: 0.2 holds every frame of 0.1.

    Raises DataError where the store has no labels or no names for them, ConfigError for a fraction outside 0..1.
    """

    def __init__(
        self,
        folder: Path,
        size: tuple[int, int],
        seed: int = 0,
        recipe: ColorRecipe | None = None,
        fraction: float = 1.0,
    ) -> None:
        if not 0 < fraction <= 1:
            raise ConfigError(f"fraction = {fraction}: give a share of the labelled frames between 0 and 1.")
        self.store, self.size, self.seed, self.recipe = Store(folder), size, seed, recipe
        items = [(scene, row) for scene in self.store.scenes for row in _labelled(self.store.scene(scene))]
        if not items:
            raise DataError(f"{folder}: this store has no labels. Prepare a recording that has a label folder.")
        if not self.store.class_names:
            raise DataError(
                f"{folder}: its classes have no names: put classes.txt beside the scenes and prepare into another "
                "folder."
            )
        self.class_names = self.store.class_names
        # The subset is part of the protocol, not of the run: its order has a seed of its own.
        order = np.random.default_rng(0).permutation(len(items))[: max(1, round(fraction * len(items)))]
        self.items = [items[k] for k in np.sort(order)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, draw: Draw) -> LabelledItem:
        scene_id, row = self.items[draw.item]
        scene = self.store.scene(scene_id)
        view, label = scene.view(row), scene.label(row)
        if label is None:
            raise DataError(f"{self.store.path}: frame {view.name} of {scene_id} lost its label. Restore the store.")
        generator = torch.Generator().manual_seed(derive(self.seed, draw.epoch, draw.item))
        color = augment_color(to_tensor(resize_color(view.color, self.size)), self.recipe, generator)
        target = torch.from_numpy(resize_nearest(label, self.size).astype(np.int64))
        if self.recipe is not None and float(torch.rand((), generator=generator)) < 0.5:
            color, target = color.flip(-1), target.flip(-1)
        return color, target, f"{scene_id}/{view.name}"


def _labelled(scene: SceneStore) -> list[int]:
    """Rows of the scene's frames that have a label image."""
    return [row for row in range(len(scene.frames.names)) if scene.has_label(row)]


def collate(items: list[LabelledItem]) -> LabelledBatch:
    """Stack labelled items; colour becomes float 0..1."""
    colors, labels, names = zip(*items, strict=True)
    return LabelledBatch(torch.stack(colors).float() / 255, torch.stack(labels), list(names))
