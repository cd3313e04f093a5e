"""The parts of a report: fine-tuning, pre-training, and what `pri3d probe` found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from pri3d.data.pairs import ANGLE_NAMES
from pri3d.errors import DataError
from pri3d.intervals import interval_text, mean_interval
from pri3d.labelled import LabelledImages
from pri3d.reporting import charts, figures, gather
from pri3d.reporting.charts import recall_figure
from pri3d.reporting.cutaway import drawable, seen_cells
from pri3d.reporting.html import Page
from pri3d.reporting.sources import (
    Missing,
    RunFolder,
    Runs,
    RunScores,
    SeedGroup,
    read_score,
    read_scores,
    there,
    words_of,
)
from pri3d.reporting.style import series_label
from pri3d.reporting.viewer_scene import MEASURED, legs, show_pairs
from pri3d.reporting.widgets import scene_widget, similarity_widget
from pri3d.runs import RunPaths, leaves, read_json, read_metrics
from pri3d.store import Store
from pri3d.tasks import find_task

BASELINE = "scratch"  #: the method that others are compared with, where it is there
MOST_PICTURES = 4  #: methods whose predictions are drawn
_FRAMES = 5
#: measures of `pri3d probe` that are shown of two networks, and what they are called; the files hold all
PROBE_MEASURES = (
    *((f"matching / by_angle / {name}", f"recall, {name}°") for name in ANGLE_NAMES),
    ("matching / balanced", "recall, bins"),
    ("matching / mean", "recall, all"),
    ("correspondence / recall / 10 px", "best matches, 10 px"),
    ("correspondence / recall / 5 cm", "best matches, 5 cm"),
    ("depth / rmse", "depth, RMSE, m"),
    ("depth / delta1", "depth, δ < 1.25"),
    ("normals / mean", "normals, mean °"),
    ("normals / below_11", "normals, < 11.25°"),
    ("segmentation / miou", "segmentation, mIoU"),
)

Scores = Mapping[str, Sequence[RunScores]]
MOST_NETWORKS = 6  #: whose features a page shows
_SEEN, _REST = "viridis", "bone"  # colours by height of the chunk, and of the rest of the scene

_COLUMNS = 9  #: numbers of a table; what has more is in the file alone


def add_scores(page: Page, task: str, groups: Sequence[SeedGroup]) -> None:
    """Table and bars of all groups, and scores over the fraction of the labels where there are several."""
    words = words_of(task)
    scores = read_scores({group.name: [run.path for run in group.runs] for group in groups}, task)
    shown = [group for group in groups if group.name in scores]
    if not shown:
        return
    if sum(map(len, scores.values())) == 1:
        score = next(iter(scores.values()))[0]
        tiles = {f"{name}, last step, %": _percent(score.last.get(key), math.nan) for key, name in words.shown.items()}
        page.tiles({name: value for name, value in tiles.items() if value != "–"})
        page.paragraph(
            f"Of all validations the best {words.main} is {_percent(score.best, math.nan)} %: it is the best because "
            "these images chose it. One seed: how much is chance, it cannot tell."
        )
        return
    least, most = min(map(len, scores.values())), max(map(len, scores.values()))
    seeds = f"{least} to {most}" if least < most else str(most)
    many = f"mean of {seeds} seeds ± its 95 % interval by Student's t" if most > 1 else "one seed each"
    differences = {group.name: _difference(group, groups, task, words.key) for group in shown}
    against = f"{words.main} minus scratch" if any(differences.values()) else ""
    header = [f"{words.main} and others, %", "seeds", *words.shown.values(), *filter(None, [against, "minutes"])]
    rows = [
        [
            _label(group.name),
            str(len(scores[group.name])),
            *(_percent(*mean_interval([score.last.get(key) for score in scores[group.name]])) for key in words.shown),
            *([differences[group.name] or "–"] if against else []),
            _minutes([run.path for run in group.runs]),
        ]
        for group in shown
    ]
    page.table(header, rows, f"After the last step; {many}. Runs of one row differ only in their seed.")
    by_share: dict[str, dict[str, list[float]]] = {}
    curves: dict[str, dict[float, list[float]]] = {}
    for group in shown:
        values = [score.last[words.key] for score in scores[group.name]]
        by_share.setdefault(f"{group.fraction:.0%} of\nthe labels", {})[group.method] = values
        curves.setdefault(group.method, {})[group.fraction] = values
    bars = by_share if len(by_share) > 1 else {_label(k): {k: v} for of in by_share.values() for k, v in of.items()}
    page.figure(
        charts.bars_figure(bars, f"{words.main}, %, on held-out images"),
        f"{words.main} after the last step. Bars: means; dots: seeds; whiskers: 95 % interval of the mean.",
        f"Bars of {words.main}: {in_words({g.name: [s.last[words.key] for s in scores[g.name]] for g in shown})}.",
    )
    if len(by_share) > 1:
        page.figure(
            charts.efficiency_figure(curves, f"{words.main}, %"),
            f"Label efficiency: {words.main} over the fraction of the labelled images that fine-tuning saw. Fractions "
            "are nested: a larger one holds the smaller. Band: 95 % interval of the mean over seeds.",
            f"Curves of {words.main} over the fraction of the labels by method.",
        )


def add_validation(page: Page, task: str, runs: Runs) -> None:
    """Validation and loss over the steps, then the scores by class, of the runs that have scores."""
    words, scores = words_of(task), read_scores(runs, task)
    if not scores:
        return
    metrics = {method: [read_metrics(RunPaths(run).metrics) for run in runs[method]] for method in scores}
    page.figure(
        charts.validation_figure(
            {method: [score.history for score in of] for method, of in scores.items()},
            {method: [[row for row in rows if "loss" in row] for rows in of if rows] for method, of in metrics.items()},
            words.key,
            words.main,
        ),
        f"Fine-tuning: training loss, and {words.main} where it was measured more than once. Thin: seeds; thick: mean.",
        f"Curves of training loss, and of validation {words.main}, by method.",
    )
    classes = list(dict.fromkeys(name for of in scores.values() for score in of for name in score.classes))
    if not classes:
        return
    means: dict[str, dict[str, float]] = {}  # over the runs that have a score, NaN where none has
    for method, of in scores.items():
        table = {name: [score.classes.get(name, math.nan) for score in of] for name in classes}
        known = {name: [value for value in values if math.isfinite(value)] for name, values in table.items()}
        means[method] = {name: sum(values) / len(values) if values else math.nan for name, values in known.items()}
    page.figure(
        charts.classes_figure(means, words.by_class),
        f"{words.by_class} by class, mean over seeds, at the last step.",
        f"Dots of {words.by_class} by class and method.",
    )
    rows = [(name, *(_percent(of[name], math.nan) for of in means.values())) for name in classes]
    page.table([f"{words.by_class}, %", *map(_label, means)], rows)


def add_pictures(page: Page, task: str, runs: Runs, images: LabelledImages | Missing, remark: str = "") -> None:
    """Evenly spaced held-out images with ground truth and what each method's first run predicts."""
    words = find_task(task).words
    shown = dict(list(runs.items())[:MOST_PICTURES])
    try:
        images = there(images)
        found = there(gather.predictions(images, shown, _FRAMES, task))
    except DataError as error:
        page.note(f"{words.predicted} are not shown: {error}")
        return
    if remark:
        page.note(remark)
    names = ", ".join(frame.name for frame in found.frames)
    some = f" The first {MOST_PICTURES} methods of {len(runs)}." if len(runs) > len(shown) else ""
    where = f"Held-out images, evenly spaced in {images.path.name}, not selected:  {names}. "
    of_what = f"Predictions are of each method's first seed at the last step.{some}"
    remark = f" {words.remark}" if words.remark else ""
    columns = ", ".join(series_label(column) for column in found.frames[0].panels)
    picture = figures.predictions_figure(found.frames, found.class_names)
    page.figure(picture, f"{where}{of_what}{remark}", f"Rows of images: {columns}.")


def in_words(values: Mapping[str, Sequence[float]]) -> str:
    """Method and mean, one after the other."""
    return ", ".join(f"{_label(name)} {sum(of) / len(of):.1%}" for name, of in values.items() if of)


def _difference(group: SeedGroup, groups: Sequence[SeedGroup], task: str, key: str) -> str:
    """Gain of a group over the baseline at the same fraction of labels, over the seeds of both; "" without one."""
    if group.method == BASELINE:
        return ""
    baseline = [other for other in groups if other.method == BASELINE and other.fraction == group.fraction]
    if not baseline:
        return ""
    own, base = (
        {int(run.settings.get("seed", 0)): read_score(run.path, task) for run in one.runs}
        for one in (group, baseline[0])
    )
    both = [(score, base.get(seed)) for seed, score in own.items()]
    gains = [ours.last[key] - theirs.last[key] for ours, theirs in both if ours is not None and theirs is not None]
    return _percent(*mean_interval(gains), signed=True) if gains else ""


def _minutes(folders: Sequence[Path]) -> str:
    times = []
    for folder in folders:
        try:
            times.append(RunPaths(folder).minutes())
        except DataError:  # a run that logged no speed has no minutes
            return "–"
    return f"{sum(times) / len(times):.1f}"


def _label(name: str) -> str:
    """What to call a group: of ``scratch, 20% of the labels`` the first word as everywhere."""
    first, comma, rest = name.partition(",")
    return f"{series_label(first)}{comma}{rest}"


def _percent(mean: float | None, half: float, signed: bool = False) -> str:
    if mean is None or not math.isfinite(mean):
        return "–"
    text = interval_text(100 * mean, 100 * half)
    return f"{'+' if mean >= 0 else ''}{text}".replace("-", "−") if signed else text


def add_curves(page: Page, runs: Sequence[RunFolder]) -> None:
    """Loss, recall and learning rate of each run; of several, first their recall in one picture."""
    tables = {run.name: read_metrics(RunPaths(run.path).metrics) for run in runs}
    known = {name: rows for name, rows in tables.items() if rows}
    if len(known) > 1:
        page.figure(
            charts.compared_training_figure(known),
            "Running means. Objectives match other points in other images, so the recall of one says nothing of "
            "another's: compare runs of the same objective here, and different ones after fine-tuning.",
            "Curves of match recall by run over the steps.",
        )
    for run in runs:
        if run.name not in known:
            continue
        if len(known) > 1:
            page.heading(run.name, 3)
        page.figure(
            charts.training_figure(known[run.name], run.settings.get("objectives", {})),
            f"Pre-training to step {known[run.name][-1]['step']:.0f}. Dotted: the loss of a network that cannot tell "
            "points apart. Recall: fraction of points whose true partner is the most similar of all. Thin: single "
            "batches; thick: running mean.",
            "Curves of loss, match recall and learning rate over the steps of pre-training.",
        )
        scores = RunPaths(run.path).scores
        history = read_json(scores)["history"] if scores.is_file() else []
        if history:
            page.figure(
                charts.heldout_figure([{k: v for k, v in entry.items() if v is not None} for entry in history]),
                "On frames that were held out. Encoder: recall, the mean over bins of viewing angle; errors of depth "
                "and normals that a linear map reads off; cosine to the start. The others are of the U-Net. Alignment: "
                "mean squared distance of matched features, lower is more alike. Uniformity: lower is more "
                "spread over the sphere. Rank: how many directions the features use.",
                "Curves of measures on held-out pairs over the steps.",
            )
    absent = [run.name for run in runs if run.name not in known]
    if absent:
        page.note(f"The curves are not shown: {', '.join(absent)} has no {RunPaths(Path()).metrics.name}.")


def add_data(page: Page, folder: Path, run: RunFolder) -> None:
    """The pair of median overlap with its matches, and the surface in view of its first frame."""
    store = Store(folder)
    pair = gather.matched_pairs(folder, 1, run.settings)[0][0]
    objectives = run.settings.get("objectives", {})
    contrast = next((f" The {name.capitalize()} objective" for name in ("view", "pyramid") if name in objectives), "")
    contrast += " makes the features of matched points alike and those of all others unlike." if contrast else ""
    voxels = " The Geometry objective matches pixels with these voxels." if "geometry" in objectives else ""
    page.figure(
        figures.pair_figure(pair),
        f"Pair {pair.name}: of all pairs that overlap as much as the run asks for, the one of median overlap. Points "
        "of both frames that lie on the same place of the surface are matches; at most "
        f"{figures.SHOWN_MATCHES} are drawn.{contrast}",
        "Two frames of a room side by side, with lines between the points that both see.",
    )
    chunk = gather.median_chunk(folder, run.settings)
    if isinstance(chunk, Missing):
        page.note(f"The surface is not shown: {chunk.reason}")
        return
    surface = drawable(chunk)
    drawn = surface.size
    coarser = f", coarser than the {100 * chunk.voxel:.0f} cm of pre-training" if drawn > chunk.voxel * 1.01 else ""
    page.figure(
        figures.chunk_figure(chunk),
        f"The surface in the view of frame {chunk.name}, in cubes of {100 * drawn:.0f} cm{coarser}: coloured by "
        "height, the rest of the scene grey. Red: the camera and its view down to the farthest depth. Dashed: the box "
        f"around it, which cuts out the chunk. Cut open 45 cm above the camera.{voxels}",
        "A frame, and the voxels of the room seen from above with the camera's view frustum.",
    )
    # The same chunk to turn around, with the pair's cameras and lines to points that both see.
    seen = seen_cells(chunk, surface)
    centres = (surface.cells + 0.5) * surface.size
    colors = np.zeros((len(centres), 3), np.uint8)
    for part, name in ((seen, _SEEN), (~seen, _REST)):
        height = centres[part] @ chunk.up
        share = (height - height.min(initial=np.inf)) / max(float(np.ptp(height)) if len(height) else 0.0, 1e-9)
        # Neither the darkest nor the lightest of a colour map.
        colors[part] = np.rint(255 * mpl.colormaps[name](0.15 + 0.75 * share)[:, :3]).astype(np.uint8)
    row = gather.typical_pairs(store, 1, settings=run.settings)
    frames = store.scene(str(store.pairs().scene[row[0]])).frames
    distance = gather.match_distance(run.settings, store.manifest["settings"])
    shown = show_pairs(folder, row, pair.colors.shape[2:0:-1], distance, {})[0]
    cameras = [
        (str(frames.names[end]), frames.world_from_camera[end], frames.intrinsics[end], frames.size)
        for end in shown.rows
    ]
    title = f"The same surface as a rotatable view, with both frames of pair {pair.name} and lines to common points."
    alt = "The voxels of the room with the two cameras of the pair and lines to the points that both see."
    lines = legs(shown, shown.matches[MEASURED])[0]
    page.widget(scene_widget(centres, colors, cameras, lines, title=title, alt=alt))


def add_features(page: Page, folder: Path, runs: Sequence[RunFolder]) -> None:
    """Features in false colours, and a pair to click into."""
    shown = runs[:MOST_NETWORKS]
    files = gather.network_files(shown)
    if isinstance(files, Missing):
        page.note(f"Features are not shown: {files.reason}")
        return
    pairs, images = gather.matched_pairs(folder, 2, shown[0].settings)
    maps = gather.feature_maps(images, files)
    if len(runs) > len(shown):
        page.note(f"Features of the first {MOST_NETWORKS} runs only; give fewer runs to see the others.")
    before = f" Before: the network that {shown[0].name} began with." if len(shown) > 1 else ""
    page.figure(
        figures.features_figure(pairs, maps),
        "Features of two pairs before and after pre-training: the first three principal components as red, green and "
        "blue. The two maps of a pair beside each other share one basis, so equal colours there mean equal features: a "
        "thing that keeps its colour from one frame to the other is recognised. Rows do not share a basis. Pairs at "
        f"the tertiles of the overlap, from {folder.name}.{before}",
        "Four frames with their features in false colours before and after pre-training.",
    )
    page.heading("Similarity to one point", 3)
    page.widget(
        similarity_widget(
            pairs[-1],
            {name: two[-2:] for name, two in maps.items()},
            f"Cosine similarity of the features of one point (pink) with those of every other position of both frames, "
            f"black 0 to yellow 1. Green: the true position of that point in the other frame. Cross: the most "
            f"similar position. "
            f"Pair {pairs[-1].name}.{before}",
        )
    )


def describe(runs: Sequence[RunFolder]) -> list[list[str]]:
    """Rows of a table: run, steps, the objectives' recall, speed; a running mean of the last tenth."""
    rows = []
    for run in runs:
        metrics = read_metrics(RunPaths(run.path).metrics)
        if not metrics:
            rows.append([series_label(run.name), "–", "–", "–", "–"])
            continue
        tail = metrics[-max(1, len(metrics) // 10) :]
        keys = [key for key in metrics[-1] if key.endswith("/recall") and not key.startswith("heldout/")]
        recall = ", ".join(f"{key.removesuffix('/recall')} {_mean(tail, key):.1%}" for key in keys) or "–"
        speed = _mean(tail, "samples_per_s")
        rows.append([series_label(run.name), f"{metrics[-1]['step']:.0f}", f"{_mean(tail, 'loss'):.3f}", recall,
                     "–" if np.isnan(speed) else f"{speed:.1f}"])  # fmt: skip
    return rows


def _mean(rows: list[dict[str, float]], key: str) -> float:
    values = [row[key] for row in rows if key in row]
    return float(np.mean(values)) if values else float("nan")


def add_probe(page: Page, path: Path) -> None:
    """How networks differ, recall by angle, and tables of what was measured.

    Raises DataError for a file of something else.
    """
    found = read_json(path)
    networks = found.get("networks") if isinstance(found, dict) else None
    if not isinstance(networks, dict) or not all(isinstance(scores, dict) for scores in networks.values()):
        raise DataError(f"{path}: not a result of pri3d probe. Give its .json file, or a run's folder.")
    for name, scores in networks.items():
        differences = scores.get("differences")
        for other, found_of in differences.items() if isinstance(differences, dict) else ():
            if isinstance(found_of, dict):
                _add_difference(page, (other, networks.get(other, {})), (name, scores), found_of)
    curves = {}
    for name, scores in networks.items():  # bin of degrees -> recall, where that was measured
        matching = scores.get("matching")
        bins = matching.get("by_angle") if isinstance(matching, dict) else None
        known = bins.items() if isinstance(bins, dict) else ()
        curves[name] = {str(bin_): math.nan if value is None else float(value) for bin_, value in known}
    if any(curves.values()):
        page.figure(
            recall_figure({"Recall of true points": {name: of for name, of in curves.items() if of}}),
            "Fraction of points whose most similar position in the other view is the true one, by the angle between "
            "the "
            "views. No labels, no training.",
            "Curves of recall by viewing angle and network.",
        )
    measured = dict.fromkeys(name for scores in networks.values() for name in scores)
    for part in (name for name in measured if name not in ("intervals", "differences")):
        rows = {
            name: _numbers(scores[part])
            for name, scores in networks.items()
            if isinstance(scores.get(part), dict) and scores[part]
        }
        columns = [name for name in dict.fromkeys(name for row in rows.values() for name in row)][:_COLUMNS]
        if columns:
            page.heading(part.capitalize(), 3)
            page.table(["", *columns], [(name, *(_number(row.get(c)) for c in columns)) for name, row in rows.items()])
    page.facts(
        f"Probed networks and data: {path.name}", {key: value for key, value in found.items() if key != "networks"}
    )


def _add_difference(
    page: Page, before: tuple[str, Mapping[str, Any]], after: tuple[str, Mapping[str, Any]], found: Mapping[str, Any]
) -> None:
    """Table of what two networks have, how they differ, and whether that is more than chance."""
    values = [{" / ".join(way): value for way, value in leaves(dict(scores))} for _, scores in (before, after)]
    rows = []
    for key, title in PROBE_MEASURES:
        of = found.get(key)
        if isinstance(of, dict):
            ends = f"{_number(of.get('low'))} to {_number(of.get('high'))}"
            rows.append(
                (title, *(_number(each.get(key)) for each in values), _number(of.get("difference")), ends,
                 str(of.get("verdict")))
            )  # fmt: skip
    if rows:
        header = ["", before[0], after[0], "difference", "95 % interval", ""]
        page.table(header, rows, "Of the same pairs and frames. The interval is a bootstrap's over blocks of frames.")


def _numbers(scores: Mapping[str, Any]) -> dict[str, float | None]:
    """Numbers of a task with the way to them in words."""
    found = ((" ".join(way).replace("_", " "), value) for way, value in leaves(scores))
    return {name: value for name, value in found if value is None or isinstance(value, int | float)}


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
