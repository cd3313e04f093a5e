"""Rooms: repeatable, furnished without overlap, and a camera that sees enough of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pri3d.errors import ConfigError
from pri3d.worlds.render import camera_path, caster, distance, look_at
from pri3d.worlds.room import CLASS_NAMES, Room, build_room

STUFF = 3  # wall, floor, ceiling


@pytest.fixture(scope="module")
def some_rooms() -> list[Room]:
    return [build_room(3, k) for k in range(12)]


def test_same_numbers_same_room_other_numbers_another() -> None:
    a, b = build_room(3, 5), build_room(3, 5)
    for field in ("vertices", "faces", "label", "instance", "material", "lights", "boxes"):
        assert np.array_equal(getattr(a, field), getattr(b, field)), field
    assert np.array_equal(a.materials.color, b.materials.color)
    for other in (build_room(3, 6), build_room(4, 5)):
        assert not np.array_equal(a.size, other.size)


def test_every_class_appears_and_an_instance_has_one(some_rooms: list[Room]) -> None:
    seen = np.zeros(len(CLASS_NAMES), int)
    for room in some_rooms:
        seen[np.unique(room.label)] += 1
        assert np.array_equal(room.instance == 0, room.label < STUFF)
        for instance in range(1, int(room.instance.max()) + 1):
            assert len(np.unique(room.label[room.instance == instance])) == 1
    assert (seen >= len(some_rooms) // 2).all(), dict(zip(CLASS_NAMES, seen, strict=True))


def test_planes_hold_their_triangles(some_rooms: list[Room]) -> None:
    for room in some_rooms:
        normal, offset = room.planes[:, :3], room.planes[:, 3]
        np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1, rtol=1e-12)
        heights = np.einsum("fci,fi->fc", room.vertices[room.faces], normal) - offset[:, None]
        np.testing.assert_allclose(heights, 0, atol=1e-9)


def test_furniture_stands_inside_without_overlap(some_rooms: list[Room]) -> None:
    for room in some_rooms:
        corners = room.vertices[room.faces]
        boxes = []
        for instance in range(1, int(room.instance.max()) + 1):
            points = corners[room.instance == instance].reshape(-1, 3)
            low, high = points.min(0), points.max(0)
            assert (low >= -1e-9).all()
            assert (high <= room.size + 1e-9).all()
            if low[2] < 0.01:
                boxes.append((low[:2], high[:2]))
        for i, (low, high) in enumerate(boxes):
            for other_low, other_high in boxes[:i]:
                assert ((high <= other_low) | (other_high <= low)).any()


def test_looks_do_not_follow_class(some_rooms: list[Room]) -> None:
    """Two instances never share a material, so no class can have one of its own."""
    for room in some_rooms:
        pairs = np.unique(np.stack((room.material, room.instance), axis=1), axis=0)
        furniture = pairs[pairs[:, 1] > 0]
        assert len(np.unique(furniture[:, 0])) == len(furniture)
    colors = [room.materials.color.mean() for room in some_rooms]
    assert 0.2 < np.mean(colors) < 0.6


@pytest.mark.thorough
def test_camera_keeps_clear_and_views_are_not_filled(some_rooms: list[Room]) -> None:
    for room in some_rooms:
        for pose in camera_path(room, 12, caster(room.vertices[room.faces])):
            eye = pose[:3, 3]
            assert (eye > 0.3).all()
            assert (eye < room.size - 0.3).all()
            gap = np.maximum(room.boxes[:, 0] - eye, eye - room.boxes[:, 1]).clip(min=0)
            assert np.linalg.norm(gap, axis=1).min() >= 0.3


def test_longer_walk_begins_with_the_shorter_and_moves_smoothly() -> None:
    room = build_room(3, 0)
    cast = caster(room.vertices[room.faces])
    long = camera_path(room, 10, cast)
    assert np.array_equal(long[:4], camera_path(room, 4, cast))
    turns = [np.arccos((np.trace(a[:3, :3].T @ b[:3, :3]) - 1) / 2) for a, b in itertools.pairwise(long)]
    assert max(turns) < np.deg2rad(45)
    assert np.linalg.norm(np.diff(long[:, :3, 3], axis=0), axis=1).max() < 1.5


def test_look_at_has_opencv_axes() -> None:
    pose = look_at(np.array((1.0, 2, 1.5)), np.array((1.0, 5, 1.5)))
    np.testing.assert_allclose(pose[:3, 0], (1, 0, 0), atol=1e-12)  # x right
    np.testing.assert_allclose(pose[:3, 1], (0, 0, -1), atol=1e-12)  # y down
    np.testing.assert_allclose(pose[:3, 2], (0, 1, 0), atol=1e-12)  # z forward
    rolled = look_at(np.zeros(3), np.array((1.0, 2, 3)), roll=0.3)
    np.testing.assert_allclose(rolled[:3, :3] @ rolled[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rolled[:3, :3]) == pytest.approx(1)


def brute_force(corners: np.ndarray, origin: np.ndarray, ray: np.ndarray) -> float:
    """Distance to the nearest triangle: plane, then the three edge tests."""
    best = np.inf
    for a, b, c in corners:
        normal = np.cross(b - a, c - a)
        if abs(normal @ ray) < 1e-12:
            continue
        t = normal @ (a - origin) / (normal @ ray)
        point = origin + t * ray
        if t > 0 and all(np.cross(q - p, point - p) @ normal >= 0 for p, q in ((a, b), (b, c), (c, a))):
            best = min(best, t)
    return best


@pytest.mark.parametrize("library", ["embreex", "rtree"])
def test_casters_find_the_first_triangle(library: str) -> None:
    pytest.importorskip(library)
    rng = np.random.default_rng(0)
    corners = rng.uniform(-1, 1, (70, 1, 3)) + rng.uniform(-0.3, 0.3, (70, 3, 3))
    origins = np.broadcast_to((0.0, 0.0, -3.0), (60, 3))
    rays = np.concatenate((rng.uniform(-0.4, 0.4, (60, 2)), np.ones((60, 1))), axis=1)
    hit = caster(corners, embree=library == "embreex")(origins, rays)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    planes = np.concatenate((normal, (normal * corners[:, 0]).sum(axis=1)[:, None]), axis=1)
    t = np.where(hit >= 0, distance(planes[hit], origins, rays), np.inf)
    np.testing.assert_allclose(t, [brute_force(corners, o, r) for o, r in zip(origins, rays, strict=True)], rtol=1e-9)
    assert 10 < np.isfinite(t).sum() < 60


@pytest.mark.thorough
def test_casters_agree_on_a_room() -> None:
    pytest.importorskip("embreex")
    pytest.importorskip("rtree")
    room = build_room(3, 1)
    corners = room.vertices[room.faces]
    rng = np.random.default_rng(0)
    rays = rng.normal(size=(500, 3))
    rays[:6] = np.concatenate((np.eye(3), -np.eye(3)))  # along the axes, where slab tests divide by zero
    origins = np.broadcast_to((*(room.size[:2] / 2), 1.9), rays.shape)
    t = [distance(room.planes[caster(corners, e)(origins, rays)], origins, rays) for e in (True, False)]
    np.testing.assert_allclose(t[0], t[1], rtol=1e-5)


def test_without_either_library_rooms_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pri3d.worlds.render.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install rtree"):
        caster(np.zeros((1, 3, 3)))
