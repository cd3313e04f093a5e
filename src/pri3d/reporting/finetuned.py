"""The parts of a page about fine-tuning: scores, curves, classes, pictures of predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from pri3d.errors import DataError
from pri3d.intervals import interval_text, mean_interval
from pri3d.labelled import LabelledImages
from pri3d.reporting import charts, figures, gather
from pri3d.reporting.gather import Missing
from pri3d.reporting.html import Page
from pri3d.reporting.scores import Runs, Score, TaskWords, mean_by_class, read_score, read_scores, words_of
from pri3d.reporting.sources import Group
from pri3d.reporting.style import series_label
from pri3d.runs import RunPaths, read_metrics

BASELINE = "scratch"  #: the method that others are compared with, where it is there
MOST_PICTURES = 4  #: methods whose predictions are drawn
_FRAMES = 5

Scores = Mapping[str, Sequence[Score]]


def add_scores(page: Page, task: str, groups: Sequence[Group]) -> None:
    """Table and bars of all groups, and scores over the share of the labels where there are several."""
    words = words_of(task)
    scores = read_scores({group.name: [run.path for run in group.runs] for group in groups}, task)
    shown = [group for group in groups if group.name in scores]
    if not shown:
        return
    if sum(map(len, scores.values())) == 1:
        _add_one(page, words, next(iter(scores.values()))[0])
        return
    seeds = {len(of) for of in scores.values()}
    many = f"mean of {_range(seeds)} seeds ± its 95 % interval by Student's t" if max(seeds) > 1 else "one seed each"
    differences = {group.name: _difference(group, groups, task, words.key) for group in shown}
    against = f"{words.main} less scratch" if any(differences.values()) else ""
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
    page.table(header, rows, f"After the last step; {many}. Runs of one row differ in their seed alone.")
    by_share: dict[str, dict[str, list[float]]] = {}
    curves: dict[str, dict[float, list[float]]] = {}
    for group in shown:
        values = [score.last[words.key] for score in scores[group.name]]
        by_share.setdefault(f"{group.fraction:.0%} of\nthe labels", {})[group.method] = values
        curves.setdefault(group.method, {})[group.fraction] = values
    alone = {_label(name): {name: of} for of_share in by_share.values() for name, of in of_share.items()}
    bars = by_share if len(by_share) > 1 else alone
    page.figure(
        charts.bars_figure(bars, f"{words.main}, %, on held-out images"),
        f"{words.main} after the last step. Bars: means; dots: seeds; whiskers: 95 % interval of the mean.",
        f"Bars of {words.main}: {in_words({g.name: [s.last[words.key] for s in scores[g.name]] for g in shown})}.",
    )
    if len(by_share) > 1:
        page.figure(
            charts.efficiency_figure(curves, f"{words.main}, %"),
            f"Label efficiency: {words.main} over the share of the labelled images that fine-tuning saw. Shares are "
            "nested: a larger one holds the smaller. Band: 95 % interval of the mean over seeds.",
            f"Curves of {words.main} over the share of the labels by method.",
        )


def add_training(page: Page, task: str, runs: Runs) -> None:
    """Validation and loss over the steps, then the scores by class, of the runs that have scores."""
    words, scores = words_of(task), read_scores(runs, task)
    if not scores:
        return
    page.figure(
        charts.validation_figure(
            {method: [score.history for score in of] for method, of in scores.items()},
            {method: _losses(runs[method]) for method in scores},
            words.key,
            words.main,
        ),
        "Fine-tuning. Thin: seeds; thick: their mean.",
        f"Curves of validation {words.main} and training loss by method.",
    )
    _add_classes(page, words, {method: mean_by_class(of) for method, of in scores.items()})


def add_unfinished(page: Page, task: str, runs: Runs) -> None:
    """Say which runs have no scores."""
    absent = [run.name for folders in runs.values() for run in folders if read_score(run, task) is None]
    if absent:
        page.note(f"Without scores, and left out: {', '.join(absent)}.")


def add_pictures(page: Page, task: str, runs: Runs, images: LabelledImages | Missing, remark: str = "") -> None:
    """Evenly spaced held-out images with ground truth and what each method's first run predicts."""
    what = "Detections" if task == "instance" else "Segmentations"
    shown = dict(list(runs.items())[:MOST_PICTURES])
    try:
        images = gather.there(images)
        found = gather.there(gather.predictions(images, shown, _FRAMES, task))
    except DataError as error:
        page.note(f"{what} are left out: {error}")
        return
    if remark:
        page.note(remark)
    names = ", ".join(frame.name for frame in found.frames)
    some = f" The first {MOST_PICTURES} methods of {len(runs)}." if len(runs) > len(shown) else ""
    where = f"Held-out images, evenly spaced through {images.path.name}, not picked: {names}. "
    of_what = f"Predictions are of each method's first seed at the last step.{some}"
    if found.detected:
        objects = f" Objects with a score of {gather.SCORE:.0%} or more; colours are classes."
        picture, alt = figures.detection_figure(found.detected, found.class_names), "Rows of objects, true and found."
        page.figure(picture, f"{where}{of_what}{objects}", alt)
        return
    picture = figures.segmentation_figure(found.segmented, found.class_names)
    page.figure(picture, f"{where}{of_what}", "Rows of image, ground truth and predicted classes.")


def in_words(values: Mapping[str, Sequence[float]]) -> str:
    """Method and mean, one after the other."""
    return ", ".join(f"{_label(name)} {sum(of) / len(of):.1%}" for name, of in values.items() if of)


def _add_one(page: Page, words: TaskWords, score: Score) -> None:
    tiles = {f"{name}, last step": _percent(score.last.get(key), math.nan) for key, name in words.shown.items()}
    page.tiles({f"{name}, %": value for name, value in tiles.items() if value != "–"})
    page.paragraph(
        f"Of all validations the best {words.main} is {_percent(score.best, math.nan)} %: it is the best because these "
        "images chose it. One seed: how much is chance, it cannot tell."
    )


def _add_classes(page: Page, words: TaskWords, means: Mapping[str, Mapping[str, float]]) -> None:
    if not any(means.values()):
        return
    page.figure(
        charts.classes_figure(means, words.by_class),
        f"{words.by_class} by class, mean over seeds, at the last step.",
        f"Dots of {words.by_class} by class and method.",
    )
    classes = dict.fromkeys(name for of in means.values() for name in of)
    rows = [(name, *(_percent(of.get(name), math.nan) for of in means.values())) for name in classes]
    page.table([f"{words.by_class}, %", *map(_label, means)], rows)


def _difference(group: Group, groups: Sequence[Group], task: str, key: str) -> str:
    """What a group has more than the baseline of the same share of labels, over the seeds of both; "" without one."""
    if group.method == BASELINE:
        return ""
    baseline = [other for other in groups if other.method == BASELINE and other.fraction == group.fraction]
    if not baseline:
        return ""
    own, base = (_by_seed(one, task, key) for one in (group, baseline[0]))
    gains = [own[seed] - base[seed] for seed in own if seed in base]
    return _percent(*mean_interval(gains), signed=True) if gains else ""


def _by_seed(group: Group, task: str, key: str) -> dict[int, float]:
    scores = {int(run.settings.get("seed", 0)): read_score(run.path, task) for run in group.runs}
    return {seed: score.last[key] for seed, score in scores.items() if score is not None}


def _minutes(folders: Sequence[Path]) -> str:
    times = []
    for folder in folders:
        try:
            times.append(RunPaths(folder).minutes())
        except DataError:  # a run that logged no speed has no minutes
            return "–"
    return f"{sum(times) / len(times):.1f}"


def _losses(folders: Sequence[Path]) -> list[list[dict[str, float]]]:
    tables = (read_metrics(RunPaths(folder).metrics) for folder in folders)
    return [[row for row in rows if "loss" in row] for rows in tables if rows]


def _label(name: str) -> str:
    """What to call a group: of ``scratch, 20% of the labels`` the first word as everywhere."""
    first, comma, rest = name.partition(",")
    return f"{series_label(first)}{comma}{rest}"


def _range(counts: set[int]) -> str:
    return f"{min(counts)} to {max(counts)}" if len(counts) > 1 else str(max(counts))


def _percent(mean: float | None, half: float, signed: bool = False) -> str:
    if mean is None or not math.isfinite(mean):
        return "–"
    text = interval_text(100 * mean, 100 * half)
    return f"{'+' if mean >= 0 else ''}{text}".replace("-", "−") if signed else text
