"""Open3D and Redwood folders: the contract, which pose is whose, cameras of every kind of file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from reader_contract import ImageContract
from sample_frames import FRAMES, HEIGHT, WIDTH, rendered
from samples_desk import open3d_camera, write_open3d

from pri3d.errors import DataError, FrameError
from pri3d.recordings import open_recording


class TestLog(ImageContract):
    name = "open3d"

    def test_fewer_poses_than_images(self, sample) -> None:
        lines = sample.pose.read_text().splitlines()
        sample.pose.write_text("\n".join(lines[:10]))
        with pytest.raises(DataError, match=r"trajectory\.log: has 2 poses for 3 images"):
            len(self.open(sample.root).scenes()[0].names)
        sample.pose.write_text("\n".join(lines[:5] + lines[10:]))  # poses 0 and 2
        scene = self.open(sample.root).scenes()[0]
        assert list(scene.names) == ["000000", "000002"]
        np.testing.assert_allclose(scene.frame(1).depth, rendered()[2].depth, atol=6e-4)
        np.testing.assert_allclose(scene.pose(1), rendered()[2].world_from_camera, atol=1e-8)

    def test_numbers_from_one_are_an_order(self, sample) -> None:
        lines = sample.pose.read_text().splitlines()
        for k in range(FRAMES):
            lines[5 * k] = f"{k + 1} {k + 1} 0"
        sample.pose.write_text("\n".join(lines))
        np.testing.assert_allclose(
            self.open(sample.root).scenes()[0].pose(2), rendered()[2].world_from_camera, atol=1e-8
        )

    @pytest.mark.parametrize("folder", ["rgb", "image"])
    def test_other_names_of_the_folder(self, sample, folder: str) -> None:
        (sample.root / "color").rename(sample.root / folder)
        assert open_recording(sample.root).scenes()[0].frame(0).color.shape == (HEIGHT, WIDTH, 3)

    def test_images_are_sorted_by_number(self, sample) -> None:
        for part in ("color", "depth"):
            for path, stem in zip(sorted((sample.root / part).iterdir()), ("img-2", "img-9", "img-10"), strict=True):
                path.rename(path.with_stem(stem))
        scene = self.open(sample.root).scenes()[0]
        np.testing.assert_allclose(scene.frame(2).depth, rendered()[2].depth, atol=6e-4)

    def test_where_the_trajectory_may_lie(self, sample) -> None:
        (sample.root / "scene").mkdir()
        moved = sample.pose.rename(sample.root / "scene" / "trajectory.log")
        assert len(open_recording(sample.root).scenes()[0].names) == FRAMES
        moved.rename(sample.root / "lounge_trajectory.log")
        (sample.root / "odometry.log").write_text("0 1 3\n" + "1 0 0 0\n" * 4)
        (sample.root / "run.log").write_text("started\n")
        assert len(open_recording(sample.root).scenes()[0].names) == FRAMES
        (sample.root / "more.log").write_text("0 0 1\n" + "1 0 0 0\n" * 4)
        with pytest.raises(DataError, match=r"needs one file of poses, found lounge_trajectory\.log, more\.log"):
            len(open_recording(sample.root).scenes()[0].names)

    def test_pairs_of_fragments_are_no_poses(self, sample) -> None:
        lines = sample.pose.read_text().splitlines()
        lines[0] = "0 1 3"
        sample.pose.write_text("\n".join(lines))
        with pytest.raises(DataError, match="pairs of fragments"):
            len(self.open(sample.root).scenes()[0].names)

    def test_as_many_depth_images(self, sample) -> None:
        sample.depth.unlink()
        with pytest.raises(DataError, match="has 3 images in color and 2 in depth"):
            len(self.open(sample.root).scenes()[0].names)

    def test_camera_of_the_recorder_with_its_unit(self, sample) -> None:
        (sample.root / "camera_intrinsic.json").unlink()
        stated = {**open3d_camera(rendered()[0].color_camera), "depth_scale": 4000.0, "fps": 30.0}
        (sample.root / "intrinsic.json").write_text(json.dumps(stated))
        frame = self.open(sample.root).scenes()[0].frame(0)
        assert frame.color_camera == pytest.approx(rendered()[0].color_camera)
        np.testing.assert_allclose(frame.depth, rendered()[0].depth / 4, atol=2e-4)

    def test_redwoods_camera(self, sample) -> None:
        (sample.root / "camera_intrinsic.json").unlink()
        with pytest.raises(FrameError, match=r"is 48x36, but the camera is stated as 640x480"):
            self.open(sample.root).scenes()[0].frame(0)
        Image.fromarray(np.zeros((480, 640, 3), np.uint8)).save(sample.color)
        Image.fromarray(np.ones((480, 640), np.uint16)).save(sample.depth)
        assert self.open(sample.root).scenes()[0].frame(0).color_camera == (640, 480, 525, 525, 320, 240)

    @pytest.mark.parametrize(
        "change",
        [
            {"width": 0},
            {"height": "x"},
            {"width": 10**400},
            {"width": None},
            {"width": 1.5},
            {"depth_scale": 0},
            {"depth_scale": [1, 2]},
            {"intrinsic_matrix": [40, 0, 24, 0, 40, 18, 0, 0, 1]},  # row by row
            {"intrinsic_matrix": [40, 0, 0]},
            {"intrinsic_matrix": None},
        ],
    )
    def test_damaged_camera(self, sample, change: dict[str, object]) -> None:
        path = sample.root / "camera_intrinsic.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(DataError, match=r"camera_intrinsic\.json"):
            len(self.open(sample.root).scenes()[0].names)

    def test_several_scenes_and_a_damaged_one(self, tmp_path) -> None:
        write_open3d(tmp_path / "r" / "a")
        (write_open3d(tmp_path / "r" / "b").pose).write_text("0 0 1\n1")
        first, second = open_recording(tmp_path / "r").scenes()
        assert len(first.names) == FRAMES
        with pytest.raises(DataError, match="truncated"):
            len(second.names)


class TestJson(ImageContract):
    name, layout = "open3d", "json"

    def test_every_image_has_its_camera(self, sample) -> None:
        stated = json.loads(sample.pose.read_text())
        stated["parameters"][1]["intrinsic"]["intrinsic_matrix"][0] = 33.0
        sample.pose.write_text(json.dumps(stated))
        scene = self.open(sample.root).scenes()[0]
        assert [round(scene.frame(k).color_camera.fx, 6) for k in (0, 1)] == [
            round(rendered()[0].color_camera.fx, 6),
            33.0,
        ]

    @pytest.mark.parametrize("parameters", [None, [], [1], [{}], [{"extrinsic": [1] * 16}]])
    def test_damaged(self, sample, parameters: object) -> None:
        sample.pose.write_text(json.dumps({"parameters": parameters}))
        with pytest.raises(DataError, match=r"trajectory\.json"):
            len(self.open(sample.root).scenes()[0].names)
        sample.pose.write_text("[" * 100_000)
        with pytest.raises(DataError, match=r"trajectory\.json"):
            len(self.open(sample.root).scenes()[0].names)

    def test_fewer_poses_than_images(self, sample) -> None:
        stated = json.loads(sample.pose.read_text())
        sample.pose.write_text(json.dumps({"parameters": stated["parameters"][:2]}))
        with pytest.raises(DataError, match="has 2 poses for 3 images"):
            len(self.open(sample.root).scenes()[0].names)
