"""Scenes of an unknown unit: scaled to one, measured by shares of the depth, and never trained on as metres."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stores import FLAGS

from pri3d.api.prepare import prepare
from pri3d.errors import DataError, FrameError
from pri3d.preparation import pipeline as pipeline_module
from pri3d.preparation.pipeline import MEDIAN, ScaledScene
from pri3d.recordings import ChangedRecording, ChangedScene, open_recording
from pri3d.store import Store
from pri3d.types import Frame

UNIT = 0.01  # units a metre: a room of a few hundredths


class Shrunk(ChangedScene):
    """A room whose poses and depth are in another unit."""

    def __init__(self, scene, unit: float = UNIT) -> None:
        super().__init__(scene)
        self.metric, self._unit = False, unit

    def frame(self, index: int) -> Frame:
        frame = self.scene.frame(index)
        pose = frame.world_from_camera.copy()
        pose[:3, 3] *= self._unit
        return frame._replace(depth=frame.depth * np.float32(self._unit), world_from_camera=pose)


@pytest.fixture
def shrunk(recording: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The recording, read as if its unit were unknown."""
    opened = open_recording

    monkeypatch.setattr(
        pipeline_module, "open_recording", lambda path, *_args: ChangedRecording(opened(path, "rooms"), Shrunk)
    )
    return recording


def test_poses_and_depth_grow_together(recording: Path) -> None:
    room = open_recording(recording).scenes()[0]
    scene = ScaledScene(Shrunk(room))
    medians = [float(np.median(d[d > 0])) for d in (room.frame(k).depth for k in range(6))]
    assert scene.factor * UNIT == pytest.approx(MEDIAN / np.median(medians), rel=1e-5)
    for k in range(6):
        ours, truth = scene.frame(k), room.frame(k)
        np.testing.assert_allclose(ours.depth, truth.depth * scene.factor * UNIT, rtol=1e-5)
        shift = truth.world_from_camera[:3, 3] * scene.factor * UNIT
        np.testing.assert_allclose(ours.world_from_camera[:3, 3], shift, rtol=1e-6)
        np.testing.assert_array_equal(ours.world_from_camera[:3, :3], truth.world_from_camera[:3, :3])
    assert scene.mesh() is None


def test_the_unit_does_not_matter(shrunk: Path, out: Path) -> None:
    """The pairs are those of the room in metres, measured by shares of the depth."""
    prepare([shrunk], out, **{**FLAGS, "distance": 0.03})
    store = Store(out)
    record = store.manifest["scenes"]["room-0000"]
    assert record["match"] == "relative"
    assert record["scale"] == pytest.approx(ScaledScene(Shrunk(open_recording(shrunk).scenes()[0])).factor)
    room = ScaledScene(Shrunk(open_recording(shrunk).scenes()[0], unit=0.7))
    view = store.scene("room-0000").view(1)
    np.testing.assert_allclose(view.depth, room.frame(1).depth[1::2, 1::2], atol=6e-4)
    assert len(store.scene("room-0000").surface().cells) > 1000


@pytest.mark.slow
def test_relative_pairs_of_a_metric_scene(recording: Path, out: Path, tmp_path: Path) -> None:
    flags = {**FLAGS, "distance": 0.03, "min_overlap": 0.3}
    prepare([recording], out, **flags, match="relative")
    record = Store(out).manifest["scenes"]["room-0000"]
    assert (record["match"], record["scale"]) == ("relative", None)
    prepare([recording], tmp_path / "point", **flags)
    a, b = (len(Store(path).pairs().i) for path in (out, tmp_path / "point"))
    assert a > b, "3 % of more than a metre is more than 3 cm"


def test_a_scene_without_depth_says_why(recording: Path) -> None:
    class Lost(Shrunk):
        def frame(self, index: int) -> Frame:
            if index:
                raise FrameError(f"{index}.png: no such file.")
            frame = super().frame(index)
            return frame._replace(depth=np.zeros_like(frame.depth))

    with pytest.raises(DataError, match=r"unit is not known.*5\.png"):
        ScaledScene(Lost(open_recording(recording).scenes()[0]))
