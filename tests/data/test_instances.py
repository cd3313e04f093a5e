from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pri3d.data.augment import STRONG
from pri3d.data.labelled import InstanceDataset
from pri3d.data.sampler import Draw
from pri3d.errors import DataError
from pri3d.labelled import LabelledImages
from pri3d.tasks.instance import InstanceRecipe
from pri3d.types import Instances


def box_of(mask):
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


class Drawn(LabelledImages):
    """Three images of noise: four objects, one of them a crowd and one of 4 pixels; none; one."""

    looks_for = "nothing"
    has_objects = True

    def __init__(self, path=Path("drawn"), split="all", labels=None):
        self.path, self.names = path, ["four", "none", "one"]
        self.class_names, self.things = ["wall", "chair", "table"], [1, 2]

    @classmethod
    def detect(cls, path):
        return False

    def color(self, k):
        return np.random.default_rng(k).integers(0, 256, (30 + k, 40, 3), np.uint8)

    def instances(self, k):
        corners = [[(2, 3, 12, 13), (20, 5, 38, 25), (14, 1, 16, 3), (0, 20, 30, 30)], [], [(5, 5, 9, 20)]][k]
        masks = np.zeros((len(corners), 30 + k, 40), bool)
        for mask, (x0, y0, x1, y1) in zip(masks, corners, strict=True):
            mask[y0:y1, x0:x1] = True
            mask[y0, x0] = (x1 - x0) * (y1 - y0) < 5  # no rectangle, so that a mirrored mask differs
        crowd = np.arange(len(corners)) == 3
        boxes = np.array([box_of(mask) for mask in masks], np.float32).reshape(-1, 4)
        return Instances(masks, boxes, np.arange(len(corners)) % 2, crowd)


def test_objects_that_are_learnt():
    item = InstanceDataset(Drawn())[Draw(0, 0)]
    assert item.name == "four" and item.image.shape == (3, 30, 40) and item.image.dtype == torch.uint8
    assert item.masks.shape == (3, 30, 40) and item.masks.dtype == torch.uint8
    assert item.boxes.tolist() == [[2, 3, 12, 13], [20, 5, 38, 25], [14, 1, 16, 3]]  # not the crowd
    assert item.classes.tolist() == [0, 1, 0]
    assert [type(part) for part in item] == [torch.Tensor] * 4 + [str]
    assert np.array_equal(item.image.permute(1, 2, 0).numpy(), Drawn().color(0))


def test_small_objects_are_left_out():
    sizes = [int(mask.sum()) for mask in InstanceDataset(Drawn())[Draw(0, 0)].masks]
    assert sizes == [99, 359, 4]
    for least, kept in ((4, 3), (5, 2), (99, 2), (100, 1), (360, 0)):
        item = InstanceDataset(Drawn(), min_area=least)[Draw(0, 0)]
        assert len(item.masks) == len(item.boxes) == len(item.classes) == kept


def test_an_image_without_objects_stays():
    item = InstanceDataset(Drawn(), mirror=True, recipe=STRONG)[Draw(0, 1)]
    assert item.masks.shape == (0, 31, 40) and item.boxes.shape == (0, 4) and item.classes.shape == (0,)
    assert item.classes.dtype == torch.int64 and item.boxes.dtype == torch.float32


def test_a_mirrored_image_takes_its_objects_along():
    plain = InstanceDataset(Drawn())[Draw(0, 0)]
    dataset = InstanceDataset(Drawn(), seed=3, mirror=True)
    items = [dataset[Draw(epoch, 0)] for epoch in range(60)]
    flipped = [not torch.equal(item.image, plain.image) for item in items]
    assert 15 <= sum(flipped) <= 45
    for item, turned in zip(items, flipped, strict=True):
        assert torch.equal(item.image, plain.image.flip(-1) if turned else plain.image)
        assert torch.equal(item.masks, plain.masks.flip(-1) if turned else plain.masks)
        assert item.boxes.tolist() == [box_of(mask.numpy()) for mask in item.masks]
        assert type(item.boxes) is torch.Tensor


def test_a_draw_is_repeatable():
    def draw(seed, epoch, item):
        return InstanceDataset(Drawn(), seed=seed, recipe=STRONG, mirror=True)[Draw(epoch, item)]

    torch.manual_seed(0)
    first = draw(0, 4, 0)
    torch.manual_seed(1)
    again = draw(0, 4, 0)
    assert torch.equal(first.image, again.image) and torch.equal(first.masks, again.masks)
    assert not torch.equal(first.image, draw(0, 5, 0).image)
    assert not torch.equal(first.image, draw(1, 4, 0).image)


def test_rows_and_batches():
    dataset = InstanceDataset(Drawn(), rows=[2, 1])
    assert len(dataset) == 2
    batch = InstanceRecipe.collate([dataset[Draw(0, 0)], dataset[Draw(0, 1)]])
    assert batch.names == ["one", "none"]
    assert [tuple(image.shape) for image in batch.images] == [(3, 32, 40), (3, 31, 40)]
    assert all(image.dtype == torch.float32 and image.min() >= 0 and 0.9 < image.max() <= 1 for image in batch.images)
    assert torch.equal((batch.images[0] * 255).round().byte(), dataset[Draw(0, 0)].image)
    assert [len(part) for part in batch.boxes] == [len(part) for part in batch.masks] == [1, 0]
    assert batch.classes[0].tolist() == [0]


def test_masks_of_another_size_are_refused():
    class Odd(Drawn):
        def color(self, k):
            return np.zeros((20, 40, 3), np.uint8)

    with pytest.raises(DataError, match="image four is 40x20 pixels, its objects are of 40x30"):
        InstanceDataset(Odd())[Draw(0, 0)]


def test_loading_processes_see_the_same():
    dataset = InstanceDataset(Drawn(), recipe=STRONG, mirror=True)
    draws = [Draw(0, 0), Draw(0, 1), Draw(0, 2)]
    loader = torch.utils.data.DataLoader(dataset, 3, sampler=draws, collate_fn=InstanceRecipe.collate, num_workers=1)
    (batch,) = loader
    here = InstanceRecipe.collate([dataset[draw] for draw in draws])
    for ours, theirs in zip(batch[:4], here[:4], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
