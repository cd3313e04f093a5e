"""``pri3d finetune``: a backbone + labelled frames -> a segmentation network and its scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pri3d.data.augment import recipe
from pri3d.data.labelled import LabelledDataset, collate
from pri3d.data.sampler import Draw, StreamSampler
from pri3d.errors import ConfigError, DataError
from pri3d.geometry.images import parse_size
from pri3d.models.published import holds_decoder, load_published
from pri3d.models.unet import UNet, build_unet
from pri3d.models.weights import init_encoder, load_weights, read_provenance, read_state
from pri3d.tasks.semantic import Confusion, SemanticUNet, save_semantic, semantic_loss
from pri3d.train.engine import Feed, StepModule, fit, synchronised
from pri3d.train.launch import Options, find_launch
from pri3d.train.runs import RunFolder
from pri3d.train.settings import FinetuneSettings, Precision, Schedule, resolve
from pri3d.train.watch import Watch
from pri3d.types import LabelledBatch


class SemanticModule(StepModule):
    """The segmentation network under cross-entropy."""

    settings: FinetuneSettings

    def __init__(self, settings: FinetuneSettings, model: SemanticUNet) -> None:
        super().__init__(settings)
        self.model = model

    @property
    def network(self) -> nn.Module:
        """The whole network."""
        return self.model

    def loss(self, batch: LabelledBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean cross-entropy over labelled pixels."""
        layout = torch.channels_last if self.settings.channels_last else torch.contiguous_format
        scores = self.model(batch.color.contiguous(memory_format=layout))
        return semantic_loss(scores, batch.label), {}


class Validator(Watch):
    """Scores the network on the validation set; the best one is that of highest mIoU."""

    def __init__(
        self, dataset: LabelledDataset, run: RunFolder, done: int, every: int, provenance: dict[str, Any]
    ) -> None:
        super().__init__(run, done, every, "miou")
        self.dataset, self.provenance = dataset, provenance

    def measure(self, module: SemanticModule) -> dict[str, Any]:
        """MIoU, pixel accuracy and IoU per class."""
        return evaluate_semantic(module.model, self.dataset, module.settings.micro_batch)

    def save(self, module: SemanticModule, path: Path, step: int) -> None:
        """Write the segmentation network."""
        save_semantic(module.model, path, self.dataset.class_names, {**self.provenance, "steps": step})


@torch.no_grad()
def evaluate_semantic(model: SemanticUNet, dataset: LabelledDataset, batch: int) -> dict[str, Any]:
    """mIoU, pixel accuracy and IoU per class of a network on every item of a data set; one confusion matrix."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    confusion = Confusion(len(dataset.class_names))
    loader = DataLoader(dataset, batch, sampler=[Draw(0, k) for k in range(len(dataset))], collate_fn=collate)
    for images in loader:
        predicted = model(images.color.to(device)).argmax(dim=1)
        confusion.update(predicted, images.label.to(device))
    model.train(was_training)
    return confusion.score(dataset.class_names)._asdict()


def finetune(
    task: Literal["semantic"],
    data: Path,
    val: Path,
    weights: str = "scratch",
    part: Literal["all", "encoder"] = "all",
    preset: str = "quick",
    run: Path | None = None,
    resume: bool = False,
    seed: int = 0,
    workers: int = 1,
    save_every: int = 100,
    keep_checkpoints: int = 1,
    devices: int = 1,
    nodes: int = 1,
    wandb: str | None = None,
    encoder: str | None = None,
    decoder: Literal["paper", "slim"] | None = None,
    channels: int | None = None,
    size: str | None = None,
    fraction: float | None = None,
    augment: str | None = None,
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
    """Fine-tune on labelled frames and score on others (paper section 5.1).

    Every option that is not given has the preset's value; a pri3d model brings its own encoder, decoder and channels.

    Args:
        task: semantic.
        data: prepared store with labels, to train on.
        val: prepared store with labels, to score on.
        weights: scratch, imagenet, timm:NAME, a pre-training run, or a weights file; of another project's file the
            encoder, of a published Pri3D checkpoint the decoder too.
        part: what is taken of the weights: all (encoder and decoder) or encoder.
        preset: `quick`, `paper`, or the path of a YAML file with the options below.
        run: folder of this run; default runs/<task>-<name of data>-<name of weights>-<seed>.
        resume: continue the run in that folder.
        seed: of new weights, order and augmentation.
        workers: processes that load data, for each training process.
        save_every: steps between checkpoints.
        keep_checkpoints: how many of the last checkpoints stay.
        devices: processes on this machine, one a GPU; torchrun and srun say it themselves.
        nodes: machines.
        wandb: project of Weights & Biases to log to, too.
        encoder: for weights that do not name theirs: resnet18, resnet50, or a timm name.
        decoder: for weights that do not name theirs: paper or slim.
        channels: for weights that do not name theirs: of the feature map.
        size: of the images, width x height.
        fraction: nested share of the labelled training frames.
        augment: strong, light (both also mirror) or none.
        optimizer: sgd or adamw.
        lr: peak learning rate.
        momentum: of sgd.
        dampening: of sgd.
        weight_decay: of weights with two axes or more (adamw), of all (sgd).
        schedule: step, poly, cosine, onecycle, constant.
        steps: optimizer steps.
        batch: images a step, of all processes together.
        micro_batch: images a forward pass of one process.
        eval_every: steps between validations; the last step is always validated.
        precision: auto, fp32, bf16 or fp16.
        sync_bn: batch norms over all processes (GPUs only).
        channels_last: memory layout of images and convolutions.
        compile: the network by torch.compile.

    Returns:
        The run folder: scores.json (last, best, history, per class), weights.safetensors, best.safetensors.

    Raises:
        ConfigError, DataError, WeightsError: before any work, naming what to change.
    """
    if task != "semantic":
        raise ConfigError(f"unknown task {task!r}. Choices: semantic.")
    from_file = weights not in {"scratch", "imagenet"} and not weights.startswith("timm:")
    record = read_provenance(Path(weights)) if from_file else {}
    network = {"encoder": encoder, "decoder": decoder, "channels": channels}
    given = locals() | {name: _agreed(name, value, record) for name, value in network.items()}
    settings = resolve(FinetuneSettings, "finetune", preset, given)
    shape = parse_size(settings.size)
    train_set = LabelledDataset(data, shape, seed, recipe(settings.augment), settings.fraction)
    val_set = LabelledDataset(val, shape)
    _check_sets(train_set, val_set, settings)
    folder = RunFolder(run or Path("runs") / f"{task}-{data.name}-{Path(weights).stem}-{seed}".replace(":", "-"))
    provenance = {
        "preset": preset,
        "init": weights,
        "init_data_hash": record.get("data_hash"),
        "part": part,
        "data": str(data),
        "data_hash": f"{train_set.store.hash}+{val_set.store.hash}",
    }
    pl.seed_everything(seed, verbose=False)
    unet = build_unet(settings.encoder, settings.decoder, settings.channels)
    if record:
        _load(unet, Path(weights), part, record)
    elif from_file and part == "all" and holds_decoder(Path(weights)):
        load_published(unet, Path(weights))
    else:
        init_encoder(unet.encoder, weights)
    options = Options(workers, save_every, keep_checkpoints, find_launch(devices, nodes), wandb)
    options.check(settings)
    model = synchronised(SemanticUNet(unet, len(train_set.class_names)), settings, options.launch)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)
    done = folder.open("finetune", settings, provenance, resume, options.launch.rank)
    if done < settings.steps or not folder.weights.exists():
        validator = Validator(val_set, folder, done, settings.eval_every, provenance)
        feed = Feed(train_set, collate, lambda total, start: StreamSampler(len(train_set), total, seed, start))
        fit(SemanticModule(settings, model), feed, folder, done, options, [validator])
        if options.launch.rank == 0:
            facts = {**provenance, "steps": settings.steps}
            save_semantic(model, folder.weights, train_set.class_names, facts)
    return folder.path


def _agreed(name: str, given: Any, record: dict[str, Any]) -> Any:
    """The network option the user gave, else the one the weights file states. Raises ConfigError where they differ."""
    stated = record.get(name)
    if given is not None and stated is not None and given != stated:
        raise ConfigError(f"--{name} {given}: the weights are of a network with {name} {stated}. Leave the flag out.")
    return stated if given is None else given


def _check_sets(train_set: LabelledDataset, val_set: LabelledDataset, settings: FinetuneSettings) -> None:
    """Refuse label spaces that differ and data that fill no batch."""
    if train_set.class_names != val_set.class_names:
        raise DataError(
            f"{train_set.store.path} and {val_set.store.path} name other classes: "
            f"{train_set.class_names} and {val_set.class_names}."
        )
    if len(train_set) < settings.micro_batch:
        raise DataError(
            f"{train_set.store.path}: {len(train_set)} labelled frames for batches of {settings.micro_batch}. "
            "Lower --micro_batch and --batch, or raise --fraction."
        )


def _load(unet: UNet, weights: Path, part: str, record: dict[str, Any]) -> None:
    """Fill the network from a file that pri3d wrote."""
    whole = record.get("part") != "encoder"  # an exported encoder has no such prefix
    if part == "all" and whole:
        state = {key: value for key, value in read_state(weights).items() if not key.startswith("classifier.")}
        load_weights(unet, state, minimum=1.0)
    else:
        load_weights(unet.encoder, weights, prefix="encoder." if whole else None)
