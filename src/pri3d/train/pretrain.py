"""``pri3d pretrain``: a prepared store -> a better backbone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from pri3d.data.augment import recipe
from pri3d.data.pairs import PairDataset, check_pairs, collate, split_pairs
from pri3d.errors import ConfigError, DataError
from pri3d.geometry.images import Interpolation, parse_size
from pri3d.geometry.voxels import coarsen
from pri3d.models.encoders import build_encoder
from pri3d.models.unet import UNet
from pri3d.models.weights import init_encoder, save_model
from pri3d.objectives import Features, WeightedSum
from pri3d.store import Store
from pri3d.train.engine import StepModule, fit
from pri3d.train.runs import RunFolder
from pri3d.train.settings import Precision, PretrainSettings, check_counts, resolve
from pri3d.types import PairBatch


class PretrainModule(StepModule):
    """The U-Net under the weighted sum of the objectives."""

    settings: PretrainSettings

    def __init__(self, settings: PretrainSettings, unet: UNet) -> None:
        super().__init__(settings)
        self.unet = unet
        self.objective = WeightedSum(
            settings.objectives,
            {
                "channels": settings.channels,
                "chunks": settings.chunks,
                "points": settings.points,
                "temperature": settings.temperature,
                "distance": settings.distance,
                "net3d": settings.net3d,
                "voxel_input": settings.voxel_input,
            },
        )

    def loss(self, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Both frames of all pairs in one pass, then the objectives (paper section 3.3)."""
        images = batch.color.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        dense, maps = self.unet.forward_maps(images)
        features = Features(dense.unflatten(0, batch.color.shape[:2]), maps, batch.views)
        terms = self.objective(features, batch)
        return terms.loss, terms.log


def pretrain(
    data: Path,
    preset: str = "quick",
    run: Path | None = None,
    resume: bool = False,
    seed: int = 0,
    workers: int = 1,
    save_every: int = 100,
    encoder: str | None = None,
    decoder: Literal["paper", "slim"] | None = None,
    channels: int | None = None,
    init: str | None = None,
    size: str | None = None,
    objectives: dict[str, float] | None = None,
    points: int | None = None,
    temperature: float | None = None,
    distance: float | None = None,
    voxel: float | None = None,
    chunks: Literal[1, 2] | None = None,
    net3d: str | None = None,
    voxel_input: Literal["occupancy", "color"] | None = None,
    augment: str | None = None,
    interpolation: Interpolation | None = None,
    optimizer: Literal["sgd", "adamw"] | None = None,
    lr: float | None = None,
    momentum: float | None = None,
    dampening: float | None = None,
    weight_decay: float | None = None,
    schedule: Literal["constant", "step", "poly", "onecycle"] | None = None,
    steps: int | None = None,
    batch: int | None = None,
    micro_batch: int | None = None,
    holdout: float | None = None,
    precision: Precision | None = None,
) -> Path:
    """Pre-train an image backbone on prepared pairs (View, Geo or View+Geo, paper section 3).

    Every option that is not given has the preset's value.

    Args:
        data: folder that `pri3d prepare` wrote.
        preset: `quick` (laptop), `paper`, or the path of a YAML file with the options below.
        run: folder of this run; default runs/<name of data>-<preset>.
        resume: continue the run in that folder, exactly where its checkpoint stands.
        seed: of weights, order, augmentation and point choice.
        workers: processes that load data.
        save_every: steps between checkpoints.
        encoder: resnet18, resnet50, or any timm name with feature maps.
        decoder: `paper` (5x5 convolutions, wide) or `slim` (3x3, for small machines).
        channels: of the half-resolution feature map.
        init: encoder weights: scratch, imagenet, a checkpoint file, or timm:NAME.
        size: of the images, width x height.
        objectives: weights, as in '{view: 1, geometry: 1}'.
        points: matches a frame that enter the contrast.
        temperature: of the contrast.
        distance: metres within which two measured points are the same.
        voxel: edge of the chunks' voxels in metres, a multiple of the prepared one.
        chunks: frames of a pair whose chunk enters the geometry objective; the paper takes both.
        net3d: size of the 3D network: 34C, 18A, 14A, tiny.
        voxel_input: what the 3D network sees: occupancy or color.
        augment: colour augmentation: strong, light, none.
        interpolation: of images.
        optimizer: sgd or adamw.
        lr: peak learning rate.
        momentum: of sgd.
        dampening: of sgd.
        weight_decay: of weights with two axes or more (adamw), of all (sgd).
        schedule: step (x 0.99 every 1000), poly, onecycle, constant.
        steps: optimizer steps.
        batch: pairs a step.
        micro_batch: pairs a forward pass; a step accumulates batch / micro_batch of them.
        holdout: share of scenes (or of each scene's last frames) that is kept out of training.
        precision: auto, fp32 or bf16; the contrast is always fp32.

    Returns:
        The run folder: weights.safetensors, initial.safetensors, last.ckpt, metrics.csv, config.yaml.

    Raises:
        ConfigError, DataError, WeightsError: before any work, naming what to change.
    """
    given = {
        name: value for name, value in locals().items() if name not in {"data", "preset", "run", "resume", "workers"}
    }
    settings = resolve(PretrainSettings, "pretrain", preset, given)
    store = Store(data)
    dataset = _dataset(data, store, settings)
    folder = RunFolder(run or Path("runs") / f"{data.name}-{Path(preset).stem}")
    provenance = {"preset": preset, "data": str(data), "data_hash": store.hash}
    pl.seed_everything(seed, verbose=False)
    unet = UNet(build_encoder(settings.encoder), settings.decoder, settings.channels)
    init_encoder(unet.encoder, settings.init)
    module = PretrainModule(settings, unet.to(memory_format=torch.channels_last))
    check_counts(workers=workers, save_every=save_every)
    done = folder.open("pretrain", settings, provenance, resume)
    facts = _facts(settings, provenance)
    if done == 0:
        save_model(unet, folder.initial, {**facts, "steps": 0})
    if done < settings.steps or not folder.weights.exists():
        fit(module, dataset, collate, folder, done, seed, workers, [], save_every)
        save_model(unet, folder.weights, {**facts, "steps": settings.steps})
    return folder.path


def _dataset(data: Path, store: Store, settings: PretrainSettings) -> PairDataset:
    """Training pairs; refuses at once what would fail later."""
    train, _ = split_pairs(store, settings.holdout)
    check_pairs(train, store, settings.micro_batch)
    wants_surface = settings.objectives.get("geometry", 0) > 0
    if wants_surface:
        if settings.voxel <= 0:
            raise ConfigError(f"voxel = {settings.voxel}: the geometry objective needs a voxel edge in metres.")
        if not any(len(coarsen(store.scene(scene).surface(), settings.voxel).cells) for scene in store.scenes):
            raise DataError(
                f"{data}: no scene has a surface, which the geometry objective needs. Prepare with --surface."
            )
    voxel = settings.voxel if wants_surface else 0.0
    size = parse_size(settings.size)
    return PairDataset(
        data, train, size, settings.seed, recipe(settings.augment), voxel, settings.chunks, settings.interpolation
    )


def _facts(settings: PretrainSettings, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What travels with the weights."""
    names = ("encoder", "decoder", "channels", "init", "objectives", "size", "holdout", "distance", "seed")
    return {**{name: getattr(settings, name) for name in names}, **provenance}
