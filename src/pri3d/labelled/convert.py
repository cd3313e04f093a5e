"""Labelled datasets with objects -> COCO json, and the only place that encodes and decodes COCO's masks."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle
from numpy.typing import NDArray
from rich.progress import Progress

from pri3d.api.coco import CocoOptions
from pri3d.errors import ConfigError, DataError
from pri3d.files.archive import encode
from pri3d.files.atomic import write_atomic
from pri3d.labelled import LabelledImages, open_labelled
from pri3d.terminal import Terminal

_COORDINATES = 6  # of the smallest polygon, a triangle


def coco(options: CocoOptions) -> Path:
    """Write the objects of a labelled set as COCO json, for any tool that reads COCO.

    See :func:`pri3d.coco` for the options.
    """
    data = Path(options.data)
    out = Path(options.out)
    if out.suffix != ".json":
        raise ConfigError(f"{out}: name a .json file, such as {out / f'instances_{options.split}.json'}.")
    images = open_labelled(data, options.split, options.dataset, options.labels)
    rows = images.subset(options.fraction)
    folder = out.with_suffix("")
    with Progress(console=Terminal(stderr=True), transient=True) as progress:
        content, small = _collect(images, progress.track(rows, description="objects"), options.min_area)
        if not content["annotations"]:
            why = (
                f"all {small} have fewer than {options.min_area} pixels: give a smaller --min-area"
                if small
                else "has none"
            )
            raise DataError(f"{data}: no objects in {len(rows)} images of split {options.split}: {why}.")
        for entry, row in zip(content["images"], progress.track(rows, description="images"), strict=True):
            file = images.color_file(row)
            path = folder / _plain(images, f"{images.names[row]}.png") if file is None else file
            # Relative to the json's folder where it lies in it, else absolute; links stay as they are.
            absolute, here = Path(os.path.abspath(path)), Path(os.path.abspath(out.parent))  # noqa: PTH100
            entry["file_name"] = (absolute.relative_to(here) if absolute.is_relative_to(here) else absolute).as_posix()
            if file is None:
                write_atomic(path, encode(images.color(row), "PNG"))
    write_atomic(out, json.dumps(content).encode())
    count = len(content["annotations"])
    text = f"{out}: {len(rows)} images, {count} objects of {len(content['categories'])} classes."
    left_out = f" {small} objects under {options.min_area} pixels left out (--min-area)." if small else ""
    Terminal().print(text + left_out, soft_wrap=True)
    return out


def to_coco(images: LabelledImages, rows: Iterable[int], min_area: int = 1000) -> dict[str, Any]:
    """Content of a COCO json with the objects of some images of a labelled set; writes nothing.

    Image ids are rows + 1 and ``file_name`` is the image's name; category ids are 1..K in the order of
    ``thing_names``; annotation ids count from 1 (0 means "no match" to COCO's evaluation). Boxes are x, y, width,
    height in pixels, segmentations run lengths, areas pixels of the mask. Objects of fewer than ``min_area`` pixels
    are left out (the paper's protocol drops those under 1000), crowds of any size are kept.
    Raises DataError where the set has no objects or an image is damaged.
    """
    return _collect(images, rows, min_area)[0]


def _collect(images: LabelledImages, rows: Iterable[int], min_area: int) -> tuple[dict[str, Any], int]:
    """Return what :func:`to_coco` does, and how many objects were too small."""
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    small = 0
    images.require_objects()
    for row in rows:
        found = images.instances(row)
        height, width = found.masks.shape[1:]
        entries.append({"id": row + 1, "file_name": images.names[row], "width": width, "height": height})
        for mask, box, kind, crowd in zip(*found, strict=True):
            area = int(mask.sum())
            if area < min_area and not crowd:
                small += 1
                continue
            x0, y0, x1, y1 = (float(edge) for edge in box)
            annotation = {
                "id": len(annotations) + 1,
                "image_id": row + 1,
                "category_id": int(kind) + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": area,
                "iscrowd": int(crowd),
                "segmentation": encode_mask(mask),
            }
            annotations.append(annotation)
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(images.thing_names)]
    return {"images": entries, "annotations": annotations, "categories": categories}, small


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Mask (H, W) -> COCO's compressed run lengths ``{"size": [H, W], "counts": str}``, ready for json."""
    packed = rle.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(edge) for edge in packed["size"]], "counts": packed["counts"].decode("ascii")}


def decode_mask(segmentation: Any, size: tuple[int, int], what: str) -> NDArray[np.bool_]:
    """COCO's polygons, run lengths or compressed run lengths -> mask (H, W); ``size`` is (height, width).

    Polygons of fewer than three corners cover nothing. Raises DataError naming ``what`` for anything else, for run
    lengths of another size and for polygons that leave the image by more than its own size.
    """
    try:
        packed = _packed(segmentation, size)
        return np.zeros(size, bool) if packed is None else np.asarray(rle.decode(packed), bool)
    except (ValueError, TypeError, KeyError, RuntimeError, OverflowError) as error:
        raise DataError(f"{what}: its segmentation cannot be read ({error}). Correct or remove it.") from error


def _packed(segmentation: Any, size: tuple[int, int]) -> dict[str, Any] | None:
    """Run lengths of a segmentation, None for none; anything strange raises, before compiled code meets it."""
    packed: dict[str, Any]
    if isinstance(segmentation, dict):
        counts, stated = segmentation["counts"], segmentation["size"]
        if list(stated) != list(size):
            raise ValueError(f"its size is {stated}, its image is {list(size)} (height, width)")
        if isinstance(counts, str | bytes):
            packed = {"size": list(size), "counts": counts}
            counts = rle._mask.toUncompressedRLE([packed])[0]["counts"]
        else:
            if not all(type(run) is int and 0 <= run <= math.prod(size) for run in counts):
                raise ValueError("a run that is no number of pixels of the image")
            packed = rle.frPyObjects({"size": list(size), "counts": counts}, *size)
        if sum(counts) != math.prod(size):
            raise ValueError(f"its runs cover {sum(counts)} pixels of {math.prod(size)}")
        return packed
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        raise TypeError("expected polygons or run lengths")
    if not segmentation:
        raise ValueError("it is empty; masks are needed, boxes are not enough")
    limit = 2 * max(size)
    for number in chain.from_iterable(segmentation):
        if not isinstance(number, int | float) or not abs(number) <= limit:
            raise ValueError(f"a corner at {number}, in an image of {size[1]}x{size[0]}")
    if any(len(polygon) % 2 for polygon in segmentation):
        raise ValueError("a polygon with an odd number of coordinates")
    # The library takes four numbers for a box.
    polygons = [[float(number) for number in polygon] for polygon in segmentation if len(polygon) >= _COORDINATES]
    packed = rle.merge(rle.frPyObjects(polygons, *size)) if polygons else {}
    return packed or None


def _plain(images: LabelledImages, name: str) -> PurePosixPath:
    """A name as a path below a folder. Raises DataError for one that leads out of it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{images.path}: image name {name!r} points outside of the output folder. Rename it.")
    return path
