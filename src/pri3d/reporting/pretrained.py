"""The parts of a page about pre-training: curves, the data it learns from, features before and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from pri3d.reporting import charts, figures, gather
from pri3d.reporting.cutaway import Chunk, drawable, seen_cells
from pri3d.reporting.figures import MatchedPair
from pri3d.reporting.gather import Missing
from pri3d.reporting.html import Page
from pri3d.reporting.scene3d import scene_widget
from pri3d.reporting.similarity import similarity_widget
from pri3d.reporting.style import series_label
from pri3d.reporting.view_matches import MEASURED, legs, show_pairs
from pri3d.runs import RunPaths, read_json, read_metrics
from pri3d.store import Store

MOST_NETWORKS = 6  #: whose features a page shows
_SEEN, _REST = "viridis", "bone"  # colours by height of the chunk, and of the rest of the scene

Named = Mapping[str, Path]  #: what to call a pre-training run -> its folder


def add_curves(page: Page, runs: Named) -> None:
    """Loss, recall and learning rate of each run; of several, first their recall in one picture."""
    tables = {name: read_metrics(RunPaths(run).metrics) for name, run in runs.items()}
    known = {name: rows for name, rows in tables.items() if rows}
    if len(known) > 1:
        page.figure(
            charts.compared_training_figure(known),
            "Running means. Objectives match other points in other images, so the recall of one says nothing of "
            "another's: compare runs of the same objective here, and different ones after fine-tuning.",
            "Curves of match recall by run over the steps.",
        )
    for name, rows in known.items():
        if len(known) > 1:
            page.heading(name, 3)
        _add_training(page, runs[name], rows)
    absent = [run.name for name, run in runs.items() if name not in known]
    if absent:
        page.note(f"The curves are left out: {', '.join(absent)} has no {RunPaths(Path()).metrics.name}.")


def add_data(page: Page, folder: Path, run: Path) -> None:
    """The pair of median overlap with its matches, and the surface in view of its first frame."""
    store = Store(folder)
    pair = gather.matched_pairs(folder, 1, run)[0][0]
    page.figure(
        figures.pair_figure(pair),
        f"Pair {pair.name}: of all {len(store.pairs().i):,} pairs, the one of median overlap. Points of both "
        f"frames that lie on one place of the surface are matches; at most {figures.SHOWN_MATCHES} are drawn. The View "
        "objective makes the features of matched points alike and those of all others unlike.",
        "Two frames of a room side by side, lines join the points that both see.",
    )
    chunk = gather.chunk(folder, run)
    if isinstance(chunk, Missing):
        page.note(f"The surface is left out: {chunk.reason}")
        return
    drawn = drawable(chunk).size
    coarser = f", coarser than the {100 * chunk.voxel:.0f} cm of pre-training" if drawn > chunk.voxel * 1.01 else ""
    page.figure(
        figures.chunk_figure(chunk),
        f"The surface in the view of frame {chunk.name}, in cubes of {100 * drawn:.0f} cm{coarser}: coloured by "
        "height, the rest of the scene grey. Red: the camera and its view down to the farthest depth. Dashed: the box "
        "around it, which cuts out the chunk. Cut open 45 cm above the camera. The Geometry objective matches pixels "
        "with these voxels.",
        "A frame, and the voxels of the room seen from above with the camera's view frustum.",
    )
    page.widget(_chunk_scene(folder, run, chunk, pair))


def add_features(page: Page, folder: Path, runs: Named) -> None:
    """Features in false colours, and a pair to click into."""
    shown = dict(list(runs.items())[:MOST_NETWORKS])
    files = gather.network_files(shown)
    if isinstance(files, Missing):
        page.note(f"Features are left out: {files.reason}")
        return
    first = next(iter(shown.values()))
    pairs, images = gather.matched_pairs(folder, 2, first)
    maps = gather.feature_maps(images, files)
    if len(runs) > len(shown):
        page.note(f"Features of the first {MOST_NETWORKS} runs only; give fewer runs to see others.")
    before = f" Before: the network that {next(iter(shown))} began with." if len(shown) > 1 else ""
    page.figure(
        figures.features_figure(pairs, maps),
        "Features of two pairs before and after pre-training: the first three principal components as red, green and "
        "blue. The two maps of a pair beside each other share one basis, so equal colours there mean equal features: a "
        "thing that keeps its colour from one frame to the other is recognised. Rows do not share a basis. Pairs at "
        f"the tertiles of the overlap, from {folder.name}.{before}",
        "Four frames with their features in false colours before and after pre-training.",
    )
    page.heading("What is similar to one point", 3)
    page.widget(
        similarity_widget(
            pairs[-1],
            {name: two[-2:] for name, two in maps.items()},
            f"Cosine similarity of the features of one point (pink) with those of every other place of both frames, "
            f"black 0 to yellow 1. Green: where that point truly is in the other frame. Cross: the most similar place. "
            f"Pair {pairs[-1].name}.{before}",
        )
    )


def _add_training(page: Page, run: Path, rows: list[dict[str, float]]) -> None:
    weights = gather.read_settings(run).get("objectives", {})
    page.figure(
        charts.training_figure(rows, weights),
        f"Pre-training to step {rows[-1]['step']:.0f}. Dotted: the loss of a network that cannot tell points apart. "
        "Recall: share of points whose true partner is the most similar of all. Thin: single batches; thick: running "
        "mean.",
        "Curves of loss, match recall and learning rate over the steps of pre-training.",
    )
    scores = RunPaths(run).scores
    history = read_json(scores)["history"] if scores.is_file() else []
    if history:
        page.figure(
            charts.heldout_figure([{k: v for k, v in entry.items() if v is not None} for entry in history]),
            "On pairs that were held out. Alignment: mean squared distance of matched features, lower is more alike. "
            "Uniformity: lower is more spread over the sphere. Rank: how many directions the features use.",
            "Curves of measures on held-out pairs over the steps.",
        )


def _chunk_scene(folder: Path, run: Path, chunk: Chunk, pair: MatchedPair) -> str:
    """The same chunk to turn around, with the pair's cameras and lines to points that both see."""
    surface = drawable(chunk)
    seen = seen_cells(chunk, surface)
    centres = (surface.cells + 0.5) * surface.size
    colors = np.zeros((len(centres), 3), np.uint8)
    for part, name in ((seen, _SEEN), (~seen, _REST)):
        colors[part] = _by_height(centres[part] @ chunk.up, name)
    store, row = Store(folder), gather.typical_pairs(Store(folder), 1)
    settings, table = gather.read_settings(run), store.pairs()
    frames = store.scene(str(table.scene[row[0]])).frames
    shown = show_pairs(folder, row, pair.colors.shape[2:0:-1], gather.distance_of(settings), {})[0]
    cameras = [
        (str(frames.names[end]), frames.world_from_camera[end], frames.intrinsics[end], frames.size)
        for end in shown.rows
    ]
    return scene_widget(
        centres,
        colors,
        cameras,
        legs(shown, shown.matches[MEASURED])[0],
        title=f"The same surface to turn around, with both frames of pair {pair.name} and lines to points they share.",
        alt="The voxels of the room with the two cameras of the pair and lines to the points that both see.",
    )


def _by_height(height: NDArray[np.float64], name: str) -> NDArray[np.uint8]:
    """RGB (N, 3) of heights (N,), neither the darkest nor the lightest of a colour map."""
    spread = (height - height.min(initial=np.inf)) / max(float(np.ptp(height)) if len(height) else 0.0, 1e-9)
    colors: NDArray[np.uint8] = np.rint(255 * mpl.colormaps[name](0.15 + 0.75 * spread)[:, :3]).astype(np.uint8)
    return colors


def describe(runs: Named) -> list[list[str]]:
    """Rows of a table: run, steps, the objectives' recall, speed; a running mean of the last tenth."""
    rows = []
    for name, run in runs.items():
        metrics = read_metrics(RunPaths(run).metrics)
        if not metrics:
            rows.append([series_label(name), "–", "–", "–", "–"])
            continue
        tail = metrics[-max(1, len(metrics) // 10) :]
        keys = [key for key in metrics[-1] if key.endswith("/recall") and not key.startswith("heldout/")]
        recall = ", ".join(f"{key.removesuffix('/recall')} {_mean(tail, key):.1%}" for key in keys) or "–"
        speed = _mean(tail, "samples_per_s")
        rows.append([series_label(name), f"{metrics[-1]['step']:.0f}", f"{_mean(tail, 'loss'):.3f}", recall,
                     "–" if np.isnan(speed) else f"{speed:.1f}"])  # fmt: skip
    return rows


def _mean(rows: list[dict[str, float]], key: str) -> float:
    values = [row[key] for row in rows if key in row]
    return float(np.mean(values)) if values else float("nan")
