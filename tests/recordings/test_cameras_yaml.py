"""cameras.yaml: what it may say, what it may not, and the examples of the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pri3d.errors import ConfigError, FrameError
from pri3d.geometry.warping import Lens
from pri3d.recordings._shared.cameras import Cameras, read_cameras
from pri3d.recordings._shared.files import Origin, build_frame

PINHOLE = {"fx": 500, "fy": 501.5, "cx": 320, "cy": 240}


def parsed(tmp_path: Path, **stated: object) -> Cameras:
    path = tmp_path / "cameras.yaml"
    path.write_text(yaml.safe_dump(stated))
    return read_cameras(path)


def test_colour_alone_means_registered_depth_in_millimetres(tmp_path: Path) -> None:
    cameras = parsed(tmp_path, color=PINHOLE)
    assert cameras.depth == cameras.color
    assert cameras.depth_scale == 0.001
    assert not cameras.pose_of_depth
    assert np.array_equal(cameras.color_from_depth, np.eye(4))


def test_translation_is_the_matrix_without_rotation(tmp_path: Path) -> None:
    matrix = np.eye(4)
    matrix[:3, 3] = (0.1, -0.2, 0.3)
    short = parsed(tmp_path, color=PINHOLE, color_from_depth={"translation": [0.1, -0.2, 0.3]})
    long = parsed(tmp_path, color=PINHOLE, color_from_depth={"matrix": matrix.tolist()})
    assert np.array_equal(short.color_from_depth, matrix)
    np.testing.assert_allclose(long.color_from_depth, matrix, atol=1e-15)


@pytest.mark.parametrize(
    ("key", "kind", "count"),
    [("distortion", "radial", 4), ("distortion", "radial", 5), ("distortion", "radial", 8), ("fisheye", "fisheye", 4)],
)
def test_distortion_in_opencvs_order(tmp_path: Path, key: str, kind: str, count: int) -> None:
    numbers = [0.1 * (k + 1) for k in range(count)]
    cameras = parsed(tmp_path, color={**PINHOLE, key: numbers})
    assert cameras.color.lens == Lens(kind, tuple(numbers))
    assert cameras.depth.lens == cameras.color.lens, "registered depth is bent as its colour is"
    apart = parsed(tmp_path, color={**PINHOLE, key: numbers}, depth=PINHOLE)
    assert apart.depth.lens is None


def test_stated_distortion_is_undone(tmp_path: Path) -> None:
    """Each image by its own lens: depth by the nearest pixel, colour mixed, labels 255 where nothing was seen."""
    small = {"fx": 30, "fy": 30, "cx": 24, "cy": 18}
    rng = np.random.default_rng(0)
    color = rng.integers(1, 255, (36, 48, 3), dtype=np.uint8)
    depth = rng.uniform(1, 3, (36, 48)).astype(np.float32)
    label = np.zeros((36, 48), np.uint8)
    cameras = parsed(tmp_path, color={**small, "distortion": [0.3, 0, 0, 0]}, depth={**small, "fisheye": [0] * 4})
    frame = build_frame("a", color, depth, np.eye(4), cameras, Origin("c", "d", "p"), label=label, color_jpeg=b"x")
    assert frame.color_jpeg is None, "its bytes are of the bent image"
    assert (frame.color[0, 0] == 0).all()
    assert frame.label is not None
    assert np.array_equal(frame.label == 255, (frame.color == 0).all(axis=-1))
    assert frame.depth[0, 0] != depth[0, 0]
    assert np.isin(frame.depth, depth).all()
    assert frame.depth[18, 24] == depth[18, 24]
    assert frame.color_camera[:2] == (48, 36)
    assert frame.color_camera[2:] == pytest.approx((30, 30, 24, 18))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"color": None}, "expected keys"),
        ({"colour": PINHOLE}, "unknown key colour. Known keys: color, depth, color_from_depth, pose_of, depth_scale"),
        ({"color": {**PINHOLE, "k1": 0.1}}, "unknown key k1. Known keys: fx, fy, cx, cy, width, height"),
        ({"color": {"fx": 1}}, "fy, cx, cy missing"),
        ({"color": {**PINHOLE, "fx": -1}}, "more than 0"),
        ({"color": {**PINHOLE, "fx": True}}, "expected a number"),
        ({"color": {**PINHOLE, "fx": float("nan")}}, "expected a number"),
        ({"color": {**PINHOLE, "fx": 10**400}}, "more than 64 bits"),
        ({"color": {**PINHOLE, "width": 640.5}}, "whole pixels"),
        ({"color": {**PINHOLE, "distortion": [0.1, 0.2]}}, r"color\.distortion.*list of 4 or 5 or 8 numbers"),
        ({"color": {**PINHOLE, "distortion": 0.1}}, r"color\.distortion.*list of"),
        ({"color": {**PINHOLE, "distortion": [0.1, 0.2, 0, "x"]}}, r"color\.distortion.*expected a number"),
        ({"color": {**PINHOLE, "distortion": [0.1, 0.2, 0, float("nan")]}}, r"color\.distortion.*expected a number"),
        ({"depth": {**PINHOLE, "fisheye": [0.1] * 5}}, r"depth\.fisheye.*list of 4 numbers"),
        ({"color": {**PINHOLE, "fisheye": None}}, r"color\.fisheye.*list of 4"),
        ({"color": {**PINHOLE, "fisheye": [0] * 4, "distortion": [0] * 4}}, "either distortion or fisheye"),
        ({"pose_of": "colour"}, "Choices: color, depth"),
        ({"depth_scale": "mm"}, "expected a number"),
        ({"color_from_depth": {"translation": [1, 2]}}, "shape"),
        ({"color_from_depth": {"translation": [1, 2, "x"]}}, "numbers"),
        ({"color_from_depth": {"translation": [1e300, 0, 0]}}, "too large"),
        ({"color_from_depth": {"translation": [10**400, 0, 0]}}, "more than 64 bits"),
        ({"color_from_depth": {}}, "either"),
        ({"color_from_depth": {"matrix": (2 * np.eye(4)).tolist()}}, "0 0 0 1"),
        ({"color_from_depth": {"matrix": np.diag((1.0, 1, -1, 1)).tolist()}}, "mirrors"),
    ],
)
def test_wrong_statement_names_file_and_fix(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parsed(tmp_path, **{"color": PINHOLE, **change})
    assert "cameras.yaml" in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"3", b"a: [", b"\xff", b"2001-99-99", b"{[1]: 2}", b"depth: {}"])
def test_other_files_are_refused(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "cameras.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=r"cameras\.yaml"):
        read_cameras(path)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner))
KEYS = ("fx", "fy", "cx", "cy", "width", "height", "distortion", "fisheye")
camera = st.dictionaries(st.sampled_from(KEYS), st.floats(1, 9) | st.lists(st.floats(), max_size=8) | values)


@pytest.mark.slow
@settings(max_examples=60)
@given(
    stated=st.fixed_dictionaries(
        {"color": st.just(PINHOLE) | camera},
        optional={
            "depth": camera,
            "color_from_depth": st.dictionaries(st.sampled_from(["translation", "matrix"]), values, max_size=1),
            "pose_of": values,
            "depth_scale": values,
        },
    )
)
def test_any_statement_parses_or_is_refused(tmp_path_factory: pytest.TempPathFactory, stated: dict) -> None:
    try:
        cameras = parsed(tmp_path_factory.getbasetemp(), **stated)
    except ConfigError:
        return
    assert cameras.color.fx > 0
    assert np.isfinite(cameras.color_from_depth).all()


def test_image_must_fit_its_camera(tmp_path: Path) -> None:
    cameras = parsed(tmp_path, color={**PINHOLE, "width": 640, "height": 480}, depth=PINHOLE)
    assert cameras.color.of_image(640, 480, "x.png") == (640, 480, 500, 501.5, 320, 240)
    with pytest.raises(FrameError, match=r"x\.png.*1280x960"):
        cameras.color.of_image(1280, 960, "x.png")
    assert cameras.depth.of_image(600, 500, "x.png").width == 600
    with pytest.raises(FrameError, match="another size"):
        cameras.depth.of_image(1280, 960, "x.png")


def test_examples_of_the_documentation_parse(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "own-data.md").read_text()
    examples = re.findall(r"```yaml\n# (\S+)[^\n]*\n(.*?)```", text, flags=re.DOTALL)
    assert {name for name, _ in examples} == {"cameras.yaml", "classes.yaml"}
    for name, body in examples:
        path = tmp_path / name
        path.write_text(body)
        if name == "cameras.yaml":
            read_cameras(path)
        else:
            from pri3d.recordings.folder import _listed  # noqa: PLC0415

            assert _listed(yaml.safe_load(body), path)[0] == "wall"
