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
from pri3d.readers.cameras import Cameras, read_cameras

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
    ("change", "message"),
    [
        ({"color": None}, "expected keys"),
        ({"colour": PINHOLE}, "unknown key colour. Known keys: color, depth, color_from_depth, pose_of, depth_scale"),
        ({"color": {**PINHOLE, "k1": 0.1}}, "unknown key k1. Known keys: fx, fy, cx, cy, width, height"),
        ({"color": {"fx": 1}}, "fy, cx, cy missing"),
        ({"color": {**PINHOLE, "fx": -1}}, "more than 0"),
        ({"color": {**PINHOLE, "fx": True}}, "expected a number"),
        ({"color": {**PINHOLE, "fx": float("nan")}}, "expected a number"),
        ({"color": {**PINHOLE, "fx": 10**400}}, "expected a number"),
        ({"color": {**PINHOLE, "width": 640.5}}, "whole pixels"),
        ({"pose_of": "colour"}, "Choices: color, depth"),
        ({"depth_scale": "mm"}, "expected a number"),
        ({"color_from_depth": {"translation": [1, 2]}}, "shape"),
        ({"color_from_depth": {"translation": [1, 2, "x"]}}, "numbers"),
        ({"color_from_depth": {"translation": [1e300, 0, 0]}}, "too large"),
        ({"color_from_depth": {"translation": [10**400, 0, 0]}}, "expected numbers"),
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
camera = st.dictionaries(st.sampled_from(["fx", "fy", "cx", "cy", "width", "height"]), st.floats(1, 9) | values)


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
            from pri3d.readers.folder import _listed  # noqa: PLC0415

            assert _listed(yaml.safe_load(body), path)[0] == "wall"
