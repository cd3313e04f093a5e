"""Prepared pairs -> pre-training batches."""

from __future__ import annotations

import math
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from pri3d.api.pretrain import Interpolation
from pri3d.data.augment import ColorRecipe, augment_color, to_tensor
from pri3d.data.crops import CropRecipe, random_crop
from pri3d.data.sampler import Draw, derive
from pri3d.errors import ConfigError, DataError
from pri3d.geometry.resize import crop_to_shape, resize_color, resize_nearest
from pri3d.geometry.voxels import coarsen, crop, frustum_box, put_numbered
from pri3d.store import PairTable, Store, remember
from pri3d.types import PairBatch, View, Voxels

#: Upper ends of the bins of angles between viewing directions, degrees.
ANGLES = (15.0, 30.0, 60.0, 180.0)
#: Their names; the lower end is included, of the last both.
ANGLE_NAMES = tuple(f"{low:g}-{high:g}" for low, high in zip((0.0, *ANGLES[:-1]), ANGLES, strict=True))


class PairItem(NamedTuple):
    """One pair before batching; fields as in types.PairBatch without the leading batch."""

    color: Tensor
    depth: Tensor
    intrinsics: Tensor
    world_from_camera: Tensor
    chunks: list[Voxels]
    seed: int
    name: str
    views: tuple[str, ...]
    crops: Tensor
    clean: Tensor


def split_pairs(
    store: Store, holdout: float, table: PairTable | None = None, min_overlap: float = 0.0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the pair table, or another ``table``, for training and for validation, from disjoint frames.

    With ten scenes or more the last ``holdout`` share of scenes is held out; with fewer, the last share of each
    scene's frames in time. Pairs across the border are in neither. ``holdout`` = 0 trains on everything. Pairs that
    overlap by less than ``min_overlap`` are left out. Raises ConfigError outside 0..0.9.
    """
    if not 0 <= holdout <= 0.9:
        raise ConfigError(f"holdout = {holdout}: give a fraction of the frames between 0 and 0.9.")
    table = table or store.pairs()
    enough = table.overlap >= np.float32(min_overlap)
    if holdout == 0:
        return np.flatnonzero(enough), np.empty(0, np.int64)
    if len(store.scenes) >= 10:
        kept = store.scenes[: len(store.scenes) - max(1, round(holdout * len(store.scenes)))]
        late_i = late_j = ~np.isin(table.scene, kept)
    else:
        border = {name: (1 - holdout) * len(store.scene(name).frames.names) for name in store.scenes}
        limit = np.array([border[name] for name in table.scene.tolist()])
        late_i, late_j = table.i >= limit, table.j >= limit
    return np.flatnonzero(enough & ~late_i & ~late_j), np.flatnonzero(enough & late_i & late_j)


def angle_bins(degrees: NDArray[np.float32]) -> dict[str, NDArray[np.bool_]]:
    """Bin of ``ANGLE_NAMES`` -> which of the (P,) degrees lie in it."""
    place = np.minimum(np.searchsorted(ANGLES, degrees, side="right"), len(ANGLES) - 1)
    return {name: place == k for k, name in enumerate(ANGLE_NAMES)}


def draw_pairs(angles: NDArray[np.float32], most: int, seed: int) -> NDArray[np.int64]:
    """Draw at most ``most`` pairs, an equal share of each bin of the angle as far as it has them.

    ``angles`` (P,) radians between the viewing directions -> ascending places in it.
    """
    if len(angles) <= most:
        return np.arange(len(angles))
    generator = np.random.default_rng(derive(seed))
    bins = sorted((np.flatnonzero(inside) for inside in angle_bins(np.degrees(angles)).values()), key=len)
    drawn: list[NDArray[np.int64]] = []
    for k, places in enumerate(bins):  # the fewest first: what they lack goes to the others
        share = (most - sum(map(len, drawn))) // (len(bins) - k)
        drawn.append(generator.choice(places, min(share, len(places)), replace=False))
    return np.sort(np.concatenate(drawn))


class PairDataset(Dataset[PairItem]):
    """Items of a prepared dataset's pair table, resized, augmented, with the chunk each frame sees.

    Args:
        folder: the prepared dataset.
        rows: rows of the pair table to use.
        size: (width, height) of the images; of frames of another shape the middle is taken.
        seed: of the run; with the draw it fixes augmentation and point choice.
        recipe: colour augmentation, None for none.
        voxel: edge of the chunks' voxels in metres, a whole multiple of the prepared one; 0 leaves chunks out.
        chunks: 2 gives each frame its chunk, 1 only the first frame.
        interpolation: of colour.
        views: images of each pair, see :class:`pri3d.types.PairBatch`; every one gets an augmentation of its own.
        crop: recipe of two random crops of the first frame, None for none.
        clean: whether both frames come without augmentation, too.
    """

    def __init__(
        self,
        folder: Path,
        rows: NDArray[np.int64],
        size: tuple[int, int],
        seed: int,
        recipe: ColorRecipe | None = None,
        voxel: float = 0.0,
        chunks: int = 2,
        interpolation: Interpolation = "bilinear",
        views: tuple[str, ...] = ("first", "second"),
        crop: CropRecipe | None = None,
        clean: bool = False,
    ) -> None:
        self.store = Store(folder)
        self.table: PairTable = self.store.pairs()
        self.rows, self.size, self.seed, self.recipe = rows, size, seed, recipe
        self.voxel, self.chunks, self.interpolation = voxel, chunks, interpolation
        self.views, self.crop, self.clean = views, crop, clean
        self._surfaces: dict[str, Voxels] = {}  # of the last used scenes, where they are coarser than the stored ones

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, draw: Draw) -> PairItem:
        row = int(self.rows[draw.item])
        scene_id = str(self.table.scene[row])
        scene = self.store.scene(scene_id)
        whole = scene.view(int(self.table.i[row])), scene.view(int(self.table.j[row]))
        views = [crop_to_shape(view, self.size) for view in whole]
        seed = derive(self.seed, draw.epoch, draw.item)
        generator = torch.Generator().manual_seed(seed)
        sources = [views[1] if name == "second" else views[0] for name in self.views]
        colors = [to_tensor(resize_color(v.color, self.size, self.interpolation)) for v in sources]
        clean = [colors[self.views.index(name)] for name in ("first", "second")] if self.clean else []
        colors = [augment_color(color, self.recipe, generator) for color in colors]
        depth = np.stack([resize_nearest(v.depth, self.size) for v in views])
        intrinsics = np.stack([self._intrinsics(v) for v in views])
        poses = np.stack([v.world_from_camera for v in views])
        surface = self._surface(scene_id)
        # Coordinates near the camera keep float32 exact wherever the recording's origin lies.
        origin = np.floor(poses[0, :3, 3] / surface.size).astype(np.int64)
        chunks = []
        for view in views[: self.chunks]:
            box = frustum_box(view.depth, view.intrinsics, view.world_from_camera) if len(surface.cells) else None
            empty = Voxels(surface.cells[:0], surface.size)
            chunks.append(empty if box is None else crop(surface, *box, origin))
        poses[:, :3, 3] -= origin * surface.size
        return PairItem(
            torch.stack(colors),
            torch.from_numpy(depth.astype(np.float32)),
            torch.from_numpy(intrinsics).float(),
            torch.from_numpy(poses).float(),
            chunks,
            seed,
            f"{scene_id}/{views[0].name}+{views[1].name}",
            self.views,
            torch.stack([random_crop(whole[0].color, self.crop, generator) for _ in range(2)])
            if self.crop
            else torch.empty(0, 3, 1, 1, dtype=torch.uint8),
            torch.stack(clean) if clean else torch.empty(0, 3, 1, 1, dtype=torch.uint8),
        )

    def _intrinsics(self, view: View) -> NDArray[np.float64]:
        height, width = view.depth.shape
        scale = np.tile((self.size[0] / width, self.size[1] / height), 2)
        return np.asarray(view.intrinsics * scale, dtype=np.float64)

    def _surface(self, scene_id: str) -> Voxels:
        if not self.voxel:
            return Voxels(np.empty((0, 3), np.int32), 1.0)
        if scene_id in self._surfaces:
            found = self._surfaces[scene_id]
        else:
            mapped = self.store.scene(scene_id).surface_map()
            found = coarsen(mapped, self.voxel)
            if found is mapped:  # not kept: of a thousand scenes a pair seldom finds its own in a cache
                return mapped
        return remember(self._surfaces, scene_id, lambda: found)


class MixedPairs(Dataset[PairItem]):
    """The pairs of several stores, one store after the other; the names of items begin with their store's."""

    def __init__(self, parts: Sequence[PairDataset]) -> None:
        self.parts = list(parts)
        self.sizes = tuple(len(part) for part in self.parts)  #: as a mixing sampler wants them
        self._ends = list(accumulate(self.sizes))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, draw: Draw) -> PairItem:
        at = bisect_right(self._ends, draw.item)
        part = self.parts[at]
        item = part[Draw(draw.epoch, draw.item - self._ends[at] + self.sizes[at])]
        return item._replace(name=f"{part.store.path.name}/{item.name}")


def collate(items: list[PairItem], most: int | None = None) -> PairBatch:
    """Stack pairs; the ragged chunks become one list of rows that begin with the chunk's number.

    Of more than ``most`` voxels the largest chunks are cropped to a common size, to what is nearest to their cameras.
    """
    chunks = [chunk for item in items for chunk in item.chunks]
    if most is not None and sum(len(chunk.cells) for chunk in chunks) > most:
        eyes = [pose[:3, 3].numpy() for item in items for pose in item.world_from_camera[: len(item.chunks)]]
        chunks = crop_to(chunks, eyes, most)
    ends = list(accumulate(len(chunk.cells) for chunk in chunks))
    cells, colors = _empty((ends[-1], 4), torch.int32), _empty((ends[-1], 3), torch.uint8)
    for number, (chunk, end) in enumerate(zip(chunks, ends, strict=True)):
        rows = slice(end - len(chunk.cells), end)
        put_numbered(chunk.cells, number, cells[rows].numpy())
        colors[rows] = 0 if chunk.color is None else torch.from_numpy(chunk.color)
    return PairBatch(
        color=_shares([item.color for item in items]),
        depth=torch.stack([item.depth for item in items]),
        intrinsics=torch.stack([item.intrinsics for item in items]),
        world_from_camera=torch.stack([item.world_from_camera for item in items]),
        voxel_cells=cells,
        voxel_color=colors,
        voxel_size=torch.tensor(items[0].chunks[0].size),
        seeds=torch.tensor([item.seed for item in items]),
        names=[item.name for item in items],
        views=items[0].views,
        crops=_shares([item.crops for item in items]),
        clean=_shares([item.clean for item in items]),
    )


def crop_to(chunks: Sequence[Voxels], eyes: Sequence[NDArray[np.float32]], most: int) -> list[Voxels]:
    """Chunks of ``most`` voxels in all; ``eyes`` are their cameras' centres (3,) m. Small ones stay as they are.

    Of every larger one as many are kept, those nearest to the eye, in their order.
    """
    warnings.warn(
        f"chunks of a pass hold more than {most:,} voxels and are cropped to what is nearest to their cameras; lower "
        "--micro-batch, or raise --geometry.max-voxels where the memory allows it",
        stacklevel=2,
    )
    sizes = sorted(len(chunk.cells) for chunk in chunks)
    left, limit = most, 0
    for place, size in enumerate(sizes):  # what the smaller ones leave is shared by the larger ones
        limit = left // (len(sizes) - place)
        if size > limit:
            break
        left -= size
    kept = []
    for chunk, eye in zip(chunks, eyes, strict=True):
        if len(chunk.cells) <= limit:
            kept.append(chunk)
            continue
        away = np.square((chunk.cells + 0.5) * chunk.size - eye).sum(axis=1)
        rows = np.sort(np.argpartition(away, limit)[:limit])
        kept.append(Voxels(chunk.cells[rows], chunk.size, None if chunk.color is None else chunk.color[rows]))
    return kept


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor to be filled; in a loader process it lies where the training process reads it, without another copy."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    # As PyTorch's own collate does.
    storage = torch.UntypedStorage._new_shared(max(1, math.prod(shape)) * dtype.itemsize)  # type: ignore[no-untyped-call]
    shared: Tensor = torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload]
    return shared


def _shares(images: list[Tensor]) -> Tensor:
    """Stack images of bytes, as float 0..1."""
    result = _empty((len(images), *images[0].shape), torch.float32)
    for image, target in zip(images, result, strict=True):
        torch.div(image, 255, out=target)
    return result


def check_pairs(rows: NDArray[np.int64], store: Store, batch: int, min_overlap: float = 0.0) -> None:
    """Refuse a store without enough training pairs. Raises DataError naming the store and what to change."""
    if len(rows) < batch:
        least = f" that overlap by {min_overlap:g}" if min_overlap else ""
        raise DataError(
            f"{store.path}: {len(rows)} training pairs for batches of {batch}{least and ', counting those' + least}. "
            "Prepare more frames (a smaller --frame-step), accept less overlap (--min-overlap of prepare and "
            "pretrain), or lower --batch or --holdout."
        )
