"""Linear probes as a whole: a linear relation is read off frames; the frames they are fitted to and scored on."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pri3d.data.crops import frame_table
from pri3d.data.measured import MeasuredFrames, read_frames
from pri3d.data.pairs import split_pairs
from pri3d.errors import WeightsError
from pri3d.labelled.prepared import PreparedImages
from pri3d.networks.load import Dense
from pri3d.probing.linear import Side, probe_linear
from pri3d.store import Store


class Shown(nn.Module):
    """In the place of a network: its features are the image at half the resolution."""

    strides = (2,)

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.factor * nn.functional.avg_pool2d(images, 2)]


def painted(count: int, seed: int) -> MeasuredFrames:
    """Images whose colour tells depth, normal and class linearly; cells of 2 x 2 pixels of one colour."""
    generator = torch.Generator().manual_seed(seed)
    color = torch.randint(0, 256, (count, 3, 1, 1), generator=generator).expand(-1, -1, 16, 16)
    share = color / 255
    depth = 1 + 2 * share[:, 0] + share[:, 1]
    normal = nn.functional.normalize(share - torch.tensor([0.5, 0.5, 2.5]).view(3, 1, 1), dim=1)
    label = (share[:, 0] > 0.5).to(torch.uint8)
    depth = depth.clone()
    depth[:, :4] = 0  # never counts, whatever is predicted there
    return MeasuredFrames(color.to(torch.uint8), depth, normal, label, 2)


def test_a_linear_relation_is_learned() -> None:
    dense: Dense = Shown()  # type: ignore[assignment]
    train, test = painted(24, 0), painted(32, 1)
    tasks = ("depth", "normals", "segmentation")
    learned, samples = probe_linear(dense, [Side(train, test)], tasks, 0)
    assert learned.depth and learned.normals and learned.segmentation
    assert learned.depth.rmse < 0.01
    assert learned.depth.delta1 == 1
    assert learned.depth.pixels == 32 * 12 * 16
    assert learned.normals.mean < 2.5
    assert learned.segmentation.accuracy > 0.9
    assert learned.segmentation.classes == 2
    # Neither the scale of the features nor the other tasks change a probe.
    alone, _ = probe_linear(Shown(1e4), [Side(train, test)], ("depth",), 0)  # type: ignore[arg-type]
    assert alone.depth and alone.depth.rmse == pytest.approx(learned.depth.rmse, abs=1e-4)
    assert alone.normals is None
    # Every side has a read-out of its own, and all are scored together.
    assert {task: len(sample.sums) for task, sample in samples.items()} == dict.fromkeys(tasks, 32)
    both, samples = probe_linear(dense, [Side(train, test), Side(test, train)], ("depth",), 0)
    assert both.depth and both.depth.pixels == (32 + 24) * 12 * 16
    assert len(samples["depth"].sums) == 32 + 24


def test_features_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(WeightsError, match="bad: its features are not finite"):
        probe_linear(Shown(math.nan), [Side(painted(2, 0), painted(2, 1))], ("depth",), 0, "bad")  # type: ignore[arg-type]


def test_frames_are_split_as_pairs_are(rooms_store: Path) -> None:
    store = Store(rooms_store)
    table = frame_table(store)
    train, test = split_pairs(store, 0.4, table)
    pairs = store.pairs()
    held = {(str(pairs.scene[k]), int(i)) for k in split_pairs(store, 0.4)[1] for i in (pairs.i[k], pairs.j[k])}
    frames = {(str(table.scene[k]), int(table.i[k])) for k in test}
    assert held <= frames
    assert not frames & {(str(table.scene[k]), int(table.i[k])) for k in train}


def test_frames_hold_depth_normals_and_labels(rooms_store: Path) -> None:
    store = Store(rooms_store)
    images = PreparedImages(rooms_store, "all")
    frames = read_frames(store, frame_table(store), np.array([0, 9]), (32, 24), images)
    assert frames.color.shape == (2, 3, 24, 32)
    view = store.scene(store.scenes[0]).view(0)
    assert frames.depth[0, 0, 0] == pytest.approx(float(view.depth[1, 1]))
    lengths = frames.normal.norm(dim=1)
    assert ((lengths - 1).abs() < 1e-4).float().mean() > 0.1
    assert set(lengths.round().unique().tolist()) == {0, 1}
    assert int(frames.label[frames.label != 255].max()) < frames.classes
    without = read_frames(store, frame_table(store), np.array([0]), (32, 24), None)
    assert (without.label == 255).all()
