"""A fine-tuning run: what it is made of, checked before any work, then trained."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from rich.console import Console
from torch import nn

from pri3d.data.mixture import hashes_of
from pri3d.data.sampler import StreamSampler
from pri3d.errors import ConfigError, DataError, Problems
from pri3d.labelled import LabelledImages, Split, open_labelled
from pri3d.networks.encoders import encoder_of
from pri3d.networks.published import holds_decoder, load_published
from pri3d.networks.unet import UNet
from pri3d.networks.weights import (
    WeightsReport,
    holds_encoder_alone,
    init_encoder,
    load_weights,
    read_provenance,
    read_state,
)
from pri3d.runs import RunPaths, write_json
from pri3d.settings import resolve
from pri3d.tasks import TASKS, Recipe, differing, find_task
from pri3d.tasks.settings import FinetuneSettings
from pri3d.training.checkpoints import open_run
from pri3d.training.comparison import Job
from pri3d.training.downstream import DownstreamModule, Validator, limit_encoder
from pri3d.training.launch import Options
from pri3d.training.loop import Feed, fit, synchronised


class Sets:
    """The labelled sets of a call, each opened and checked once however many runs use it."""

    def __init__(self) -> None:
        self._opened: dict[tuple[Any, ...], LabelledImages] = {}
        self._checked: set[tuple[int, int]] = set()

    def open(self, path: Path, split: Split, dataset: str | None, labels: str | None, whole: bool) -> LabelledImages:
        """As :func:`pri3d.labelled.open_labelled`."""
        key = (path, split, whole)
        if key not in self._opened:
            self._opened[key] = open_labelled(path, split, dataset, labels, whole)
        return self._opened[key]

    def check(self, images: LabelledImages, rows: Sequence[int], recipe: Recipe[Any]) -> None:
        """As the recipe does."""
        key = (id(images), len(rows))  # shares are nested: so many rows are these rows
        if key not in self._checked:
            recipe.check(images, rows)
            self._checked.add(key)


class Call(NamedTuple):
    """What all runs of one call share."""

    task: str
    data: Path
    val: Path | None
    dataset: str | None
    labels: str | None
    part: str
    preset: str
    epochs: float | None
    resume: bool
    options: Options
    given: Mapping[str, Any]  #: settings by name, None where not given
    own: Mapping[str, Any]  #: settings of the task that have no option
    sets: Sets


class FinetuneRun:
    """One run, checked when it is made; :meth:`train` does the work.

    Raises ConfigError, DataError or WeightsError, naming every problem at once where they do not depend on each other.
    """

    def __init__(self, call: Call, job: Job) -> None:
        self.call, self.job = call, job
        self.task_type = find_task(call.task)
        self.kind: type[Recipe[Any]] = self.task_type.recipe
        problems, whole = Problems(), call.val is not None
        with problems.collect():
            self.train_set = call.sets.open(call.data, "train", call.dataset, call.labels, whole)
        with problems.collect():
            self.val_set = call.sets.open(call.val or call.data, "val", call.dataset, call.labels, whole)
        with problems.collect():
            self.from_file = job.weights not in {"scratch", "imagenet"} and not job.weights.startswith("timm:")
            self.record = read_provenance(Path(job.weights)) if self.from_file else {}
            settings = self._resolve()
        problems.refuse()
        self.rows = self.train_set.subset(settings.fraction)
        if call.epochs is not None:
            steps = math.ceil(call.epochs * len(self.rows) / settings.batch)
            settings = dataclasses.replace(settings, steps=max(1, steps))
        self.settings = settings
        self.recipe = self.kind(settings)
        with problems.collect():
            call.options.check(settings)
        with problems.collect():
            self._check_sets()
        problems.refuse()

    def network(self) -> tuple[nn.Module, WeightsReport | None]:
        """The network with its first weights, and what was loaded."""
        pl.seed_everything(self.settings.seed, verbose=False)
        model = self.recipe.build(self.task_type.names_of(self.train_set))
        return model, self._load(model)

    def check_images(self) -> None:
        """Read the images' headers, and some of the images, before hours are spent. Raises DataError."""
        self.call.sets.check(self.train_set, self.rows, self.recipe)
        self.call.sets.check(self.val_set, range(len(self.val_set.names)), self.recipe)

    def train(self, path: Path) -> Path:
        """Train, or continue in the run folder ``path``, and return it."""
        settings, call, folder = self.settings, self.call, RunPaths(path)
        folder.refuse_other(call.resume)
        recipe = self.recipe
        model, report = self.network()
        module_task = recipe.task(self.train_set, self.rows)
        module = DownstreamModule(settings, synchronised(model, settings, call.options.launch), module_task)
        if not folder.checkpoint.exists():
            self.check_images()
        facts = self._facts(report)
        done = open_run(folder, "finetune", settings, facts, call.resume, call.options.launch.rank)
        if call.options.launch.rank == 0:
            self._say(path.name, facts)
            write_json(folder.loaded, report._asdict() if report else {})
        if done == settings.steps and folder.weights.exists():
            return path
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)
        held = recipe.dataset(self.val_set, None, training=False)
        validator = Validator(module_task, held, folder, done, settings.eval_every, facts)
        data, count = recipe.dataset(self.train_set, self.rows, training=True), len(self.rows)
        feed = Feed(data, self.kind.collate, lambda total, start: StreamSampler(count, total, settings.seed, start))
        fit(module, feed, folder, done, call.options, [validator])
        if call.options.launch.rank == 0:
            module_task.save(model, folder.weights, {**facts, "steps": settings.steps})
        return path

    def _resolve(self) -> FinetuneSettings:
        """Settings of the preset with what the user gave and what the weights say of their network."""
        call, job, kind = self.call, self.job, self.kind.settings_type
        own = _names(kind)
        self._refuse_foreign(own)
        if call.epochs is not None and (call.given["steps"] is not None or not call.epochs > 0):
            raise ConfigError(f"--epochs {call.epochs:g}: give a positive number, and no --steps beside it.")
        varied = {"network": job.network, "fraction": job.fraction, "seed": job.seed}
        stated = {name: _agreed(name, call.given[name], self.record) for name in _OF_NETWORK & own}
        if job.weights == "scratch":  # what a preset keeps as it was loaded would stay random
            stated |= {name: call.given[name] or value for name, value in _FROM_SCRATCH.items()}
        return resolve(kind, call.task, call.preset, {**call.given, **stated, **varied, **call.own})

    def _refuse_foreign(self, own: set[str]) -> None:
        """Refuse options that are no setting of the task, and settings by name that are none or have an option."""
        task, call = self.call.task, self.call
        options = set().union(*(_names(find_task(name).recipe.settings_type) for name in TASKS))
        foreign = [name for name in options - own if call.given.get(name) is not None]
        if foreign:
            listed = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(foreign))
            raise ConfigError(f"{listed}: no setting of task {task}. Leave it out.")
        if strange := sorted(set(call.own) - (own - options)):
            choices = ", ".join(sorted(own - options)) or "none"
            raise ConfigError(
                f"--settings {', '.join(strange)}: no setting of task {task} alone. Choices: {choices}; "
                "others have an option of their name."
            )

    def _say(self, name: str, facts: Mapping[str, Any]) -> None:
        """What the run begins with, and what a reader of its scores must know."""
        say = Console(stderr=True, highlight=False, soft_wrap=True).print
        say(f"{name}: weights {self.job.weights}: {facts['loaded']}")
        if facts["shared_images"]:
            say(
                f"{name}: {facts['shared_images']} of {len(self.val_set.names)} validation images are training images: "
                "the scores say how well they are remembered"
            )
        if facts["pretrained_on_val"]:
            say(f"{name}: the weights were pre-trained on the frames, without labels, that this run is scored on")

    def _check_sets(self) -> None:
        """Refuse classes that differ and data that fill no batch."""
        names_of = self.task_type.names_of
        train, val = names_of(self.train_set), names_of(self.val_set)
        if train != val:
            text = f"{self.train_set.path} and {self.val_set.path} name other classes"
            raise DataError(f"{text}: {differing(train, val)}. Give both the same --labels.")
        need = self.settings.micro_batch
        if len(self.rows) < need:
            raise DataError(
                f"{self.train_set.path}: {len(self.rows)} labelled images for batches of {need}. "
                "Lower --micro-batch and --batch, or raise --fraction."
            )

    def _load(self, model: nn.Module) -> WeightsReport | None:
        """Fill what the weights hold: the encoder, and a U-Net's decoder where that is asked for."""
        path, encoder, body = Path(self.job.weights), encoder_of(model), getattr(model, "body", None)
        if not self.from_file:
            return init_encoder(encoder, self.job.weights)
        if not self.record:
            if self.call.part == "all" and isinstance(body, UNet) and holds_decoder(path):
                return load_published(body, path)
            return init_encoder(encoder, self.job.weights)
        state = read_state(path)
        alone = holds_encoder_alone(state)
        if self.call.part == "all" and isinstance(body, UNet) and not alone and self._of_unet():
            whole = {key: value for key, value in state.items() if not key.startswith("classifier.")}
            return load_weights(body, whole, minimum=1.0)
        return load_weights(encoder, state, prefix=None if alone else "encoder.")

    def _of_unet(self) -> bool:
        """Whether the weights are a U-Net's: the record of a pre-training run names no network."""
        return str(self.record.get("network", "unet")) == "unet"

    def _facts(self, report: WeightsReport | None) -> dict[str, Any]:
        """What is written down of the run beside its settings."""
        call = self.call
        sources = {name: getattr(call, name) for name in ("data", "val", "dataset", "labels")}
        return {
            "task": call.task,
            "preset": call.preset,
            "init": self.job.weights,
            "init_data_hash": self.record.get("data_hash"),
            "init_holdout": self.record.get("holdout"),
            "loaded": str(report) if report else "nothing: all weights are new",
            "part": call.part,
            **{name: None if value is None else str(value) for name, value in sources.items()},
            "data_hash": f"{self.train_set.hash}+{self.val_set.hash}",
            "shared_images": len(_images(self.train_set, self.rows) & _images(self.val_set)),
            "pretrained_on_val": self._saw_val(),
        }

    def _saw_val(self) -> bool:
        """Whether the weights were pre-trained on the very store that holds the validation frames."""
        seen = self.record.get("data_hash")
        return bool(seen) and any(self.val_set.hash.startswith(one) for one in hashes_of(str(seen)))


def check_all(runs: Sequence[FinetuneRun], folders: Sequence[Path]) -> None:
    """Find what would stop one of several runs before the first one starts. Raises as FinetuneRun, or ConfigError."""
    problems = Problems()
    tried = set()
    for run, folder in zip(runs, folders, strict=True):
        with problems.collect():
            RunPaths(folder).refuse_other(run.call.resume)
        if run.job[:2] not in tried:
            tried.add(run.job[:2])
            with problems.collect():
                limit_encoder(encoder_of(run.network()[0]), run.settings)
    with problems.collect():
        runs[0].check_images()
    problems.refuse()


def _images(images: LabelledImages, rows: Sequence[int] | None = None) -> set[str]:
    """What tells each image from those of any other set."""
    every = range(len(images.names)) if rows is None else rows
    whole = os.path.abspath(images.path)  # noqa: PTH100 (a million of them: resolve() asks the disk)
    files = ((images.color_file(k), images.names[k]) for k in every)
    return {f"{whole}:{name}" if file is None else os.path.abspath(file) for file, name in files}  # noqa: PTH100


#: Settings that a model of ours states itself.
_OF_NETWORK = {"encoder", "decoder", "channels"}
_FROM_SCRATCH = {"tune": "full", "norm": "train"}


def _names(kind: type[FinetuneSettings]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def _agreed(name: str, given: Any, record: dict[str, Any]) -> Any:
    """The network option the user gave, else the one the weights file states. Raises ConfigError where they differ."""
    stated = record.get(name)
    if given is not None and stated is not None and given != stated:
        raise ConfigError(f"--{name} {given}: the weights are of a network with {name} {stated}. Leave the flag out.")
    return stated if given is None else given
