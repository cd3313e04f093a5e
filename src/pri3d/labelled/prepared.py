"""Labelled frames of a prepared dataset."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError
from pri3d.labelled import STUFF, LabelledImages, Split
from pri3d.labelled.scannet import any_official, rows_of_split
from pri3d.labelled.spaces import IGNORED, load_space
from pri3d.store import MANIFEST, SceneStore, Store


class PreparedImages(LabelledImages):
    """What ``pri3d prepare`` wrote of a recording with labels; frames without a label image are left out.

    Scans of ScanNet have their official split; of other scenes whole rooms are dealt out, a fifth for val. Without a
    label space the classes are the store's own, all countable but wall, floor and ceiling. Raises DataError where the
    store has no labels or no names for them.
    """

    looks_for: ClassVar[str] = f"a folder with {MANIFEST} (a prepared dataset)"

    def __init__(self, path: Path, split: Split, labels: str | None = None) -> None:
        self.path = path
        self.store = Store(path)
        rows = [(scene, row) for scene in self.store.scenes for row in _labelled(self.store.scene(scene))]
        if not rows:
            raise DataError(f"{path}: has no labels. Prepare a recording that has a label folder.")
        self.space = None if labels is None else load_space(labels)
        names = self.space.names if self.space else self.store.class_names
        if not names:
            raise DataError(
                f"{path}: its classes have no names: add a classes.txt beside the scenes and prepare into another "
                "folder, or give --label-map."
            )
        self.class_names = names
        self.things = self.space.things if self.space else [k for k, name in enumerate(names) if name not in STUFF]
        self._rows = [rows[k] for k in rows_of_split([scene for scene, _ in rows], split)]
        self.names = [f"{scene}/{self.store.scene(scene).frames.names[row]}" for scene, row in self._rows]

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Whether it is a prepared dataset."""
        return (path / MANIFEST).is_file()

    @classmethod
    def states_split(cls, path: Path) -> bool:
        """Whether a labelled scene is of a room in ScanNet's official lists."""
        store = Store(path)
        return any_official(scene for scene in store.scenes if _labelled(store.scene(scene)))

    def color(self, k: int) -> NDArray[np.uint8]:
        """RGB (H, W, 3) of frame k."""
        scene, row = self._rows[k]
        return self.store.scene(scene).color(row)

    def label(self, k: int) -> NDArray[np.uint8]:
        """Class ids (H, W) of frame k, 255 = ignored."""
        scene, row = self._rows[k]
        label = self.store.scene(scene).label(row)
        if label is None:
            raise DataError(f"{self.path}: frame {self.names[k]} lost its label. Restore the prepared dataset.")
        what = f"{self.path}: frame {self.names[k]}"
        if self.space is not None:
            return self.space.apply(label, what)
        largest = int(label[label != IGNORED].max(initial=0))
        if largest >= len(self.class_names):
            raise DataError(
                f"{what} has class {largest}, but only {len(self.class_names)} classes have names. Complete the "
                "recording's classes.txt and prepare it into another folder, or give --label-map."
            )
        return label

    @cached_property
    def has_objects(self) -> bool:  # type: ignore[override]
        """Whether a frame has an instance image."""
        return any(self.instance(k) is not None for k in range(len(self.names)))

    def instance(self, k: int) -> NDArray[np.int32] | None:
        """Object ids (H, W) of frame k, 0 = none."""
        scene, row = self._rows[k]
        ids = self.store.scene(scene).instance(row)
        return None if ids is None else ids.astype(np.int32)

    @property
    def hash(self) -> str:
        """The store's own, with the classes."""
        return f"{self.store.hash}-{super().hash[:8]}"


def _labelled(scene: SceneStore) -> list[int]:
    """Rows of the scene's frames that have a label image."""
    return [row for row in range(len(scene.frames.names)) if scene.has_label(row)]
