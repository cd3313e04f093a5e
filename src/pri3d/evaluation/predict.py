"""``pri3d predict``: a fine-tuned network on any image, folder or video -> masks, overlays and json."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pri3d.api.predict import PredictOptions
from pri3d.data.reading import reading
from pri3d.drawing import palette
from pri3d.errors import ConfigError, DataError, WeightsError
from pri3d.evaluation.media import FINEST, Picture, open_media, refuse_failed, until_damaged, write_video
from pri3d.files.archive import encode
from pri3d.files.atomic import write_atomic
from pri3d.files.lock import lock_folder
from pri3d.files.stamp import stamp
from pri3d.runs import read_json, write_json
from pri3d.tasks import Trained, find_weights, in_groups, load_task, prediction_batch
from pri3d.terminal import Terminal, track

CLASSES = "classes.json"  #: of the output folder: what its ids mean, and what it was made with
_FIX = "Choose another --out, or start over with --overwrite."


def predict(options: PredictOptions) -> Path:
    """Predict an image, a folder of images (with its subfolders) or a video with a fine-tuned network.

    See :func:`pri3d.predict` for the options.
    """
    run = Path(options.run)
    source = Path(options.source)
    out = Path(options.out)
    media = open_media(source, options.frame_step, out)
    console = Terminal(stderr=True, soft_wrap=True)
    file = run
    if not run.is_file():
        try:
            file = find_weights(run, options.which)
        except WeightsError:
            if options.which != "best":
                raise
            file = find_weights(run, "last")
            console.print(f"{run} has no best network: it was not validated. Using the last one.")
    network = load_task(file).to_device()
    facts = _facts(network, options.threshold)
    if media.left_out:
        console.print(f"{source}: skipped: {media.left_out}. Give a video separately.")
    done: list[str] = []
    failed: list[str] = []
    fresh = False
    made_with = {name: facts[name] for name in ("weights", "threshold")}

    def wanted(picture: Picture) -> NDArray[np.uint8] | None:
        return None if not options.overwrite and _is_done(picture, out, made_with) else picture.load()

    with lock_folder(out):
        if options.overwrite:
            write_json(out / CLASSES, facts)
        else:
            stamp(out / CLASSES, facts, _FIX)
        loaded = reading(until_damaged(media.pictures, failed), wanted, pixels=Picture.size)
        tracked = track(loaded, "predicting", media.total, console, lambda item: item[0].label())
        for group in in_groups(tracked, prediction_batch(network.model), lambda item: item[0].size()):
            read: list[tuple[Picture, NDArray[np.uint8] | None]] = []
            for picture, color in group:
                try:
                    read.append((picture, color.result()))
                except DataError as error:
                    console.print(f"skipped {error}")
                    failed.append(str(error))
            fresh |= _predict_some(network, read, out, made_with)
            done += [picture.name for picture, _ in read]
        if media.rate is not None:
            _join(out, out / f"{source.stem}_overlay.mp4", done, Fraction(media.rate), fresh, console)
    refuse_failed(failed, len(done), out)
    console.print(f"{len(done)} predicted in {out}")
    return out


def _facts(network: Trained, threshold: float | None) -> dict[str, Any]:
    """What holds for the whole output folder. Raises ConfigError for a threshold where predictions have no scores."""
    task = network.task
    if threshold is not None and task.threshold is None:
        raise ConfigError(f"--threshold {threshold}: applies to objects; {network.file} predicts none. Leave it out.")
    names, colors = task.class_names, palette(task.class_names).tolist()
    classes = [{"id": k + task.first_id, "name": name, "color": colors[k]} for k, name in enumerate(names)]
    least = task.threshold if threshold is None else threshold
    return {"task": task.name, "weights": network.hash, "threshold": least, "classes": classes}


def _is_done(picture: Picture, out: Path, made_with: dict[str, Any]) -> bool:
    """Whether what belongs to a picture is there. Raises DataError where it is of another image of the name."""
    record = out / f"{picture.name}.json"
    try:
        about = read_json(record) if record.is_file() else {}
    except DataError:  # damaged: as if it were not there
        return False
    if not isinstance(about, dict):
        return False
    if about.get("image", picture.source) != picture.source:
        raise DataError(f"{picture.source}: {record} is of {about['image']}. Choose another --out.")
    return all(about.get(name) == value for name, value in made_with.items())


def _predict_some(
    network: Trained, read: Sequence[tuple[Picture, NDArray[np.uint8] | None]], out: Path, made_with: dict[str, Any]
) -> bool:
    """Predict the pictures that have pixels together and write what belongs to each; return whether there was one.

    The json comes last: where that is there, all is.
    """
    new = [(picture, pixels) for picture, pixels in read if pixels is not None]
    found = network.task.predict_many(network.model, [pixels for _, pixels in new]) if new else []
    for (picture, pixels), one in zip(new, found, strict=True):
        kept = one if made_with["threshold"] is None else network.task.keep(one, made_with["threshold"])
        about = {"image": picture.source, "width": pixels.shape[1], "height": pixels.shape[0], **made_with}
        about |= network.task.record(kept)
        for ending, content in network.task.extras(kept).items():
            write_atomic(out / f"{picture.name}{ending}", content)
        write_atomic(_overlay(out, picture.name), encode(network.task.draw(pixels, kept), "JPEG"))
        write_json(out / f"{picture.name}.json", about)
    return bool(new)


def _overlay(out: Path, name: str) -> Path:
    return out / f"{name}_overlay.jpg"


def _join(out: Path, path: Path, pictures: Sequence[str], rate: Fraction, fresh: bool, console: Terminal) -> None:
    """Join the overlays to a video where that is possible and was not done before."""
    with suppress(DataError):  # there is none, or it was not finished
        if not fresh:
            there = open_media(path)
            if (there.total, there.rate) == (len(pictures), rate.limit_denominator(FINEST)):
                return  # with another --frame-step it is of others
    if write_video(path, [_overlay(out, picture) for picture in pictures], rate):
        console.print(f"video: {path}")
    elif pictures:
        console.print('only frames; with pip install "pri3d[video]" a video is written, too')
