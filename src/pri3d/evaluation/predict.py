"""``pri3d predict``: a fine-tuned network on any image, folder or video -> masks, pictures and json."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from pri3d.drawing import draw_classes, draw_detections, palette
from pri3d.errors import ConfigError, DataError, WeightsError
from pri3d.evaluation.media import Picture, is_written, open_media, refuse_failed, until_damaged, write_video
from pri3d.evaluation.networks import Network, Which, find_weights, open_network
from pri3d.files.archive import encode
from pri3d.files.atomic import write_atomic
from pri3d.labelled.convert import encode_mask
from pri3d.runs import read_json, write_json
from pri3d.types import Detections

CLASSES = "classes.json"  #: of the output folder: what its ids mean, and what it was made with
_SCORE = 0.5  # under which objects are left out where nothing is said
#: what :func:`_facts` says of an output folder -> how a message names another one
_OTHER = {
    "task": "of another task",
    "weights": "of other weights",
    "threshold": "of another --threshold",
    "classes": "with other classes or colours",
}


def predict(
    run: Path,
    source: Path,
    out: Path = Path("predictions"),
    weights: Which = "best",
    threshold: float | None = None,
    every: int = 1,
    overwrite: bool = False,
) -> Path:
    """Predict an image, a folder of images (with its subfolders) or a video with a fine-tuned network.

    Writes for each image NAME_overlay.jpg to look at and NAME.json: of semantic segmentation the share of each class,
    and NAME.png with the class ids as a palette image; of instance segmentation the objects in COCO's form. NAME is the
    image's path below the folder; of a video its name and the frame's number. classes.json says what ids and colours
    mean; of a video an overlay of all frames is written, too. Images that are there already are skipped, so a stopped
    command continues. An image that cannot be read is listed while the others go on.

    Args:
        run: folder of a fine-tuning run, or one of its weights files.
        source: image, folder of images, or video (with the extra `video`; animated GIF, WebP and PNG without it).
        out: folder to write to.
        weights: best or last network of the run; last where there is no best.
        threshold: of instance segmentation: score from 0 to 1 under which objects are left out, 0.5 if not given.
        every: take every so many images or frames.
        overwrite: make what is there anew.

    Returns:
        The folder of the predictions.

    Raises:
        ConfigError: a flag is out of range or not of the network's task, or ``out`` was made with other weights or
            another threshold.
        DataError: the source cannot be read, or some image could not be (the others are there).
        WeightsError: the run has no such network.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"--threshold {threshold}: give a score between 0 and 1.")
    media = open_media(source, every, out)
    console = Console(stderr=True, soft_wrap=True)
    network = open_network(*_weights(run, weights, console))
    facts = _facts(network, threshold)
    _claim(out, facts, overwrite)
    if media.videos:
        console.print(f"{escape(str(source))}: videos left out: {media.videos}. Predict each by itself.")
    done: list[str] = []
    failed: list[str] = []
    fresh = False
    shown = track(media.pictures, "predicting", media.total, console=console, transient=True)
    for picture in until_damaged(shown, failed):
        try:
            fresh |= _predict_one(network, picture, out, facts, overwrite)
            done.append(picture.name)
        except DataError as error:
            console.print(f"skipped {escape(str(error))}")
            failed.append(str(error))
    if media.rate is not None:
        _join(out, out / f"{source.stem}_overlay.mp4", done, Fraction(media.rate), fresh, console)
    refuse_failed(failed, len(done), out)
    console.print(f"{len(done)} predicted in {escape(str(out))}")
    return out


def _weights(run: Path, weights: Which, console: Console) -> tuple[Path, Which]:
    """File of the network, and which of the two it is."""
    if run.is_file():
        return run, weights
    if weights == "last":
        return find_weights(run, "last"), "last"
    try:
        return find_weights(run, "best"), "best"
    except WeightsError:
        file = find_weights(run, "last")
    console.print(f"{escape(str(run))} has no best network: it was not validated. The last one predicts.")
    return file, "last"


def _facts(network: Network, threshold: float | None) -> dict[str, Any]:
    """What holds for the whole output folder. Raises ConfigError for a threshold where there are no objects."""
    names, instance = network.task.class_names, network.task.name == "instance"
    if instance:
        threshold = _SCORE if threshold is None else threshold
    elif threshold is not None:
        raise ConfigError(f"--threshold {threshold}: is of objects; {network.path} labels pixels. Leave it out.")
    colors = palette(names).tolist()
    classes = [{"id": k + instance, "name": name, "color": colors[k]} for k, name in enumerate(names)]
    made_with = {"weights": network.hash, "threshold": threshold}
    return {"task": network.task.name, **made_with, "classes": classes}


def _claim(out: Path, facts: dict[str, Any], overwrite: bool) -> None:
    """Write down what the folder is made with. Raises ConfigError where that was something else before."""
    path = out / CLASSES
    if path.is_file() and not overwrite:
        before = read_json(path)
        before = before if isinstance(before, dict) else {}
        for name, other in _OTHER.items():
            if before.get(name) != facts[name]:
                raise ConfigError(
                    f"{out}: holds predictions {other}. Choose another --out, or make it anew with --overwrite."
                )
    write_json(path, facts)


def _predict_one(network: Network, picture: Picture, out: Path, facts: dict[str, Any], overwrite: bool) -> bool:
    """Predict one picture and write what belongs to it, the json last: where that is there, all is.

    Returns whether there was anything to do.
    """
    record = out / f"{picture.name}.json"
    made_with = {name: facts[name] for name in ("weights", "threshold")}
    before = {} if overwrite else _read(record)
    if before.get("image", picture.source) != picture.source:
        raise DataError(f"{picture.source}: {record} is of {before['image']}. Choose another --out.")
    if all(before.get(name) == value for name, value in made_with.items()):
        return False
    color = picture.load()
    found = network.task.predict(network.model, color)
    names = network.task.class_names
    about: dict[str, Any] = {"image": picture.source, "width": color.shape[1], "height": color.shape[0]}
    about |= made_with
    if isinstance(found, Detections) and facts["threshold"] is not None:
        keep = found.scores >= facts["threshold"]
        found = Detections(found.masks[keep], found.boxes[keep], found.classes[keep], found.scores[keep])
        drawn = draw_detections(color, found, names)
        about["objects"] = list(_objects(found, names))
    elif isinstance(found, np.ndarray) and found.dtype == np.uint8 and found.shape == color.shape[:2]:
        drawn = draw_classes(color, found, names)
        shares = np.bincount(found.ravel(), minlength=len(names)) / found.size
        about["classes"] = {name: round(float(share), 6) for name, share in zip(names, shares, strict=False)}
        write_atomic(out / f"{picture.name}.png", _palette_png(found, names))
    else:
        task = facts["task"]
        raise ConfigError(
            f"{network.path}: what task {task} predicts is neither a class map nor objects, so it cannot be drawn. "
            "Call predict() of pri3d.tasks.load_task(RUN).task in Python."
        )
    write_atomic(_overlay(out, picture.name), encode(drawn, "JPEG"))
    write_json(record, about)
    return True


def _read(record: Path) -> dict[str, Any]:
    """What a record says; nothing where there is none or it is damaged."""
    try:
        about = read_json(record) if record.is_file() else {}
    except DataError:
        return {}
    return about if isinstance(about, dict) else {}


def _objects(found: Detections, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Objects in COCO's form, best first: category ids from 1, boxes x, y, width, height in pixels."""
    for mask, box, kind, score in zip(*found, strict=True):
        x0, y0, x1, y1 = (round(float(v), 2) for v in box)
        yield {
            "category_id": int(kind) + 1,
            "class": names[kind],
            "score": round(float(score), 4),
            "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
            "area": int(mask.sum()),
            "segmentation": encode_mask(mask),
        }


def _palette_png(label: NDArray[np.uint8], class_names: Sequence[str]) -> bytes:
    """Class ids (H, W) as PNG that viewers show in the classes' colours and programs read as ids."""
    image = Image.fromarray(label)
    image.putpalette(palette(class_names).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _overlay(out: Path, name: str) -> Path:
    return out / f"{name}_overlay.jpg"


def _join(out: Path, path: Path, pictures: Sequence[str], rate: Fraction, fresh: bool, console: Console) -> None:
    """Join the overlays to a video where that is possible and was not done before."""
    if not fresh and is_written(path, len(pictures), rate):  # with another --frame-step it is of others
        return
    if write_video(path, [_overlay(out, picture) for picture in pictures], rate):
        console.print(f"video: {escape(str(path))}")
    elif pictures:
        console.print('frames alone; with pip install "pri3d[video]" they are joined to a video, too', markup=False)
