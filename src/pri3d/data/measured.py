"""Frames of a prepared dataset in memory, with the targets of read-outs: depth, normals, classes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from pri3d.data.augment import to_tensor
from pri3d.geometry.normals import surface_normals
from pri3d.geometry.resize import crop_to_shape, resize_color, resize_nearest, shape_box
from pri3d.labelled import LabelledImages
from pri3d.labelled.spaces import IGNORED
from pri3d.store import PairTable, Store


class MeasuredFrames(NamedTuple):
    """N images in memory with what can be read off features."""

    color: Tensor  #: (N, 3, H, W) uint8
    depth: Tensor  #: (N, H, W) metres, 0 = invalid
    normal: Tensor  #: (N, 3, H, W) of length 1, 0 = none
    label: Tensor  #: (N, H, W) uint8, 255 = ignored
    classes: int  #: that labels count, 0 where there are none


def read_frames(
    store: Store, table: PairTable, rows: NDArray[np.int64], size: tuple[int, int], labels: LabelledImages | None
) -> MeasuredFrames:
    """Read the frames of ``rows`` of a :func:`frame_table` at ``size`` (width, height); normals are made of depth.

    Of frames of another shape the middle is taken.

    Raises DataError where the store is damaged or a label has a class without a name.
    """
    at = {name: k for k, name in enumerate(labels.names)} if labels else {}
    color, depth, cameras, label = [], [], [], []
    for row in track(rows.tolist(), description="reading frames", transient=True):
        scene = store.scene(str(table.scene[row]))
        whole = scene.view(int(table.i[row]))
        view = crop_to_shape(whole, size)
        height, width = view.depth.shape
        color.append(to_tensor(resize_color(view.color, size)))
        depth.append(torch.from_numpy(resize_nearest(view.depth, size)))
        cameras.append(torch.from_numpy(view.intrinsics * np.tile((size[0] / width, size[1] / height), 2)).float())
        k = at.get(f"{scene.id}/{view.name}")
        found = np.full((size[1], size[0]), IGNORED, np.uint8)
        if labels and k is not None:
            ids = labels.label(k)
            left, top, width, height = shape_box((ids.shape[1], ids.shape[0]), size)
            found = resize_nearest(ids[top : top + height, left : left + width], size)
        label.append(torch.from_numpy(found))
    stacked = torch.stack(depth)
    few = torch.split(stacked, 4), torch.split(torch.stack(cameras), 4)
    normal = torch.cat([surface_normals(*part) for part in zip(*few, strict=True)])
    classes = len(labels.class_names) if labels else 0
    return MeasuredFrames(torch.stack(color), stacked, normal, torch.stack(label), classes)


def read_images(images: LabelledImages, rows: NDArray[np.int64], size: tuple[int, int]) -> MeasuredFrames:
    """Read ``rows`` of a labelled set at ``size`` (width, height); depth and normals are (N, 0).

    Raises DataError where a file is missing or damaged.
    """
    color, label = [], []
    for row in track(rows.tolist(), description="reading labelled images", transient=True):
        color.append(to_tensor(resize_color(images.color(row), size)))
        label.append(torch.from_numpy(resize_nearest(images.label(row), size)))
    none = torch.zeros(len(rows), 0)
    return MeasuredFrames(torch.stack(color), none, none, torch.stack(label), len(images.class_names))


def choose_evenly(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most ``most`` of the (N,) rows, evenly spaced."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(np.int64))]
