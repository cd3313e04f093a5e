"""``pri3d pretrain``: a prepared store -> a better backbone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import seed_everything

from pri3d.api.options import AnyPath
from pri3d.api.pretrain import PretrainOptions, PretrainSettings, resolve_pretraining
from pri3d.data.mixture import open_mixture
from pri3d.data.pairs import collate
from pri3d.errors import Problems
from pri3d.networks.encoders import build_encoder
from pri3d.networks.unet import UNet
from pri3d.networks.weights import check_init, init_encoder, save_model
from pri3d.runs import Run, RunPaths
from pri3d.training.checkpoints import open_run
from pri3d.training.launch import Options
from pri3d.training.loop import fit, synchronised
from pri3d.training.pretraining import PretrainData, PretrainModule
from pri3d.training.watch import Watch


def pretrain(call: PretrainOptions) -> Run:
    """Pre-train on prepared datasets; see :func:`pri3d.pretrain`."""
    problems = Problems()
    with problems.collect():
        mixture = open_mixture(paths_of(call.data))
    with problems.collect():
        settings = resolve_call(call)
    problems.refuse()
    options = Options.of(call)
    seed_everything(settings.seed, verbose=False)
    data = PretrainData(mixture, settings)
    with problems.collect():
        options.check(settings)
    with problems.collect():
        data.check()
    unet: UNet | None = None
    with problems.collect():
        unet = UNet(build_encoder(settings.encoder), settings.unet.decoder, settings.unet.channels)
    with problems.collect():
        check_init(settings.weights)
        if unet is not None:
            init_encoder(unet.encoder, settings.weights)
            module = PretrainModule(settings, synchronised(unet, settings, options.launch))
    problems.refuse()
    layers = "-".join(Path(layer).stem for layer in call.preset.split(","))
    folder = RunPaths(Path(call.run) if call.run is not None else Path("runs") / f"{mixture.name}-{layers}")
    provenance = {"preset": call.preset, "data": str(mixture), "data_hash": mixture.hash}
    provenance |= {"images": str(data.images or ""), "images_hash": data.images_hash}
    done = open_run(folder, "pretrain", settings, provenance, call.resume, options.launch.rank)
    facts = _facts(settings, provenance)
    first = options.launch.rank == 0
    if done == 0 and first:
        save_model(module.unet, folder.initial, {**facts, "steps": 0})
    if done < settings.steps or not folder.weights.exists():
        if settings.compute.channels_last:
            module.to(memory_format=torch.channels_last)
        watch = None
        if data.watched:
            watch = Watch(folder, done, settings.validation.every, data.heldout(), collate, facts, options.workers)
        with folder.lock(options.launch.rank):
            fit(module, data.feed(module.views), folder, done, options, watch)
            if first:
                save_model(module.unet, folder.weights, {**facts, "steps": settings.steps})
    return Run(folder.path)


def resolve_call(call: PretrainOptions) -> PretrainSettings:
    """Settings of a call: its preset with what was given. Raises ConfigError naming every problem."""
    names = {name for name, _ in PretrainSettings().items()} - {"own"}
    given = {name: value for name, value in call.given().items() if name in names}
    return resolve_pretraining(call.preset, {**given, **{each.group: each.given() for each in call.options}})


def paths_of(data: AnyPath | Sequence[AnyPath]) -> list[Path]:
    """One folder or several, as a list."""
    return [Path(data)] if isinstance(data, str | os.PathLike) else [Path(each) for each in data]


def _facts(settings: PretrainSettings, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What travels with the weights; the names are those of version 0.1, which its files have too."""
    return {
        "encoder": settings.encoder,
        "decoder": settings.unet.decoder,
        "channels": settings.unet.channels,
        "init": settings.weights,
        "tune": settings.tune,
        "objectives": settings.objectives,
        "keep": settings.keep,
        "size": settings.size,
        "holdout": settings.holdout,
        "distance": settings.matching.distance,
        "seed": settings.seed,
        **provenance,
    }
