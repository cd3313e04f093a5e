"""Matches against brute force written as loops, and the properties every match must have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pri3d.errors import ConfigError, DataError
from pri3d.geometry.matching import Matches, cell_pixels, cell_points, choose, match_pixels, match_voxels, voxel_keys
from pri3d.geometry.pose import transform
from pri3d.geometry.voxels import coarsen, crop, frustum_box
from pri3d.types import Voxels

SIZE, GRID = (12, 16), (6, 8)


def scene(seed: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two views of a wavy wall about 1 m away, with holes; float64 so that brute force rounds alike."""
    rng = np.random.default_rng(seed)
    depth = 1.0 + 0.01 * rng.normal(size=(batch, 2, *SIZE))
    depth[rng.random(depth.shape) < 0.2] = 0
    intrinsics = np.tile((14.0, 14.0, 8.0, 6.0), (batch, 2, 1))
    poses = np.tile(np.eye(4), (batch, 2, 1, 1))
    for b in range(batch):
        poses[b, 1, :3, :3] = Rotation.from_rotvec(rng.normal(size=3) * 0.05).as_matrix()
        poses[b, 1, :3, 3] = rng.normal(size=3) * 0.05
    return torch.from_numpy(depth), torch.from_numpy(intrinsics), torch.from_numpy(poses)


def brute_force_pixels(depth, intrinsics, poses, distance, mode="point"):  # type: ignore[no-untyped-def]
    """The definition as loops over one pair: {first cell: second cell}."""
    height, width = depth.shape[-2:]

    def point(view: int, row: int, column: int) -> np.ndarray:
        fx, fy, cx, cy = intrinsics[view]
        z = depth[view, row, column]
        camera = np.array([(column + 0.5 - cx) / fx * z, (row + 0.5 - cy) / fy * z, z, 1])
        return poses[view] @ camera

    best: dict[int, tuple[float, int]] = {}
    for r in range(GRID[0]):
        for c in range(GRID[1]):
            row, column = int((r + 0.5) * height / GRID[0]), int((c + 0.5) * width / GRID[1])
            if depth[0, row, column] == 0:
                continue
            world = point(0, row, column)
            x, y, z, _ = np.linalg.inv(poses[1]) @ world
            if z <= 0:
                continue
            fx, fy, cx, cy = intrinsics[1]
            u, v = math.floor(x / z * fx + cx), math.floor(y / z * fy + cy)
            if not (0 <= u < width and 0 <= v < height) or depth[1, v, u] == 0:
                continue
            gap = float(np.linalg.norm(point(1, v, u) - world)) if mode != "depth" else abs(depth[1, v, u] - z)
            limit = distance * depth[0, row, column] if mode == "relative" else distance
            target = int((v + 0.5) * GRID[0] / height) * GRID[1] + int((u + 0.5) * GRID[1] / width)
            if gap < limit and (target not in best or gap < best[target][0]):
                best[target] = (gap, r * GRID[1] + c)
    return {cell: target for target, (_, cell) in best.items()}


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([0.02, 0.05, 0.2]), st.sampled_from(["point", "depth", "relative"]))
def test_pixel_matches_equal_brute_force(seed: int, distance: float, mode: Any) -> None:
    depth, intrinsics, poses = scene(seed)
    depth, poses[..., :3, 3] = depth * 3, poses[..., :3, 3] * 3  # so that metres and shares of the depth differ
    got = match_pixels(depth, intrinsics, poses, GRID, distance, mode)
    for b in range(depth.shape[0]):
        wanted = brute_force_pixels(depth[b].numpy(), intrinsics[b].numpy(), poses[b].numpy(), distance, mode)
        keep = got.valid[b]
        assert dict(zip(got.first[b, keep].tolist(), got.second[b, keep].tolist(), strict=True)) == wanted


def test_autocast_does_not_touch_the_geometry() -> None:
    """Under mixed precision a pose rounded to bf16 would move points by centimetres."""
    depth, intrinsics, poses = (x.float() for x in scene(0))
    cells = torch.cartesian_prod(torch.arange(2), *[torch.arange(-20, 20)] * 3)
    arguments = [
        (match_pixels, (depth, intrinsics, poses, GRID, 0.1)),
        (match_voxels, (depth[:, 0], intrinsics[:, 0], poses[:, 1], cells, torch.tensor(0.1), GRID)),
    ]
    for function, given_ in arguments:
        plain = function(*given_)  # type: ignore[operator]
        with torch.autocast("cpu", torch.bfloat16):
            mixed = function(*given_)  # type: ignore[operator]
        assert plain.valid.any()
        assert all(torch.equal(a, b) for a, b in zip(plain, mixed, strict=True))


def test_same_view_matches_every_cell_with_depth_to_itself() -> None:
    depth, intrinsics, poses = scene(5)
    depth[:, 1], poses[:, 1] = depth[:, 0], poses[:, 0]
    got = match_pixels(depth, intrinsics, poses, GRID, 0.02)
    assert torch.equal(got.valid, cell_points(depth[:, 0], intrinsics[:, 0], GRID)[1] > 0)
    assert torch.equal(got.first[got.valid], got.second[got.valid])


@pytest.mark.parametrize("mode", ["point", "depth", "relative"])
def test_no_depth_no_match(mode: Any) -> None:
    depth, intrinsics, poses = scene(6)
    holes = torch.zeros_like(depth)
    for views in (holes, torch.stack((depth[:, 0], holes[:, 0]), 1), torch.stack((holes[:, 0], depth[:, 1]), 1)):
        assert not match_pixels(views, intrinsics, poses, GRID, 1e6, mode).valid.any()


def test_relative_matches_do_not_depend_on_the_scale_of_the_world() -> None:
    depth, intrinsics, poses = scene(9)
    larger = poses.clone()
    larger[..., :3, 3] *= 64
    wanted = match_pixels(depth, intrinsics, poses, GRID, 0.05, "relative")
    got = match_pixels(depth * 64, intrinsics, larger, GRID, 0.05, "relative")
    assert wanted.valid.any()
    assert torch.equal(got.valid, wanted.valid)
    assert not torch.equal(match_pixels(depth * 64, intrinsics, larger, GRID, 0.05).valid, wanted.valid)


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ConfigError, match="point, depth, relative"):
        match_pixels(*scene(0), GRID, 0.02, "near")  # type: ignore[arg-type]


def test_cell_pixels_are_the_centres_of_their_cells() -> None:
    centres = cell_pixels((2, 4), torch.zeros(6, 8, dtype=torch.float64))
    assert centres.tolist() == [[u, v] for v in (1.5, 4.5) for u in (1, 3, 5, 7)]


def test_occluded_and_behind_are_not_matched() -> None:
    depth, intrinsics, poses = scene(7)
    depth[:, 1] = torch.where(depth[:, 1] > 0, 0.5, 0.0)
    assert not match_pixels(depth, intrinsics, poses, GRID, 0.02).valid.any()
    turned = poses.clone()
    turned[:, 1, :3, :3] = torch.diag(torch.tensor([-1.0, 1.0, -1.0])).double() @ poses[:, 1, :3, :3]
    assert not match_pixels(depth, intrinsics, turned, GRID, 0.02).valid.any()


def surface_voxels(depth, intrinsics, poses, size: float, seed: int) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Voxels of each view's own points, a third of them dropped: (V, 4) sorted."""
    rng = np.random.default_rng(seed)
    rows = []
    for chunk in range(depth.shape[0]):
        points, z = cell_points(depth[chunk : chunk + 1], intrinsics[chunk : chunk + 1], GRID)
        cells = np.unique(np.floor(transform(poses[chunk], points[0])[z[0] > 0].numpy() / size).astype(int), axis=0)
        cells = cells[rng.random(len(cells)) < 0.67]
        rows.append(np.concatenate((np.full((len(cells), 1), chunk), cells), axis=1))
    return torch.from_numpy(np.concatenate(rows))


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([0.02, 0.1, 0.3]))
def test_voxel_matches_equal_brute_force(seed: int, size: float) -> None:
    depth, intrinsics, poses = (t[:, 0] for t in scene(seed, batch=3))
    poses = scene(seed, batch=3)[2][:, 1]
    voxels = surface_voxels(depth, intrinsics, poses, size, seed)
    got = match_voxels(depth, intrinsics, poses, voxels, torch.tensor(size, dtype=torch.float64), GRID)
    points, z = cell_points(depth, intrinsics, GRID)
    world = transform(poses, points).numpy()
    wanted: dict[int, tuple[float, int, int]] = {}
    for b in range(3):
        rows = np.flatnonzero(voxels[:, 0].numpy() == b)
        centres = (voxels[rows, 1:].numpy() + 0.5) * size
        for cell in range(GRID[0] * GRID[1]):
            if z[b, cell] == 0 or len(rows) == 0:
                continue
            gaps = np.linalg.norm(centres - world[b, cell], axis=1)
            row, gap = int(rows[gaps.argmin()]), float(gaps.min())
            if gap < size and (row not in wanted or gap < wanted[row][0]):
                wanted[row] = (gap, b, cell)
    found = {
        int(row): (b, int(cell))
        for b in range(3)
        for cell, row, valid in zip(got.first[b], got.second[b], got.valid[b], strict=True)
        if valid
    }
    assert found == {row: (b, cell) for row, (_, b, cell) in wanted.items()}


def test_keys_sort_like_rows() -> None:
    cells = torch.tensor([[0, -5, 3, 2], [0, -5, 3, 3], [0, 4, -9, 0], [1, -30000, 0, 0]])
    keys = voxel_keys(cells)
    assert torch.equal(keys, keys.sort()[0])
    assert len(keys.unique()) == 4


@settings(max_examples=30)
@given(st.integers(0, 2**62), st.integers(2, 40))
def test_choose_draws_valid_ones_without_repeats(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed % 1000)
    valid = torch.rand(3, 30, generator=generator) < 0.5
    matches = Matches(torch.arange(30).expand(3, -1), torch.arange(30).flip(0).expand(3, -1), valid)
    seeds = torch.tensor([seed, seed + 1, seed])
    got = choose(matches, count, seeds)
    assert torch.equal(got.valid.sum(1), valid.sum(1).clamp(max=count))
    for b in range(3):
        picked = got.first[b, got.valid[b]]
        assert len(picked.unique()) == len(picked)
        assert valid[b, picked].all()
        assert torch.equal(got.second[b], 29 - got.first[b])
    again = choose(matches, count, seeds)
    assert torch.equal(got.first, again.first)


def test_choose_is_uniform() -> None:
    matches = Matches(*(torch.arange(20).expand(4000, -1),) * 2, torch.ones(4000, 20, dtype=torch.bool))
    got = choose(matches, 5, torch.arange(4000))
    counts = torch.bincount(got.first.flatten(), minlength=20).double()
    expected = 4000 * 5 / 20
    assert ((counts - expected).abs() < 5 * math.sqrt(expected)).all()


def test_choose_0_takes_all() -> None:
    matches = Matches(torch.arange(6)[None], torch.arange(6)[None], torch.arange(6)[None] % 2 == 0)
    for field, wanted in zip(choose(matches, 0, torch.ones(1, dtype=torch.long)), matches, strict=True):
        assert torch.equal(field, wanted)


@pytest.mark.parametrize("count", [1, -1])
def test_choose_refuses_one_point_or_fewer_than_none(count: int) -> None:
    matches = Matches(*(torch.zeros(1, 3, dtype=torch.long),) * 2, torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ConfigError, match="at least 2"):
        choose(matches, count, torch.ones(1))


def test_frustum_box_holds_every_point_and_is_tight() -> None:
    depth, intrinsics, poses = (t[0, 1] for t in scene(8))
    depth = torch.where(depth > 0, 1.0, 0.0).double()
    box = frustum_box(depth.numpy().astype(np.float32), intrinsics.numpy(), np.eye(4))
    assert box is not None
    np.testing.assert_allclose(box[0], (-8 / 14, -6 / 14, 1), atol=1e-6)
    np.testing.assert_allclose(box[1], (8 / 14, 6 / 14, 1), atol=1e-6)
    assert frustum_box(np.zeros(SIZE, np.float32), intrinsics.numpy(), poses.numpy()) is None


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 3]))
def test_crop_and_coarsen_equal_brute_force(seed: int, factor: int) -> None:
    rng = np.random.default_rng(seed)
    cells = np.unique(rng.integers(-9, 9, size=(200, 3)), axis=0).astype(np.int32)
    voxels = Voxels(cells, 0.02, rng.integers(0, 255, size=cells.shape, dtype=np.uint8))
    low, high = np.sort(rng.uniform(-0.2, 0.2, size=(2, 3)), axis=0)
    cut = crop(voxels, low, high)
    touch = ((cells + 1) * 0.02 > low).all(1) & (cells * 0.02 <= high).all(1)
    np.testing.assert_array_equal(cut.cells, cells[touch])
    coarse = coarsen(voxels, 0.02 * factor)
    assert {tuple(c) for c in coarse.cells.tolist()} == {tuple(np.floor(c / factor).astype(int)) for c in cells}
    assert (np.diff(voxel_keys(torch.from_numpy(np.pad(coarse.cells, ((0, 0), (1, 0))))).numpy()) > 0).all()


def test_cells_out_of_order_are_no_surface() -> None:
    """A mapped file is not verified: a damaged one must not give a chunk of somewhere else."""
    cells = np.array([(0, 0, 0), (9, 0, 0), (1, 0, 0), (2, 0, 0)], np.int32)
    with pytest.raises(DataError, match="not in their order"):
        crop(Voxels(cells, 1.0), np.zeros(3), np.full(3, 2.5))


def test_coarsen_refuses_other_sizes() -> None:
    with pytest.raises(ConfigError, match="whole multiple"):
        coarsen(Voxels(np.zeros((1, 3), np.int32), 0.02), 0.05)
