"""Pictures of rooms: depth, labels and poses agree; light, texture and sensor noise behave as stated."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from importlib.util import find_spec

import numpy as np
import pytest

from pri3d.geometry.pose import invert_array
from pri3d.types import Frame
from pri3d.worlds.render import albedo, noisy_color, noisy_depth, render_room
from pri3d.worlds.room import CLASS_NAMES, Room, build_room

WIDTH, HEIGHT = 64, 48


@pytest.fixture(scope="module")
def room() -> Room:
    return build_room(11, 2)


@pytest.fixture(scope="module")
def frames(room: Room) -> list[Frame]:
    return render_room(room, 14, WIDTH, HEIGHT, noise=False)


def world_points(frame: Frame) -> np.ndarray:
    """(H, W, 3) surface points of a frame in the world, from its depth, camera and pose alone."""
    c = frame.depth_camera
    u, v = np.meshgrid(np.arange(c.width) + 0.5, np.arange(c.height) + 0.5)
    z = frame.depth.astype(float)
    points = np.stack(((u - c.cx) / c.fx * z, (v - c.cy) / c.fy * z, z), axis=-1)
    return points @ frame.world_from_camera[:3, :3].T + frame.world_from_camera[:3, 3]


def test_floor_ceiling_and_walls_lie_where_they_are(room: Room, frames: list[Frame]) -> None:
    seen = np.zeros(len(CLASS_NAMES), int)
    for frame in frames:
        points = world_points(frame)
        assert (points > -1e-5).all()
        assert (points < room.size + 1e-5).all()
        np.testing.assert_allclose(points[frame.label == 1, 2], 0, atol=1e-5)
        np.testing.assert_allclose(points[frame.label == 2, 2], room.size[2], atol=1e-5)
        wall = points[frame.label == 0]
        assert np.minimum(wall, room.size - wall)[:, :2].min(axis=1).max() < 0.03  # skirting and pictures are thin
        seen += np.bincount(frame.label.ravel(), minlength=len(CLASS_NAMES))
    assert (seen > 0).sum() >= 10


def test_points_lie_in_the_boxes_of_their_instance(room: Room, frames: list[Frame]) -> None:
    corners = room.vertices[room.faces]
    for frame in frames[::5]:
        points = world_points(frame)
        for instance in np.unique(frame.instance[frame.instance > 0]):
            own = corners[room.instance == instance].reshape(-1, 3)
            mask = frame.instance == instance
            assert (points[mask] >= own.min(0) - 1e-4).all()
            assert (points[mask] <= own.max(0) + 1e-4).all()
            assert (frame.label[mask] == room.label[room.instance == instance][0]).all()


def overlap(a: Frame, b: Frame) -> float:
    """Share of a's pixels that b sees at the same place."""
    b_from_world = invert_array(b.world_from_camera)
    points = world_points(a).reshape(-1, 3) @ b_from_world[:3, :3].T + b_from_world[:3, 3]
    c, z = b.depth_camera, np.maximum(points[:, 2], 1e-6)
    u, v = np.floor(points[:, 0] / z * c.fx + c.cx), np.floor(points[:, 1] / z * c.fy + c.cy)
    inside = (points[:, 2] > 0.1) & (u >= 0) & (u < c.width) & (v >= 0) & (v < c.height)
    seen = np.zeros(len(points))
    seen[inside] = b.depth[v[inside].astype(int), u[inside].astype(int)]
    return float((np.abs(seen - points[:, 2]) < 0.05).mean())


def test_neighbours_and_others_overlap(frames: list[Frame]) -> None:
    neighbours = [overlap(a, b) for a, b in itertools.pairwise(frames)]
    assert 0.4 < np.mean(neighbours) < 0.9
    assert min(neighbours) > 0.2
    across = [overlap(frames[0], frame) for frame in frames[2:]]
    assert sum(0.3 < share < 0.9 for share in across) >= 2


def test_frames_do_not_depend_on_how_many(room: Room) -> None:
    short, long = (render_room(room, count, 32, 24) for count in (2, 3))
    for a, b in zip(short, long, strict=False):
        assert np.array_equal(a.color, b.color)
        assert np.array_equal(a.depth, b.depth)
        assert np.array_equal(a.world_from_camera, b.world_from_camera)


#: of the pictures of version 1 (``pri3d.worlds.write``): what changes them raises that version
PICTURES = {
    "color": "898c1870533787b1",
    "depth": "189c6107f31da6db",
    "label": "2caddec0d2450f84",
    "instance": "9e9c9da412a89fd1",
}


def digests(frames: list[Frame]) -> dict[str, str]:
    parts = {name: [getattr(frame, name).tobytes() for frame in frames] for name in PICTURES}
    return {name: hashlib.sha256(b"".join(part)).hexdigest()[:16] for name, part in parts.items()}


def test_pictures_are_those_of_their_version(room: Room) -> None:
    assert digests(render_room(room, 2, WIDTH, HEIGHT)) == PICTURES


@pytest.mark.thorough
def test_pictures_without_embree_are_the_same(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rtree")
    with_embree = render_room(room, 1, 16, 12)
    monkeypatch.setattr("pri3d.worlds.render.find_spec", lambda name: None if name == "embreex" else find_spec(name))
    assert digests(render_room(room, 1, 16, 12)) == digests(with_embree)


def test_noise_changes_pictures_but_not_truth(room: Room, frames: list[Frame]) -> None:
    noisy = render_room(room, 3, WIDTH, HEIGHT)
    for measured, exact in zip(noisy, frames, strict=False):
        assert np.array_equal(measured.label, exact.label)
        assert np.array_equal(measured.instance, exact.instance)
        assert np.array_equal(measured.world_from_camera, exact.world_from_camera)
        valid = measured.depth > 0
        assert 0.6 < valid.mean() < 1
        assert np.abs(measured.depth - exact.depth)[valid].mean() < 0.03
        assert not np.array_equal(measured.color, exact.color)


def test_both_lights_add_and_walls_stop_them(room: Room) -> None:
    dark = render_room(dataclasses.replace(room, light_color=0 * room.light_color), 1, 32, 24, noise=False)[0]
    lit = render_room(room, 1, 32, 24, noise=False)[0]
    assert (lit.color >= dark.color).all()
    assert lit.color.mean() > dark.color.mean() + 15
    outside = dataclasses.replace(room, lights=room.lights + 100)
    assert np.array_equal(render_room(outside, 1, 32, 24, noise=False)[0].color, dark.color)


def test_furniture_throws_shadows(room: Room) -> None:
    """A lamp at the ceiling leaves part of the floor dark, but only part."""
    black = np.zeros((2, 3), np.float32)
    first = render_room(dataclasses.replace(room, light_color=black), 14, 32, 24, noise=False)
    lit = render_room(room, 14, 32, 24, noise=False)
    floor = [(a.color == b.color).all(axis=2)[a.label == 1] for a, b in zip(first, lit, strict=True)]
    assert 0 < np.concatenate(floor).mean() < 0.7


def test_textures_differ_in_space_and_stay_in_range(room: Room) -> None:
    points = np.random.default_rng(0).uniform(0, 3, (400, 3))
    for kind in range(5):
        material = int(np.flatnonzero(room.materials.kind == kind)[0])
        color = albedo(room.materials, np.full(400, material), points)
        assert color.dtype == np.float32
        assert color.min() >= 0
        assert color.max() <= 1.2
        assert color.std(axis=0).max() > 0.005


def test_sensor_steps_noise_range_and_holes() -> None:
    rng = np.random.default_rng(0)
    near, far = (noisy_depth(np.full((60, 80), z, np.float32), rng) for z in (1.0, 4.0))
    assert (near > 0).all(), "a flat surface has no holes"
    assert far.std() > 6 * near.std()
    assert near.mean() == pytest.approx(1.0, abs=2e-3)
    for z in (0.0, 0.3, 7.0):
        assert not noisy_depth(np.full((20, 20), z, np.float32), rng).any()
    assert np.allclose(near * 1000, np.round(near * 1000), atol=1e-3)
    disparity = 585 * 0.075 / far * 8
    assert np.abs(disparity - np.round(disparity)).max() < 0.08  # whole eighths up to the rounding to millimetres
    step = np.where(np.arange(80) < 40, 1.0, 3.0).astype(np.float32) * np.ones((60, 1), np.float32)
    holes = np.flatnonzero((noisy_depth(step, rng) == 0).any(axis=0))
    assert set(holes) == {39, 40}


def test_colour_noise_varies_by_frame() -> None:
    grey = np.full((40, 40, 3), 0.4, np.float32)
    first, second = (noisy_color(grey, np.random.default_rng(k)) for k in (1, 2))
    assert first.dtype == np.float32
    assert abs(first.mean() - second.mean()) > 1e-3
    assert 0.28 < first.mean() < 0.55
    assert 0.005 < first[..., 0].std() < 0.02
