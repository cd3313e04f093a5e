"""``pri3d finetune``: a backbone + labelled images -> a network for a task and its scores; one run or a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pri3d.errors import ConfigError
from pri3d.settings import Precision, Schedule
from pri3d.training.comparison import compare, default_name, expand, folders_of
from pri3d.training.finetune_run import Call, FinetuneRun, Sets, check_all
from pri3d.training.launch import Options, find_launch


def finetune(
    task: str,
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
    settings: dict[str, Any] | None = None,
) -> Path:
    """Fine-tune on labelled images and score on others (paper section 5).

    Every option that is not given has the preset's value; a pri3d model brings its own encoder, decoder and channels.
    Of weights, network, fraction and seed several may be given, joined by commas: every combination is a run, and a
    table compares them.

    Args:
        task: semantic (segmentation), instance (detection and instance segmentation), or one of an installed package.
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
        settings: of a task of another package: those that have no option here, as in '{dropout: 0.3}'.

    Returns:
        The run folder: scores.json (last, best, history, per class), weights.safetensors, best.safetensors; or the
        folder of several runs, with comparison.json.

    Raises:
        ConfigError, DataError, WeightsError: before any work, naming what to change.
    """
    given = dict(locals())
    options = Options(workers, save_every, keep_checkpoints, find_launch(devices, nodes), wandb)
    call = Call(task, data, val, dataset, labels, part, preset, epochs, resume, options, given, settings or {}, Sets())
    jobs = expand(weights, network, fraction, seed)
    runs = [FinetuneRun(call, job) for job in jobs]
    if len(jobs) == 1:
        return runs[0].train(run or Path("runs") / default_name(task, data, jobs[0]))
    if options.launch.world > 1:
        raise ConfigError(f"{len(jobs)} runs in one call: with several processes every run needs a call of its own.")
    root = run or Path("runs") / f"{task}-{data.stem}"
    folders = [root / name for name in folders_of(jobs).values()]
    check_all(runs, folders)  # before the first one starts
    finished = {each.job: each.train(folder) for each, folder in zip(runs, folders, strict=True)}
    return compare(root, finished, runs[0].kind.shown)
