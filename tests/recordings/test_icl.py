"""ICL-NUIM: the contract, what the mirrored axis means for points, frames without poses."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from reader_contract import ImageContract
from sample_frames import FRAMES, rendered

from pri3d.errors import DataError, FrameError
from pri3d.geometry.pose import pose_of_quaternion


class TestIcl(ImageContract):
    name, units = "icl", 5000

    def test_image_without_a_pose_is_left_out(self, samples) -> None:
        assert list(self.open(samples["icl"].root).scenes()[0].names) == ["1", "2", "3"]

    def test_points_are_the_renderers_with_y_mirrored(self, sample) -> None:
        """A point by the authors' matrix (fy = -480) and the file's pose is ours, but for the sign of the world's y."""
        (sample.root / "cameras.yaml").unlink()
        Image.fromarray(np.zeros((480, 640, 3), np.uint8)).save(sample.color)
        Image.fromarray(np.full((480, 640), 10000, np.uint16)).save(sample.depth)
        frame = self.open(sample.root).scenes()[0].frame(0)
        assert frame.color_camera == pytest.approx((640, 480, 481.2, 480.0, 320.0, 240.0))
        row = [float(word) for word in sample.pose.read_text().split()[:8]]
        u, v = 100, 50  # pixel indices
        authors = np.array(((u - 319.5) / 481.2 * 2, (v - 239.5) / -480.0 * 2, 2, 1))
        expected = pose_of_quaternion(row[1:4], row[4:], "") @ authors
        camera = frame.color_camera
        ours = ((u + 0.5 - camera.cx) / camera.fx, (v + 0.5 - camera.cy) / camera.fy, 1)
        point = frame.world_from_camera @ (*(frame.depth[v, u] * np.array(ours)), 1)
        np.testing.assert_allclose(point, expected * (1, -1, 1, 1), atol=1e-6)

    def test_without_associations(self, sample) -> None:
        (sample.root / "associations.txt").unlink()
        scene = self.open(sample.root).scenes()[0]
        assert list(scene.names) == ["1", "2", "3"]
        np.testing.assert_allclose(scene.frame(2).depth, rendered()[2].depth, atol=6e-4)

    def test_colour_may_stand_first_and_numbers_are_padded(self, sample) -> None:
        lines = [f"{k} rgb/{k}.png {k} depth/{k}.png\n" for k in range(FRAMES + 1)]
        (sample.root / "associations.txt").write_text("".join(lines) + "10 rgb/1.png 10 depth/1.png\n")
        assert list(self.open(sample.root).scenes()[0].names) == ["01", "02", "03"]

    @pytest.mark.parametrize(
        "text", ["1 rgb/1.png", "1 rgb/1.png 1 rgb/1.png", "1.5 rgb/1.png 1 depth/1.png", "1 rgb/../../x 1 depth/1.png"]
    )
    def test_damaged_associations(self, sample, text: str) -> None:
        (sample.root / "associations.txt").write_text(text)
        with pytest.raises(DataError, match=r"associations\.txt"):
            len(self.open(sample.root).scenes()[0].names)

    def test_two_files_of_poses(self, sample) -> None:
        (sample.root / "traj0.gt.freiburg").write_text("")
        with pytest.raises(
            DataError, match=r"needs one \.freiburg file of poses, found livingRoom1\.gt\.freiburg, traj0"
        ):
            len(self.open(sample.root).scenes()[0].names)

    def test_no_pose_and_a_bad_one(self, sample) -> None:
        lines = sample.pose.read_text().splitlines()
        sample.pose.write_text("\n".join(["1 0 0 0 0 0 0 0", *lines[1:]]))
        scene = self.open(sample.root).scenes()[0]
        with pytest.raises(FrameError, match=r"freiburg: frame 1: the pose is not finite"):
            scene.frame(0)
        with pytest.raises(FrameError, match=r"freiburg: frame 1: the pose is not finite"):
            scene.pose(0)
        assert scene.frame(1).name == "2"
        sample.pose.write_text("9 0 0 0 0 0 0 1\n")
        with pytest.raises(DataError, match="none of its 4 images has one of the 1 poses"):
            len(self.open(sample.root).scenes()[0].names)
