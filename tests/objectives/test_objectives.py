"""View and Geometry on a rendered batch: gradients reach the network, no host synchronisation, edges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from flat import objective as build
from flat import weighted
from pri3d.api.pretrain import ContrastOptions
from pri3d.data.pairs import PairDataset, collate
from pri3d.data.sampler import Draw
from pri3d.errors import ConfigError
from pri3d.geometry.matching import choose, match_pixels, match_voxels
from pri3d.objectives import Features
from pri3d.objectives.contrast import Near, info_nce
from pri3d.objectives.view import pick_views
from pri3d.store import Store
from pri3d.types import PairBatch
from syncs import CountSyncs

SETTINGS = {
    "channels": 8,
    "points": 50,
    "temperature": 0.2,
    "distance": 0.1,
    "net3d": "tiny",
    "voxel_input": "occupancy",
}


@pytest.fixture(scope="module")
def batch(rooms_store: Path) -> PairBatch:
    dataset = PairDataset(rooms_store, np.arange(len(Store(rooms_store).pairs().i)), (64, 48), 0, voxel=0.08)
    return collate([dataset[Draw(0, k)] for k in range(3)])


def features(batch: PairBatch, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(batch.names), 2, 8, 24, 32, generator=generator).requires_grad_()


@pytest.mark.thorough
def test_sum_is_weighted_and_every_part_gets_gradients(batch: PairBatch) -> None:
    torch.manual_seed(0)
    objective = weighted({"view": 2.0, "geometry": 0.5}, **SETTINGS)
    maps = features(batch)
    terms = objective(Features(maps, []), batch)
    wanted = 2 * terms.log["view/loss"] + 0.5 * terms.log["geometry/loss"]
    assert float(terms.loss.detach()) == pytest.approx(float(wanted), rel=1e-6)
    terms.loss.backward()
    assert maps.grad is not None
    assert (maps.grad.flatten(2).abs().sum(2) > 0).all()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in objective.parameters())


def test_loss_of_random_features_is_near_chance_and_of_true_ones_near_zero(batch: PairBatch) -> None:
    objective = build("view", points=50, temperature=0.1, distance=0.1)
    log = objective(Features(features(batch), []), batch).log
    grid = (24, 32)
    matches = match_pixels(batch.depth, batch.intrinsics, batch.world_from_camera, grid, 0.1)
    true = torch.randn(len(batch.names), 2, 64, grid[0] * grid[1])
    for b in range(len(batch.names)):
        keep = matches.valid[b]
        true[b, 1, :, matches.second[b, keep]] = true[b, 0, :, matches.first[b, keep]]
    good = objective(Features(true.unflatten(-1, grid), []), batch)
    assert float(good.log["recall"]) == 1.0
    assert float(good.loss.detach()) < 0.2 < float(log["chance"])
    assert float(log["recall"]) < 0.3


def test_matching_and_loss_never_wait_for_the_device(batch: PairBatch) -> None:
    maps = features(batch)
    with CountSyncs() as counter:
        grid = (24, 32)
        pairs = choose(match_pixels(batch.depth, batch.intrinsics, batch.world_from_camera, grid, 0.1), 50, batch.seeds)
        given = Features(maps, [])
        loss = info_nce(*pick_views(given, {"first": pairs.first, "second": pairs.second}), pairs.valid).loss.sum()
        found = match_voxels(
            batch.depth.flatten(0, 1), batch.intrinsics.flatten(0, 1), batch.world_from_camera.flatten(0, 1),
            batch.voxel_cells, batch.voxel_size, grid,
        )  # fmt: skip
        found = choose(found, 50, batch.seeds.repeat_interleave(2))
        volume = torch.randn(len(batch.voxel_cells), 8)
        voxels = volume.index_select(0, found.second.flatten()).view(*found.second.shape, -1)
        pixels = pick_views(given, {"first": found.first[::2], "second": found.first[1::2]})
        loss = loss + info_nce(torch.stack(pixels, 1).flatten(0, 1), voxels, found.valid).loss.sum()
        loss.backward()
    assert counter.calls == []
    assert counter.total > 100


@pytest.mark.parametrize(
    ("match", "negatives", "points"), [("point", "sample", "all"), ("depth", "batch", 50), ("relative", "world", 50)]
)
def test_no_option_waits_for_the_device(batch: PairBatch, match: str, negatives: str, points: int | str) -> None:
    options = {"match": match, "negatives": negatives, "points": points, "exclude_px": 3.0, "exclude_cm": 5.0}
    view, geometry = build("view", **options), build("geometry", channels=8, net3d="tiny", **options)
    given, volume = Features(features(batch), []), torch.randn(len(batch.voxel_cells), 96)
    with CountSyncs() as counter:
        (view(given, batch).loss + geometry.contrast(given, batch, volume).loss).backward()
    assert counter.calls == []
    assert counter.total > 100


def test_the_counter_counts() -> None:
    with CountSyncs() as counter:
        values = torch.arange(4)
        bool(values.sum() > 3)
        values[values > 1]
        values.nonzero()
    assert len(counter.calls) >= 3


def test_pick_equals_indexing_and_its_gradient_adds_up() -> None:
    dense = torch.randn(3, 2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    cells = {"second": torch.tensor([[0, 5, 5], [1, 1, 1], [2, 3, 4]]), "first": torch.tensor([[1, 2], [0, 5], [3, 3]])}
    cells["first"] = torch.cat((cells["first"], cells["first"][:, :1]), dim=1)
    picked = pick_views(Features(dense, []), cells)
    for view, number, got in (("second", 1, picked[0]), ("first", 0, picked[1])):
        flat = dense[:, number].flatten(2)
        torch.testing.assert_close(got, torch.stack([flat[b][:, cells[view][b]].T for b in range(3)]))
    assert torch.autograd.gradcheck(lambda d: tuple(pick_views(Features(d, []), cells)), (dense,))


def test_batches_without_matches_or_voxels_give_zero(batch: PairBatch) -> None:
    objective = weighted({"view": 1.0, "geometry": 1.0}, **SETTINGS)
    maps = features(batch)
    blind = batch._replace(depth=torch.zeros_like(batch.depth), voxel_cells=batch.voxel_cells[:0])
    terms = objective(Features(maps, []), blind)
    terms.loss.backward()
    assert float(terms.loss.detach()) == 0
    assert maps.grad is not None
    assert (maps.grad == 0).all()


def test_exclusion_is_by_pixels_of_either_image_and_by_measured_points(batch: PairBatch) -> None:
    """Against places worked out here: cells of 2 x 2 pixels, and world points of the first frame's pixels."""
    maps, grid = features(batch), (24, 32)
    objective = build("view", points=60, distance=0.1, exclude_px=5.0, exclude_cm=30.0)
    matches = match_pixels(batch.depth, batch.intrinsics, batch.world_from_camera, grid, 0.1)
    matches = choose(matches, 60, batch.seeds)
    pixels = [torch.stack((cell % 32 * 2 + 1, cell // 32 * 2 + 1), -1).float() for cell in matches[:2]]
    fx, fy, cx, cy = (batch.intrinsics[:, 0, k, None] for k in range(4))
    u, v = pixels[0].unbind(-1)  # a cell's centre falls between pixels and stands for the lower right one
    z = torch.stack([batch.depth[b, 0][v[b].long(), u[b].long()] for b in range(len(u))])
    points = torch.stack(((u + 0.5 - cx) / fx * z, (v + 0.5 - cy) / fy * z, z, torch.ones_like(z)), -1)
    world = (points @ batch.world_from_camera[:, 0].mT)[..., :3]
    near = [Near(pixels[0], 5.0), Near(pixels[1], 5.0), Near(world, 0.3)]
    picked = pick_views(Features(maps, []), {"first": matches.first, "second": matches.second})
    wanted = info_nce(*picked, matches.valid, 0.4, near=near)
    terms = objective(Features(maps, []), batch)
    torch.testing.assert_close(terms.loss, wanted.loss.mean())
    torch.testing.assert_close(terms.log["chance"], wanted.chance.mean())
    for fewer in ({"exclude_px": 5.0}, {"exclude_cm": 30.0}):
        other = build("view", points=60, distance=0.1, **fewer)(Features(maps, []), batch)
        assert float(terms.log["chance"]) < float(other.log["chance"])


def test_geometry_excludes_voxels_of_both_frames_of_a_pair(batch: PairBatch) -> None:
    """Pooled, the world of a pair is one: excluding by 3D then takes more than the own frame's voxels."""
    torch.manual_seed(0)
    objective = build("geometry", channels=8, points=60, net3d="tiny", negatives="batch")
    given, volume = Features(features(batch), []), torch.randn(len(batch.voxel_cells), 96)
    log = {}
    for radii in ((0, 0), (0, 30), (4, 0), (4, 30), (0, 1e-6), (1e4, 0), (0, 1e6)):
        objective.contrast_options = ContrastOptions(
            points=60, negatives="batch", exclude_px=radii[0], exclude_cm=radii[1]
        )
        log[radii] = float(objective.contrast(given, batch, volume).log["chance"])
    matched = 6 * float(objective.contrast(given, batch, volume).log["matches"])
    assert log[0, 0] == pytest.approx(np.log(matched), abs=1e-5)
    assert log[4, 30] < min(log[0, 30], log[4, 0])
    assert max(log[0, 30], log[4, 0]) < log[0, 0]
    # The smallest radius takes away the pair's other sight of the same voxel; the largest leave other frames or pairs.
    assert 0 < log[0, 0] - log[0, 1e-6] < 0.01
    assert np.log(matched * 4 / 6) < log[1e4, 0] < log[0, 0]
    assert log[0, 1e6] < log[1e4, 0]


def test_all_points_of_a_pair_can_be_contrasted(batch: PairBatch) -> None:
    maps, grid = features(batch), (24, 32)
    matches = match_pixels(batch.depth, batch.intrinsics, batch.world_from_camera, grid, 0.1)
    terms = build("view", points="all", distance=0.1)(Features(maps, []), batch)
    assert float(terms.log["matches"]) == pytest.approx(float(matches.valid.sum(1).float().mean()))
    drawn = build("view", points=10_000, distance=0.1)(Features(maps, []), batch)
    torch.testing.assert_close(terms.loss, drawn.loss)


def test_processes_evaluate_by_themselves(batch: PairBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("pri3d.objectives.view.info_nce", lambda *args: asked.append(args[4]) or info_nce(*args))
    objective = build("view", points=50, distance=0.1, negatives="world")
    losses = [objective.train(mode)(Features(features(batch), []), batch).loss for mode in (True, False)]
    assert asked == ["world", "batch"]
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("name", ["exclude_px", "exclude_cm"])
def test_negative_radii_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--contrast.{name.replace('_', '-')} -1.0: give at least 0"):
        build("view", **{name: -1.0})


@pytest.mark.thorough
def test_one_chunk_a_pair_contrasts_the_first_frames_alone(batch: PairBatch) -> None:
    torch.manual_seed(0)
    one = weighted({"geometry": 1.0}, **SETTINGS, chunks=1)
    first = batch.voxel_cells[:, 0] % 2 == 0
    cells = batch.voxel_cells[first].clone()
    cells[:, 0] //= 2
    maps = features(batch)
    one(Features(maps, []), batch._replace(voxel_cells=cells, voxel_color=batch.voxel_color[first])).loss.backward()
    assert maps.grad is not None
    assert (maps.grad[:, 0] != 0).any()
    assert (maps.grad[:, 1] == 0).all()


@pytest.mark.thorough
def test_colour_input_changes_the_result(batch: PairBatch) -> None:
    torch.manual_seed(0)
    objective = weighted({"geometry": 1.0}, **SETTINGS | {"voxel_input": "color"})
    maps = features(batch)
    plain = objective(Features(maps, []), batch).loss
    tinted = objective(Features(maps, []), batch._replace(voxel_color=torch.randint_like(batch.voxel_color, 256))).loss
    assert not torch.equal(plain, tinted)


@pytest.mark.parametrize("weights", [{}, {"view": 0.0}, {"view": -1.0}])
def test_weights_must_make_sense(weights: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="objectives"):
        weighted(weights, **SETTINGS)
