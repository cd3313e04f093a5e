"""Linear probes: normals of a plane, closed forms of the scores, and a linear relation that is learned."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pri3d.data.crops import frame_table
from pri3d.data.pairs import split_pairs
from pri3d.errors import WeightsError
from pri3d.geometry.camera import pixel_centres
from pri3d.labelled.prepared import PreparedImages
from pri3d.probing.linear import (
    DepthErrors,
    FrozenMaps,
    LinearProbe,
    NormalErrors,
    ProbeFrames,
    extract,
    probe_linear,
    read_frames,
    surface_normals,
)
from pri3d.probing.networks import Dense, enlarge
from pri3d.store import Store

CAMERA = torch.tensor([[50.0, 55.0, 31.0, 25.0]])


def plane(normal: tuple[float, float, float], distance: float) -> torch.Tensor:
    """Depth (1, 48, 64) of the plane n . X = distance."""
    u, v = pixel_centres(48, 64, like=CAMERA).unbind(-1)
    fx, fy, cx, cy = CAMERA[0]
    ray = torch.stack(((u - cx) / fx, (v - cy) / fy, torch.ones_like(u)))
    return distance / torch.einsum("i,ihw->hw", torch.tensor(normal), ray)[None]


@pytest.mark.parametrize("normal", [(0.0, 0.0, 1.0), (0.6, 0.0, 0.8), (-0.2, 0.7, math.sqrt(1 - 0.53))])
def test_normals_of_a_plane_are_exact(normal: tuple[float, float, float]) -> None:
    found = surface_normals(plane(normal, 2.0), CAMERA)[0]
    assert (found[:, :2] == 0).all()  # the window reaches over the border
    assert (found[:, :, -2:] == 0).all()
    inside = found[:, 2:-2, 2:-2]
    wanted = -torch.tensor(normal)[:, None, None].expand_as(inside)  # towards the camera
    assert torch.allclose(inside, wanted, atol=1e-4)


def test_holes_and_edges_have_no_normal() -> None:
    depth = plane((0.0, 0.0, 1.0), 2.0)
    depth[0, 20, 30] = 0
    depth[0, :, 45:] = 3.0
    has = surface_normals(depth, CAMERA)[0].norm(dim=0) > 0.5
    assert not has[18:23, 28:33].any()
    assert has[20, 27]
    assert has[20, 33]
    assert not has[:, 43:47].any()
    assert has[20, 42]
    assert has[20, 47]


def test_depth_scores_are_the_closed_forms() -> None:
    true = torch.tensor([[1.0, 2.0, 0.0, 4.0, 1.0]])
    predicted = torch.tensor([[1.0, 2.6, 9.0, 7.0, -3.0]])
    errors = DepthErrors()
    errors.update(predicted[:, :2], true[:, :2])
    errors.update(predicted[:, 2:], true[:, 2:])
    score = errors.result()
    assert score.pixels == 4
    assert score.rmse == pytest.approx(math.sqrt((0 + 0.36 + 9 + 16) / 4), abs=1e-6)
    # ratios 1, 1.3, 1.75 and, of the negative one, 1000
    assert (score.delta1, score.delta2, score.delta3) == (0.25, 0.5, 0.75)
    nothing = DepthErrors()
    nothing.update(predicted, torch.zeros(1, 5))
    assert math.isnan(nothing.result().rmse)


def test_normal_scores_are_the_closed_forms() -> None:
    angles = torch.deg2rad(torch.tensor([0.0, 10.0, 20.0, 25.0, 90.0, 180.0]))
    true = torch.tensor([0.0, 0.0, -1.0]).view(1, 3, 1, 1).repeat(1, 1, 1, 7)
    true[..., 6] = 0
    predicted = 3 * torch.stack((angles.sin(), torch.zeros(6), -angles.cos()))[None, :, None]
    errors = NormalErrors()
    errors.update(torch.cat((predicted, torch.ones(1, 3, 1, 1)), dim=3), true)
    score = errors.result()
    assert score.pixels == 6
    assert score.mean == pytest.approx(325 / 6, abs=1e-3)
    assert score.median == pytest.approx(20, abs=1e-3)
    assert (score.below_11, score.below_22, score.below_30) == pytest.approx((2 / 6, 3 / 6, 4 / 6))


@pytest.mark.parametrize("stride", [2, 4, 7, 14])
def test_cells_stay_over_their_pixels(stride: int) -> None:
    """A map that is linear in the pixel stays so inside, also where the stride does not divide the image."""
    height, width = 48, 60
    rows, columns = -(-height // stride), -(-width // stride)
    u = (torch.arange(columns) + 0.5) * stride
    large = enlarge(u.expand(1, 1, rows, columns), stride, (height, width))
    assert large.shape == (1, 1, height, width)
    inside = slice(stride // 2 + 1, min(width, int(u[-1])) - 1)
    assert torch.allclose(large[0, 0, 5, inside], (torch.arange(width) + 0.5)[inside], atol=1e-3)


def test_a_probe_is_one_linear_map_of_the_enlarged_features() -> None:
    torch.manual_seed(0)
    levels = [torch.randn(2, 3, 6, 8), 100 + 30 * torch.randn(2, 5, 3, 4)]
    probe = LinearProbe(FrozenMaps(levels, [1.0, 1.0]), (2, 4), 2)
    for parameter in probe.parameters():
        nn.init.normal_(parameter)
    scaled = []
    for level in levels:
        mean, deviation = level.mean(dim=(0, 2, 3)), level.std(dim=(0, 2, 3), correction=0)
        scaled.append((level - mean[:, None, None]) / deviation[:, None, None])
    whole = torch.cat([enlarge(x, s, (12, 16)) for x, s in zip(scaled, (2, 4), strict=True)], dim=1)
    weight = torch.cat([head.weight for head in probe.heads], dim=1)  # type: ignore[list-item]
    wanted = nn.functional.conv2d(whole, weight, probe.heads[0].bias)  # type: ignore[arg-type]
    assert torch.allclose(probe(levels, (12, 16)), wanted, atol=1e-4)


class Shown(nn.Module):
    """In the place of a network: its features are the image at half the resolution."""

    strides = (2,)

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.factor * nn.functional.avg_pool2d(images, 2)]


def painted(count: int, seed: int) -> ProbeFrames:
    """Images whose colour tells depth, normal and class linearly; cells of 2 x 2 pixels of one colour."""
    generator = torch.Generator().manual_seed(seed)
    color = torch.randint(0, 256, (count, 3, 1, 1), generator=generator).expand(-1, -1, 16, 16)
    share = color / 255
    depth = 1 + 2 * share[:, 0] + share[:, 1]
    normal = nn.functional.normalize(share - torch.tensor([0.5, 0.5, 1.5]).view(3, 1, 1), dim=1)
    label = (share[:, 0] > 0.5).to(torch.uint8)
    depth = depth.clone()
    depth[:, :4] = 0  # never counts, whatever is predicted there
    return ProbeFrames(color.to(torch.uint8), depth, normal, label, 2)


@pytest.mark.parametrize("steps", [1, 7, 200])
def test_learning_rates_are_those_of_pytorchs_cosine(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step

    def noted(self: torch.optim.AdamW, *args: Any, **options: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    probe_linear(Shown(), painted(8, 0), painted(8, 1), ("depth",), steps, 0)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], 1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    expected = []
    for _ in range(steps):
        expected += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(expected, rel=1e-9)
    assert rates[0] == 1e-2


@pytest.mark.thorough
def test_a_linear_relation_is_learned() -> None:
    dense: Dense = Shown()  # type: ignore[assignment]
    train, test = painted(64, 0), painted(32, 1)
    tasks = ("depth", "normals", "segmentation")
    learned = probe_linear(dense, train, test, tasks, 300, 0)
    begun = probe_linear(dense, train, test, tasks, 1, 0)
    assert learned.depth and learned.normals and learned.segmentation and begun.depth
    assert learned.depth.rmse < 0.05 < 0.3 < begun.depth.rmse
    assert learned.depth.delta1 == 1
    assert learned.depth.pixels == 32 * 12 * 16
    assert learned.normals.mean < 5
    assert learned.segmentation.accuracy > 0.9
    assert learned.segmentation.classes == 2
    # Neither the scale of the features nor the other tasks change a probe.
    alone = probe_linear(Shown(1e4), train, test, ("depth",), 300, 0)  # type: ignore[arg-type]
    assert alone.depth and alone.depth.rmse == pytest.approx(learned.depth.rmse, abs=5e-3)
    assert alone.normals is None


def test_features_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(WeightsError, match="not finite"):
        extract(Shown(math.nan), painted(2, 0).color)  # type: ignore[arg-type]


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
