"""Read-outs: one linear map of the enlarged maps, found again where it is planted; drawn pixels; scores by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pri3d.errors import DataError
from pri3d.networks.encoders import enlarge, sample_maps
from pri3d.networks.readout import (
    ClassErrors,
    DepthErrors,
    NormalErrors,
    Readout,
    ReadoutTargets,
    fit_readout,
    fit_ridge,
)
from pri3d.tasks.semantic import Confusion

SIZE = (22, 30)  # no multiple of the strides


def random_maps(count: int, seed: int = 0, strides: tuple[int, ...] = (2, 4, 7)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(count, 3 + k, -(-SIZE[0] // s), -(-SIZE[1] // s)) for k, s in enumerate(strides)]
    return [(10**k) * (torch.randn(shape, generator=generator) + 5) for k, shape in enumerate(shapes)]


def whole_map(maps: list[torch.Tensor], strides: tuple[int, ...] = (2, 4, 7)) -> torch.Tensor:
    return torch.cat([enlarge(x, s, SIZE) for x, s in zip(maps, strides, strict=True)], dim=1)


@pytest.mark.parametrize("strides", [(2, 4, 7), (1, 16, 32)])
def test_features_of_pixels_are_those_of_the_enlarged_maps(strides: tuple[int, ...]) -> None:
    maps = random_maps(2, strides=strides)
    rows, columns = torch.meshgrid(torch.arange(SIZE[0]), torch.arange(SIZE[1]), indexing="ij")
    centres = torch.stack((columns, rows), dim=-1).flatten(0, 1) + 0.5
    found = sample_maps(maps, strides, centres.expand(2, -1, -1))
    wanted = whole_map(maps, strides).flatten(2).mT
    assert torch.allclose(found, wanted, atol=1e-3)


def test_a_readout_is_one_linear_map_of_the_enlarged_features() -> None:
    maps = random_maps(2)
    torch.manual_seed(0)
    readout = Readout((2, 4, 7), {"depth": 1, "normals": 3}, torch.randn(12), torch.randn(12, 4), torch.randn(4), {})
    value = torch.einsum("bchw,ct->bthw", whole_map(maps) - readout.shift[:, None, None], readout.weight)
    value = value + readout.bias[:, None, None]
    found = readout.predict(maps, SIZE)
    assert torch.allclose(found["depth"], value[:, 0], rtol=1e-4, atol=1e-2)
    assert torch.allclose(found["normals"], nn.functional.normalize(value[:, 1:], dim=1), atol=1e-3)


def planted(maps: list[torch.Tensor]) -> ReadoutTargets:
    """Depth, normals and classes that are linear in the enlarged maps."""
    torch.manual_seed(1)
    features = whole_map(maps)
    scale = features.std(dim=(0, 2, 3), keepdim=True)
    features = (features - features.mean(dim=(0, 2, 3), keepdim=True)) / scale
    value = torch.einsum("bchw,ct->bthw", features, 0.1 * torch.randn(12, 5))
    depth = 3 + value[:, 0]
    depth[:, :3] = 0
    normals = value[:, 1:4] + torch.tensor([0.0, 0.0, -1.0])[:, None, None]
    label = (value[:, 4] > 0).to(torch.uint8)
    label[:, :, 20:] = 255
    return ReadoutTargets(depth, normals, label)


def batches(
    maps: list[torch.Tensor], targets: ReadoutTargets, size: int
) -> list[tuple[list[torch.Tensor], ReadoutTargets]]:
    parts = zip(*(torch.split(x, size) for x in maps), strict=True)
    wanted = zip(*(torch.split(x, size) for x in targets if x is not None), strict=True)
    names = [name for name, x in targets._asdict().items() if x is not None]
    return [(list(a), ReadoutTargets(**dict(zip(names, b, strict=True)))) for a, b in zip(parts, wanted, strict=True)]


def test_a_planted_map_is_read_off_other_frames() -> None:
    train, test = random_maps(10), random_maps(4, seed=5)
    torch.manual_seed(0)
    everything = planted([torch.cat(x) for x in zip(train, test, strict=True)])
    targets = ReadoutTargets(*(x[:10] for x in everything if x is not None))
    readout = fit_readout(batches(train, targets, 4), (2, 4, 7), 10, classes=2, cells=2000)
    found = readout.predict(test, SIZE)
    depth, normal, label = (x[10:] for x in everything if x is not None)
    seen = depth > 0
    assert float((found["depth"] - depth)[seen].abs().max()) < 1e-3
    assert torch.allclose(found["normals"], nn.functional.normalize(normal, dim=1), atol=1e-3)
    known = label != 255
    assert float((found["segmentation"] == label)[known].float().mean()) > 0.9
    assert readout.tasks == {"depth": 1, "normals": 3, "segmentation": 2}
    # Neither the other tasks nor the size of batches change a read-out, and the seed gives the same pixels again.
    alone = fit_readout(batches(train, targets._replace(normals=None, segmentation=None), 4), (2, 4, 7), 10, cells=2000)
    assert torch.allclose(alone.predict(test, SIZE)["depth"], found["depth"], atol=1e-3)
    again = fit_readout(batches(train, targets, 10), (2, 4, 7), 10, classes=2, cells=2000)
    assert torch.allclose(again.predict(test, SIZE)["depth"], found["depth"], atol=1e-3)


def test_so_many_pixels_are_drawn_and_frames_are_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def noted(x: torch.Tensor, y: torch.Tensor, folds: torch.Tensor) -> object:
        asked.append((x, y, folds))
        return fit_ridge(x, y, folds)

    monkeypatch.setattr("pri3d.networks.readout.fit_ridge", noted)
    maps = random_maps(10)
    targets = planted(maps)._replace(segmentation=None)
    assert targets.depth is not None
    targets.depth[2] = 0
    targets.depth[4:6] = 0  # a whole fold
    fit_readout(batches(maps, targets, 3), (2, 4, 7), 10, cells=200)
    fit_readout(batches(maps, targets, 3), (2, 4, 7), 10, cells=10**6)
    (_, depth, folds), (_, _, whole), (few, _, _), _ = asked
    assert folds.unique(return_counts=True)[1].tolist() == [40, 20, 40, 40]
    assert folds.tolist() == sorted(folds.tolist())
    assert set(folds.tolist()) == {0, 1, 3, 4}
    assert (depth > 0).all()
    assert len(whole) == 200
    assert len(few) == 7 * (22 - 3) * 30


def test_nothing_to_learn_from_is_refused() -> None:
    maps = random_maps(2)
    targets = ReadoutTargets(torch.zeros(2, *SIZE))
    with pytest.raises(DataError, match="depth: no pixel of the 2 frames"):
        fit_readout(batches(maps, targets, 2), (2, 4, 7), 2)


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


def test_depth_scores_are_the_closed_forms() -> None:
    true = torch.tensor([[1.0, 2.0, 0.0, 4.0, 1.0]])
    predicted = torch.tensor([[1.0, 2.6, 9.0, 7.0, -3.0]])
    errors = DepthErrors()
    errors.update(predicted[:, None, :2], true[:, None, :2])
    errors.update(predicted[:, None, 2:], true[:, None, 2:])
    score = errors.result()
    assert score.pixels == 4
    assert score.rmse == pytest.approx(math.sqrt((0 + 0.36 + 9 + 16) / 4), abs=1e-6)
    # ratios 1, 1.3, 1.75 and, of the negative one, 1000
    assert (score.delta1, score.delta2, score.delta3) == (0.25, 0.5, 0.75)
    nothing = DepthErrors()
    nothing.update(predicted[:, None], torch.zeros(1, 1, 5))
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


def test_class_scores_are_those_of_the_confusion_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 5, (6, 4, 5), generator=generator).to(torch.uint8)
    label[label == 3] = 255  # class 3 does not occur, class 5 is not even predicted
    said = torch.randint(0, 5, (6, 4, 5), generator=generator)
    errors, matrix = ClassErrors(6), Confusion([str(k) for k in range(6)])
    for rows in (slice(0, 4), slice(4, 6)):
        errors.update(said[rows], label[rows])
        matrix.add(said[rows], label[rows])
    found, wanted = errors.result(), matrix.score()
    assert (found.miou, found.accuracy, found.classes) == pytest.approx((wanted.miou, wanted.accuracy, 4))
    one = ClassErrors(6)
    one.update(said[2:3], label[2:3])
    assert torch.equal(one.frames()[0], errors.frames()[2])
    nothing = ClassErrors(6)
    nothing.update(said, torch.full_like(label, 255))
    assert math.isnan(nothing.result().miou)
