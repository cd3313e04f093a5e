"""Class map + instance map -> objects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pri3d.types import Instances


def find_objects(label: NDArray[np.uint8], instance: NDArray[np.int32], things: Sequence[int]) -> Instances:
    """Every instance id > 0 whose class is one of ``things`` -> an object.

    ``label`` (H, W) class ids, ``instance`` (H, W) ids. An id that covers several classes has the most frequent one.
    Objects come in the order of their ids; boxes enclose the masks.
    """
    height, width = label.shape
    masks, boxes, classes = [], [], []
    for number in np.unique(instance[instance > 0]):
        mask = instance == number
        kind = int(np.bincount(label[mask]).argmax())
        if kind not in things:
            continue
        rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
        masks.append(mask)
        boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        classes.append(list(things).index(kind))
    return Instances(
        np.array(masks, bool).reshape(-1, height, width),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(classes, np.int64),
        np.zeros(len(masks), bool),
    )
