"""Overlap against brute force: exact for every pixel asked, whatever the poses and holes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from pri3d.preparation.overlap import (
    DepthStack,
    estimate_overlaps,
    find_better_centre,
    measure_overlaps,
    mine_pairs,
    overlap,
    pair_table,
    query_step,
    tile_ranges,
)
from pri3d.worlds.render import render_room
from pri3d.worlds.room import build_room

pytestmark = pytest.mark.thorough  # but for those that say quick


def world_points(stack: DepthStack, n: int) -> NDArray[np.float64]:
    fx, fy, cx, cy = stack.intrinsics[n]
    v, u = np.nonzero(stack.depth[n])
    z = stack.depth[n][v, u] / 1000
    points = np.stack(((u + 0.5 - cx) / fx * z, (v + 0.5 - cy) / fy * z, z), axis=1)
    return points @ stack.world_from_camera[n, :3, :3].T + stack.world_from_camera[n, :3, 3]


def brute_force(
    stack: DepthStack, i: int, j: int, distance: float, mode: str = "paper", relative: bool = False
) -> float:
    """Paper section 3.1, word by word; the distance as a share of the asked point's own depth where ``relative``."""
    a, b = world_points(stack, i), world_points(stack, j)
    if len(a) == 0 or len(b) == 0:
        return 0.0
    reach_a, reach_b = (distance * (depth[depth > 0] / 1000 if relative else 1) for depth in stack.depth[[i, j]])
    hits_a = (cKDTree(b).query(a)[0] <= reach_a).sum()
    hits_b = (cKDTree(a).query(b)[0] <= reach_b).sum()
    if mode == "max":
        return float(max(hits_a / len(a), hits_b / len(b)))
    return float((hits_a + hits_b) / (len(a) + len(b)))


def random_stack(seed: int, spread: float, nearest: float) -> DepthStack:
    """Three small wavy depth images with holes from cameras ``spread`` metres and radians apart."""
    rng = np.random.default_rng(seed)
    h, w = rng.integers(9, 30, 2)
    v, u = np.mgrid[:h, :w]
    depth = nearest + 0.3 * rng.random((3, 1, 1)) + 0.05 * np.sin(u / 3) + 0.05 * np.cos(v / 4)
    depth = np.maximum(depth + 0.02 * rng.standard_normal((3, h, w)), 0.001)
    depth[rng.random(depth.shape) < 0.2] = 0
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, :3, :3] = Rotation.from_rotvec(spread * rng.standard_normal((3, 3))).as_matrix()
    poses[:, :3, 3] = spread * rng.standard_normal((3, 3))
    intrinsics = np.stack([(0.8 * w, 0.9 * w, w * rng.uniform(0.4, 0.6), h * rng.uniform(0.4, 0.6)) for _ in range(3)])
    return DepthStack((depth * 1000).astype(np.uint16), intrinsics, poses)


@given(
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.05, 0.3, 3.0]),
    st.sampled_from([0.05, 0.5, 2.0]),
    st.booleans(),
    st.booleans(),
)
@hypothesis_settings(max_examples=60)
def test_equals_brute_force(seed: int, spread: float, nearest: float, paper: bool, relative: bool) -> None:
    stack = random_stack(seed, spread, nearest)  # nearest 5 cm: points on and behind the other camera's plane
    mode = "paper" if paper else "max"
    for i, j in ((0, 1), (1, 2)):
        for distance in (0.01, 0.06):
            how = {"distance": distance, "mode": mode, "relative": relative}
            value = overlap(stack, tile_ranges(stack.depth), i, j, step=1, **how)
            assert value == pytest.approx(brute_force(stack, i, j, **how), abs=1e-9)


def test_extremes() -> None:
    stack = random_stack(1, 0.0, 1.0)
    twice = DepthStack(stack.depth[[0, 0]], stack.intrinsics[[0, 0]], stack.world_from_camera[[0, 0]])
    assert overlap(twice, tile_ranges(twice.depth), 0, 1, distance=1e-3, step=1) == 1.0
    empty = twice._replace(depth=np.zeros_like(twice.depth))
    assert overlap(empty, tile_ranges(empty.depth), 0, 1, distance=0.02, step=1) == 0.0
    away = twice.world_from_camera.copy()
    away[1] = np.diag([-1.0, 1, -1, 1])  # looks the other way
    turned = twice._replace(world_from_camera=away)
    assert overlap(turned, tile_ranges(turned.depth), 0, 1, distance=0.02, step=1) == 0.0


def test_shifted_plane_has_the_closed_form() -> None:
    """A fronto-parallel plane, camera moved by a quarter of what it sees: 3/4 of the pixels correspond."""
    h, w, f, z = 64, 96, 96.0, 2.0
    pose = np.tile(np.eye(4), (2, 1, 1))
    pose[1, 0, 3] = w / 4 * z / f
    stack = DepthStack(np.full((2, h, w), 2000, np.uint16), np.tile((f, f, w / 2, h / 2), (2, 1)), pose)
    assert overlap(stack, tile_ranges(stack.depth), 0, 1, distance=0.01, step=1) == pytest.approx(0.75)


def test_tile_ranges_ignore_holes_and_padding() -> None:
    depth = np.zeros((1, 9, 17), np.uint16)
    depth[0, 0, :2] = 500, 900
    depth[0, 8, 16] = 700
    tiles = tile_ranges(depth)
    assert tiles.near.shape == (1, 2, 3)
    assert (tiles.near[0, 0, 0], tiles.far[0, 0, 0]) == (500, 900)
    assert (tiles.near[0, 1, 2], tiles.far[0, 1, 2]) == (700, 700)
    assert (tiles.near[0, 0, 1], tiles.far[0, 0, 1]) == (65535, 0)


FRAMES = 8


@pytest.fixture(scope="module")
def room_stack() -> DepthStack:
    frames = render_room(build_room(3, 0), FRAMES, 120, 90)
    depth = np.stack([np.rint(f.depth * 1000).astype(np.uint16) for f in frames])
    intrinsics = np.array([f.color_camera[2:] for f in frames])
    return DepthStack(depth, intrinsics, np.stack([f.world_from_camera for f in frames]))


def all_pairs(n: int) -> NDArray[np.int32]:
    return np.stack(np.triu_indices(n, 1), axis=1).astype(np.int32)


@pytest.mark.thorough
@pytest.mark.parametrize(("mode", "relative"), [("paper", False), ("max", False), ("paper", True)])
def test_mine_keeps_what_brute_force_keeps(room_stack: DepthStack, mode: str, relative: bool) -> None:
    how = {"distance": 0.02 if relative else 0.04, "mode": mode, "relative": relative}  # a pixel covers 2 cm at 2 m
    truth = {(i, j): brute_force(room_stack, i, j, **how) for i, j in all_pairs(FRAMES).tolist()}
    pairs, values, best = mine_pairs(room_stack, min_overlap=0.3, **how)
    assert {tuple(p) for p in pairs.tolist()} == {p for p, value in truth.items() if value >= 0.3}
    assert 0 < len(pairs) < len(truth)
    expected = [truth[tuple(p)] for p in pairs.tolist()]
    np.testing.assert_allclose(values, expected, atol=0.01)
    assert np.mean(np.abs(values - expected)) <= 0.004
    assert best == values.max()


def test_a_pair_near_the_threshold_is_decided_exactly(room_stack: DepthStack) -> None:
    pairs = all_pairs(FRAMES)
    for i, j in pairs[:4].tolist():
        truth = brute_force(room_stack, i, j, 0.02)
        values = measure_overlaps(room_stack, np.array([(i, j)], np.int32), distance=0.02, min_overlap=truth + 1e-5)
        assert values[0] == pytest.approx(truth, abs=1e-6)


def test_a_pair_near_the_papers_threshold_is_decided_exactly_too(
    room_stack: DepthStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pairs are kept from less on, and training asks for the paper's overlap later."""
    (i, j), *_ = all_pairs(FRAMES)[:1].tolist()
    truth = brute_force(room_stack, i, j, 0.02)
    monkeypatch.setattr("pri3d.preparation.overlap.PAPER_OVERLAP", truth + 1e-5)
    values = measure_overlaps(room_stack, np.array([(i, j)], np.int32), distance=0.02, min_overlap=0.001)
    assert values[0] == pytest.approx(truth, abs=1e-6)


def test_threads_change_nothing(room_stack: DepthStack) -> None:
    one = mine_pairs(room_stack, min_overlap=0.1)
    two = mine_pairs(room_stack, min_overlap=0.1, threads=2)
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])


@pytest.mark.quick
def test_estimate_is_a_safe_filter(room_stack: DepthStack) -> None:
    guess = estimate_overlaps(room_stack)
    np.testing.assert_allclose(guess, guess.T)
    np.testing.assert_allclose(np.diagonal(guess), 1)
    for i, j in all_pairs(FRAMES).tolist():
        assert abs(guess[i, j] - brute_force(room_stack, i, j, 0.02)) < 0.12


def test_estimate_of_an_empty_frame_is_zero(room_stack: DepthStack) -> None:
    depth = room_stack.depth.copy()
    depth[0] = 0
    assert estimate_overlaps(room_stack._replace(depth=depth))[0].max() == 0


def test_query_step() -> None:
    assert [query_step(h, w) for h, w in ((480, 640), (240, 320), (120, 160), (10, 10))] == [8, 4, 2, 1]


def test_pair_table_states_baseline_and_angle() -> None:
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[1, :3, :3] = Rotation.from_rotvec((0, np.pi / 3, 0)).as_matrix()
    poses[1, :3, 3] = (3, 0, 4)
    rows = np.array([4, 9], np.int32)
    table = pair_table("s", rows, np.array([(0, 1)], np.int32), np.array([0.5], np.float32), poses)
    assert (table.scene[0], table.i[0], table.j[0]) == ("s", 4, 9)
    assert table.baseline[0] == pytest.approx(5)
    assert table.angle[0] == pytest.approx(np.pi / 3)


@pytest.mark.slow
def test_real_recording_against_brute_force(real_data) -> None:
    """Full resolution, every pixel, on a handful of pairs; benchmarks/mining.py does 200."""
    folder = real_data / "7scenes_redkitchen"
    names = sorted(p.name.split(".")[0] for p in folder.glob("*.depth.png"))[::25]
    depth = np.stack([np.array(Image.open(folder / f"{n}.depth.png")).astype(np.uint16) for n in names])
    depth[depth > 6000] = 0
    poses = np.stack([np.loadtxt(folder / f"{n}.pose.txt") for n in names])
    u, _, vt = np.linalg.svd(poses[:, :3, :3])
    poses[:, :3, :3] = u @ vt
    k = np.loadtxt(folder / "camera-intrinsics.txt")
    stack = DepthStack(depth, np.tile((k[0, 0], k[1, 1], k[0, 2] + 0.5, k[1, 2] + 0.5), (len(names), 1)), poses)
    pairs = all_pairs(len(names))[::5]
    truth = np.array([brute_force(stack, i, j, 0.02) for i, j in pairs.tolist()])
    values = measure_overlaps(stack, pairs, distance=0.02, min_overlap=0.3)
    assert np.abs(values - truth).mean() <= 0.003
    assert ((values >= 0.3) == (truth >= 0.3)).mean() >= 0.995


@pytest.mark.parametrize("seed", [3, 20, 23])
def test_a_centre_that_is_off_shows_in_neighbouring_frames(seed: int) -> None:
    """Of a right recording no other centre is better; one that is 2 or 6 % of the width off is found, and its side."""
    frames = render_room(build_room(seed, 1), 24, 80, 60)
    k = np.array([frame.depth_camera[2:] for frame in frames])
    depth = np.round(np.stack([frame.depth for frame in frames]) * 1000).astype(np.uint16)
    stack = DepthStack(depth, k, np.stack([frame.world_from_camera for frame in frames]))
    assert find_better_centre(stack) is None
    for right, down in ((0.06, 0), (-0.06, 0), (0, 0.06), (0.0234, 0)):
        found = find_better_centre(stack._replace(intrinsics=k + np.array((0, 0, 80 * right, 80 * down))))
        assert found is not None and found.gain > 1.04
        assert (found.right * right, found.down * down) <= (0, 0)
        assert abs(found.right + found.down + 80 * (right + down)) < 2  # it takes the error back
    still = np.repeat(stack.world_from_camera[:1], 24, axis=0)
    same = DepthStack(np.repeat(depth[:1], 24, axis=0), k + np.array((0, 0, 5, 0)), still)
    assert find_better_centre(same) is None  # of a camera that rests nothing can be said
    assert find_better_centre(DepthStack(depth[:2], k[:2], stack.world_from_camera[:2])) is None
