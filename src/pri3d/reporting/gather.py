"""Prepared datasets and run folders -> data of the figures. Missing data are reported, damaged data raise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pri3d.data.pairs import PairDataset
from pri3d.data.sampler import Draw
from pri3d.errors import ConfigError, DataError
from pri3d.geometry.matching import match_pixels
from pri3d.geometry.resize import crop_to_shape, parse_size
from pri3d.labelled import LabelledImages
from pri3d.networks.load import WeightsSource
from pri3d.reporting.cutaway import Chunk, up_direction
from pri3d.reporting.figures import MatchedPair, PredictedFrame
from pri3d.reporting.sources import Missing, RunFolder, Runs, has_pairs
from pri3d.reporting.widgets import MOST_CELLS
from pri3d.runs import RunPaths
from pri3d.store import Store
from pri3d.tasks import find_task, load_task

_DISTANCE = 0.02  # metres; where nothing says


def match_distance(settings: Mapping[str, Any], prepared: Mapping[str, Any]) -> float:
    """Metres within which two measured points are one: of a run's settings, else of its prepared dataset's."""
    return float(settings.get("matching", {}).get("distance") or prepared.get("distance") or _DISTANCE)


def typical_pairs(
    store: Store, count: int, scene: str | None = None, settings: Mapping[str, Any] | None = None
) -> NDArray[np.int64]:
    """Rows of at most ``count`` pairs, of one scene or of all, at even ranks of their overlap (no cherry-picking).

    1 is the median, 2 the tertiles. Of pairs that overlap as much as a run of these ``settings`` asks for, where there
    are any.
    """
    table = store.pairs()
    rows = np.arange(len(table.overlap)) if scene is None else np.flatnonzero(table.scene == scene)
    trained = table.overlap[rows] >= np.float32((settings or {}).get("min_overlap", 0.0))
    rows = rows[trained] if trained.any() else rows
    rows = rows[np.argsort(table.overlap[rows], kind="stable")]
    ranks = (np.arange(1, count + 1) / (count + 1) * len(rows)).astype(np.int64)
    return rows[np.unique(ranks)] if len(rows) else rows


def matched_pairs(folder: Path, count: int, settings: Mapping[str, Any]) -> tuple[list[MatchedPair], Tensor]:
    """Typical pairs with their matches, and their images (2 * count, 3, H, W) in 0..1, as a run's network sees them.

    Size, match distance and grid (half the image's resolution) are those of the run's ``settings``. Raises DataError
    where the store has no pairs.
    """
    store = Store(folder)
    if not has_pairs(store):
        raise DataError(f"{folder}: has no overlapping pairs. Prepare it with pairs.")
    rows = np.sort(typical_pairs(store, count, settings=settings))
    size = parse_size(settings["size"]) if "size" in settings else store.scene(store.scenes[0]).frames.size
    dataset, table = PairDataset(folder, rows, size, seed=0), store.pairs()
    grid = (-(-size[1] // 2), -(-size[0] // 2))
    distance = match_distance(settings, store.manifest["settings"])
    pairs, images = [], []
    for k, row in enumerate(rows):
        item = dataset[Draw(0, k)]
        matches = match_pixels(item.depth[None], item.intrinsics[None], item.world_from_camera[None], grid, distance)
        ends = []
        for cells in (matches.first, matches.second):  # their centres (N, 2) in pixels of the images
            down, across = np.divmod(cells[0][matches.valid[0]].numpy(), grid[1])
            ends.append(np.stack(((across + 0.5) * size[0] / grid[1], (down + 0.5) * size[1] / grid[0]), axis=1))
        colors = item.color.permute(0, 2, 3, 1).numpy()
        pairs.append(
            MatchedPair(
                colors, np.concatenate(ends, axis=1), float(table.overlap[row]), float(table.angle[row]), item.name
            )
        )
        images.append(item.color.float() / 255)
    return pairs, torch.cat(images)


def median_chunk(folder: Path, settings: Mapping[str, Any]) -> Chunk | Missing:
    """First frame of the median pair; the surface in the voxel size of ``settings``, where the store's divides it."""
    store = Store(folder)
    row = int(typical_pairs(store, 1, settings=settings)[0])
    table = store.pairs()
    scene = store.scene(str(table.scene[row]))
    surface = scene.surface()
    if len(surface.cells) == 0:
        return Missing(f"scene {scene.id} of {folder.name} has no surface.")
    view, frames = scene.view(int(table.i[row])), scene.frames
    if "size" in settings:
        view = crop_to_shape(view, parse_size(settings["size"]))  # what the network saw
    voxel = float(settings.get("geometry", {}).get("voxel") or surface.size)
    return Chunk(
        color=view.color,
        depth=view.depth,
        intrinsics=view.intrinsics,
        world_from_camera=view.world_from_camera,
        surface=surface,
        up=up_direction(frames.world_from_camera[frames.valid]),
        voxel=voxel if abs(voxel / surface.size - round(voxel / surface.size)) < 1e-6 else surface.size,
        name=f"{scene.id}/{view.name}",
    )


def network_files(runs: Sequence[RunFolder]) -> dict[str, Path] | Missing:
    """What to call a network -> its file: of one run before and after pre-training, of several the first one's start.

    Runs without weights are left out; Missing where none has any.
    """
    found = {run.name: paths for run in runs if (paths := RunPaths(run.path)).weights.is_file()}
    if not found:
        names = ", ".join(run.name for run in runs)
        return Missing(f"{names}: no {RunPaths(Path()).weights.name}; pre-training has not finished.")
    first = next(iter(found.values()))
    before = {"before": first.initial} if first.initial.is_file() else {}
    if len(runs) == 1:
        return {**before, "after": first.weights}
    return {**before, **{name: paths.weights for name, paths in found.items()}}


@torch.no_grad()
def feature_maps(images: Tensor, files: Mapping[str, Path]) -> dict[str, Tensor]:
    """Maps (K, C, h, w) of images (K, 3, H, W) by the network in each file, by the same names.

    Of half the images' size, or of as many times less as leaves ``MOST_CELLS``: all maps of an encoder are thousands of
    channels.
    """
    found = {}
    for name, file in files.items():
        network = WeightsSource(file).dense()
        maps = []
        for image in torch.split(images, 1):
            features = network(image)
            step = math.ceil(math.sqrt(features.shape[-2] * features.shape[-1] / MOST_CELLS))
            maps.append(F.avg_pool2d(features, step, ceil_mode=True) if step > 1 else features)
        found[name] = torch.cat(maps)
    return found


def spread_rows(count: int, most: int) -> list[int]:
    """At most ``most`` of the numbers 0..count-1, evenly, each from the middle of its share."""
    most = min(count, most)
    return [int((k + 0.5) / most * count) for k in range(most)]


class Pictures(NamedTuple):
    """Frames with what networks say of them."""

    frames: Sequence[PredictedFrame]
    class_names: Sequence[str]  #: whose colours the pictures are made of; empty where they are not


@torch.no_grad()
def predictions(images: LabelledImages, runs: Runs, count: int, task: str) -> Pictures | Missing:
    """Evenly spaced labelled images with the prediction of each method's first finished run."""
    files = {
        method: next((file for file in (RunPaths(run).weights for run in folders) if file.is_file()), None)
        for method, folders in runs.items()
    }
    models = {method: load_task(file) for method, file in files.items() if file is not None}
    if not models:
        return Missing("no fine-tuning run has finished.")
    names = find_task(task).names_of(images)
    for method, trained in models.items():
        if trained.task.class_names != names:
            return Missing(f"{method} and {images.path.name} have other classes.")
    own = next(iter(models.values())).task
    frames = []
    for row in spread_rows(len(images.names), count):
        color = images.color(row)
        found = {method: trained.task.predict(trained.model, color) for method, trained in models.items()}
        try:
            panels = own.panels(color, own.truth(images, row), found)
        except ConfigError as error:  # of a task that does not say how it is drawn
            return Missing(str(error))
        frames.append(PredictedFrame(images.names[row], panels))
    return Pictures(frames, names if own.colors_classes else [])
