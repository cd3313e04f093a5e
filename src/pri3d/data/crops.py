"""Single images -> two random crops each, for instance discrimination (MoCo v2, Chen et al. 2020).

A source is anything with a length and ``read``: frames of a prepared dataset, a folder of images, or one's own.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pri3d.data.augment import STRONG, ColorRecipe, augment_color, to_tensor, uniform
from pri3d.data.sampler import Draw, derive
from pri3d.errors import ConfigError, DataError
from pri3d.geometry.resize import resize_color
from pri3d.labelled._shared.decoding import SUFFIXES, read_rgb
from pri3d.store import PairTable, Store
from pri3d.types import CropBatch

#: A JPEG of twice this many pixels or more along both sides is decoded at a half, quarter or eighth of its size, which
#: is several times faster; the smallest crop (0.2 of the area, 3:4) still has 396 pixels a side.
_ENOUGH = 1024
_ATTEMPTS = 10  # at a crop that fits, before the largest one in the middle is taken


class CropRecipe(NamedTuple):
    """How a crop is drawn; the defaults are MoCo v2's (Chen et al. 2020, appendix; cropping of Szegedy et al. 2015)."""

    size: int = 224  #: pixels, of both sides
    scale: tuple[float, float] = (0.2, 1.0)  #: share of the image's area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  #: width / height, drawn evenly in its logarithm
    color: ColorRecipe | None = STRONG._replace(width=None)  #: blur of 0.1 to 2 pixels of the crop
    p_mirror: float = 0.5  #: left-right


class Source(Protocol):
    """Images that can be asked for by number."""

    def __len__(self) -> int:
        """Count the images."""
        ...

    def read(self, item: int) -> tuple[NDArray[np.uint8], str]:
        """RGB (H, W, 3) of any size, and a name for messages. Raises DataError naming the file."""
        ...


def crop_table(store: Store) -> PairTable:
    """Pairs whose first frames crops are cut from; of a store without pairs every valid frame, paired with itself.

    Raises DataError where the store is damaged.
    """
    if store.manifest["settings"]["pairs"]:
        return store.pairs()
    return frame_table(store)


def frame_table(store: Store) -> PairTable:
    """Every valid frame of a store as the pair of itself with itself, so that pairs and frames are split alike."""
    rows = {scene: np.flatnonzero(store.scene(scene).frames.valid).astype(np.int32) for scene in store.scenes}
    frames = np.concatenate([np.zeros(0, np.int32), *rows.values()])
    whole, none = np.ones(len(frames), np.float32), np.zeros(len(frames), np.float32)
    return PairTable(np.repeat(list(rows), [len(k) for k in rows.values()]), frames, frames, whole, none, none)


class PairFrames:
    """First frames of pairs of a prepared dataset: one in many pairs comes as often (reference: the released code).

    Args:
        folder: the prepared dataset; of one without pairs, frames stand for themselves.
        rows: rows of its :func:`crop_table`.
    """

    def __init__(self, folder: Path, rows: NDArray[np.int64]) -> None:
        self.store = Store(folder)
        table = crop_table(self.store)
        self.scene, self.frame = table.scene[rows], table.i[rows]

    def __len__(self) -> int:
        return len(self.frame)

    def read(self, item: int) -> tuple[NDArray[np.uint8], str]:
        """RGB (H, W, 3) of the stored size and "scene/frame". Raises DataError as the store does."""
        scene = str(self.scene[item])
        images, row = self.store.scene(scene), int(self.frame[item])
        return images.color(row), f"{scene}/{images.frames.names[row]}"


class ImageFolder:
    """Every image below a folder (JPEG, PNG, WebP, TIFF, BMP, PPM), in the order of the sorted relative names.

    Hidden files are left out; linked folders are followed, each once. Raises DataError where there is no image.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Bytes in one array: a million names as objects would be copied into every loader process bit by bit.
        self.names = np.array(sorted(os.fsencode(name) for name in _images(folder)), dtype=np.bytes_)
        if not len(self.names):
            raise DataError(f"{folder}: no image in this folder or below. Give one with {', '.join(SUFFIXES)}.")

    def __len__(self) -> int:
        return len(self.names)

    def read(self, item: int) -> tuple[NDArray[np.uint8], str]:
        """RGB (H, W, 3), upright, and the relative name. Raises DataError naming the file."""
        name = os.fsdecode(bytes(self.names[item]))
        return read_rgb(self.folder / name, _ENOUGH), name


class CropItem(NamedTuple):
    """Two crops of one image."""

    crops: Tensor  #: (2, 3, S, S) uint8
    name: str


class CropDataset(Dataset[CropItem]):
    """Two random crops of each image of the sources, which stand one after the other.

    Args:
        sources: where images come from; ``sizes`` holds their lengths, as a mixing sampler wants them.
        seed: of the run; with the draw it fixes every random choice.
        recipe: of the crops.

    Raises ConfigError without a source, or for a recipe that cannot be.
    """

    def __init__(self, sources: Sequence[Source], seed: int, recipe: CropRecipe | None = None) -> None:
        self.sources, self.seed, self.recipe = list(sources), seed, recipe or CropRecipe()
        self.sizes = tuple(len(source) for source in self.sources)
        self._ends = list(accumulate(self.sizes))
        if not self.sources:
            raise ConfigError("crops of no source: give frames of a prepared dataset, a folder of images, or both.")
        _check(self.recipe)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, draw: Draw) -> CropItem:
        at = bisect_right(self._ends, draw.item)
        image, name = self.sources[at].read(draw.item - self._ends[at] + self.sizes[at])
        generator = torch.Generator().manual_seed(derive(self.seed, draw.epoch, draw.item))
        return CropItem(torch.stack([random_crop(image, self.recipe, generator) for _ in range(2)]), name)


def collate_crops(items: list[CropItem]) -> CropBatch:
    """Stack crops; colour becomes float 0..1."""
    return CropBatch(torch.stack([item.crops for item in items]).float() / 255, [item.name for item in items])


def check_crops(dataset: CropDataset, batch: int) -> None:
    """Refuse sources without enough images. Raises DataError with their counts."""
    if len(dataset) < batch:
        raise DataError(
            f"{' + '.join(map(str, dataset.sizes))} images for batches of {batch}. Prepare more frames (a smaller "
            "--frame-step), add a folder of images, or lower --batch or --holdout."
        )


def random_crop(image: NDArray[np.uint8], recipe: CropRecipe, generator: torch.Generator) -> Tensor:
    """RGB (H, W, 3) -> a random crop (3, S, S) uint8: cut, resized, recoloured, mirrored."""
    top, left, height, width = draw_box(image.shape[0], image.shape[1], recipe, generator)
    cut = np.ascontiguousarray(image[top : top + height, left : left + width])
    crop = augment_color(to_tensor(resize_color(cut, (recipe.size, recipe.size))), recipe.color, generator)
    return crop.flip(-1) if uniform(generator) < recipe.p_mirror else crop


def draw_box(height: int, width: int, recipe: CropRecipe, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Top, left, height, width in pixels of a box inside an image of ``height`` x ``width``.

    Area and shape are drawn together until the box fits; after ten attempts it is the largest box in the middle whose
    shape is allowed.
    """
    low, high = math.log(recipe.ratio[0]), math.log(recipe.ratio[1])
    for _ in range(_ATTEMPTS):
        area = height * width * uniform(generator, *recipe.scale)
        ratio = math.exp(uniform(generator, low, high))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            top, left = (int(uniform(generator, 0, room + 1)) for room in (height - h, width - w))
            return min(top, height - h), min(left, width - w), h, w
    ratio = min(max(width / height, recipe.ratio[0]), recipe.ratio[1])
    h, w = min(height, max(1, round(width / ratio))), min(width, max(1, round(height * ratio)))
    return (height - h) // 2, (width - w) // 2, h, w


def _images(folder: Path) -> list[str]:
    """Names, relative to the folder, of the images below it."""
    found: list[str] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)  # a link upwards would go round for ever
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if real not in seen else []
        if real not in seen:
            start = os.path.relpath(place, folder)
            names = (f for f in files if f.lower().endswith(SUFFIXES) and not f.startswith("."))
            found += [os.path.normpath(os.path.join(start, name)) for name in names]  # noqa: PTH118  # a million of them
        seen.add(real)
    return found


def _check(recipe: CropRecipe) -> None:
    bounds: dict[str, Any] = {"scale": recipe.scale, "ratio": recipe.ratio}
    wrong = [f"{name} = {pair}: give 0 < low <= high" for name, pair in bounds.items() if not 0 < pair[0] <= pair[1]]
    if recipe.scale[1] > 1:
        wrong.append(f"scale = {recipe.scale}: a crop has at most the whole area, 1")
    if recipe.size < 1:
        wrong.append(f"size = {recipe.size}: give at least 1 pixel")
    if wrong:
        raise ConfigError(f"crops: {'; '.join(wrong)}.")
