"""The scores of fine-tuning runs, whatever their task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pri3d import registry
from pri3d.errors import DataError
from pri3d.runs import RunPaths, read_json
from pri3d.tasks import TASKS

Runs = Mapping[str, Sequence[Path]]  #: method -> run folders, one a seed

#: task -> its scores by class, and the name of these
_BY_CLASS = {"semantic": ("iou", "IoU"), "instance": ("classes", "mask AP")}
_WORDS = {"miou": "mIoU", "accuracy": "pixel accuracy", "AP": "mask AP", "AP50": "mask AP50", "AP75": "mask AP75",
          "box_AP": "box AP", "box_AP50": "box AP50", "box_AP75": "box AP75"}  # fmt: skip


class Score(NamedTuple):
    """scores.json of one run; unknown numbers are NaN."""

    last: Mapping[str, float]  #: score -> number after the last step
    best: float  #: the main score where it was best
    classes: Mapping[str, float]  #: class -> score after the last step
    history: Sequence[Mapping[str, float]]  #: ``step`` and scores of every validation


class TaskWords(NamedTuple):
    """What the scores of a task are called."""

    key: str  #: the main score
    main: str  #: its name
    by_class: str  #: name of the scores by class
    shown: Mapping[str, str]  #: score of a table -> its name


def words_of(task: str) -> TaskWords:
    """Raises ConfigError for an unknown task."""
    kind = registry.load("tasks", TASKS, task)
    key = str(kind.key)
    shown = {name: _WORDS.get(name, name) for name in dict.fromkeys((key, *kind.recipe.shown))}
    return TaskWords(key, _WORDS.get(key, key), _BY_CLASS.get(task, ("", key))[1], shown)


def read_score(run: Path, task: str) -> Score | None:
    """Scores of a run; None where it has none, or no main score. Raises DataError where the file is damaged."""
    path, key = RunPaths(run).scores, words_of(task).key
    if not path.is_file():
        return None
    found = _known(read_json(path))
    try:
        last, history = dict(found["last"]), [_numbers(entry) for entry in found["history"]]
        best = float(found.get("best", last)[key])
        if not math.isfinite(last[key]):
            return None
        classes = dict(last[_BY_CLASS[task][0]]) if task in _BY_CLASS else {}
    except (AttributeError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the scores of a run ({error!r}). Delete it, or restore it.") from error
    return Score(_numbers(last), best, _numbers(classes), history)


def read_scores(runs: Runs, task: str) -> dict[str, list[Score]]:
    """:func:`read_score` of the runs that have one, method by method; methods without any are left out."""
    found = {method: [read_score(folder, task) for folder in folders] for method, folders in runs.items()}
    present = {method: [score for score in of if score is not None] for method, of in found.items()}
    return {method: of for method, of in present.items() if of}


def mean_by_class(scores: Sequence[Score]) -> dict[str, float]:
    """Class -> mean over the runs that have a score, NaN where none has."""
    names = dict.fromkeys(name for score in scores for name in score.classes)
    table = {name: [score.classes.get(name, math.nan) for score in scores] for name in names}
    known = {name: [value for value in values if math.isfinite(value)] for name, values in table.items()}
    return {name: sum(values) / len(values) if values else math.nan for name, values in known.items()}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def _known(value: Any) -> Any:
    """What JSON held, null as NaN."""
    if isinstance(value, dict):
        return {key: _known(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_known(item) for item in value]
    return math.nan if value is None else value
