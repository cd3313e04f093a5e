"""Stores and run folders -> what the pictures need. What is not there is stated, what is damaged raises."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from pri3d.data.labelled import LabelledDataset
from pri3d.data.pairs import PairDataset
from pri3d.data.sampler import Draw
from pri3d.datasets.prepared import PreparedImages
from pri3d.errors import DataError
from pri3d.geometry.images import parse_size
from pri3d.geometry.matching import match_pixels
from pri3d.models.weights import load_model
from pri3d.report.cutaway import Chunk, up_direction
from pri3d.report.figures import MatchedPair, Segmented
from pri3d.runfiles import RunPaths, read_json
from pri3d.store import MANIFEST, Store
from pri3d.tasks.semantic import load_semantic

Runs = Mapping[str, Sequence[Path]]
_DISTANCE = 0.02  # metres; of runs that do not say


class Missing(NamedTuple):
    """Why a part of the report cannot be made; not an error: runs are cut short, stores made without labels."""

    reason: str


def read_settings(run: Path) -> dict[str, Any]:
    """Return a run's resolved settings; empty where it has no config.yaml. Raises DataError where that is damaged."""
    path = RunPaths(run).config
    if not path.is_file():
        return {}
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8"))["settings"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not the settings of a run ({error}). Restore it, or make the run anew.") from error


def read_scores(runs: Runs) -> dict[str, list[dict[str, Any]]]:
    """:func:`read_score` of the runs that have one, method by method; methods without any are left out."""
    found = {method: [read_score(folder) for folder in folders] for method, folders in runs.items()}
    present = {method: [score for score in of if score is not None] for method, of in found.items()}
    return {method: of for method, of in present.items() if of}


def read_score(run: Path) -> dict[str, Any] | None:
    """scores.json of a run, unknown numbers as NaN; None where it has none or no mIoU. Raises DataError if damaged."""
    path = RunPaths(run).scores
    if not path.is_file():
        return None
    scores = _known(read_json(path))
    try:
        known = math.isfinite(scores["last"]["miou"])
        dict(scores["last"]["iou"]), list(scores["history"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the scores of a run ({error!r}). Delete it, or restore it.") from error
    return dict(scores) if known else None


def open_store(folder: Path) -> Store | Missing:
    """Return the store, or say that there is none."""
    if not (folder / MANIFEST).is_file():
        return Missing(f"{folder.name} is no prepared store.")
    return Store(folder)


def store_with_pairs(stores: Sequence[Path]) -> Path | Missing:
    """First of the stores that holds pairs."""
    for folder in stores:
        store = open_store(folder)
        if isinstance(store, Store) and store.manifest["settings"]["pairs"] and len(store.pairs().i):
            return folder
    return Missing(f"no overlapping pairs in {', '.join(folder.name for folder in stores)}.")


def typical_pairs(store: Store, count: int) -> NDArray[np.int64]:
    """Rows of ``count`` pairs at even ranks of the overlap, so that nobody picks: 1 is the median, 2 the tertiles."""
    order = np.argsort(store.pairs().overlap, kind="stable")
    ranks = (np.arange(1, count + 1) / (count + 1) * len(order)).astype(np.int64)
    return np.unique(order[ranks])


def matched_pairs(folder: Path, count: int, run: Path) -> tuple[list[MatchedPair], Tensor]:
    """Typical pairs with their matches, and their images (2 * count, 3, H, W) in 0..1, as the run's network sees them.

    Size, match distance and grid (half the image's resolution) are the run's.
    """
    store, settings = Store(folder), read_settings(run)
    rows = typical_pairs(store, count)
    size = parse_size(settings["size"]) if "size" in settings else store.scene(store.scenes[0]).frames.size
    dataset, table = PairDataset(folder, rows, size, seed=0), store.pairs()
    grid = (-(-size[1] // 2), -(-size[0] // 2))
    pairs, images = [], []
    for k, row in enumerate(rows):
        item = dataset[Draw(0, k)]
        matches = match_pixels(
            item.depth[None],
            item.intrinsics[None],
            item.world_from_camera[None],
            grid,
            float(settings.get("distance", _DISTANCE)),
        )
        valid = matches.valid[0]
        ends = [_cell_centres(cells[0][valid], grid, size) for cells in (matches.first, matches.second)]
        colors = item.color.permute(0, 2, 3, 1).numpy()
        pairs.append(
            MatchedPair(
                colors, np.concatenate(ends, axis=1), float(table.overlap[row]), float(table.angle[row]), item.name
            )
        )
        images.append(item.color.float() / 255)
    return pairs, torch.cat(images)


def chunk(folder: Path, run: Path) -> Chunk | Missing:
    """First frame of the median pair; the surface in the run's voxel size, where the store's divides it."""
    store = Store(folder)
    row = int(typical_pairs(store, 1)[0])
    table = store.pairs()
    scene = store.scene(str(table.scene[row]))
    surface = scene.surface()
    if len(surface.cells) == 0:
        return Missing(f"scene {scene.id} of {folder.name} has no surface.")
    view, frames = scene.view(int(table.i[row])), scene.frames
    voxel = float(read_settings(run).get("voxel") or surface.size)
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


@torch.no_grad()
def feature_maps(images: Tensor, run: Path) -> dict[str, Tensor] | Missing:
    """Maps (K, C, h, w) of images (K, 3, H, W) by the run's network before and after pre-training."""
    files = {"before": RunPaths(run).initial, "after": RunPaths(run).weights}
    absent = [file.name for file in files.values() if not file.is_file()]
    if absent:
        return Missing(f"{run.name} has no {' and no '.join(absent)}; its pre-training has not finished.")
    return {name: load_model(file)[0](images).float() for name, file in files.items()}


@torch.no_grad()
def segmentations(val_store: Path, runs: Runs, count: int) -> tuple[list[Segmented], list[str]] | Missing:
    """Evenly spaced labelled frames of the store with the prediction of each method's first finished run.

    Also returns the class names.
    """
    store = open_store(val_store)
    if isinstance(store, Missing):
        return store
    if not store.class_names:
        return Missing(f"{val_store.name} has no labels.")
    files = {
        method: next((file for file in (RunPaths(run).weights for run in folders) if file.is_file()), None)
        for method, folders in runs.items()
    }
    models = {method: (load_semantic(file)[0], file.parent) for method, file in files.items() if file is not None}
    if not models:
        return Missing("no fine-tuning run has finished.")
    settings = read_settings(next(iter(models.values()))[1])
    size = parse_size(settings["size"]) if "size" in settings else store.scene(store.scenes[0]).frames.size
    images = PreparedImages(val_store, "all")
    dataset = LabelledDataset(images, size)
    rows = np.unique(((np.arange(count) + 0.5) / count * len(dataset)).astype(np.int64))
    frames = []
    for row in rows.tolist():
        color, label, name = dataset[Draw(0, row)]
        scores = {method: model(color[None].float() / 255)[0] for method, (model, _) in models.items()}
        predicted = {method: score.argmax(0).numpy() for method, score in scores.items()}
        frames.append(Segmented(color.permute(1, 2, 0).numpy(), label.numpy(), predicted, name))
    return frames, list(images.class_names)


def shares_scenes(first: Store, second: Store) -> bool:
    """Whether the stores may hold a scene in common: one of the same id, or one of the same content."""
    ids = set(first.scenes) & set(second.scenes)
    hashes = [{scene["hash"] for scene in store.manifest["scenes"].values()} for store in (first, second)]
    return bool(ids or hashes[0] & hashes[1])


def _known(value: Any) -> Any:
    """What JSON held, null as NaN."""
    if isinstance(value, dict):
        return {key: _known(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_known(item) for item in value]
    return math.nan if value is None else value


def _cell_centres(cells: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> NDArray[np.float64]:
    """Flat feature cells (N,) -> pixels (N, 2) of an image of ``size`` (width, height)."""
    flat = cells.numpy()
    row, column = flat // grid[1], flat % grid[1]
    return np.stack(((column + 0.5) * size[0] / grid[1], (row + 0.5) * size[1] / grid[0]), axis=1)
