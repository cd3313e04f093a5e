"""An experiment of the paper and a study -> its runs, each with a folder that other experiments can reuse."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Literal, NamedTuple

import yaml

from pri3d.api.finetune import resolve_finetuning
from pri3d.errors import ConfigError
from pri3d.registry import choice, unknown


class Experiment(NamedTuple):
    """One table or figure of the paper; experiments.yaml says what the fields are."""

    name: str
    title: str
    data: str  #: part of the study with the labelled images; of figure 3, with the pairs
    kind: Literal["table", "segmentations", "matches"] = "table"
    task: str = "semantic"  #: of fine-tuning
    scores: Mapping[str, str] = {"miou": "mIoU"}  #: key of scores.json -> the paper's name
    further: Mapping[str, str] = {}  #: the same of scores that the paper does not have
    base: str = ""  #: start that deltas are to
    compare: Sequence[Sequence[str]] = ()  #: rows of which the first should be ahead of the second
    rows: Mapping[str, Mapping[str, Any]] = {}  #: the paper's name of a row -> start, network, figures by encoder
    fractions: Sequence[float] = (1.0,)  #: fractions of the labels

    @property
    def encoders(self) -> list[str]:
        """Encoders that the paper has figures of."""
        known = {key for row in self.rows.values() for key in row if key not in ("start", "network")}
        return sorted(known, reverse=True)

    def printed(self, row: str, encoder: str, fraction: float) -> Sequence[float] | None:
        """The paper's figures of a row in %, one a score; None where it has none."""
        stated = self.rows.get(row, {}).get(encoder)
        if isinstance(stated, dict):
            return stated.get(fraction)
        return stated if fraction == 1 else None


class Study(NamedTuple):
    """Where and how large an experiment is run; studies.yaml says what the settings are."""

    on: str
    size: str
    settings: Mapping[str, Any]

    def base(self, experiment: Experiment) -> str:
        """Start that deltas are to: the paper's, or the study's own where that one cannot be had."""
        return str(self.settings.get("base", experiment.base))


class PlannedRun(NamedTuple):
    """One training: a verb, its options, and the run whose weights it begins with."""

    name: str  #: folder below the output
    verb: Literal["pretrain", "finetune"]
    options: Mapping[str, Any]  #: without the folders, which follow from name, ``parts`` and ``after``
    parts: tuple[str, ...]  #: prepared datasets or labelled images: data, and val of finetune
    after: str | None = None  #: name of the pre-training it begins with


class TableCell(NamedTuple):
    """One row of the table at one fraction of the labels: its runs, one a seed."""

    row: str
    start: str
    network: str | None
    fraction: float
    runs: tuple[str, ...]


class Matrix(NamedTuple):
    """Everything that has to be run for an experiment."""

    parts: tuple[str, ...]  #: of the study that are needed
    runs: tuple[PlannedRun, ...]  #: a pre-training, what begins with it, the next; each once, whatever needs it
    cells: tuple[TableCell, ...]
    left_out: Mapping[str, str]  #: row of the paper -> why it is not run


def experiments() -> list[str]:
    """Names of the tables and figures."""
    return [name for name in stated("experiments") if name != "starts"]


def find_experiment(name: str) -> Experiment:
    """Return a table or figure of the paper. Raises ConfigError for an unknown one."""
    if name not in experiments():
        raise unknown("experiment", experiments(), name)
    return Experiment(name, **stated("experiments")[name])


def find_study(on: str, size: str) -> Study:
    """Return a study. Raises ConfigError for an unknown one."""
    sizes = choice("--on", stated("studies"), on)
    return Study(on, size, choice(f"--scale of {on}", sizes, size))


def build_matrix(
    experiment: Experiment,
    study: Study,
    seeds: Sequence[int],
    fractions: Sequence[float],
    folders: Collection[str] = (),
    encoder: str | None = None,
) -> Matrix:
    """Return the runs of an experiment; rows whose start cannot be had are left out.

    ``folders``: names of the options by which the user named one. Raises ConfigError where the study has no data for
    the experiment, or no row of it is left.
    """
    if experiment.data not in study.settings["parts"]:
        fitting = [on for on, sizes in stated("studies").items() if experiment.data in sizes["small"]["parts"]]
        raise ConfigError(f"{experiment.name}: not available with --on {study.on}. Choices: {', '.join(fitting)}.")
    left_out = {}
    further = (
        {name: {"start": start} for name, start in study.settings.get("rows", {}).items()} if experiment.rows else {}
    )
    every = {**experiment.rows, **further}
    for name, row in every.items():
        needed = stated("experiments")["starts"][row["start"]].get("needs")
        if row["start"] in study.settings.get("without", ()):
            left_out[name] = f"--on {study.on} --scale {study.size} does not use the weights or images that it needs"
        elif needed and needed not in folders:
            left_out[name] = f"needs --{needed} FOLDER"
    rows = {name: row for name, row in every.items() if name not in left_out}
    if experiment.rows and not rows:
        reasons = "; ".join(dict.fromkeys(left_out.values()))
        raise ConfigError(f"{experiment.name}: none of its rows can be run: {reasons}.")
    # Rows whose network has none that deltas are to get one in front; a figure without runs has no rows.
    base = study.base(experiment)
    there = {row.get("network") for row in rows.values() if row["start"] == base}
    added: dict[str, Mapping[str, Any]] = {}
    for network in dict.fromkeys(row.get("network") for row in rows.values()):
        if network not in there:
            title = {"scratch": "Scratch", "imagenet": "ImageNet"}[base]
            named = next((name for name, row in rows.items() if row.get("network") == network), "")
            suffix = f", {named.partition(', ')[2]}" if network else ""
            added[f"{title}{suffix}"] = {"start": base, **({"network": network} if network else {})}
    rows = {**added, **rows}
    runs: dict[str, PlannedRun] = {}
    cells = []
    for name, row in rows.items():
        for fraction in fractions:
            chains = [_chain(experiment, study, row, fraction, seed, encoder) for seed in seeds]
            runs |= {run.name: run for chain in chains for run in chain}
            last = tuple(chain[-1].name for chain in chains)
            cells.append(TableCell(name, row["start"], row.get("network"), fraction, last))
    parts = dict.fromkeys(part for run in runs.values() for part in run.parts) or {experiment.data: None}
    return Matrix(tuple(parts), _in_order(runs), tuple(cells), left_out)


def groups(matrix: Matrix) -> list[list[PlannedRun]]:
    """Runs that need one another: a pre-training with all that begins with it, or a run that begins with none."""
    heads = [run for run in matrix.runs if run.after is None]
    return [[head, *(run for run in matrix.runs if run.after == head.name)] for head in heads]


def _in_order(runs: Mapping[str, PlannedRun]) -> tuple[PlannedRun, ...]:
    heads = [run for run in runs.values() if run.after is None]
    return tuple(run for head in heads for run in (head, *(r for r in runs.values() if r.after == head.name)))


def _chain(
    experiment: Experiment, study: Study, row: Mapping[str, Any], fraction: float, seed: int, encoder: str | None
) -> list[PlannedRun]:
    """The pre-training of a row, where it has one, and the fine-tuning that follows."""
    settings, task, data = study.settings, experiment.task, experiment.data
    encoder = encoder or settings["encoder"]
    start = choice("start", stated("experiments")["starts"], row["start"])
    pretraining = None
    if "preset" in start:
        preset = ",".join(filter(None, (start["preset"], settings.get("layer"))))
        asked = {"preset": preset, "encoder": encoder, "seed": seed, **settings["pretrain"]}
        asked |= start.get("pretrain", {})
        asked |= {"images": start["needs"]} if "needs" in start else {}
        name = f"pretrain-{encoder}/{row['start']}-seed{seed}"
        pretraining = PlannedRun(name, "pretrain", asked, ("pretrain",))
    network = row.get("network")
    preset = network or settings.get("presets", {}).get(task, "paper")
    options = {
        "task": task,
        "preset": ",".join(filter(None, (preset, settings.get("layer")))),
        "encoder": encoder,
        "fraction": fraction,
        "seed": seed,
        **({"weights": start["weights"]} if "weights" in start else {}),
        **({"labels": labels} if (labels := settings["parts"][data].get("labels")) else {}),
        **({"part": start["part"]} if "part" in start and task == "semantic" else {}),
        **settings[task],
    }
    # A run of the paper's size on a fraction of the labels makes as many epochs as on all of them. Small sizes, and all
    # labels where the length is stated in steps, are left to the preset.
    if (epochs := settings.get("epochs")) and "steps" not in settings[task]:
        stated_epochs = epochs.get(network or ("unet" if task == "semantic" else ""))
        if stated_epochs is not None:
            options["epochs"] = stated_epochs
        elif fraction < 1:
            steps = resolve_finetuning(task, str(options["preset"])).steps
            options["steps"] = max(1, round(fraction * steps))
    parts = (row["start"], network, f"fraction{fraction:g}" if fraction < 1 else None, f"seed{seed}")
    name = f"{task}-{data}-{encoder}/{'-'.join(filter(None, parts))}"
    stores = tuple(part for part in (data, f"{data}-val") if part in settings["parts"])
    after = pretraining.name if pretraining else None
    finetuning = PlannedRun(name, "finetune", options, stores, after)
    return [pretraining, finetuning] if pretraining else [finetuning]


@cache
def stated(name: str) -> dict[str, Any]:
    """What experiments.yaml or studies.yaml says."""
    text = (files("pri3d.reproduction") / f"{name}.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content
