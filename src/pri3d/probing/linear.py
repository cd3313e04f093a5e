"""Linear probes: depth, normals and classes predicted from frozen features by a linear map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pri3d.api.options import AnyPath
from pri3d.data.measured import MeasuredFrames, choose_evenly, read_images
from pri3d.errors import ConfigError, DataError
from pri3d.labelled import LabelledImages, Split, open_labelled
from pri3d.networks.load import Dense
from pri3d.networks.readout import (
    FOLDS,
    ClassErrors,
    DepthErrors,
    DepthScore,
    NormalErrors,
    NormalScore,
    ReadoutTargets,
    SegmentationScore,
    fit_readout,
)
from pri3d.probing.differences import Sample, measure_classes, measure_depth, measure_normals
from pri3d.probing.networks import check_finite
from pri3d.terminal import track

BATCH = 8  #: images at a time
SCORED: tuple[Split, ...] = ("val", "test")  #: of labelled images of another kind


class Side(NamedTuple):
    """Frames that a read-out is fitted to, and those that it is scored on."""

    train: MeasuredFrames
    test: MeasuredFrames


class LinearScores(NamedTuple):
    """Scores on held-out frames; None where it was not asked for."""

    depth: DepthScore | None = None
    normals: NormalScore | None = None
    segmentation: SegmentationScore | None = None


@torch.no_grad()
def probe_linear(
    dense: Dense, sides: Sequence[Side], tasks: Sequence[str], seed: int, name: str = "network"
) -> tuple[LinearScores, dict[str, Sample]]:
    """Fit read-outs of frozen features to training frames and score them on the held-out ones, all sides together.

    Returns the scores, and what they are made of by task, frame by frame. Raises WeightsError where features are not
    finite, DataError where training frames have nothing to learn from.
    """

    def batches(frames: MeasuredFrames, what: str) -> Iterator[tuple[list[Tensor], ReadoutTargets]]:
        device = next(dense.parameters()).device
        columns = [frames.color, frames.depth, frames.normal, frames.label]
        parts = list(zip(*(torch.split(x, BATCH) for x in columns), strict=True))
        for part in track(parts, f"{what}, {name}"):
            color, depth, normal, label = (x.to(device) for x in part)
            maps = dense.maps(color.float() / 255)
            for x in maps:
                check_finite(x, name)
            found = {"depth": depth, "normals": normal, "segmentation": label}
            yield maps, ReadoutTargets(**{task: found[task] for task in tasks})

    depth, normals, classes = DepthErrors(), NormalErrors(), ClassErrors(sides[0].test.classes)
    for train, test in sides:
        readout = fit_readout(batches(train, "read-out"), dense.strides, len(train.color), train.classes, seed=seed)
        for maps, targets in batches(test, "held-out frames"):
            found = readout.predict(maps, (int(test.color.shape[-2]), int(test.color.shape[-1])))
            if targets.depth is not None:
                depth.update(found["depth"], targets.depth)
            if targets.normals is not None:
                normals.update(found["normals"], targets.normals)
            if targets.segmentation is not None:
                classes.update(found["segmentation"], targets.segmentation)
    scores, samples = LinearScores(), {}
    if "depth" in tasks:
        scores = scores._replace(depth=depth.result())
        samples["depth"] = Sample(depth.frames().numpy(), measure_depth)
    if "normals" in tasks:
        scores = scores._replace(normals=normals.result())
        samples["normals"] = Sample(normals.frames().numpy(), measure_normals)
    if "segmentation" in tasks:
        scores = scores._replace(segmentation=classes.result())
        samples["segmentation"] = Sample(classes.frames().numpy(), measure_classes)
    return scores, samples


def open_guards(
    paths: Sequence[AnyPath],
    size: tuple[int, int],
    most: int,
    datasets: Sequence[str],
    labels: Sequence[str],
) -> dict[str, list[Side]]:
    """Labelled images of other kinds, whose classes are to be read off: their name in the tables -> their sides.

    Of each set the images of train are learnt from, and those of val and test are scored. Of a set without images to
    train on, each contiguous fifth of all is scored by a read-out of the rest. ``most`` bounds the images of each
    split, evenly spaced. ``datasets`` and ``labels`` are formats and label maps, one for each path or one for all.

    Raises DataError or ConfigError as :func:`pri3d.labelled.open_labelled`, ConfigError for another number of formats
    or label maps, and DataError where a side has no image, or none with a label.
    """
    for flag, given in (("--guard-dataset", datasets), ("--guard-label-map", labels)):
        if len(given) not in (0, 1, len(paths)):
            raise ConfigError(
                f"{flag} {' '.join(given)}: give one for each of the {len(paths)} --guard datasets, or one for all."
            )
    found = {}
    for k, path in enumerate(map(Path, paths)):
        dataset, label_map = (of[k if len(of) > 1 else 0] if of else None for of in (datasets, labels))
        name = str(path) if [Path(other).name for other in paths].count(path.name) > 1 else path.name
        found[name] = _read_sides(path, size, most, dataset, label_map)
    return found


def _read_sides(path: Path, size: tuple[int, int], most: int, dataset: str | None, labels: str | None) -> list[Side]:
    try:
        train = open_labelled(path, "train", dataset, labels)
    except DataError as reason:
        whole = _read_side(open_labelled(path, "all", dataset, labels), (), size, most)
        count = len(whole.color)
        if count < 2:
            raise DataError(
                f"{path}: one image cannot be used for both training and evaluation. Add images."
            ) from reason
        part = torch.arange(count) * min(FOLDS, count) // count
        return [Side(_select(whole, part != k), _select(whole, part == k)) for k in sorted(set(part.tolist()))]
    held: list[MeasuredFrames] = []
    taken, missing = list(train.names), DataError(f"{path}: all its val and test images are in train, too.")
    for split in SCORED:
        try:
            images = open_labelled(path, split, dataset, labels)
        except DataError as reason:  # most sets have one of both
            missing = reason
            continue
        if set(images.names) - set(taken):
            held.append(_read_side(images, taken, size, most))
            taken += images.names
    if not held:
        raise missing
    color, depth, normal, label = (torch.cat(x) for x in list(zip(*held, strict=True))[:4])
    test = MeasuredFrames(color, depth, normal, label, held[0].classes)
    return [Side(_read_side(train, (), size, most), test)]


def _read_side(images: LabelledImages, taken: Sequence[str], size: tuple[int, int], most: int) -> MeasuredFrames:
    names = set(taken)
    rows = np.array([k for k, name in enumerate(images.names) if name not in names])
    frames = read_images(images, choose_evenly(rows, most), size)
    if not bool((frames.label < frames.classes).any()):
        raise DataError(f"{images.path}: no image of split {images.purpose} has a label. Give others to --guard.")
    return frames


def _select(frames: MeasuredFrames, chosen: Tensor) -> MeasuredFrames:
    color, depth, normal, label = (x[chosen] for x in frames[:4])
    return MeasuredFrames(color, depth, normal, label, frames.classes)
