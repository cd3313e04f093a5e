"""Fused and voxelised surfaces against planes, spheres and slow loops."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from pri3d.geometry import fusion
from pri3d.geometry.fusion import color_cells, fuse_depth, voxelise_triangles
from pri3d.types import Voxels

SIZE = 0.02
K = np.array((100.0, 100.0, 40.0, 30.0))


def ring(count: int, radius: float) -> NDArray[np.float64]:
    """Poses on a circle in the x-z plane that look at the origin."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    for k, angle in enumerate(np.linspace(0, 2 * np.pi, count, endpoint=False)):
        forward = np.array((np.sin(angle), 0, np.cos(angle)))
        poses[k, :3, :3] = np.stack((np.cross((0, 1, 0), forward), (0, 1, 0), forward), axis=1)
        poses[k, :3, 3] = -radius * forward
    return poses


def sphere_depth(pose: NDArray[np.float64], radius: float) -> NDArray[np.uint16]:
    v, u = np.mgrid[:60, :80] + 0.5
    rays = np.stack(((u - K[2]) / K[0], (v - K[3]) / K[1], np.ones(u.shape)), axis=-1)
    centre = -pose[:3, :3].T @ pose[:3, 3]
    a, b, c = (rays**2).sum(-1), rays @ centre, centre @ centre - radius**2
    root = b**2 - a * c
    z = np.where(root >= 0, (b - np.sqrt(np.maximum(root, 0))) / a, 0)
    return np.rint(z * 1000).astype(np.uint16)


def test_plane_becomes_the_two_layers_round_it() -> None:
    z = 1.0 + 0.3 * SIZE  # inside the cell [1.00, 1.02): the change of sign is between it and the one before
    depth = np.full((1, 60, 80), round(z * 1000), np.uint16)
    cells = fuse_depth(depth, K[None], np.eye(4)[None], SIZE).cells
    assert set(np.unique(cells[:, 2])) == {49, 50}
    middle = cells[(np.abs(cells[:, :2] + 0.5) < 10).all(axis=1)]
    assert len(middle) == 2 * 20 * 20  # no hole


def test_sphere_is_covered_and_nothing_else() -> None:
    radius, poses = 0.3, ring(12, 1.2)
    depth = np.stack([sphere_depth(pose, radius) for pose in poses])
    voxels = fuse_depth(depth, np.tile(K, (12, 1)), poses, SIZE)
    centres = (voxels.cells + 0.5) * SIZE
    assert np.abs(np.linalg.norm(centres, axis=1) - radius).max() < 1.5 * SIZE
    angle, height = np.meshgrid(np.linspace(0, 2 * np.pi, 100), np.linspace(-0.7, 0.7, 30))
    flat = np.sqrt(1 - height**2)
    seen = radius * np.stack((flat * np.sin(angle), height, flat * np.cos(angle)), axis=-1).reshape(-1, 3)
    occupied = {tuple(cell) for cell in voxels.cells.tolist()}
    near = np.floor(seen / SIZE).astype(int)
    steps = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3), axis=-1).reshape(-1, 3)
    hit = [any(tuple(cell + step) in occupied for step in steps) for cell in near]
    assert np.mean(hit) >= 0.99


def test_cells_are_unique_sorted_and_do_not_depend_on_blocks() -> None:
    depth = sphere_depth(ring(1, 1.2)[0], 0.3)[None]
    pose = ring(1, 1.2)
    cells = fuse_depth(depth, K[None], pose, SIZE).cells
    assert cells.dtype == np.int32
    np.testing.assert_array_equal(cells, np.unique(cells, axis=0))
    shifted = pose.copy()
    shifted[:, :3, 3] += SIZE * np.array((3, -5, 1))  # other cells fall on block borders
    moved = fuse_depth(depth, K[None], shifted, SIZE).cells - np.array((3, -5, 1))
    same = {tuple(c) for c in cells.tolist()} & {tuple(c) for c in moved.tolist()}
    assert len(same) >= 0.99 * len(cells)  # rounding may move a value across a cell's centre


def test_no_depth_gives_no_cells() -> None:
    voxels = fuse_depth(np.zeros((2, 60, 80), np.uint16), np.tile(K, (2, 1)), ring(2, 1.0), SIZE)
    assert voxels.cells.shape == (0, 3)


@given(st.lists(st.tuples(*[st.integers(-(2**19), 2**19)] * 3), min_size=1, max_size=20))
def test_keys_are_invertible_and_sort_as_cells_do(rows: list[tuple[int, int, int]]) -> None:
    cells = np.array(rows)
    keys = fusion._pack(cells)
    np.testing.assert_array_equal(fusion._unpack(keys), cells)
    assert [tuple(c) for c in cells[np.argsort(keys, kind="stable")].tolist()] == sorted(rows)


@pytest.mark.thorough
def test_triangles_fill_a_slanted_square() -> None:
    vertices = np.array([(0, 0, 0), (0.5, 0, 0.2), (0.5, 0.5, 0.2), (0, 0.5, 0)]) + 0.003
    cells = voxelise_triangles(vertices, np.array([(0, 1, 2), (0, 2, 3)]), SIZE).cells
    s, t = np.meshgrid(np.linspace(0, 1, 400), np.linspace(0, 1, 400))
    points = np.stack((0.5 * s, 0.5 * t, 0.2 * s), axis=-1).reshape(-1, 3) + 0.003
    truth = {tuple(c) for c in np.floor(points / SIZE).astype(int).tolist()}
    found = {tuple(c) for c in cells.tolist()}
    assert found <= truth | {tuple(c) for c in np.floor((vertices) / SIZE).astype(int).tolist()}
    assert len(found & truth) >= 0.97 * len(truth)


def test_triangles_of_a_closed_mesh() -> None:
    mesh = trimesh.creation.icosphere(subdivisions=2, radius=0.4)
    cells = voxelise_triangles(np.asarray(mesh.vertices), np.asarray(mesh.faces), SIZE).cells
    distance = np.linalg.norm((cells + 0.5) * SIZE, axis=1)
    innermost = np.linalg.norm(mesh.triangles_center, axis=1).min()  # faces lie inside the sphere
    reach = SIZE * np.sqrt(3) / 2 + 1e-9
    assert innermost - reach <= distance.min() <= distance.max() <= 0.4 + reach
    np.testing.assert_array_equal(cells, np.unique(cells, axis=0))
    samples = trimesh.sample.sample_surface(mesh, 4000, seed=0)[0]
    found = {tuple(c) for c in cells.tolist()}
    assert np.mean([tuple(c) in found for c in np.floor(samples / SIZE).astype(int).tolist()]) > 0.99


def test_no_triangles_give_no_cells() -> None:
    assert len(voxelise_triangles(np.zeros((3, 3)), np.zeros((0, 3), np.int64), SIZE).cells) == 0


def test_color_is_the_mean_of_the_pixels_that_see_the_cell() -> None:
    cells = np.array([(0, 0, 49), (0, 0, 80), (10_000, 0, 49)], np.int32)  # seen, hidden behind, outside
    depth = [np.full((60, 80), 990, np.uint16)] * 2
    color = [np.full((60, 80, 3), value, np.uint8) for value in (100, 201)]
    result = color_cells(Voxels(cells, SIZE), color, depth, np.tile(K, (2, 1)), np.tile(np.eye(4), (2, 1, 1)))
    assert result.color is not None
    assert result.color.tolist() == [[150] * 3, [0] * 3, [0] * 3]


@pytest.mark.parametrize("empty", [True, False])
def test_color_without_frames_or_cells(empty: bool) -> None:
    cells = np.zeros((0 if empty else 2, 3), np.int32)
    result = color_cells(Voxels(cells, SIZE), [], [], np.zeros((0, 4)), np.zeros((0, 4, 4)))
    assert result.color is not None
    assert result.color.shape == cells.shape


@pytest.mark.parametrize("sign", [-1, 1])
def test_surfaces_at_the_reach_are_those_at_the_origin(sign: int) -> None:
    size, shift = 2.0**-6, sign * np.array((fusion.REACH, -fusion.REACH, fusion.REACH))  # powers of two: no rounding
    depth, poses = np.full((1, 60, 80), 1000, np.uint16), np.eye(4)[None].copy()
    vertices = np.array([(0.1, 0, 0), (0.3, 0, 0.2), (0, 0.3, 0.1)])
    near = fuse_depth(depth, K[None], poses, size), voxelise_triangles(vertices, np.array([(0, 1, 2)]), size)
    poses[0, :3, 3] += shift * size
    far = (
        fuse_depth(depth, K[None], poses, size),
        voxelise_triangles(vertices + shift * size, np.array([(0, 1, 2)]), size),
    )
    for here, there in zip(near, far, strict=True):
        assert len(here.cells) > 100
        np.testing.assert_array_equal(there.cells - shift, here.cells)


@pytest.mark.parametrize("seed", range(3))
def test_color_equals_a_loop_over_cells(seed: int) -> None:
    """Cameras that are turned and moved in every direction, noisy depth with holes; many cells are seen by none."""
    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, :3, :3] = Rotation.from_rotvec(rng.normal(0, 0.3, (3, 3))).as_matrix()
    poses[:, :3, 3] = rng.normal(0, 0.1, (3, 3))
    intrinsics = K + rng.normal(0, 3, (3, 4))
    cells = rng.integers((-25, -20, -5), (25, 20, 60), (800, 3)).astype(np.int32)
    depth = list(rng.integers(900, 1100, (3, 60, 80)).astype(np.uint16) * (rng.random((3, 60, 80)) < 0.9))
    color = list(rng.integers(0, 256, (3, 60, 80, 3)).astype(np.uint8))
    expected = np.zeros((800, 3))
    for n, cell in enumerate(cells):
        seen = []
        for k in range(3):
            x, y, z = poses[k, :3, :3].T @ ((cell + 0.5) * SIZE - poses[k, :3, 3])
            u, v = x / z * intrinsics[k, 0] + intrinsics[k, 2], y / z * intrinsics[k, 1] + intrinsics[k, 3]
            if z > 0 and 0 <= u < 80 and 0 <= v < 60 and depth[k][int(v), int(u)]:
                near = abs(depth[k][int(v), int(u)] / 1000 - z) <= 1.5 * SIZE
                seen += [color[k][int(v), int(u)].astype(float)] if near else []
        expected[n] = np.mean(seen, axis=0) if seen else 0
    found = color_cells(Voxels(cells, SIZE), color, [d.astype(np.uint16) for d in depth], intrinsics, poses).color
    assert found is not None
    assert 20 < expected.any(axis=1).sum() < 700
    np.testing.assert_allclose(found, expected, atol=0.51)  # rounded to whole numbers
