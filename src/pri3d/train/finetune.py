"""``pri3d finetune``: a backbone + labelled images -> a network for a task and its scores; one run or a comparison."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import torch
from rich.console import Console

from pri3d import registry
from pri3d.data.sampler import StreamSampler
from pri3d.datasets import LabelledImages, open_labelled
from pri3d.errors import ConfigError, DataError, Problems
from pri3d.models.detector import Detector
from pri3d.models.published import holds_decoder, load_published
from pri3d.models.segmentation import SegmentationNet
from pri3d.models.unet import UNet
from pri3d.models.weights import WeightsReport, init_encoder, load_weights, read_provenance, read_state
from pri3d.runfiles import write_json
from pri3d.train.comparison import Job, compare, expand, folders_of
from pri3d.train.downstream import RECIPES, DownstreamModule, Recipe, Validator
from pri3d.train.engine import Feed, fit, synchronised
from pri3d.train.launch import Options, find_launch
from pri3d.train.runs import RunFolder
from pri3d.train.settings import Precision, Schedule, resolve
from pri3d.train.task_settings import FinetuneSettings


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
    open: Callable[..., LabelledImages]  #: open_labelled, each set once: a list of a million images takes a while


def finetune(
    task: Literal["semantic", "instance"],
    data: Path,
    val: Path | None = None,
    weights: str = "scratch",
    part: Literal["all", "encoder"] = "all",
    preset: str = "quick",
    run: Path | None = None,
    resume: bool = False,
    seed: int | str = 0,
    dataset: str | None = None,
    labels: str | None = None,
    epochs: float | None = None,
    workers: int = 1,
    save_every: int = 100,
    keep_checkpoints: int = 1,
    devices: int = 1,
    nodes: int = 1,
    wandb: str | None = None,
    network: str | None = None,
    encoder: str | None = None,
    decoder: Literal["paper", "slim"] | None = None,
    channels: int | None = None,
    detector: Literal["full", "coco", "lite"] | None = None,
    tune: str | None = None,
    norm: Literal["train", "frozen"] | None = None,
    bn_momentum: float | None = None,
    head_lr: float | None = None,
    class_weights: Literal["none", "balanced"] | None = None,
    rois: int | None = None,
    min_area: int | None = None,
    size: str | None = None,
    short_side: int | str | None = None,
    long_side: int | None = None,
    fraction: float | str | None = None,
    augment: str | None = None,
    mirror: bool | None = None,
    optimizer: Literal["sgd", "adamw"] | None = None,
    lr: float | None = None,
    momentum: float | None = None,
    dampening: float | None = None,
    weight_decay: float | None = None,
    schedule: Schedule | None = None,
    steps: int | None = None,
    batch: int | None = None,
    micro_batch: int | None = None,
    eval_every: int | None = None,
    precision: Precision | None = None,
    sync_bn: bool | None = None,
    channels_last: bool | None = None,
    compile: bool | None = None,
) -> Path:
    """Fine-tune on labelled images and score on others (paper section 5).

    Every option that is not given has the preset's value; a pri3d model brings its own encoder, decoder and channels.
    Of weights, network, fraction and seed several may be given, joined by commas: every combination is a run, and a
    table compares them.

    Args:
        task: semantic (segmentation), or instance (detection and instance segmentation).
        data: labelled images: a prepared store, ScanNet frames, NYUv2, COCO json, Cityscapes, KITTI, image/mask pairs.
        val: labelled images to score on; without it the val split of data.
        weights: scratch, imagenet, timm:NAME, a pre-training run, or a weights file; of another project's file the
            encoder, of a published Pri3D checkpoint the decoder too.
        part: what is taken of the weights: all (encoder, and the decoder for a unet) or encoder.
        preset: `quick`, `paper` or another of the task's, or the path of a YAML file with the options below; several
            joined by commas are laid over each other.
        run: folder of this run; default runs/<task>-<name of data>-<name of weights>-<seed>; of several runs, the
            folder that holds them.
        resume: continue the run, or the runs, in that folder.
        seed: of new weights, order and augmentation.
        dataset: format of the labelled images, where it cannot be told from the files.
        labels: label space: scannet20, nyu13, nyu40, cityscapes19, ... or a YAML file; default is the format's own.
        epochs: passes over the training images, instead of steps.
        workers: processes that load data, for each training process.
        save_every: steps between checkpoints.
        keep_checkpoints: how many of the last checkpoints stay.
        devices: processes on this machine, one a GPU; torchrun and srun say it themselves.
        nodes: machines.
        wandb: project of Weights & Biases to log to, too.
        network: on the encoder: unet, pspnet, deeplabv3, deeplabv3plus; maskrcnn for instance.
        encoder: for weights that do not name theirs: resnet18, resnet50, or a timm name.
        decoder: of a unet, for weights that do not name theirs: paper or slim.
        channels: of a unet's feature map, for weights that do not name theirs.
        detector: size of the Mask R-CNN: full, coco (box head of four convolutions), lite (for small machines).
        tune: what of the encoder is trained: full, frozen, last-K stages or blocks, lora-R of rank R.
        norm: batch norms of the encoder: train, or frozen as they come.
        bn_momentum: of the encoder's batch norms.
        head_lr: learning rate of everything but the encoder, in multiples of lr.
        class_weights: of the cross-entropy: none, or balanced by the classes' frequency.
        rois: regions an image that train the heads of a Mask R-CNN.
        min_area: pixels under which an object neither trains nor counts.
        size: of the images, width x height, for semantic.
        short_side: of the images for instance, pixels; a range is drawn from in training.
        long_side: of the images for instance, at most.
        fraction: nested share of the labelled training images.
        augment: colours: strong, light, blur or none.
        mirror: half of the training images left-right.
        optimizer: sgd or adamw.
        lr: peak learning rate.
        momentum: of sgd.
        dampening: of sgd.
        weight_decay: of weights with two axes or more (adamw), of all (sgd).
        schedule: step, poly, cosine, onecycle, multistep, constant.
        steps: optimizer steps.
        batch: images a step, of all processes together.
        micro_batch: images a forward pass of one process.
        eval_every: steps between validations; the last step is always validated.
        precision: auto, fp32, bf16 or fp16.
        sync_bn: batch norms over all processes (GPUs only).
        channels_last: memory layout of images and convolutions.
        compile: the network by torch.compile.

    Returns:
        The run folder: scores.json (last, best, history, per class), weights.safetensors, best.safetensors; or the
        folder of several runs, with comparison.json.

    Raises:
        ConfigError, DataError, WeightsError: before any work, naming what to change.
    """
    given = dict(locals())
    options = Options(workers, save_every, keep_checkpoints, find_launch(devices, nodes), wandb)
    call = Call(task, data, val, dataset, labels, part, preset, epochs, resume, options, given, cache(open_labelled))
    jobs = expand(weights, network, fraction, seed)
    runs = [FinetuneRun(call, job) for job in jobs]  # all are checked before the first one starts
    if len(jobs) == 1:
        name = f"{task}-{data.stem}-{Path(weights).stem}-{jobs[0].seed}".replace(":", "-")
        return runs[0].train(run or Path("runs") / name)
    if options.launch.world > 1:
        raise ConfigError(f"{len(jobs)} runs in one call: with several processes every run needs a call of its own.")
    root = run or Path("runs") / f"{task}-{data.stem}"
    folders = folders_of(jobs)
    finished = {job: each.train(root / folders[job]) for job, each in zip(jobs, runs, strict=True)}
    return compare(root, finished, runs[0].kind.shown)


class FinetuneRun:
    """One run, checked when it is made; :meth:`train` does the work.

    Raises ConfigError, DataError or WeightsError, naming every problem at once where they do not depend on each other.
    """

    def __init__(self, call: Call, job: Job) -> None:
        self.call, self.job = call, job
        self.kind: type[Recipe[Any]] = registry.choice("task", RECIPES, call.task)
        problems = Problems()
        with problems.collect():
            self.train_set = call.open(call.data, "train", call.dataset, call.labels, call.val is not None)
        with problems.collect():
            other = call.val or call.data
            self.val_set = call.open(other, "val", call.dataset, call.labels, call.val is not None)
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
        with problems.collect():
            call.options.check(settings)
        with problems.collect():
            self._check_sets()
        problems.refuse()

    def train(self, path: Path) -> Path:
        """Train, or continue in the run folder ``path``, and return it."""
        settings, launch = self.settings, self.call.options.launch
        pl.seed_everything(settings.seed, verbose=False)
        recipe = self.kind(settings)
        task = recipe.task(self.train_set, self.rows)
        model = recipe.build(task.class_names)
        report = self._load(model)
        facts = self._facts(report)
        folder = RunFolder(path)
        done = folder.open("finetune", settings, facts, self.call.resume, launch.rank)
        if launch.rank == 0:
            say = Console(stderr=True, highlight=False, soft_wrap=True).print
            say(f"{path.name}: weights {self.job.weights}: {facts['loaded']}")
            write_json(folder.loaded, report._asdict() if report else {})
        if done == settings.steps and folder.weights.exists():
            return path
        module = DownstreamModule(settings, synchronised(model, settings, launch), task)
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)
        held = recipe.dataset(self.val_set, None, training=False)
        validator = Validator(task, held, folder, done, settings.eval_every, facts)
        data, count = recipe.dataset(self.train_set, self.rows, training=True), len(self.rows)
        feed = Feed(data, self.kind.collate, lambda total, start: StreamSampler(count, total, settings.seed, start))
        fit(module, feed, folder, done, self.call.options, [validator])
        if launch.rank == 0:
            task.save(model, folder.weights, {**facts, "steps": settings.steps})
        return path

    def _resolve(self) -> FinetuneSettings:
        """Settings of the preset with what the user gave and what the weights say of their network."""
        call, job, kind = self.call, self.job, self.kind.settings_type
        own = {field.name for field in dataclasses.fields(kind)}
        foreign = [name for name in _ALL_SETTINGS - own if call.given.get(name) is not None]
        if foreign:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(foreign))
            raise ConfigError(f"{flags}: no setting of task {call.task}. Leave it out.")
        if call.epochs is not None and (call.given["steps"] is not None or not call.epochs > 0):
            raise ConfigError(f"--epochs {call.epochs:g}: give a positive number, and no --steps beside it.")
        varied = {"network": job.network, "fraction": job.fraction, "seed": job.seed}
        stated = {name: _agreed(name, call.given[name], self.record) for name in _OF_NETWORK & own}
        return resolve(kind, call.task, call.preset, {**call.given, **stated, **varied})

    def _check_sets(self) -> None:
        """Refuse classes that differ and data that fill no batch."""
        names_of = self.kind.task_type.names_of
        train, val = names_of(self.train_set), names_of(self.val_set)
        if train != val:
            raise DataError(f"{self.train_set.path} and {self.val_set.path} name other classes: {train} and {val}.")
        need = self.settings.micro_batch
        if len(self.rows) < need:
            raise DataError(
                f"{self.train_set.path}: {len(self.rows)} labelled images for batches of {need}. "
                "Lower --micro-batch and --batch, or raise --fraction."
            )

    def _load(self, model: SegmentationNet | Detector) -> WeightsReport | None:
        """Fill what the weights hold: the encoder, and a U-Net's decoder where that is asked for."""
        path, body = Path(self.job.weights), getattr(model, "body", None)
        if not self.from_file:
            return init_encoder(model.encoder, self.job.weights)
        exported = self.record.get("part") == "encoder"  # whose keys have no such prefix
        if self.call.part == "all" and isinstance(body, UNet) and not exported:
            if not self.record and holds_decoder(path):
                return load_published(body, path)
            if self.record.get("decoder") and self.record.get("network", "unet") == "unet":
                state = {key: value for key, value in read_state(path).items() if not key.startswith("classifier.")}
                return load_weights(body, state, minimum=1.0)
        if not self.record:
            return init_encoder(model.encoder, self.job.weights)
        return load_weights(model.encoder, path, prefix=None if exported else "encoder.")

    def _facts(self, report: WeightsReport | None) -> dict[str, Any]:
        """What is written down of the run beside its settings."""
        call = self.call
        sources = {name: getattr(call, name) for name in ("data", "val", "dataset", "labels")}
        return {
            "task": call.task,
            "preset": call.preset,
            "init": self.job.weights,
            "init_data_hash": self.record.get("data_hash"),
            "loaded": str(report) if report else "nothing: all weights are new",
            "part": call.part,
            **{name: None if value is None else str(value) for name, value in sources.items()},
            "data_hash": f"{self.train_set.hash}+{self.val_set.hash}",
        }


#: Settings of any task, and those that a model of ours states itself.
_ALL_SETTINGS = {field.name for kind in RECIPES.values() for field in dataclasses.fields(kind.settings_type)}
_OF_NETWORK = {"encoder", "decoder", "channels"}


def _agreed(name: str, given: Any, record: dict[str, Any]) -> Any:
    """The network option the user gave, else the one the weights file states. Raises ConfigError where they differ."""
    stated = record.get(name)
    if given is not None and stated is not None and given != stated:
        raise ConfigError(f"--{name} {given}: the weights are of a network with {name} {stated}. Leave the flag out.")
    return stated if given is None else given
