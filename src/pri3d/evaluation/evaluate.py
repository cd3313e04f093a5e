"""``pri3d evaluate``: predictions of a fine-tuning run exported once, then scored from the files."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pri3d import registry
from pri3d.api.finetune import stated_finetuning
from pri3d.errors import ConfigError, DataError, WeightsError
from pri3d.evaluation.exports import EXPORTS, Subject
from pri3d.evaluation.networks import Network, Which, find_weights, open_network
from pri3d.geometry.resize import parse_size
from pri3d.labelled import LabelledImages, Split, open_labelled
from pri3d.runs import RunPaths, write_json
from pri3d.tasks import differing

_PAPER_THRESHOLD = 0.5  # score under which the paper's protocol leaves objects out
_TITLES = {"iou": "IoU", "classes": "AP of masks", "box_classes": "AP of boxes"}


def evaluate(
    run: Path,
    data: Path | None = None,
    split: Split = "val",
    which: Literal["last", "best", "both"] = "both",
    resolution: Literal["training", "native"] = "training",
    protocol: Literal["coco", "paper"] = "coco",
    dataset: str | None = None,
    labels: str | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Score a fine-tuning run on labelled images: its last and its best network.

    Predictions are written once, to RUN/predictions/WHICH-SPLIT-RESOLUTION, and scored from these files; where they are
    of the same weights, images and classes they are used again, while the truth is read each time. A task of another
    package writes none, it is measured as in validation. Predictions are made in float32: validation during training
    runs in the run's own precision, so in bf16 its scores differ a little. Of another set than the run's own, names of
    folder and json end in that of the set. Prints a table; scores lie between 0 and 1.

    Args:
        run: folder of a fine-tuning run.
        data: labelled images; those the run was validated on where it is not given.
        split: train, val, test or all of them. Of a set without a split of its own, all is taken where it is not the
            set the run was trained on.
        which: last, best or both networks.
        resolution: of semantic segmentation: training (images and class maps are resized, as in validation) or native
            (predictions are enlarged to each image's own size). Objects are always scored at the images' own size.
        protocol: of instance segmentation: coco, or paper, which leaves out objects of a score under 0.5.
        dataset: format of the data; found out from its layout where it is not given.
        labels: label space, a name or a YAML file; the run's own where it is not given.
        out: json file for the scores; RUN/evaluation.json where it is not given, with -PARENT-NAME of another set.

    Returns:
        What was scored, and under `scores` for `last` and `best` name -> number or, per class, name -> numbers.

    Raises:
        ConfigError: for a flag that does not fit the task.
        DataError: the data is missing, damaged, or of other classes than the network's.
        WeightsError: the run has no such network.
    """
    console = Console(stderr=True, soft_wrap=True)
    for what, value, choices in (
        ("network", which, ("last", "best", "both")),
        ("resolution", resolution, ("training", "native")),
        ("protocol", protocol, ("coco", "paper")),
    ):
        if value not in choices:
            raise registry.unknown(what, choices, value)
    networks = _networks(run, which, console)
    first = networks[0]
    _check_flags(first, run, resolution, protocol)
    facts, settings = _stated(run)
    images = _open(run, facts, data, split, dataset, labels)
    _check_classes(first, images, run)
    min_score = _PAPER_THRESHOLD if protocol == "paper" else 0.0
    least = int(settings.get(first.task.name, {}).get("min_area") or 0)
    subject = Subject(images, _size(first, resolution), least, min_score)
    shown = "native" if first.task.name == "instance" else resolution
    suffix = _suffix(data, _own(facts, split))
    scores = {}
    for network in networks:
        if network.task.name in EXPORTS:
            folder = run / "predictions" / f"{network.which}-{split}-{shown}{suffix}"
            export = EXPORTS[network.task.name](folder, network, subject)
            export.make(console)
            scores[network.which] = export.score()
        else:
            scores[network.which] = _measure(network, images, settings, run)
    result = {
        "task": first.task.name,
        "data": str(images.path),
        "split": split,
        "images": len(images.names),
        "resolution": shown,
        "protocol": protocol if first.task.name == "instance" else None,
        "weights": {network.which: network.hash for network in networks},
        "scores": scores,
    }
    write_json(out or run / f"evaluation{suffix}.json", result)
    _show(result)
    return result


def _check_flags(network: Network, run: Path, resolution: str, protocol: str) -> None:
    """Refuse what is of another task."""
    task = network.task.name
    if task != "instance" and protocol != "coco":
        raise ConfigError(f"--protocol {protocol}: is of instance segmentation; {run} is a {task} run.")
    if task not in EXPORTS and resolution != "training":
        raise ConfigError(f"--resolution {resolution}: is of semantic segmentation; {run} is a {task} run.")


def _measure(network: Network, images: LabelledImages, settings: dict[str, Any], run: Path) -> dict[str, Any]:
    """Scores of a task of another package, as in validation. Raises DataError for settings that are not its own."""
    recipe = network.task.recipe
    try:
        stated = stated_finetuning(network.task.name, settings)
    except ConfigError as error:
        raise DataError(f"{RunPaths(run).config}: not the settings of a {network.task.name} run ({error}).") from error
    dataset = recipe(stated, stated.own[network.task.name]).dataset(images, None, training=False)
    return network.task.measure(network.model, dataset, stated.micro_batch)


def _networks(run: Path, which: Literal["last", "best", "both"], console: Console) -> list[Network]:
    """The networks that were asked for; of both, those that are there."""
    if run.is_file():
        raise ConfigError(f"{run}: give the run's folder, whose config.yaml says what it was trained on.")
    asked: tuple[Which, ...] = ("last", "best") if which == "both" else (which,)
    found: list[Network] = []
    missing: list[WeightsError] = []
    for each in asked:
        try:
            path = find_weights(run, each)
        except WeightsError as error:
            missing.append(error)
        else:
            found.append(open_network(path, each))
    if not found:
        raise missing[0]
    for absent in missing:
        console.print(escape(str(absent)))
    return found


def _open(
    run: Path, facts: dict[str, Any], data: Path | None, split: Split, dataset: str | None, labels: str | None
) -> LabelledImages:
    """Open the labelled set: what is given, else the run's own."""
    path = data or _own(facts, split)
    if data is None and not path.exists():
        raise DataError(f"{path}: {run} was trained on it, and it is not there. Say with --data where it lies now.")
    if data is None:
        dataset = dataset or facts.get("dataset")
    # Where there was a set of its own for validation, all of the other was trained on.
    whole = bool(facts.get("val")) or path.resolve() != Path(str(facts["data"])).resolve()
    return open_labelled(path, split, dataset, labels or facts.get("labels"), whole)


def _own(facts: dict[str, Any], split: Split) -> Path:
    """The set in which the run has this split."""
    val = facts.get("val")
    return Path(str(val if val and split in ("val", "test") else facts["data"]))


def _suffix(data: Path | None, own: Path) -> str:
    """Of the names of files about another set than the run's own, so that they do not replace those: -PARENT-NAME."""
    if data is None or data.resolve() == own.resolve():
        return ""
    path = data.resolve()
    return re.sub(r"[^A-Za-z0-9._-]+", "_", f"-{path.parent.name}-{path.stem if path.is_file() else path.name}")


def _stated(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Provenance and settings of the run. Raises DataError where it does not state them."""
    folder = RunPaths(run)
    stated = folder.read_config()
    if not stated["provenance"].get("data"):
        raise DataError(f"{folder.config}: does not say what the run was trained on (it names no data). Restore it.")
    return stated["provenance"], stated["settings"]


def _check_classes(network: Network, images: LabelledImages, run: Path) -> None:
    """Refuse data whose classes are not the network's."""
    there, known = list(network.task.names_of(images)), list(network.task.class_names)
    if there != known:
        raise DataError(
            f"{images.path} has other classes than the network of {run}: {differing(there, known)}. "
            "Choose the label space with --label-map."
        )


def _size(network: Network, resolution: str) -> tuple[int, int] | None:
    """(width, height) at which class maps are compared, None for each image's own."""
    if network.task.name != "semantic" or resolution == "native" or network.size is None:
        return None
    return parse_size(network.size)


def _show(result: dict[str, Any]) -> None:
    """Print a line a score: the numbers, then those of each class."""
    scores = result["scores"]
    title = f"{result['split']}, {result['images']} images"
    table = Table("score", title=title, min_width=len(title))
    for which in scores:
        table.add_column(which, justify="right")
    first = next(iter(scores.values()))
    numbers = [name for name, value in first.items() if not isinstance(value, dict)]
    for name in numbers:
        table.add_row(escape(name), *(_cell(each[name]) for each in scores.values()))
    for group in [name for name in first if name not in numbers]:
        table.add_section()
        for name in first[group]:
            cells = [_cell(each[group][name]) for each in scores.values()]
            if set(cells) == {"-"}:  # neither occurs nor is predicted
                continue
            table.add_row(f"{_TITLES.get(group, escape(group))} {escape(name)}", *cells)
    Console().print(table)


def _cell(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"
