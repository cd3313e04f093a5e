"""``pri3d finetune``: a backbone + labelled images -> a network for a task and its scores; one run or a comparison."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import seed_everything
from torch import Tensor, nn
from torch.utils.data import Dataset

from pri3d.api.finetune import FinetuneOptions, FinetuneSettings, resolve_finetuning
from pri3d.api.options import AnyPath, hints_of
from pri3d.api.presets import overlay
from pri3d.data.mixture import hashes_of
from pri3d.data.sampler import StreamSampler
from pri3d.errors import ConfigError, DataError, Problems
from pri3d.labelled import LabelledImages, Split, open_labelled
from pri3d.networks.encoders import Encoder, encoder_of
from pri3d.networks.load import WeightsSource
from pri3d.networks.tuning import fix_norms, limit
from pri3d.networks.weights import WeightsReport
from pri3d.runs import Run, RunPaths, write_json
from pri3d.tasks import Meter, Recipe, Task, differing, find_task
from pri3d.training.checkpoints import open_run
from pri3d.training.comparison import ComparedRun, Comparison, compare, expand, folder_names
from pri3d.training.launch import CallSetup
from pri3d.training.loop import Feed, StepModule, fit, introduce, synchronised
from pri3d.training.optim import ParameterGroup
from pri3d.training.watch import Watch
from pri3d.types import LabelledBatch


def finetune(call: FinetuneOptions) -> Run | Comparison:
    """Fine-tune on labelled images; see :func:`pri3d.finetune`."""
    options, sets = CallSetup.of(call), Sets()
    given = call.given()
    jobs = expand(str(call.weights), call.network, given.get("fraction"), call.seed)
    runs = [FinetuneRun(call, job, options, sets) for job in jobs]
    data = Path(call.data)
    names = folder_names(call.task, data, jobs)
    if len(jobs) == 1:
        done = Run(runs[0].train(Path(call.run or Path("runs") / names[0])))
        for line in ("next: pri3d evaluate RUN", "      pri3d predict RUN IMAGES", "      pri3d report RUN"):
            options.say(line.replace("RUN", str(done.path)))
        return done
    if options.launch.world > 1:
        raise ConfigError(f"{len(jobs)} runs in one call: with several processes give every run a separate call.")
    root = Path(call.run or Path("runs") / f"{call.task}-{data.stem}")
    folders = [root / name for name in names]
    problems, tried = Problems(), set()  # what would stop one of them is found before the first one starts
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
    finished = {each.job: each.train(folder) for each, folder in zip(runs, folders, strict=True)}
    return compare(root, finished, runs[0].kind.shown)


class Sets:
    """The labelled sets of a call, each opened and checked once however many runs use it."""

    def __init__(self) -> None:
        self._opened: dict[tuple[Any, ...], LabelledImages] = {}
        self._checked: set[tuple[int, int]] = set()

    def open(
        self, path: Path, split: Split, dataset: str | None, labels: AnyPath | None, whole: bool
    ) -> LabelledImages:
        """As :func:`pri3d.labelled.open_labelled`."""
        key = (path, split, whole)
        if key not in self._opened:
            self._opened[key] = open_labelled(path, split, dataset, None if labels is None else str(labels), whole)
        return self._opened[key]

    def check(self, images: LabelledImages, rows: Sequence[int], recipe: Recipe[Any]) -> list[str]:
        """As the recipe does, and returns its lines the first time."""
        key = (id(images), len(rows))  # shares are nested: so many rows are these rows
        if key in self._checked:
            return []
        notes = recipe.check(images, rows)
        self._checked.add(key)
        return notes


class FinetuneRun:
    """One run, checked when it is made; :meth:`train` does the work.

    Raises ConfigError, DataError or WeightsError, naming every problem at once where they do not depend on each other.
    """

    def __init__(self, call: FinetuneOptions, job: ComparedRun, options: CallSetup, sets: Sets) -> None:
        self.call, self.job, self.options, self.sets = call, job, options, sets
        self.task_type = find_task(call.task)
        self.kind: type[Recipe[Any]] = self.task_type.recipe
        problems, whole = Problems(), call.val is not None
        with problems.collect():
            self.train_set = sets.open(Path(call.data), "train", call.dataset, call.label_map, whole)
        with problems.collect():
            self.val_set = sets.open(Path(call.val or call.data), "val", call.dataset, call.label_map, whole)
        with problems.collect():
            self.source = WeightsSource(job.weights, on_hub=False)
            self.source.check()
            self.record = self.source.record
            settings = self._resolve()
        problems.refuse()
        self.rows = self.train_set.subset(settings.fraction)
        if call.epochs is not None:
            steps = math.ceil(call.epochs * len(self.rows) / settings.batch)
            settings = dataclasses.replace(settings, steps=max(1, steps))
        self.settings = settings
        self.recipe = self.kind(settings, settings.own[call.task])
        with problems.collect():
            options.check(settings)
        with problems.collect():
            train, val = self.task_type.names_of(self.train_set), self.task_type.names_of(self.val_set)
            if train != val:
                text = f"{self.train_set.path} and {self.val_set.path} name other classes"
                raise DataError(f"{text}: {differing(train, val)}. Give both the same --label-map.")
            if len(self.rows) < settings.micro_batch:
                raise DataError(
                    f"{self.train_set.path}: {len(self.rows)} labelled images for batches of {settings.micro_batch}. "
                    "Lower --micro-batch and --batch, or raise --fraction."
                )
        problems.refuse()

    def network(self) -> tuple[nn.Module, WeightsReport | None]:
        """The network with its first weights, and what was loaded."""
        seed_everything(self.settings.seed, verbose=False)
        model = self.recipe.build(self.task_type.names_of(self.train_set))
        if (own := self.settings.of_encoder) is not None and encoder_of(model).built_with != own.plain():
            raise TypeError(f"{type(self.recipe).__name__}.build() drops options of the encoder: use build_encoder().")
        unet = self.recipe.unet(model) if self.call.part == "all" else None
        return model, self.source.fill(encoder_of(model), unet)

    def check_images(self) -> None:
        """Read the images' headers, and some of the images, before hours are spent, and say what is odd in them.

        Raises DataError.
        """
        notes = self.sets.check(self.train_set, self.rows, self.recipe)
        notes += self.sets.check(self.val_set, range(len(self.val_set.names)), self.recipe)
        for note in notes:
            self.options.say(note)

    def train(self, path: Path) -> Path:
        """Train, or continue in the run folder ``path``, and return it."""
        settings, call, folder = self.settings, self.call, RunPaths(path)
        if self.options.launch.rank == 0:  # the others may find what the first has begun
            folder.refuse_other(call.resume)
        recipe = self.recipe
        model, report = self.network()
        module_task = recipe.task(self.train_set, self.rows)
        module = DownstreamModule(settings, synchronised(model, settings, self.options.launch), module_task)
        if not folder.checkpoint.exists():
            self.check_images()
        facts = self._facts(report)
        done = open_run(folder, "finetune", settings, facts, call.resume, self.options.launch.rank)
        if self.options.launch.rank == 0:
            # What the run begins with, and what a reader of its scores must know.
            say = self.options.say
            for line in self._introduce(model, done):
                say(f"{path.name}: {line}")
            say(f"{path.name}: weights {self.job.weights}: {facts['loaded']}")
            if facts["shared_images"]:
                say(
                    f"{path.name}: {facts['shared_images']} of {len(self.val_set.names)} validation images are "
                    "training images: scores on them only measure memorisation"
                )
            if facts["pretrained_on_val"]:
                text = "the weights were pre-trained on the frames, without labels, that this run is scored on"
                say(f"{path.name}: {text}")
            write_json(folder.loaded, report._asdict() if report else {})
        if done == settings.steps and folder.weights.exists():
            self.options.say(folder.finished(done))
            return path
        if settings.compute.channels_last:
            model.to(memory_format=torch.channels_last)
        held = recipe.dataset(self.val_set, None, training=False)
        every, workers = settings.validation.every, self.options.workers
        watch = Watch(folder, done, every, held, self.kind.collate, facts, workers)
        data, count = recipe.dataset(self.train_set, self.rows, training=True), len(self.rows)
        feed = Feed(data, self.kind.collate, lambda total, start: StreamSampler(count, total, settings.seed, start))
        with folder.lock(self.options.launch.rank):
            fit(module, feed, folder, done, self.options, watch)
            if self.options.launch.rank == 0:
                module_task.save(model, folder.weights, {**facts, "steps": settings.steps})
        for line in self._conclude(folder, watch):
            self.options.say(line)
        return path

    def _introduce(self, model: nn.Module, done: int) -> Iterator[str]:
        """Lines on what the run begins with."""
        settings, held = self.settings, len(self.val_set.names)
        yield from introduce(settings, self.job.weights, encoder_of(model), model)
        every = settings.validation.every
        yield f"{len(self.rows):,} images to train on, {held:,} to validate on every {every:,} steps"
        passes = settings.steps * settings.batch / len(self.rows)
        finished = f", {done:,} of them done" if done else ""
        yield f"{settings.steps:,} steps of {settings.batch} images, {passes:.1f} passes over them{finished}"

    def _conclude(self, folder: RunPaths, watch: Watch) -> Iterator[str]:
        """Lines on the scores and where everything is."""
        path, words, key = folder.path, self.task_type.words, self.task_type.key
        shown = {"first": watch.history[0], "best": watch.best(key), "last": watch.history[-1]}
        scores = (
            f"{name} {of[key]:.3f} (step {of['step']:,})" for name, of in shown.items() if of.get(key) is not None
        )
        yield f"{path.name}: validation {words.scores.get(key, key)}: {', '.join(scores) or 'nothing to score'}"
        yield f"{path}: weights.safetensors is the network of the last step, best.safetensors the best validated one"

    def _resolve(self) -> FinetuneSettings:
        """Settings of the preset with what the user gave and what the weights say of their network."""
        call, job = self.call, self.job
        names = {name for name, _ in FinetuneSettings().items()} - {"own"}
        given = {name: value for name, value in call.given().items() if name in names}
        given |= {each.group: each.given() for each in call.options}
        if call.epochs is not None and ("steps" in given or not call.epochs > 0):
            raise ConfigError(f"--epochs {call.epochs:g}: give a positive number, without --steps.")
        given |= {"network": job.network, "fraction": job.fraction, "seed": job.seed}
        given = {name: value for name, value in given.items() if value is not None}
        encoder = _agreed("encoder", given.get("encoder"), self.record)
        stated: dict[str, Any] = {"encoder": encoder}
        of_encoder = self.record.get("encoder_options")
        if isinstance(of_encoder, Mapping):
            mine = given.get(encoder, {})
            stated[encoder] = {name: _agreed(f"{encoder}.{name}", mine.get(name), of_encoder) for name in of_encoder}
        if (own := self.task_type.options) is not None:
            mine = given.get(call.task, {})
            # Weights without a decoder say nothing of one.
            record = self.record if job.weights != "scratch" and self.source.holds_unet else {}
            known = {name: _agreed(f"{call.task}.{name}", mine.get(name), record) for name in _OF_NETWORK}
            stated[call.task] = {name: known[name] for name in _OF_NETWORK if name in hints_of(own)}
        if job.weights == "scratch":  # what a preset keeps as it was loaded would stay random
            stated |= {"tune": given.get("tune", "full"), "backbone": {"norm": "train"}}
        return resolve_finetuning(call.task, call.preset, overlay(overlay({}, _known(stated)), given))

    def _facts(self, report: WeightsReport | None) -> dict[str, Any]:
        """What is written down of the run beside its settings."""
        call = self.call
        pretrained_on = self.record.get("data_hash")
        sources = {"data": call.data, "val": call.val, "dataset": call.dataset, "labels": call.label_map}
        return {
            "task": call.task,
            "preset": call.preset,
            "init": self.job.weights,
            "init_data_hash": pretrained_on,
            "init_holdout": self.record.get("holdout"),
            "loaded": str(report) if report else "nothing: all weights are initialized randomly",
            "part": call.part,
            **{name: None if value is None else str(value) for name, value in sources.items()},
            "data_hash": f"{self.train_set.hash}+{self.val_set.hash}",
            "shared_images": len(_images(self.train_set, self.rows) & _images(self.val_set)),
            # Whether that was the very store that holds the validation frames.
            "pretrained_on_val": bool(pretrained_on)
            and any(self.val_set.hash.startswith(one) for one in hashes_of(str(pretrained_on))),
        }


class DownstreamModule(StepModule):
    """A network on a backbone under the loss of its task."""

    settings: FinetuneSettings

    def __init__(self, settings: FinetuneSettings, model: nn.Module, task: Task) -> None:
        super().__init__(settings)
        self.model, self.task = model, task
        self.fixed = limit_encoder(encoder_of(model), settings)

    def parameter_groups(self) -> list[ParameterGroup]:
        """The encoder at the learning rate, everything on it at ``head_lr`` times that."""
        encoder = list(encoder_of(self.model).parameters())
        inside = {id(p) for p in encoder}
        head = [p for p in self.model.parameters() if id(p) not in inside]
        return [ParameterGroup(encoder), ParameterGroup(head, self.settings.backbone.head_lr)]

    @property
    def network(self) -> nn.Module:
        """The whole network."""
        return self.model

    @property
    def measured(self) -> nn.Module:
        """The whole network."""
        return self.model

    @property
    def key(self) -> str:
        """The task's."""
        return self.task.key

    def meter(self, dataset: Dataset[Any]) -> Meter:
        """The task's."""
        return self.task.meter(dataset)

    def save(self, path: Path, record: Mapping[str, Any]) -> None:
        """Write the network as its task does."""
        self.task.save(self.model, path, dict(record))

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The task's."""
        for module in self.fixed:
            module.eval()
        if isinstance(batch, LabelledBatch) and self.settings.compute.channels_last:
            batch = batch._replace(color=batch.color.contiguous(memory_format=torch.channels_last))
        return self.task.loss(self.model, batch)


def limit_encoder(encoder: Encoder, settings: FinetuneSettings) -> list[nn.Module]:
    """Fix what the settings say of the encoder; return the modules that must be in ``eval()`` at every pass."""
    norms = [module for module in encoder.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = settings.backbone.bn_momentum
    return [*limit(encoder, settings.tune), *fix_norms(encoder, settings.backbone.norm)]


def _images(images: LabelledImages, rows: Sequence[int] | None = None) -> set[str]:
    """What tells each image from those of any other set."""
    every = range(len(images.names)) if rows is None else rows
    whole = os.path.abspath(images.path)  # noqa: PTH100 (a million of them: resolve() asks the disk)
    files = ((images.color_file(k), images.names[k]) for k in every)
    return {f"{whole}:{name}" if file is None else os.path.abspath(file) for file, name in files}  # noqa: PTH100


#: options of a task that a model of ours states itself, beside its encoder
_OF_NETWORK = ("decoder", "channels")


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """The nested values that are there."""
    found = {name: _known(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    return {name: value for name, value in found.items() if value is not None and value != {}}


def _agreed(name: str, given: Any, record: Mapping[str, Any]) -> Any:
    """The network option the user gave, else the one the weights file states. Raises ConfigError where they differ."""
    stated = record.get(name.rpartition(".")[2])
    if given is not None and stated is not None and given != stated:
        raise ConfigError(f"--{name} {given}: the weights belong to a network with {stated}. Leave the flag out.")
    return stated if given is None else given
