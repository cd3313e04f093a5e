"""``pri3d evaluate``: predictions of a fine-tuning run exported once, then scored from the files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from pri3d.api.evaluate import EvaluateOptions
from pri3d.api.finetune import stated_finetuning
from pri3d.api.results import Record
from pri3d.errors import ConfigError, DataError, WeightsError
from pri3d.files.atomic import remove_leftovers
from pri3d.labelled import LabelledImages, Split, open_labelled
from pri3d.machine import cores
from pri3d.runs import RunPaths, read_json, write_json
from pri3d.tasks import Predictions, Task, Trained, Which, differing, find_weights, hash_file, load_task
from pri3d.terminal import Terminal, track

FORMAT = 1  #: of a folder of predictions
RECORD = "record.json"  #: of that folder: what its files are of


def evaluate(options: EvaluateOptions) -> Record:
    """Score a fine-tuning run on labelled images: its last and its best network.

    See :func:`pri3d.evaluate` for the options.
    """
    run = Path(options.run)
    data = None if options.data is None else Path(options.data)
    out = None if options.out is None else Path(options.out)
    console = Terminal(stderr=True, soft_wrap=True)
    networks = _networks(run, options.which, console)
    task = next(iter(networks.values())).task
    resolution, protocol, split = options.resolution, options.protocol, options.split
    # Refuse what is of another task.
    if protocol != "coco" and protocol not in task.protocols:
        raise ConfigError(f"--protocol {protocol}: applies to instance segmentation; {run} is a {task.name} run.")
    if resolution != "training" and resolution not in task.resolutions:
        raise ConfigError(f"--resolution {resolution}: applies to semantic segmentation; {run} is a {task.name} run.")
    facts, settings = _stated(run)
    images = _open(run, facts, data, split, options.dataset, options.labels)
    # Refuse data whose classes are not the network's.
    there, known = list(task.names_of(images)), list(task.class_names)
    if there != known:
        raise DataError(
            f"{images.path} has other classes than the network of {run}: {differing(there, known)}. "
            "Choose the label map with --label-map."
        )
    shown = resolution if resolution in task.resolutions else task.resolutions[0]
    kept = task.predictions(images, settings, shown, protocol)
    # Names of files about another set than the run's own end in -PARENT-NAME, so that they do not replace those.
    suffix = ""
    if data is not None and (path := data.resolve()) != _own(facts, split).resolve():
        name = path.stem if path.is_file() else path.name
        suffix = re.sub(r"[^A-Za-z0-9._-]+", "_", f"-{path.parent.name}-{name}")
    scores = {}
    for name, network in networks.items():
        if kept is None:
            scores[name] = _measure(network, images, settings, run)
        else:
            folder = run / "predictions" / f"{name}-{options.split}-{shown}{suffix}"
            _predict_all(name, network, images, kept, folder, console)
            scores[name] = kept.score(folder)
    result = {
        "task": task.name,
        "data": str(images.path),
        "split": options.split,
        "images": len(images.names),
        "resolution": shown,
        "protocol": options.protocol if task.protocols else None,
        "weights": {name: network.hash for name, network in networks.items()},
        "scores": scores,
    }
    file = out or run / f"evaluation{suffix}.json"
    write_json(file, result)
    _show(result, task)
    return Record(file, result)


def _predict_all(
    which: str, network: Trained, images: LabelledImages, kept: Predictions, folder: Path, console: Terminal
) -> None:
    """Predict what is not there yet. The record is written last: without it, the files are not finished."""
    record = {
        "format": FORMAT,
        "task": network.task.name,
        "weights": network.hash,
        "data": images.hash,
        "classes": list(network.task.class_names),
        "images": len(images.names),
        **kept.made_with,
    }
    what = f"{which}: predictions of {len(images.names)} images"
    try:
        found = read_json(folder / RECORD)
        hashes = found.pop("files")
        there = all(hash_file(folder / name) == hashes[name] for name in kept.files) and found == record
    except (DataError, OSError, LookupError, TypeError, AttributeError):  # none, others or damaged ones
        there = False
    if there:
        console.print(f"{what} reused from {folder}")
        return
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder)
    (folder / RECORD).unlink(missing_ok=True)

    def counted(items: Iterable[Any]) -> Iterable[Any]:
        return track(items, f"predicting ({which})", len(images.names), console)

    kept.write(network.task, network.model, folder, counted)
    write_json(folder / RECORD, {**record, "files": {name: hash_file(folder / name) for name in kept.files}})
    console.print(f"{what} written to {folder}")


def _measure(network: Trained, images: LabelledImages, settings: dict[str, Any], run: Path) -> dict[str, Any]:
    """Scores of a task that keeps no predictions, as in validation. Raises DataError for settings of another task."""
    recipe = network.task.recipe
    try:
        stated = stated_finetuning(network.task.name, settings)
    except ConfigError as error:
        raise DataError(f"{RunPaths(run).config}: not the settings of a {network.task.name} run ({error}).") from error
    dataset = recipe(stated, stated.own[network.task.name]).dataset(images, None, training=False)
    return network.task.measure(network.model, dataset, stated.micro_batch, min(4, cores() - 1))


def _networks(run: Path, which: Literal["last", "best", "both"], console: Terminal) -> dict[Which, Trained]:
    """The networks that were asked for; of both, those that are there."""
    if run.is_file():
        raise ConfigError(f"{run}: give the run's folder, whose config.yaml states its training data.")
    asked: tuple[Which, ...] = ("last", "best") if which == "both" else (which,)
    found: dict[Which, Trained] = {}
    missing: list[WeightsError] = []
    for each in asked:
        try:
            path = find_weights(run, each)
        except WeightsError as error:
            missing.append(error)
        else:
            found[each] = load_task(path).to_device()
    if not found:
        raise missing[0]
    for absent in missing:
        console.print(str(absent))
    return found


def _open(
    run: Path, facts: dict[str, Any], data: Path | None, split: Split, dataset: str | None, labels: str | None
) -> LabelledImages:
    """Open the labelled set: what is given, else the run's own."""
    path = data or _own(facts, split)
    if data is None and not path.exists():
        raise DataError(f"{path}: {run} was trained on it, but it does not exist. Give its new location with --data.")
    if data is None:
        dataset = dataset or facts.get("dataset")
    # Where there was a set of its own for validation, all of the other was trained on.
    whole = bool(facts.get("val")) or path.resolve() != Path(str(facts["data"])).resolve()
    return open_labelled(path, split, dataset, labels or facts.get("labels"), whole)


def _own(facts: dict[str, Any], split: Split) -> Path:
    """The set in which the run has this split."""
    val = facts.get("val")
    return Path(str(val if val and split in ("val", "test") else facts["data"]))


def _stated(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Provenance and settings of the run. Raises DataError where it does not state them."""
    folder = RunPaths(run)
    stated = folder.read_config()
    if not stated["provenance"].get("data"):
        raise DataError(f"{folder.config}: does not state the training data of the run. Restore it.")
    return stated["provenance"], stated["settings"]


def _show(result: dict[str, Any], task: Task) -> None:
    """Print a line a score: the numbers, then those of each class."""
    scores = result["scores"]
    title = f"{result['split']}, {result['images']} images"
    table = Table("score", title=title, min_width=len(title))
    for which in scores:
        table.add_column(which, justify="right")
    first = next(iter(scores.values()))
    numbers = [name for name, value in first.items() if not isinstance(value, dict)]
    for name in numbers:
        table.add_row(name, *(_cell(each[name]) for each in scores.values()))
    for group in [name for name in first if name not in numbers]:
        table.add_section()
        for name in first[group]:
            cells = [_cell(each[group][name]) for each in scores.values()]
            if set(cells) == {"-"}:  # neither occurs nor is predicted
                continue
            table.add_row(f"{task.words.scores.get(group, group)} {name}", *cells)
    Terminal().print(table)


def _cell(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"
