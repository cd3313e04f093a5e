"""``pri3d pretrain``: prepared datasets -> a better backbone; recordings are prepared first, into a cache."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import seed_everything

from pri3d.api.check import check
from pri3d.api.options import AnyPath
from pri3d.api.prepare import prepare
from pri3d.api.pretrain import PretrainOptions, PretrainSettings, resolve_pretraining
from pri3d.data.mixture import Mixture, Named, parse_mixture
from pri3d.data.pairs import collate
from pri3d.errors import ConfigError, DataError, Problems
from pri3d.files.atomic import replacing
from pri3d.geometry.resize import parse_size, shape_box
from pri3d.networks.encoders import build_encoder
from pri3d.networks.load import WeightsSource
from pri3d.networks.unet import UNet
from pri3d.networks.weights import read_provenance
from pri3d.recordings import detect, find_reader, open_recording
from pri3d.recordings._shared.text import clean_id
from pri3d.runs import Run, RunPaths
from pri3d.store import MANIFEST, finished_scenes, read_manifest
from pri3d.terminal import Terminal
from pri3d.training.checkpoints import open_run
from pri3d.training.launch import CallSetup, find_launch
from pri3d.training.loop import fit, introduce, synchronised
from pri3d.training.pretraining import PretrainData, PretrainModule
from pri3d.training.watch import FrameMeter, Guard, comparison

PATIENCE = 3600.0  #: seconds that other processes wait for one more scene of the process that prepares
_PAUSE = 1.0  # seconds between two looks


def pretrain(call: PretrainOptions) -> Run:
    """Pre-train on prepared datasets, or on recordings, which are prepared first; see :func:`pri3d.pretrain`."""
    named = parse_mixture(paths_of(call.data))
    recordings = {entry.path: cache_folder(entry.path) for entry in named if _is_recording(entry.path)}
    if recordings:
        rank = find_launch(call.devices, call.nodes).rank
        _check(call, rank)
        say = Terminal(stderr=True, highlight=False, soft_wrap=True).print
        for path, out in recordings.items():
            if rank > 0:
                _wait(path, out)
                continue
            say(f"{path}: a recording; its prepared dataset is {out}")
            if not (out / MANIFEST).is_file():  # what is there already stays, and was checked
                try:
                    check(path, out=out.with_name(f"{out.name}-check"))
                except DataError as error:
                    raise DataError(
                        f"{error}\nA recording with errors is not prepared automatically. Run `pri3d prepare {path} "
                        f"OUT` with the options that fix them (--correct ..., --cameras ...), then `pri3d pretrain "
                        f"OUT`."
                    ) from error
            prepare([path], out)
        data = [_moved(entry, recordings.get(entry.path, entry.path)) for entry in named]
        call = PretrainOptions(**{**call.given(), "data": data, "options": call.options})
    return pretrain_prepared(call)


def cache_folder(recording: Path) -> Path:
    """Where the store of a recording lies: ``prepared/NAME-HASH`` of the cache, HASH that of its absolute path.

    The cache is the folder that the environment variable PRI3D_CACHE names, else ``pri3d`` in XDG_CACHE_HOME or
    ``~/.cache``.
    """
    whole = recording.resolve()
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = Path(os.environ.get("PRI3D_CACHE") or user / "pri3d")
    digest = hashlib.sha256(os.fsencode(whole)).hexdigest()[:10]
    return cache / "prepared" / f"{clean_id(whole.name)}-{digest}"


def _is_recording(path: Path) -> bool:
    """Whether a reader knows it; False for a store. Raises DataError for neither, ConfigError for several readers."""
    if (path / MANIFEST).is_file():
        return False
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Give a folder that `pri3d prepare` wrote, or a recording.")
    found = detect(path)
    if len(found) > 1:
        raise ConfigError(
            f"{path}: is not a prepared dataset, and matches several recording formats ({', '.join(found)}). Choose "
            f"one: "
            f"pri3d prepare {path} OUT --reader {found[0]}, and pretrain OUT."
        )
    try:
        return bool(find_reader(path))
    except DataError as error:
        raise DataError(f"neither a prepared dataset (it has no {MANIFEST}) nor a recording. {error}") from error


def _check(call: PretrainOptions, rank: int) -> None:
    """Refuse settings that cannot be before hours go into the preparation. Raises ConfigError naming all."""
    problems = Problems()
    with problems.collect():
        resolve_call(call)
    with problems.collect():
        if call.run is not None and rank == 0:  # the others may find what the first has begun
            RunPaths(Path(call.run)).refuse_other(call.resume)
    problems.refuse()


def _wait(recording: Path, out: Path) -> None:
    """Wait until another process has every scene of the recording in ``out``. Raises DataError where nothing comes."""
    wanted = {scene.id for scene in open_recording(recording).scenes()}
    count, since = -1, time.monotonic()
    while True:
        manifest = read_manifest(out) if (out / MANIFEST).is_file() else {"state": "", "scenes": {}}
        if manifest["state"] == "finished" and wanted <= set(manifest["scenes"]):
            return
        there = len(finished_scenes(out)) if out.is_dir() else 0
        if there != count:
            count, since = there, time.monotonic()
        if time.monotonic() - since > PATIENCE:
            raise DataError(
                f"{out}: the first process prepares {recording} there, but no scene has come for {PATIENCE:g} seconds. "
                "Is PRI3D_CACHE a folder that all machines share? Else run `pri3d prepare` first and pretrain its OUT."
            )
        time.sleep(_PAUSE)


def _moved(entry: Named, path: Path) -> Path:
    return entry.at(path) if entry.weight != 1 else path


def pretrain_prepared(call: PretrainOptions) -> Run:
    """Pre-train on prepared datasets alone."""
    problems = Problems()
    with problems.collect():
        mixture = Mixture(parse_mixture(paths_of(call.data)))
    with problems.collect():
        settings = resolve_call(call)
    problems.refuse()
    options = CallSetup.of(call)
    seed_everything(settings.seed, verbose=False)
    data = PretrainData(mixture, settings)
    with problems.collect():
        options.check(settings)
    with problems.collect():
        data.check()
    with problems.collect():
        encoder = build_encoder(settings.encoder, options=settings.of_encoder)
        unet = UNet(encoder, settings.unet.decoder, settings.unet.channels)
    with problems.collect():
        source = WeightsSource(settings.weights, on_hub=False)
        source.check()
    problems.refuse()
    # Stated as the number that it is: older runs state it so.
    settings = dataclasses.replace(settings, unet=dataclasses.replace(settings.unet, channels=unet.channels))
    source.fill(unet.encoder)
    module = PretrainModule(settings, synchronised(unet, settings, options.launch))
    layers = "-".join(Path(layer).stem for layer in call.resolved_preset.split(","))
    folder = RunPaths(Path(call.run) if call.run is not None else Path("runs") / f"{mixture.name}-{layers}")
    surfaces = [part.store.surfaces for part in mixture.parts]
    provenance: dict[str, Any] = {"preset": call.resolved_preset, "data": str(mixture), "data_hash": mixture.hash}
    provenance["surface"] = ", ".join(f"{kind} {count}" for each in surfaces for kind, count in sorted(each.items()))
    # The order of the further images' names is that of the stream.
    names = b"" if data.folder is None else b"\0".join(data.folder.names.tolist())
    digest = "" if data.folder is None else hashlib.sha256(names).hexdigest()
    provenance |= {"images": str(data.images or ""), "images_hash": digest}
    done = open_run(folder, "pretrain", settings, provenance, call.resume, options.launch.rank)
    facts = _facts(settings, provenance)
    first = options.launch.rank == 0
    if done == 0 and first:
        module.save(folder.initial, {**facts, "steps": 0})
    guard = None
    if (held := data.heldout()) is not None:
        frames = FrameMeter(module.unet.encoder, data.frames)
        margin = 0.0 if settings.weights == "scratch" else settings.validation.stop
        every, workers = settings.validation.every, options.workers
        guard = Guard(folder, done, every, held, collate, facts, workers, frames, margin)
    stopped = guard.stopped if guard else None
    if folder.weights.exists() and (stopped or done == settings.steps):
        options.say(
            f"{folder.path}: stopped at step {done}: {stopped}; nothing was trained"
            if stopped
            else folder.finished(done)
        )
        return Run(folder.path)
    for line in _introduce(settings, unet, data, held, done):
        options.say(f"{folder.path.name}: {line}")
    if settings.compute.channels_last:
        module.to(memory_format=torch.channels_last)
    with folder.lock(options.launch.rank):
        fit(module, data.feed(module.views), folder, done, options, guard)
        if first:
            _leave_weights(module, folder, facts, guard)
    if first:
        _say_end(folder, call, settings, guard)
    return Run(folder.path)


def _introduce(
    settings: PretrainSettings, unet: UNet, data: PretrainData, held: Sized | None, done: int
) -> Iterator[str]:
    """Lines on what a run begins with."""
    yield from introduce(settings, settings.weights, unet.encoder, unet)
    if not settings.crops_alone:
        wanted = parse_size(settings.size)
        shapes = Counter(
            (record["width"], record["height"])
            for portion in data.portions
            for record in portion.store.manifest["scenes"].values()
            if "width" in record
        )
        for shape, scenes in sorted(shapes.items()):
            _, _, width, height = shape_box(shape, wanted)
            if (width, height) != shape:
                yield (
                    f"frames of {shape[0]}x{shape[1]} ({scenes:,} of {shapes.total():,} scenes) are of another shape "
                    f"than --size {settings.size}: their middle {width}x{height} is taken"
                )
    count = "crops" if settings.crops_alone else "pairs"
    train, rest = (sum(map(len, rows)) for rows in zip(*((p.train, p.held) for p in data.portions), strict=True))
    measured = f"; {len(held)} of these are measured every {settings.validation.every:,} steps" if held else ""
    yield f"{train:,} {count} to train on, {rest:,} held out{measured}"
    tables = [] if settings.crops_alone else [portion.store.pairs() for portion in data.portions]
    few = sum(int((table.overlap < settings.min_overlap).sum()) for table in tables)
    if few:
        yield f"{few:,} further pairs overlap by less than --min-overlap {settings.min_overlap:g} and are left out"
    yield f"{settings.steps:,} steps of {settings.batch} {count}" + (f", {done:,} of them done" if done else "")
    if held is None and settings.weights != "scratch":
        reasons = {
            "--holdout 0: nothing is held out to measure on": settings.holdout == 0,
            "moco alone uses no pairs to measure on": settings.crops_alone,
            "--validation.every 0: nothing is measured": settings.validation.every == 0,
            f"--holdout {settings.holdout:g}: no pair is held out to measure on": True,
        }
        why = next(text for text, holds in reasons.items() if holds)
        yield f"{why}, so the run cannot measure whether the weights get better or worse"


def _leave_weights(module: PretrainModule, folder: RunPaths, facts: Mapping[str, Any], guard: Guard | None) -> None:
    """Write the network that users take: the best measured one, where the settings ask for it, or the last one."""
    record, taken = {**facts, "steps": module.step}, None
    settings, take = module.settings, module.settings.validation.take
    takes_best = take == "best" or (take == "auto" and settings.weights != "scratch")
    if guard is not None and takes_best and guard.history:
        best = guard.best(module.key)
        taken = best["step"] if best.get(module.key) is not None and folder.best.exists() else None
    with module.mixed():
        module.save(folder.weights if taken in (None, module.step) else folder.last, record)
    if taken in (None, module.step):
        return
    with replacing(folder.weights) as part:
        shutil.copyfile(folder.best, part)


def _say_end(folder: RunPaths, call: PretrainOptions, settings: PretrainSettings, guard: Guard | None) -> None:
    """Print what the run has changed, where everything lies, and what can be done next."""
    show = Terminal(stderr=True, highlight=False, soft_wrap=True).print
    name, path = folder.path.name, folder.path
    step = int(read_provenance(folder.weights)["steps"])
    if guard is not None and guard.history:
        show(comparison(guard.summary("gain")))
        if guard.stopped:
            show(f"{name}: stopped at step {guard.history[-1]['step']}: {guard.stopped}. Lower --lr.")
        if step == 0:
            show(
                f"{name}: no measured network was better than the initial one, so weights.safetensors holds the "
                f"initial weights, unchanged."
            )
    held = f" --holdout {settings.holdout:g}" if settings.holdout else ""
    data = " ".join(str(each) for each in paths_of(call.data))
    show(f"{path}: weights.safetensors is the network of step {step}", end="")
    show(f", last.safetensors that of step {guard.history[-1]['step']}" if folder.last.exists() and guard else "")
    show(f"next: pri3d report {path}")
    if len(paths_of(call.data)) == 1 and held:
        show(f"      pri3d probe {data} --weights {path} --features encoder{held}")
    show(f"      pri3d export {path} --to timm --out {name}.safetensors")


def resolve_call(call: PretrainOptions) -> PretrainSettings:
    """Settings of a call: its preset with what was given. Raises ConfigError naming every problem."""
    names = {name for name, _ in PretrainSettings().items()} - {"own"}
    given = {name: value for name, value in call.given().items() if name in names}
    return resolve_pretraining(call.resolved_preset, {**given, **{each.group: each.given() for each in call.options}})


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
        **({"mix": settings.backbone.mix} if settings.backbone.mix < 1 else {}),
        "size": settings.size,
        "holdout": settings.holdout,
        "distance": settings.matching.distance,
        "seed": settings.seed,
        **provenance,
    }
