"""Polycam and 3D Scanner App: a JSON file a frame; axes, depth of fewer pixels, confidence, what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reader_contract import FilesContract
from sample_frames import HEIGHT, WIDTH, Sample, rendered
from samples_phone import OPENGL, levels, write_polycam, write_scanner3d

from pri3d.errors import DataError, FrameError
from pri3d.recordings import open_recording
from pri3d.testing.reader import check_frame


def change(path: Path, **values: Any) -> None:
    """Give keys of a JSON file other values."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


class JsonContract(FilesContract):
    """The pose stands in a JSON file with the intrinsics."""

    @staticmethod
    def pose_keys(pose: np.ndarray) -> dict[str, Any]:
        raise NotImplementedError

    @pytest.mark.parametrize(
        ("pose", "reason"),
        [
            (np.full((4, 4), -np.inf), "not finite"),
            (np.diag((1.0, 1, np.nan, 1)), "not finite"),
            (np.diag((2.0, 2, 2, 1)), "not rigid"),
            (np.diag((1.0, 1, -1, 1)), "mirrors"),
            (np.eye(4) + np.eye(4)[::-1] * 1e200, "damaged"),
            (np.full((4, 4), None), "not finite"),
            (np.full((4, 4), "one"), "no number"),
        ],
    )
    def test_bad_pose_is_refused(self, sample: Sample, pose: np.ndarray, reason: str) -> None:
        change(sample.pose, **self.pose_keys(pose))
        scene = self.open(sample.root).scenes()[0]
        with pytest.raises(FrameError, match=reason):
            scene.frame(0)
        with pytest.raises(FrameError, match=reason):
            scene.pose(0)

    def test_confidence_is_percent(self, sample: Sample) -> None:
        frame = self.open(sample.root).scenes()[0].frame(1)
        assert np.array_equal(frame.confidence, 50 * levels(rendered()[1]))

    def test_depth_of_fewer_pixels_is_of_the_same_view(self, sample: Sample) -> None:
        large = rendered()[0].color.repeat(2, axis=0).repeat(2, axis=1)
        Image.fromarray(large).save(sample.color)
        self.double_camera(sample.pose)
        frame = self.open(sample.root).scenes()[0].frame(0)
        check_frame(frame)
        camera = rendered()[0].color_camera
        np.testing.assert_allclose(frame.depth_camera, camera)
        np.testing.assert_allclose(frame.color_camera, camera.resized(2 * WIDTH, 2 * HEIGHT))

    def double_camera(self, path: Path) -> None:
        raise NotImplementedError

    def test_a_level_that_no_phone_writes(self, sample: Sample) -> None:
        for path in sample.root.rglob("conf*/*.png"):
            shutil.copy(sample.depth, path)
        for path in sample.root.rglob("conf_*.png"):
            Image.fromarray(np.full((HEIGHT, WIDTH), 3, np.uint8)).save(path)
        with pytest.raises(FrameError, match=r"16 bits|confidence 3"):
            self.open(sample.root).scenes()[0].frame(0)

    def test_without_confidence(self, sample: Sample) -> None:
        for path in (*sample.root.rglob("conf*/*.png"), *sample.root.rglob("conf_*.png")):
            path.unlink()
        assert self.open(sample.root).scenes()[0].frame(0).confidence is None

    def test_several_scenes_and_their_cameras(self, sample: Sample) -> None:
        (first,) = (path for path in sample.root.iterdir() if path.is_dir())
        second = first.with_name("zoo")
        shutil.copytree(first, second)
        (second / "cameras.yaml").write_text("color: {fx: 40, fy: 41, cx: 24, cy: 18}\n")
        scenes = self.open(sample.root).scenes()
        assert [scene.id for scene in scenes] == [first.name, "zoo"]
        assert [round(scene.frame(0).color_camera.fx) for scene in scenes] == [round(rendered()[0].color_camera.fx), 40]
        (alone,) = open_recording(second).scenes()
        assert alone.id == "zoo"


class TestScanner3D(JsonContract):
    name = "scanner3d"

    @staticmethod
    def pose_keys(pose: np.ndarray) -> dict[str, Any]:
        return {"cameraPoseARFrame": pose.reshape(-1).tolist()}

    def double_camera(self, path: Path) -> None:
        change(path, intrinsics=[2 * value for value in json.loads(path.read_text())["intrinsics"]])

    def test_the_right_count_of_numbers(self, sample: Sample) -> None:
        change(sample.pose, cameraPoseARFrame=np.eye(3).reshape(-1).tolist())
        with pytest.raises(FrameError, match=r"cameraPoseARFrame.*9 numbers"):
            self.open(sample.root).scenes()[0].frame(0)

    def test_frames_are_those_with_an_image(self, sample: Sample) -> None:
        assert list(self.open(sample.root).scenes()[0].names) == ["00000", "00006", "00012"]

    def test_poses_of_the_app(self, sample: Sample) -> None:
        """A camera held upright at 1.5 m that looks along ARKit's -z sees along its own +z here."""
        pose = np.eye(4)
        pose[1, 3] = 1.5
        change(sample.pose, **self.pose_keys(pose))
        found = self.open(sample.root).scenes()[0].frame(0).world_from_camera
        assert np.array_equal(found @ (0, 0, 2, 1), (0, 1.5, -2, 1))
        assert np.array_equal(found @ (0, 1, 0, 1), (0, 0.5, 0, 1)), "y down"

    def test_no_image(self, sample: Sample) -> None:
        for path in sample.root.rglob("*.jpg"):
            path.unlink()
        with pytest.raises(DataError, match=r"no frame_00000\.jpg"):
            _ = self.open(sample.root).scenes()[0].names

    @pytest.mark.parametrize("values", [None, [1, 2], ["a"] * 9, [0] * 9, [float("nan")] * 9])
    def test_bad_intrinsics(self, sample: Sample, values: Any) -> None:
        change(sample.pose, intrinsics=values)
        with pytest.raises(FrameError, match=r"frame_00000\.json"):
            self.open(sample.root).scenes()[0].frame(0)


class PolycamContract(JsonContract):
    name = "polycam"

    @staticmethod
    def pose_keys(pose: np.ndarray) -> dict[str, Any]:
        return {f"t_{row}{column}": pose[row, column] for row in range(3) for column in range(4)}

    def double_camera(self, path: Path) -> None:
        stated = json.loads(path.read_text())
        change(path, **{key: 2 * stated[key] for key in ("fx", "fy", "cx", "cy", "width", "height")})

    def test_time_stamps_of_other_lengths_are_sorted(self, sample: Sample) -> None:
        names = self.open(sample.root).scenes()[0].names
        assert list(names) == ["0999900000", "1000150142", "1000400284"]

    def test_without_depth(self, sample: Sample) -> None:
        shutil.rmtree(sample.depth.parent)
        with pytest.raises(DataError, match=r"depth.*LiDAR"):
            _ = self.open(sample.root).scenes()[0].names

    @pytest.mark.parametrize("key", ["fx", "width"])
    @pytest.mark.parametrize("value", [None, -1, "wide", float("nan"), 1e9])
    def test_bad_intrinsics(self, sample: Sample, key: str, value: Any) -> None:
        change(sample.pose, **{key: value})
        with pytest.raises(FrameError, match=r"999900000\.json"):
            self.open(sample.root).scenes()[0].frame(0)


class TestPolycam(PolycamContract):
    pass


class TestPolycamCorrected(PolycamContract):
    layout = "corrected"

    def test_what_it_was_before_is_not_read(self, sample: Sample) -> None:
        """The uncorrected images are negatives here, and their cameras a metre off."""
        keyframes = sample.depth.parent.parent
        shutil.rmtree(keyframes / "corrected_images")
        frame = self.open(sample.root).scenes()[0].frame(0)
        truth = rendered()[0]
        np.testing.assert_allclose(frame.world_from_camera[:3, 3] - truth.world_from_camera[:3, 3], (1, 0, 0))
        assert np.abs(frame.color.astype(int) - (255 - truth.color.astype(int))).mean() < 6


def test_opengl_axes_of_the_samples() -> None:
    """The writers and readers do not share the flip."""
    assert np.array_equal(OPENGL @ (1, 2, 3, 1), (1, -2, -3, 1))


def test_two_formats_side_by_side(tmp_path: Path) -> None:
    assert open_recording(write_polycam(tmp_path / "a").root / "poly").scenes()[0].id == "poly"
    assert open_recording(write_scanner3d(tmp_path / "b").root).scenes()[0].id == "2026_03_01_10_20_30"
