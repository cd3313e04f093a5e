"""``pri3d probe``: do features find the same 3D point in another view? No labels, no training, held-out pairs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pri3d.data.mixture import hashes_of
from pri3d.data.pairs import PairDataset, collate, split_pairs
from pri3d.data.sampler import Draw, derive
from pri3d.errors import ConfigError, DataError
from pri3d.geometry.images import parse_size
from pri3d.geometry.matching import choose, match_pixels
from pri3d.models.unet import UNet
from pri3d.models.weights import load_model
from pri3d.objectives.quality import cell_distance
from pri3d.runfiles import RunPaths
from pri3d.store import Store

#: Upper ends of the viewing-angle bins, degrees.
ANGLES = (15.0, 30.0, 60.0, 180.0)


class Recall(NamedTuple):
    """Share 0..1 of points whose most similar cell in the other view lies within the distance of the true place."""

    mean: float  #: over all points of all pairs
    balanced: float  #: mean of the angle bins that hold points, so that the many near views do not drown the far ones
    by_angle: dict[str, float]  #: bin such as "15-30" degrees between viewing directions -> recall; NaN where empty
    points: int  #: counted
    pairs: int  #: with at least one match


@torch.no_grad()
def matching_recall(
    unet: UNet,
    dataset: PairDataset,
    angles: NDArray[np.float32],
    pixels: float = 10.0,
    distance: float = 0.02,
    width: int = 320,
    points: int = 1000,
) -> Recall:
    """Nearest-neighbour matching by cosine over all cells of the second view.

    Args:
        unet: network in eval mode.
        dataset: held-out pairs.
        angles: (P,) radians between the viewing directions of each pair.
        pixels: a point is found when the chosen cell's centre lies within this distance of the true pixel,
            in pixels of an image ``width`` wide.
        distance: metres within which two measured points are the same.
        width: of that image.
        points: matches drawn a pair, the same for every network.
    """
    found, counted = np.zeros(len(dataset)), np.zeros(len(dataset))
    device = next(unet.parameters()).device
    for k in track(range(len(dataset)), description="matching", transient=True):
        batch = collate([dataset[Draw(0, k)]])
        features = unet(batch.color.flatten(0, 1).to(device)).float()
        grid = (int(features.shape[-2]), int(features.shape[-1]))
        matches = match_pixels(batch.depth, batch.intrinsics, batch.world_from_camera, grid, distance)
        matches = choose(matches, points, batch.seeds)
        keep = matches.valid[0]
        gap = cell_distance(features, matches.first[0, keep].to(device), matches.second[0, keep].to(device))
        found[k] = int((gap * (width / grid[1]) <= pixels).sum())
        counted[k] = int(keep.sum())
    return _summary(found, counted, np.degrees(angles))


def _summary(found: NDArray[np.float64], counted: NDArray[np.float64], degrees: NDArray[np.float32]) -> Recall:
    by_angle, low = {}, 0.0
    for high in ANGLES:
        inside = (degrees >= low) & (degrees < high)
        total = counted[inside].sum()
        by_angle[f"{low:g}-{high:g}"] = float(found[inside].sum() / total) if total else math.nan
        low = high
    total = counted.sum()
    mean = float(found.sum() / total) if total else math.nan
    filled = [value for value in by_angle.values() if not math.isnan(value)]
    balanced = sum(filled) / len(filled) if filled else math.nan
    return Recall(mean, balanced, by_angle, int(total), int((counted > 0).sum()))


def probe(
    data: Path,
    weights: list[Path],
    holdout: float = 0.1,
    size: str = "160x120",
    pixels: float = 10.0,
    distance: float | None = None,
    pairs: int = 200,
    seed: int = 0,
) -> dict[str, Recall]:
    """Compare networks by how well their features find the same 3D point in another view.

    Uses pairs that pre-training with the same --holdout did not see. Prints one row per network: recall within
    --pixels (of a 320-pixel-wide image) by angle between the views, the mean of these bins, and over all points.

    Args:
        data: prepared store.
        weights: runs or weights files; of a run folder the state before training is shown too.
        holdout: as given to pretrain.
        size: of the images, width x height.
        pixels: a point counts as found within this distance, in pixels of a 320-pixel-wide image.
        distance: metres within which two measured points are the same; as prepared where it is not given.
        pairs: at most so many held-out pairs, drawn with the seed.
        seed: of the draw of pairs and points.

    Returns:
        Name of the weights -> recall.
    """
    store = Store(data)
    rows = split_pairs(store, holdout)[1]
    if holdout <= 0 or len(rows) == 0:
        raise ConfigError(f"holdout = {holdout}: leaves no pair of {data} to probe on. Give a larger share.")
    if len(rows) > pairs:
        rows = np.sort(np.random.default_rng(derive(seed)).choice(rows, pairs, replace=False))
    dataset = PairDataset(data, rows, parse_size(size), seed)
    angles = store.pairs().angle[rows]
    distance = float(store.manifest["settings"]["distance"]) if distance is None else distance
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = {}
    for name, path in _states(weights).items():
        unet, record = load_model(path)
        _check_holdout(path, record, store, holdout)
        results[name] = matching_recall(unet.to(device), dataset, angles, pixels, distance)
        if not results[name].points:
            raise DataError(f"{data}: no held-out pair has a match within {distance} m. Raise --distance.")
    _show(results, pixels)
    return results


def _check_holdout(path: Path, record: dict[str, Any], store: Store, holdout: float) -> None:
    """Refuse to score a network on frames it was trained on. Raises ConfigError."""
    trained = record.get("holdout")
    seen = hashes_of(str(record.get("data_hash") or ""))
    if store.hash in seen and trained is not None and trained < holdout:
        raise ConfigError(
            f"{path}: was trained with --holdout {trained:g}, so --holdout {holdout:g} would score frames it has seen. "
            "Probe on other recordings, or give the same share."
        )


def _states(weights: list[Path]) -> dict[str, Path]:
    """Name -> file; a run folder gives its network before and after training."""
    states: dict[str, Path] = {}
    for path in weights:
        if not path.exists():
            raise DataError(f"{path}: no such run or weights file.")
        name = str(path) if [other.name for other in weights].count(path.name) > 1 else path.name
        before = RunPaths(path).initial
        if path.is_dir() and before.is_file():
            states[f"{name} before"] = before
            states[f"{name} after"] = path
        else:
            states[name] = path
    return states


def _show(results: dict[str, Recall], pixels: float) -> None:
    table = Table(title=f"3D-correspondence recall within {pixels:g} px, by angle between the views")
    for column in ("network", *(f"{name}°" for name in next(iter(results.values())).by_angle), "bins", "all", "pairs"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, recall in results.items():
        bins = ["-" if math.isnan(value) else f"{value:.3f}" for value in recall.by_angle.values()]
        table.add_row(name, *bins, f"{recall.balanced:.3f}", f"{recall.mean:.3f}", str(recall.pairs))
    Console().print(table)
