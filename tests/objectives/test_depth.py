"""Depth loss: against slow loops, closed forms, holes that must not leak, gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_objectives import CountSyncs
from torch.nn import functional as F

from flat import weighted
from pri3d.objectives import Features, Setup
from pri3d.objectives.depth import DepthObjective, depth_loss, sobel
from pri3d.types import PairBatch

PERFECT = math.log(0.5)


def gradients(image: NDArray[np.float64], row: int, column: int) -> tuple[float, float]:
    dx = dy = 0.0
    for r, c in np.ndindex(3, 3):
        value = image[row + r - 1, column + c - 1]
        dx += value * (c - 1) * (2 - abs(r - 1))
        dy += value * (r - 1) * (2 - abs(c - 1))
    return dx, dy


def slow(predicted: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    """The loss of one image, cell by cell."""
    height, width = target.shape
    distances, normals, edges_x, edges_y = [], [], [], []
    for row, column in np.ndindex(height, width):
        if target[row, column] > 0:
            distances.append(math.log(abs(predicted[row, column] - target[row, column]) + 0.5))
        if not (0 < row < height - 1 and 0 < column < width - 1):
            continue
        if (target[row - 1 : row + 2, column - 1 : column + 2] > 0).all():
            (px, py), (tx, ty) = gradients(predicted, row, column), gradients(target, row, column)
            p, t = np.array([-px, -py, 1]), np.array([-tx, -ty, 1])
            normals.append(abs(1 - p @ t / np.linalg.norm(p) / np.linalg.norm(t)))
            edges_x.append(math.log(abs(px - tx) + 0.5))
            edges_y.append(math.log(abs(py - ty) + 0.5))
    return sum(float(np.mean(part)) for part in (distances, normals, edges_x, edges_y) if part) / 3


def scene(seed: int, holes: float, size: tuple[int, int] = (7, 9)) -> tuple[torch.Tensor, torch.Tensor]:
    """Random predicted and true depth (2, h, w), float64; ``holes`` is the share of cells without depth."""
    rng = np.random.default_rng(seed)
    target = rng.uniform(0.5, 4, (2, *size)) * (rng.random((2, *size)) >= holes)
    return torch.from_numpy(target + rng.normal(0, 0.3, target.shape)), torch.from_numpy(target)


@given(
    st.integers(0, 10_000), st.sampled_from([0.0, 0.05, 0.3, 1.0]), st.sampled_from([(7, 9), (3, 3), (2, 5), (1, 1)])
)
def test_equals_loops(seed: int, holes: float, size: tuple[int, int]) -> None:
    predicted, target = scene(seed, holes, size)
    total = depth_loss(predicted, target).total
    for k in range(2):
        assert float(total[k]) == pytest.approx(slow(predicted[k].numpy(), target[k].numpy()), abs=1e-12)


def test_sobel_equals_a_convolution() -> None:
    image = torch.randn(2, 6, 7, dtype=torch.float64)
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64)
    for got, weight in zip(sobel(image), (kernel, kernel.T), strict=True):
        torch.testing.assert_close(got, F.conv2d(image[:, None], weight[None, None])[:, 0])


def test_perfect_prediction_has_the_stated_value_and_no_gradient() -> None:
    _, target = scene(0, 0.1)
    predicted = target.clone().requires_grad_()
    loss = depth_loss(predicted, target)
    assert loss.total.tolist() == pytest.approx([PERFECT] * 2)
    assert loss.normal.tolist() == pytest.approx([0, 0], abs=1e-12)
    loss.total.sum().backward()
    assert predicted.grad is not None
    assert predicted.grad.abs().max() < 1e-6


def test_offset_and_slope_by_hand() -> None:
    flat = torch.full((1, 5, 6), 2.0)
    offset = depth_loss(flat + 0.25, flat)
    assert float(offset.distance) == pytest.approx(math.log(0.75))
    assert float(offset.normal) == pytest.approx(0, abs=1e-7)
    assert float(offset.gradient) == pytest.approx(2 * PERFECT)
    slope = depth_loss(flat + 0.1 * torch.arange(6.0), flat)
    assert float(slope.normal) == pytest.approx(1 - 1 / math.sqrt(1 + 0.8**2))
    assert float(slope.gradient) == pytest.approx(math.log(0.8 + 0.5) + PERFECT)


def test_a_hole_has_no_edge() -> None:
    """A sloped floor that is predicted rightly, except that its hole is filled with anything."""
    target = (1 + 0.1 * torch.arange(12.0)).expand(1, 10, 12).clone()
    target[:, 3:6, 4:8] = 0
    for filling in (0.0, 100.0, torch.inf, torch.nan):
        predicted = torch.where(target > 0, target, filling)
        assert float(depth_loss(predicted, target).total) == pytest.approx(PERFECT, abs=1e-6)


@pytest.mark.parametrize("filling", [-7.0, 1e30, torch.inf, torch.nan])
def test_predictions_in_holes_change_nothing(filling: float) -> None:
    predicted, target = scene(1, 0.2)
    results = []
    for given_ in (predicted, torch.where(target > 0, predicted, filling)):
        leaf = given_.clone().requires_grad_()
        total = depth_loss(leaf, target).total
        total.sum().backward()
        assert leaf.grad is not None
        assert (leaf.grad[target == 0] == 0).all()
        assert (leaf.grad[target > 0] != 0).any()
        results.append((total.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("holes", [0.0, 0.1])
def test_gradient(holes: float) -> None:
    predicted, target = scene(2, holes, (4, 5))
    assert torch.autograd.gradcheck(lambda x: depth_loss(x, target).total, (predicted.requires_grad_(),))


def batch(depth: torch.Tensor, views: tuple[str, ...] = ("first", "second")) -> PairBatch:
    """Pairs of the given depth (B, 2, H, W)."""
    samples, _, height, width = depth.shape
    return PairBatch(
        color=torch.zeros(samples, len(views), 3, height, width),
        depth=depth,
        intrinsics=torch.tensor([10.0, 10, 8, 6]).expand(samples, 2, 4),
        world_from_camera=torch.eye(4).expand(samples, 2, 4, 4),
        voxel_cells=torch.empty(0, 4, dtype=torch.int64),
        voxel_color=torch.empty(0, 3),
        voxel_size=torch.tensor(1.0),
        seeds=torch.arange(samples),
        names=[""] * samples,
        views=views,
    )


def measured() -> torch.Tensor:
    depth = torch.rand(3, 2, 12, 16, generator=torch.Generator().manual_seed(0)) * 3 + 0.5
    depth[0, 1, 4:9, 5:10] = 0
    depth[2] = 0  # a pair without any depth
    return depth


def test_head_that_knows_the_depth() -> None:
    """Feature 3 is the depth of the pixel under the cell's centre; the head copies it."""
    depth = measured()
    dense = torch.randn(3, 2, 4, 6, 8)
    dense[:, :, 3] = depth[:, :, 1::2, 1::2]
    objective = DepthObjective(Setup(channels=4))
    with torch.no_grad():
        objective.head.weight.copy_(torch.tensor([[0.0, 0, 0, 1]]))
        objective.head.bias.zero_()
    terms = objective(Features(dense, []), batch(depth))
    assert float(terms.loss.detach()) == pytest.approx(PERFECT, abs=1e-6)
    assert float(terms.log["rmse"]) == pytest.approx(0, abs=1e-6)
    assert float(terms.log["delta1"]) == 1
    valid = depth[:, :, 1::2, 1::2][depth[:, :, 1::2, 1::2] > 0]
    for scale, close in ((1.5, 0), (0.5, 0), (1.2, 1), (0.81, 1)):
        with torch.no_grad():
            objective.head.weight[0, 3] = scale
        log = objective(Features(dense, []), batch(depth)).log
        wanted = abs(scale - 1) * float(valid.square().mean().sqrt())
        assert float(log["rmse"]) == pytest.approx(wanted, rel=1e-5)
        assert float(log["delta1"]) == close


def test_images_without_depth_are_left_out_of_the_mean() -> None:
    torch.manual_seed(0)
    objective, dense = DepthObjective(Setup(channels=4)), torch.randn(3, 2, 4, 6, 8)
    depth = measured()
    whole = objective(Features(dense, []), batch(depth))
    part = objective(Features(dense[:2], []), batch(depth[:2]))
    assert float(whole.loss.detach()) == pytest.approx(float(part.loss.detach()))
    for name, value in whole.log.items():
        assert float(value) == pytest.approx(float(part.log[name]))
    depth[0, 1] = 0
    each = [
        float(objective(Features(dense[b : b + 1], []), batch(torch.where(mask, depth[b : b + 1], 0.0))).loss.detach())
        for b in range(2)
        for mask in (torch.tensor([1, 0]).bool().view(1, 2, 1, 1), torch.tensor([0, 1]).bool().view(1, 2, 1, 1))
    ]
    assert each[1] == 0
    got = objective(Features(dense, []), batch(depth)).loss.detach()
    assert float(got) == pytest.approx(sum(each) / 3)


def test_nothing_to_measure_gives_zero_and_a_zero_gradient() -> None:
    objective, dense = DepthObjective(Setup(channels=4)), torch.randn(2, 2, 4, 6, 8, requires_grad=True)
    terms = objective(Features(dense, []), batch(torch.zeros(2, 2, 12, 16)))
    terms.loss.backward()
    assert float(terms.loss.detach()) == 0
    assert {name: float(value) for name, value in terms.log.items()} == {"rmse": 0, "delta1": 0}
    for leaf in (dense, *objective.parameters()):
        assert leaf.grad is not None
        assert (leaf.grad == 0).all()


def test_the_copy_is_not_used() -> None:
    objective = DepthObjective(Setup(channels=4))
    dense = torch.randn(3, 3, 4, 6, 8, requires_grad=True)
    views = ("first", "second", "copy")
    loss = objective(Features(dense, [], views), batch(measured(), views)).loss
    loss.backward()
    assert dense.grad is not None
    assert (dense.grad[:, 2] == 0).all()
    assert (dense.grad[:2, :2].abs().flatten(2).sum(2) > 0).all()
    plain = objective(Features(dense[:, :2], []), batch(measured())).loss
    assert float(loss.detach()) == pytest.approx(float(plain.detach()))


def test_full_precision_under_autocast() -> None:
    objective, dense = DepthObjective(Setup(channels=4)), torch.randn(3, 2, 4, 6, 8).bfloat16()
    wanted = objective(Features(dense.float(), []), batch(measured())).loss
    with torch.autocast("cpu", torch.bfloat16):
        got = objective(Features(dense, []), batch(measured())).loss
    assert got.dtype == torch.float32
    assert torch.equal(got, wanted)


def test_no_wait_for_the_device() -> None:
    objective, dense = DepthObjective(Setup(channels=4)), torch.randn(3, 2, 4, 6, 8, requires_grad=True)
    with CountSyncs() as counter:
        objective(Features(dense, []), batch(measured())).loss.backward()
    assert counter.calls == []
    assert counter.total > 50


def test_by_name_beside_another() -> None:
    objective = weighted({"trivial": 1.0, "depth": 1.0}, points=20, temperature=0.2, channels=4)
    assert objective.views == ("first", "second", "copy")
    terms = objective(Features(torch.randn(3, 3, 4, 6, 8), [], objective.views), batch(measured(), objective.views))
    assert {"trivial/loss", "depth/loss", "depth/rmse", "depth/delta1"} <= set(terms.log)
