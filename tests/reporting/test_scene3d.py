"""The 3D piece of a page: what it holds, and that a browser draws it where a page forbids everything else."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pri3d.errors import DataError
from pri3d.reporting.widgets import SCENE_STYLE, Camera, scene_widget, script, thin

NASTY = "</script><script>alert('x')</script> & \"quoted\" --><!-- \u2028"


def camera(name: str = "frame", x: float = 0.0) -> Camera:
    """Looks along world y; its up is world z."""
    pose = np.eye(4)
    pose[:3, :3] = np.array(((1, 0, 0), (0, 0, 1), (0, -1, 0)))
    pose[0, 3] = x
    return name, pose, np.array((50.0, 50.0, 32.0, 24.0)), (64, 48)


def cube(count: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform((-1, 2, -1), (1, 4, 1), (count, 3)), rng.integers(0, 256, (count, 3), dtype=np.uint8)


def scene(page) -> dict[str, Any]:
    """What the script is given."""
    text = next(attrs["data-scene"] for tag, attrs in page.tags if "data-scene" in attrs)
    return json.loads(text)


def shorts(text: str, step: float) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<i2").reshape(-1, 3) * step


def test_points_keep_their_distances_and_colours(read_page):
    points, colors = cube()
    found = scene(read_page(scene_widget(points, colors, [camera()], title="t", alt="a")))
    drawn = shorts(found["points"], found["step"])
    assert base64.b64decode(found["colors"]) == colors.tobytes()
    assert found["step"] < 0.001
    for shift in (1, 7):
        gaps = [np.linalg.norm(p - np.roll(p, shift, axis=0), axis=1) for p in (points, drawn)]
        np.testing.assert_allclose(*gaps, atol=3 * found["step"])


@pytest.mark.parametrize("up", range(3))
@pytest.mark.parametrize("sign", [-1, 1])
def test_up_is_the_cameras(read_page, up, sign):
    """Whatever axis the cameras hold upwards, it is z of the scene; the rotation does not mirror."""
    points = np.concatenate((np.zeros((1, 3)), np.eye(3)))
    name, pose, intrinsics, size = camera()
    pose[:3, 1] = -sign * np.eye(3)[up]
    pose[:3, 2] = np.eye(3)[(up + 1) % 3]
    pose[:3, 0] = np.cross(pose[:3, 1], pose[:3, 2])
    data = scene(
        read_page(scene_widget(points, points.astype(np.uint8), [(name, pose, intrinsics, size)], title="t", alt="a"))
    )
    placed = shorts(data["points"], data["step"])
    rotation = placed[1:] - placed[0]
    np.testing.assert_allclose(rotation[up], (0, 0, sign), atol=1e-3)
    assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-2)
    ahead = data["cameras"][0]["ahead"]
    np.testing.assert_allclose(ahead, rotation[(up + 1) % 3], atol=1e-3)


def test_a_camera_is_a_pyramid_of_its_view(read_page):
    points, colors = cube()
    data = scene(read_page(scene_widget(points, colors, [camera("c", 0.5)], title="t", alt="a")))
    entry = data["cameras"][0]
    corners, centre = np.array(entry["corners"]), np.array(entry["centre"])
    sides = np.linalg.norm(np.roll(corners, -1, axis=0) - corners, axis=1)
    depth = (corners - centre) @ np.array(entry["ahead"])
    np.testing.assert_allclose(sides[:2] / depth[:2], (64 / 50, 48 / 50), atol=5e-3)
    assert entry["focal"] == pytest.approx(50 / 48)
    assert entry["name"] == "c"


def test_matches_and_path(read_page):
    points, colors = cube()
    segments = points[:6].reshape(3, 2, 3)
    data = scene(read_page(scene_widget(points, colors, matches=segments, path=points[:5], title="t", alt="a")))
    drawn = shorts(data["points"], data["step"])
    np.testing.assert_allclose(shorts(data["matches"], data["step"]), drawn[:6])
    np.testing.assert_allclose(data["path"], drawn[:5], atol=1e-3)
    assert len(base64.b64decode(data["matchColors"])) == 9
    paint = np.arange(9, dtype=np.uint8).reshape(3, 3)
    text = scene_widget(points, colors, matches=segments, match_colors=paint, title="t", alt="a")
    assert base64.b64decode(scene(read_page(text))["matchColors"]) == paint.tobytes()


def test_cut_open_above_the_cameras_and_not_above_the_points(read_page):
    points, colors = cube()
    data = scene(read_page(scene_widget(points, colors, [camera()], title="t", alt="a")))
    assert data["cut"] == pytest.approx(data["cameras"][0]["centre"][2] + 0.45, abs=1e-3)
    assert data["low"] < data["cut"] < data["high"]
    data = scene(read_page(scene_widget(points, colors, title="t", alt="a")))
    assert data["cut"] == data["high"]


def test_thinning_is_even_and_near_the_limit():
    rng = np.random.default_rng(3)
    flat = rng.uniform(0, 4, (30_000, 3)) * (1, 1, 0)
    dense = rng.uniform(0, 0.5, (30_000, 3)) * (1, 1, 0)
    points = np.concatenate((flat, dense))
    kept, colors = thin(points, np.full(points.shape, 9, np.uint8), 2000)
    assert 1000 < len(kept) <= 2000
    assert (colors == 9).all()
    inside = (kept[:, :2] < 0.5).all(axis=1).mean()
    assert inside < 0.04  # half the points lie on a 64th of the plane
    same, _ = thin(points[:100], colors[:100], 100)
    assert same is not points
    np.testing.assert_array_equal(same, points[:100])


def test_thinning_is_a_mean():
    points = np.array(((0, 0, 0), (0.2, 0, 0), (9, 9, 9.0)))
    kept, colors = thin(points, np.array(((0, 0, 10), (0, 0, 20), (5, 5, 5)), np.uint8), 2)
    np.testing.assert_allclose(kept, ((0.1, 0, 0), (9, 9, 9)))
    assert colors.tolist() == [[0, 0, 15], [5, 5, 5]]


@pytest.mark.thorough
def test_a_million_points_stay_a_small_page():
    rng = np.random.default_rng(1)
    points = rng.uniform(-3, 3, (1_000_000, 3))
    points[np.arange(len(points)), rng.integers(0, 3, len(points))] = 3
    text = scene_widget(points, np.zeros(points.shape, np.uint8), title="t", alt="a")
    assert len(text) < 800_000


def test_every_text_is_escaped(read_page):
    points, colors = cube()
    page = read_page(scene_widget(points, colors, [camera(NASTY)], title=NASTY, alt=NASTY))
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert scene(page)["cameras"][0]["name"] == NASTY
    canvas = next(attrs for tag, attrs in page.tags if tag == "canvas")
    assert canvas["aria-label"] == NASTY
    assert any(text.startswith(NASTY) for text in page.texts)
    assert page.loads == []


def test_static_text_says_what_is_to_be_seen(read_page):
    points, colors = cube()
    page = read_page(scene_widget(points, colors, [camera()], title="t", alt="A kitchen."))
    assert any("A kitchen. (4,000 points, 1 cameras." in text for text in page.texts)


def test_the_script_asks_for_nothing():
    assert not re.search(
        r"https?:|fetch\(|XMLHttp|import|eval\(|new Function|innerHTML|localStorage|document\.write", script("scene3d")
    )
    assert "</script" not in script("scene3d")
    assert "url(" not in SCENE_STYLE


@pytest.mark.parametrize(
    "change",
    [
        {"points": np.zeros((3, 2))},
        {"points": np.full((3, 3), np.nan)},
        {"colors": np.zeros((4, 3), np.uint8)},
        {"matches": np.zeros((2, 3))},
        {"match_colors": np.zeros((1, 3), np.uint8)},
        {"points": np.zeros((0, 3)), "colors": np.zeros((0, 3), np.uint8)},
    ],
)
def test_what_cannot_be_drawn_is_refused(change):
    given = {"points": np.zeros((3, 3)), "colors": np.zeros((3, 3), np.uint8), "title": "kitchen", "alt": "a"}
    with pytest.raises(DataError, match="kitchen"):
        scene_widget(**{**given, **change})


@pytest.mark.parametrize("count", [0, 1])
def test_cameras_without_a_surface(read_page, count):
    text = scene_widget(np.zeros((count, 3)), np.zeros((count, 3), np.uint8), [camera()], title="t", alt="a")
    data = scene(read_page(text))
    assert all(np.isfinite(data[key]) for key in ("step", "spacing", "radius", "yaw", "low", "high", "cut"))


def browse(page: Path, tmp_path: Path, *options: str) -> str:
    """What headless chromium prints."""
    flags = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"]
    flags += ["disable-component-update", "disable-sync", f"user-data-dir={tmp_path / 'profile'}"]
    command = [shutil.which("chromium"), *(f"--{flag}" for flag in flags), *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_draws_two_scenes_where_all_else_is_forbidden(tmp_path):
    """Only this script, by its hash; each scene has its own colour where it is, and nothing of the other's."""
    digest = base64.b64encode(hashlib.sha256(script("scene3d").encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    widgets = ""
    for paint in ((250, 10, 10), (10, 10, 250)):
        points, _ = cube()
        widgets += scene_widget(
            points, np.tile(np.array(paint, np.uint8), (len(points), 1)), [camera()], title="t", alt="a"
        )
    page = tmp_path / "page.html"
    page.write_text(
        f'<!doctype html><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">{widgets}'
    )
    picture = tmp_path / "page.png"
    browse(page, tmp_path, "--window-size=600,1400", f"--screenshot={picture}")
    image = np.asarray(Image.open(io.BytesIO(picture.read_bytes())).convert("RGB")).astype(int)
    red, blue = (np.argwhere((abs(image - paint) < 12).all(axis=2)) for paint in ((250, 10, 10), (10, 10, 250)))
    assert min(len(red), len(blue)) > 5000
    assert abs(len(red) - len(blue)) < 0.02 * len(red)
    assert red[:, 0].max() < blue[:, 0].min()
