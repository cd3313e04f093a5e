"""``pri3d pretrain``: a prepared store -> a better backbone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch

from pri3d.data.mixture import open_mixture
from pri3d.errors import Problems
from pri3d.geometry.matching import Mode
from pri3d.geometry.resize import Interpolation
from pri3d.networks.encoders import build_encoder
from pri3d.networks.unet import UNet
from pri3d.networks.weights import check_init, init_encoder, save_model
from pri3d.objectives.contrast import Negatives
from pri3d.runs import RunPaths
from pri3d.settings import Precision, Schedule, resolve
from pri3d.training.checkpoints import open_run
from pri3d.training.launch import Options, find_launch
from pri3d.training.loop import fit, synchronised
from pri3d.training.pretraining import HeldOut, PretrainModule
from pri3d.training.pretraining_data import Plan
from pri3d.training.settings import Mix, PretrainSettings


def pretrain(
    data: Path | list[Path],
    preset: str = "quick",
    run: Path | None = None,
    resume: bool = False,
    seed: int = 0,
    images: Path | None = None,
    workers: int = 1,
    save_every: int = 100,
    keep_checkpoints: int = 1,
    devices: int = 1,
    nodes: int = 1,
    wandb: str | None = None,
    encoder: str | None = None,
    decoder: Literal["paper", "slim"] | None = None,
    channels: int | None = None,
    init: str | None = None,
    tune: str | None = None,
    size: str | None = None,
    objectives: dict[str, float] | None = None,
    keep: float | None = None,
    points: int | Literal["all"] | None = None,
    temperature: float | None = None,
    negatives: Negatives | None = None,
    exclude_px: float | None = None,
    exclude_cm: float | None = None,
    match: Mode | None = None,
    distance: float | None = None,
    voxel: float | None = None,
    chunks: Literal[1, 2] | None = None,
    net3d: str | None = None,
    voxel_input: Literal["occupancy", "color"] | None = None,
    augment: str | None = None,
    interpolation: Interpolation | None = None,
    passes: Literal["joint", "separate"] | None = None,
    bn_momentum: Literal["constant", "decay"] | None = None,
    mix: Mix | None = None,
    crop: int | None = None,
    moco_queue: int | None = None,
    moco_momentum: float | None = None,
    moco_temperature: float | None = None,
    moco_group: int | None = None,
    optimizer: Literal["sgd", "adamw"] | None = None,
    lr: float | None = None,
    momentum: float | None = None,
    dampening: float | None = None,
    weight_decay: float | None = None,
    schedule: Schedule | None = None,
    steps: int | None = None,
    batch: int | None = None,
    micro_batch: int | None = None,
    holdout: float | None = None,
    eval_every: int | None = None,
    eval_pairs: int | None = None,
    precision: Precision | None = None,
    sync_bn: bool | None = None,
    channels_last: bool | None = None,
    compile: bool | None = None,
) -> Path:
    """Pre-train an image backbone on prepared pairs: View, Geo, View+Geo (paper section 3), or a baseline of the paper.

    Every option that is not given has the preset's value.

    Args:
        data: folder that `pri3d prepare` wrote; of several each may have a weight, as in out/kitchen:1 out/rooms:0.5,
            by which every batch is shared among them.
        preset: `quick` (laptop), `paper`, a row of the paper's table 1 (view, geo, trivial, depth, moco, ...), or the
            path of a YAML file with the options below; several joined by commas are laid over each other.
        run: folder of this run; default runs/<name of data>-<preset>, several names joined by +.
        resume: continue the run in that folder, exactly where its checkpoint stands.
        seed: of weights, order, augmentation and point choice.
        images: folder of RGB images that moco also learns from, see mix.
        workers: processes that load data, for each training process.
        save_every: steps between checkpoints.
        keep_checkpoints: how many of the last checkpoints stay.
        devices: processes on this machine, one a GPU; torchrun and srun say it themselves.
        nodes: machines.
        wandb: project of Weights & Biases to log to, too.
        encoder: resnet18, resnet50, or any timm name with feature maps.
        decoder: `paper` (5x5 convolutions, wide) or `slim` (3x3, for small machines).
        channels: of the half-resolution feature map.
        init: encoder weights: scratch, imagenet, a checkpoint file, or timm:NAME.
        tune: what of the encoder is trained: full, frozen, last-K stages or blocks, lora-R of rank R.
        size: of the images, width x height.
        objectives: weights, as in '{view: 1, geometry: 1}'; also trivial, depth, moco.
        keep: weight of a term that holds the encoder's features near the initial ones.
        points: matches a frame that enter the contrast, or all.
        temperature: of the contrast.
        negatives: other points of the same sample (the paper), of the whole batch, or of the world of all processes.
        exclude_px: points nearer than so many pixels to the true one are no negatives.
        exclude_cm: points nearer than so many centimetres to the true one are no negatives.
        match: what decides: point (3D distance, the paper), depth (difference along z), relative (distance / depth).
        distance: metres within which two measured points are the same; a share of the depth with match relative.
        voxel: edge of the chunks' voxels in metres, a multiple of the prepared one.
        chunks: frames of a pair whose chunk enters the geometry objective; the paper takes both.
        net3d: size of the 3D network: 34C, 18A, 14A, tiny.
        voxel_input: what the 3D network sees: occupancy or color.
        augment: colour augmentation: strong, light, simclr, none.
        interpolation: of images.
        passes: both frames through the network in one joint pass, or in separate ones with batch norms of their own.
        bn_momentum: of batch norms: constant 0.1, or the released code's decay.
        mix: of moco: frames alone, combine frames and images, half of each batch, alternate whole batches.
        crop: edge of moco's random crops, pixels.
        moco_queue: keys in the queue.
        moco_momentum: of the key encoder.
        moco_temperature: of moco's contrast.
        moco_group: crops that share batch-norm statistics in moco's passes; 0 for all.
        optimizer: sgd or adamw.
        lr: peak learning rate.
        momentum: of sgd.
        dampening: of sgd.
        weight_decay: of weights with two axes or more (adamw), of all (sgd).
        schedule: step (x 0.99 every 1000), poly, cosine, onecycle, constant.
        steps: optimizer steps.
        batch: pairs a step, of all processes together.
        micro_batch: pairs a forward pass of one process; a step adds up batch / micro_batch passes.
        holdout: share of scenes (or of each scene's last frames) that is kept out of training.
        eval_every: steps between measurements on held-out pairs; 0 for none.
        eval_pairs: held-out pairs to measure on.
        precision: auto, fp32, bf16 or fp16; the contrast is always fp32.
        sync_bn: batch norms over all processes (GPUs only).
        channels_last: memory layout of images and convolutions.
        compile: the U-Net by torch.compile.

    Returns:
        The run folder: weights.safetensors, initial.safetensors, last.ckpt, metrics.csv, config.yaml.

    Raises:
        ConfigError, DataError, WeightsError: before any work, naming what to change.
    """
    given = dict(locals())
    problems = Problems()
    with problems.collect():
        mixture = open_mixture(data)
    with problems.collect():
        settings = resolve(PretrainSettings, "pretrain", preset, given)
    problems.refuse()
    options = Options(workers, save_every, keep_checkpoints, find_launch(devices, nodes), wandb)
    pl.seed_everything(seed, verbose=False)
    plan = Plan(mixture, settings, images)
    with problems.collect():
        options.check(settings)
    with problems.collect():
        plan.check()
    unet: UNet | None = None
    with problems.collect():
        unet = UNet(build_encoder(settings.encoder), settings.decoder, settings.channels)
    with problems.collect():
        check_init(settings.init)
        if unet is not None:
            init_encoder(unet.encoder, settings.init)
            module = PretrainModule(settings, synchronised(unet, settings, options.launch))
    problems.refuse()
    layers = "-".join(Path(layer).stem for layer in preset.split(","))
    folder = RunPaths(run or Path("runs") / f"{mixture.name}-{layers}")
    provenance = {"preset": preset, "data": str(mixture), "data_hash": mixture.hash, "images": str(images or "")}
    provenance["images_hash"] = plan.images_hash
    done = open_run(folder, "pretrain", settings, provenance, resume, options.launch.rank)
    facts = _facts(settings, provenance)
    first = options.launch.rank == 0
    if done == 0 and first:
        save_model(module.unet, folder.initial, {**facts, "steps": 0})
    if done < settings.steps or not folder.weights.exists():
        if settings.channels_last:
            module.to(memory_format=torch.channels_last)
        watch = [HeldOut(plan.heldout(), folder, done, settings.eval_every, facts)] if plan.watched else []
        fit(module, plan.feed(module.views), folder, done, options, watch)
        if first:
            save_model(module.unet, folder.weights, {**facts, "steps": settings.steps})
    return folder.path


def _facts(settings: PretrainSettings, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What travels with the weights."""
    names = ("encoder", "decoder", "channels", "init", "tune", "objectives", "keep", "size", "holdout", "distance")
    return {**{name: getattr(settings, name) for name in names}, "seed": settings.seed, **provenance}
