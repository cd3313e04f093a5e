"""Mistakes that a user states: each correction undoes the mistake it is named for, alone and with others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_frames import FRAMES, rendered
from samples import write_scannet

from pri3d.errors import ConfigError, FrameError
from pri3d.geometry.pose import OPENGL_FLIP, invert_array
from pri3d.recordings import CorrectedScene, Scene, open_recording
from pri3d.recordings._shared.correction import Correction, parse_correction
from pri3d.types import Frame


class Listed(Scene):
    """A scene of given frames."""

    id = "listed"
    split = "val"
    metric = False

    def __init__(self, frames: Sequence[Frame]) -> None:
        self.frames = list(frames)
        self.names = [frame.name for frame in frames]

    def frame(self, index: int) -> Frame:
        return self.frames[index]

    def mesh(self) -> Path | None:
        return Path("mesh.ply")


def ray_length(frame: Frame) -> np.ndarray:
    camera = frame.depth_camera
    x = (np.arange(camera.width) + 0.5 - camera.cx) / camera.fx
    y = (np.arange(camera.height) + 0.5 - camera.cy) / camera.fy
    return (frame.depth * np.linalg.norm(np.stack(np.broadcast_arrays(x, y[:, None], 1.0)), axis=0)).astype(np.float32)


def with_mistakes(frame: Frame, said: Correction) -> Frame:
    """The frame as a recording with these mistakes would state it."""
    pose = frame.world_from_camera @ OPENGL_FLIP if said.opengl else frame.world_from_camera
    depth = ray_length(frame) if said.ray else frame.depth
    return frame._replace(
        world_from_camera=invert_array(pose) if said.inverse else pose, depth=depth / np.float32(said.depth)
    )


@pytest.mark.parametrize(
    "text", ["", "inverse", "opengl", "ray", "depth=0.2", "inverse,opengl", "inverse,opengl,ray,depth=1000,shift=1"]
)
def test_a_stated_mistake_is_undone(text: str) -> None:
    said = parse_correction(text)
    assert str(said) == text
    frames = [with_mistakes(frame, said) for frame in rendered()]
    late = [frames[k]._replace(depth=frames[k - said.shift].depth) for k in range(FRAMES)]
    scene = CorrectedScene(Listed(late), said)
    for k in range(FRAMES - said.shift):
        frame, truth = scene.frame(k), rendered()[k]
        np.testing.assert_allclose(frame.world_from_camera, truth.world_from_camera, atol=1e-9)
        np.testing.assert_allclose(frame.depth, truth.depth, rtol=1e-5)
        assert frame.depth.dtype == np.float32
        assert frame.color is truth.color


def test_everything_else_is_the_scenes_own() -> None:
    scene = CorrectedScene(Listed(rendered()), Correction(inverse=True))
    assert (scene.id, scene.split, list(scene.names)) == ("listed", "val", [f.name for f in rendered()])
    assert scene.mesh() == Path("mesh.ply")
    assert (scene.posed, scene.metric) == (True, False)


@pytest.mark.parametrize("shift", [1, -1])
def test_a_frame_without_its_depth_is_refused(shift: int) -> None:
    scene = CorrectedScene(Listed(rendered()), Correction(shift=shift))
    with pytest.raises(FrameError, match="shifted by"):
        scene.frame(FRAMES - 1 if shift > 0 else 0)
    assert np.array_equal(scene.frame(1).depth, rendered()[1 + shift].depth)


@pytest.mark.parametrize(
    "text", ["inverted", "inverse=1", "depth", "depth=0", "depth=-1", "depth=nan", "shift=0.5", "ray,ray", "depth=x"]
)
def test_unknown_corrections_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--correct .*is not understood.*depth=0\.2"):
        parse_correction(text)


@given(st.booleans(), st.booleans(), st.booleans(), st.sampled_from([1.0, 0.2, 0.001, 1000.0]), st.integers(-3, 3))
def test_text_and_back(inverse: bool, opengl: bool, ray: bool, depth: float, shift: int) -> None:
    said = Correction(inverse, opengl, ray, depth, shift)
    assert parse_correction(str(said)) == said


def test_any_recording_can_be_corrected(tmp_path: Path) -> None:
    root = write_scannet(tmp_path).root
    for path in root.glob("*/pose/*.txt"):
        np.savetxt(path, invert_array(np.loadtxt(path)))
    recording = open_recording(root, correct="inverse,depth=2")
    assert len(recording.class_names) == 20
    frame = recording.scenes()[0].frame(1)
    np.testing.assert_allclose(frame.world_from_camera, rendered()[1].world_from_camera, atol=1e-8)
    np.testing.assert_allclose(frame.depth, 2 * rendered()[1].depth, atol=2e-3)
