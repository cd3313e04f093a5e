"""Linear probes: how much of depth, normals and classes a linear map reads off frozen features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from rich.progress import track
from torch import Tensor

from pri3d.data.measured import MeasuredFrames
from pri3d.networks.readout import (
    ClassErrors,
    DepthErrors,
    DepthScore,
    NormalErrors,
    NormalScore,
    ReadoutTargets,
    SegmentationScore,
    fit_readout,
)
from pri3d.probing.networks import Dense, check_finite

BATCH = 8  #: images at a time


class LinearScores(NamedTuple):
    """Scores on held-out frames; None where it was not asked for."""

    depth: DepthScore | None = None
    normals: NormalScore | None = None
    segmentation: SegmentationScore | None = None


@torch.no_grad()
def probe_linear(
    dense: Dense,
    train: MeasuredFrames,
    test: MeasuredFrames,
    tasks: Sequence[str],
    seed: int,
    name: str = "network",
) -> LinearScores:
    """Fit a read-out of frozen features to the training frames and score it on the held-out ones.

    Raises WeightsError where features are not finite, DataError where a training frame has nothing to learn from.
    """

    def batches(frames: MeasuredFrames, what: str) -> Iterator[tuple[list[Tensor], ReadoutTargets]]:
        device = next(dense.parameters()).device
        columns = [frames.color, frames.depth, frames.normal, frames.label]
        parts = list(zip(*(torch.split(x, BATCH) for x in columns), strict=True))
        for part in track(parts, description=f"{what}, {name}", transient=True):
            color, depth, normal, label = (x.to(device) for x in part)
            maps = dense.maps(color.float() / 255)
            for x in maps:
                check_finite(x, name)
            found = {"depth": depth, "normals": normal, "segmentation": label}
            yield maps, ReadoutTargets(**{task: found[task] for task in tasks})

    readout = fit_readout(batches(train, "read-out"), dense.strides, len(train.color), train.classes, seed=seed)
    size = (int(test.depth.shape[-2]), int(test.depth.shape[-1]))
    depth, normals, classes = DepthErrors(), NormalErrors(), ClassErrors(test.classes)
    for maps, targets in batches(test, "held-out frames"):
        found = readout.predict(maps, size)
        if targets.depth is not None:
            depth.update(found["depth"], targets.depth)
        if targets.normals is not None:
            normals.update(found["normals"], targets.normals)
        if targets.segmentation is not None:
            classes.update(found["segmentation"], targets.segmentation)
    return LinearScores(
        depth.result() if "depth" in tasks else None,
        normals.result() if "normals" in tasks else None,
        classes.result() if "segmentation" in tasks else None,
    )
