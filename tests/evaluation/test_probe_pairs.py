"""Recall of correspondences: slow loops, perfect and random features, distances by hand, angle bins."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pri3d.data.pairs import PairDataset, angle_bins, collate, draw_pairs
from pri3d.data.sampler import Draw
from pri3d.errors import WeightsError
from pri3d.geometry.matching import match_pixels
from pri3d.networks.unet import build_unet
from pri3d.probing.pairs import (
    Correspondence,
    Correspondences,
    Held,
    Matching,
    cell_distance,
    match_cells,
    matching_recall,
    measure_pairs,
)
from pri3d.types import PairBatch

SIZE = (64, 48)
GRID = (24, 32)


@pytest.fixture(scope="module")
def pairs(rooms_store: Path) -> Held:
    return Held(PairDataset(rooms_store, np.arange(6), SIZE, 0))


@pytest.fixture(scope="module")
def batch(pairs: Held) -> PairBatch:
    return collate([pairs[Draw(0, 0)]])


def test_distance_in_cells() -> None:
    features = torch.zeros(2, 12, 3, 4)
    features.view(2, 12, 12)[0] = torch.eye(12)
    features.view(2, 12, 12)[1] = torch.eye(12).roll(5, 1)
    # Cell k of view 0 has its feature at cell k + 5 of view 1 (row-major, 4 columns).
    first = torch.tensor([0, 1])
    assert cell_distance(features, first, torch.tensor([5, 6])).tolist() == [0, 0]
    assert cell_distance(features, first, torch.tensor([4, 11])).tolist() == pytest.approx([1, math.hypot(1, 1)])


def test_bins_and_mean() -> None:
    matching = Matching()
    matching.counts = [torch.tensor(counts) for counts in ((5, 10), (0, 0), (8, 10))]
    result = matching.result(np.radians(np.array([10, 20, 45], np.float32)))
    assert result.mean == pytest.approx(13 / 20)
    assert result.by_angle["0-15"] == pytest.approx(0.5)
    assert math.isnan(result.by_angle["15-30"])
    assert result.by_angle["30-60"] == pytest.approx(0.8)
    assert (result.points, result.pairs) == (20, 2)
    assert result.balanced == pytest.approx((0.5 + 0.8) / 2)


def test_a_bin_holds_its_lower_end() -> None:
    bins = angle_bins(np.array([0, 14.9, 15, 30, 60, 180], np.float32))
    assert {name: np.flatnonzero(inside).tolist() for name, inside in bins.items()} == {
        "0-15": [0, 1],
        "15-30": [2],
        "30-60": [3],
        "60-180": [4, 5],
    }


def test_each_bin_of_the_angle_has_an_equal_share() -> None:
    degrees = np.concatenate([np.full(5000, 5), np.full(900, 20), np.full(30, 40), np.full(150, 90)])
    angles = np.radians(np.random.default_rng(0).permutation(degrees)).astype(np.float32)
    drawn = draw_pairs(angles, 400, 0)
    assert len(set(drawn.tolist())) == 400
    assert drawn.tolist() == sorted(drawn.tolist())
    counts = [int(inside.sum()) for inside in angle_bins(np.degrees(angles[drawn])).values()]
    assert counts == [124, 123, 30, 123]
    assert np.array_equal(drawn, draw_pairs(angles, 400, 0))
    assert not np.array_equal(drawn, draw_pairs(angles, 400, 1))
    assert draw_pairs(angles[:7], 7, 0).tolist() == list(range(7))
    assert len(draw_pairs(np.zeros(9, np.float32), 4, 0)) == 4


def slow_recall(features: torch.Tensor, batch: PairBatch, count: int) -> dict[str, float]:
    """The protocol in plain loops over points, float64."""
    height, width = batch.depth.shape[-2:]
    points: list[dict[int, np.ndarray]] = [{}, {}]
    for view in (0, 1):
        fx, fy, cx, cy = batch.intrinsics[0, view].double().tolist()
        for cell in range(GRID[0] * GRID[1]):
            u = math.floor((cell % GRID[1] + 0.5) * width / GRID[1])
            v = math.floor((cell // GRID[1] + 0.5) * height / GRID[0])
            z = float(batch.depth[0, view, v, u])
            if z > 0:
                points[view][cell] = np.array([(u + 0.5 - cx) / fx * z, (v + 0.5 - cy) / fy * z, z])
    unit = [nn.functional.normalize(x.flatten(1), dim=0).double().numpy() for x in features]
    others = list(points[1])
    matches = []
    for cell in points[0]:
        distances = np.maximum(1 - unit[0][:, cell] @ unit[1][:, others], 1e-9)
        order = np.argsort(distances)
        matches.append((1 - distances[order[0]] / distances[order[1]], cell, others[order[0]]))
    matches.sort(reverse=True)
    poses = batch.world_from_camera[0].double().numpy()
    fx, fy, cx, cy = batch.intrinsics[0, 1].double().tolist()
    errors = []
    for _, cell, other in matches[:count]:
        p = (np.linalg.inv(poses[1]) @ poses[0] @ np.append(points[0][cell], 1))[:3]
        q = points[1][other]
        pixel = [np.array([fx * x / z + cx, fy * y / z + cy]) for x, y, z in (p, q)]
        gap = np.linalg.norm(pixel[0] - pixel[1]) * 320 / width if p[2] > 0 else math.inf
        errors.append((gap, np.linalg.norm(p - q)))
    table = np.array(errors)
    return {
        **{f"{end:g} px": float((table[:, 0] < end).mean()) for end in (5, 10, 20)},
        **{f"{end:g} cm": float((table[:, 1] < end / 100).mean()) for end in (2, 5, 10)},
    }


def score(features: torch.Tensor, batch: PairBatch, count: int = 200) -> Correspondence:
    measure = Correspondences(count)
    measure.update(features, batch)
    return measure.result(np.zeros(1, np.float32))


@pytest.mark.parametrize("count", [50, 300])
def test_matches_are_those_of_slow_loops(batch: PairBatch, count: int) -> None:
    torch.manual_seed(0)
    features = build_unet("resnet18", "slim", 8).eval()(batch.color[0]).detach()
    wanted, found = slow_recall(features, batch, count), score(features, batch, count)
    assert found.recall == pytest.approx(wanted, abs=1e-9)
    assert 0 < found.recall["20 px"] < 1
    assert (found.matches, found.pairs) == (count, 1)


def place_features(batch: PairBatch) -> torch.Tensor:
    """Features that know where in the world each cell's point lies: waves of its position."""
    torch.manual_seed(0)
    slow = torch.randn(3, 64) * 4
    maps = []
    for view in (0, 1):
        pixels = nn.functional.interpolate(batch.depth[0, view][None, None], size=GRID, mode="nearest")[0, 0]
        v, u = torch.meshgrid(torch.arange(GRID[0]) * 2 + 1.5, torch.arange(GRID[1]) * 2 + 1.5, indexing="ij")
        z = batch.depth[0, view][v.long(), u.long()]
        fx, fy, cx, cy = batch.intrinsics[0, view]
        camera = torch.stack(((u - cx) / fx * z, (v - cy) / fy * z, z, torch.ones_like(pixels)))
        world = torch.einsum("ij,jhw->ihw", batch.world_from_camera[0, view], camera)[:3]
        phase = torch.einsum("ic,ihw->chw", slow, world)
        maps.append(torch.cat((phase.sin(), phase.cos())))
    return torch.stack(maps)


def test_perfect_features_find_what_is_seen_and_random_ones_do_not(batch: PairBatch) -> None:
    perfect = place_features(batch)
    seen = match_pixels(batch.depth, batch.intrinsics, batch.world_from_camera, GRID, 0.03).valid.sum()
    few = score(perfect, batch, int(seen) // 4)
    assert few.recall["20 px"] > 0.95
    assert few.recall["10 cm"] > 0.95
    random = score(torch.randn_like(perfect), batch)
    # A match of chance is right where one of 24 x 32 cells lies within 20 of 320 pixels: 4 cells at 10 pixels each.
    assert random.recall["20 px"] < 4 * math.pi / (24 * 32) * 4
    assert random.recall["20 px"] < 0.1 * few.recall["20 px"]


def test_the_same_view_twice_is_found_exactly(batch: PairBatch) -> None:
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x[:, :1].expand_as(x)

    same = batch._replace(
        depth=twice(batch.depth),
        intrinsics=twice(batch.intrinsics),
        world_from_camera=twice(batch.world_from_camera),
    )
    features = torch.randn(1, 16, *GRID).expand(2, -1, -1, -1)
    assert set(score(features, same).recall.values()) == {1.0}


def test_nothing_is_matched_to_what_is_not_measured() -> None:
    features = torch.eye(6).view(1, 6, 2, 3).repeat(2, 1, 1, 1)
    measured = torch.tensor([[True, True, False, True, True, True], [False, True, True, True, True, True]])
    first, second, valid = match_cells(features, measured, 6)
    kept = dict(zip(first[valid].tolist(), second[valid].tolist(), strict=True))
    assert set(kept) == {0, 1, 3, 4, 5}
    assert kept[0] != 0
    assert {cell: kept[cell] for cell in (1, 3, 4, 5)} == {1: 1, 3: 3, 4: 4, 5: 5}
    assert first[0] != 0  # the ratio test puts it last: nothing in the other view is like it
    alone = torch.tensor([[True] * 6, [True] + [False] * 5])
    assert not match_cells(features, alone, 6)[2].any()


@pytest.mark.parametrize("step", [2, 3])
def test_some_cells_ask_as_all_would(batch: PairBatch, step: int) -> None:
    """Fewer queries have the matches that they have among all, and the same fraction is kept."""
    torch.manual_seed(0)
    features, measured = torch.randn(2, 8, *GRID), torch.rand(2, GRID[0] * GRID[1]) > 0.3
    every = len(measured[0])
    all_first, all_second, all_valid = match_cells(features, measured, every)
    wanted = dict(zip(all_first[all_valid].tolist(), all_second[all_valid].tolist(), strict=True))
    first, second, valid = match_cells(features, measured, every, step)
    found = dict(zip(first[valid].tolist(), second[valid].tolist(), strict=True))
    asked = {cell for cell in wanted if all(k % step == step // 2 for k in divmod(cell, GRID[1]))}
    assert found == {cell: wanted[cell] for cell in asked}
    measure = Correspondences(300, queries=-(-every // step**2))
    measure.update(features, batch)
    assert measure.result(np.zeros(1, np.float32)).matches == 300 // step**2


def test_a_pair_without_depth_does_not_count(batch: PairBatch) -> None:
    measure = Correspondences(50)
    features = torch.randn(2, 8, *GRID)
    measure.update(features, batch)
    measure.update(features, batch._replace(depth=torch.zeros_like(batch.depth)))
    result = measure.result(np.radians([20, 40]).astype(np.float32))
    assert result.pairs_by_angle == {"0-15": 0, "15-30": 1, "30-60": 0, "60-180": 0}
    assert result.by_angle["15-30"] == result.recall
    assert math.isnan(result.by_angle["30-60"]["5 px"])


@pytest.mark.thorough
def test_pairs_are_read_once_and_measured_together(pairs: Held) -> None:
    torch.manual_seed(0)
    net = build_unet("resnet18", "slim", 8).eval()
    angles = np.zeros(len(pairs), np.float32)
    measure = Correspondences(100)
    measure_pairs(net, pairs, [measure])
    assert measure.result(angles).pairs == len(pairs) == 6
    recall = matching_recall(net, pairs, angles, pixels=40, distance=0.1, points=100)
    assert 0 < recall.mean < 1
    assert recall.points > 100


def test_features_that_are_no_numbers_are_refused(pairs: Held) -> None:
    net = build_unet("resnet18", "slim", 8).eval()
    with torch.no_grad():
        next(net.decoder.parameters()).fill_(torch.nan)
    with pytest.raises(WeightsError, match=r"bad\.pth: its features are not finite"):
        measure_pairs(net, pairs, [Correspondences()], "bad.pth")


def test_features_that_are_not_finite_in_a_later_pair_are_refused(pairs: Held) -> None:
    class Once(nn.Conv2d):
        calls = 0

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return super().forward(images) * (math.nan if self.calls == 3 else 1.0)

    with pytest.raises(WeightsError, match="later: its features are not finite"):
        measure_pairs(Once(3, 4, 2, stride=2), pairs, [Correspondences()], "later")
