"""TUM RGB-D: the contract, association and interpolation against slow loops, the published cameras."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from reader_contract import ImageContract
from sample_frames import FRAMES, rendered
from samples_desk import START, quaternion_row, write_tum
from scipy.spatial.transform import Rotation

from pri3d.errors import DataError, FrameError
from pri3d.geometry.warping import undistort_color, undistort_nearest
from pri3d.recordings import open_recording
from pri3d.recordings.tum import associate, interpolate


class TestTum(ImageContract):
    name, units = "tum", 5000

    def test_names_are_times(self, samples) -> None:
        names = self.open(samples["tum"].root).scenes()[0].names
        assert list(names) == [f"{START + k / 30:.6f}" for k in range(FRAMES)]

    def test_several_sequences_and_one_that_is_damaged(self, tmp_path) -> None:
        for name in ("rgbd_dataset_freiburg1_desk", "rgbd_dataset_freiburg3_office"):
            write_tum(tmp_path / "r", name)
        (tmp_path / "r" / "rgbd_dataset_freiburg1_desk" / "groundtruth.txt").write_text("1 2 3\n")
        first, second = open_recording(tmp_path / "r").scenes()
        assert (first.id, second.id) == ("rgbd_dataset_freiburg1_desk", "rgbd_dataset_freiburg3_office")
        with pytest.raises(DataError, match=r"groundtruth\.txt: a line has 3 words \(1 2 3\), expected 8"):
            len(first.names)
        assert len(second.names) == FRAMES

    def test_without_lists_the_file_names_are_the_times(self, sample) -> None:
        (sample.root / "rgb.txt").unlink()
        (sample.root / "depth.txt").unlink()
        scene = self.open(sample.root).scenes()[0]
        assert len(scene.names) == FRAMES
        np.testing.assert_allclose(scene.frame(1).depth, rendered()[1].depth, atol=6e-4)

    def test_poses_between_stamps(self, sample) -> None:
        start, end = rendered()[0].world_from_camera, rendered()[2].world_from_camera
        rows = [f"{START + at:.6f} {quaternion_row(pose)}" for at, pose in ((-0.02, start), (0.08, end))]
        sample.pose.write_text("\n".join(rows))
        frame = self.open(sample.root).scenes()[0].frame(0)
        np.testing.assert_allclose(
            frame.world_from_camera[:3, 3], 0.8 * start[:3, 3] + 0.2 * end[:3, 3], atol=1e-5
        )  # stamps have microseconds
        turn = Rotation.from_matrix(start[:3, :3].T @ end[:3, :3]).as_rotvec()
        expected = start[:3, :3] @ Rotation.from_rotvec(0.2 * turn).as_matrix()
        np.testing.assert_allclose(frame.world_from_camera[:3, :3], expected, atol=1e-5)

    def test_frames_without_depth_or_pose_are_left_out(self, sample) -> None:
        lines = (sample.root / "depth.txt").read_text().splitlines()
        (sample.root / "depth.txt").write_text("\n".join([lines[0], lines[2], lines[3]]))
        assert [float(name) for name in self.open(sample.root).scenes()[0].names] == pytest.approx(
            [START + 1 / 30, START + 2 / 30]
        )
        poses = sample.pose.read_text().splitlines()
        sample.pose.write_text("\n".join(poses[:3]))  # the third has no pose after it
        assert len(self.open(sample.root).scenes()[0].names) == 1
        sample.pose.write_text("\n".join(poses[:2]))
        with pytest.raises(
            DataError, match=r"no frame is left. Of 3 colour images 2 have a depth image within 0.02 s, .*0.1 s"
        ):
            len(self.open(sample.root).scenes()[0].names)

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("1.0\n", "no file name"),
            ("a rgb/x.png\n", "no number"),
            ("nan rgb/x.png\n", "seconds"),
            ("1 ../../x.png\n", "which is not in"),
            ("1 /etc/x.png\n", "which is not in"),
        ],
    )
    def test_damaged_list(self, sample, text: str, reason: str) -> None:
        (sample.root / "rgb.txt").write_text(text)
        with pytest.raises(DataError, match=rf"rgb\.txt.*{reason}"):
            len(self.open(sample.root).scenes()[0].names)

    @pytest.mark.parametrize("text", ["", "1 2 3", "0 0 0 0", "nan nan nan nan", "a b c d"])
    def test_damaged_calibration(self, sample, text: str) -> None:
        (sample.root / "calibration.txt").write_text(text)
        with pytest.raises(DataError, match=r"calibration\.txt"):
            len(self.open(sample.root).scenes()[0].names)

    def test_lost_tracking_does_not_count(self, sample) -> None:
        lines = sample.pose.read_text().splitlines()
        words = lines[1].split()
        sample.pose.write_text("\n".join([" ".join([words[0], *["nan"] * 7]), *lines[2:]]))
        assert len(self.open(sample.root).scenes()[0].names) == FRAMES - 1

    def test_given_depth_poses(self, samples, tmp_path) -> None:
        cameras = tmp_path / "mine.yaml"
        cameras.write_text(
            "color: {fx: 40, fy: 41, cx: 24, cy: 18}\npose_of: depth\ncolor_from_depth: {translation: [0.1, 0, 0]}\n"
        )
        scene = open_recording(samples["tum"].root, "tum", cameras).scenes()[0]
        np.testing.assert_allclose(scene.pose(0), scene.frame(0).world_from_camera, atol=1e-12)
        assert not np.allclose(scene.pose(0), rendered()[0].world_from_camera, atol=1e-3)


class TestCalibration:
    @pytest.mark.parametrize(
        ("name", "camera", "k1"),
        [
            ("rgbd_dataset_freiburg1_xyz", (517.3, 516.5, 319.1, 255.8), 0.2624),
            ("rgbd_dataset_freiburg2_desk", (520.9, 521.0, 325.6, 250.2), 0.2312),
            ("rgbd_dataset_freiburg3_office", (535.4, 539.2, 320.6, 248.1), None),
            ("fr1_xyz", (517.3, 516.5, 319.1, 255.8), 0.2624),
            ("fr10_xyz", (525.0, 525.0, 320.0, 240.0), None),
            ("kitchen", (525.0, 525.0, 320.0, 240.0), None),
        ],
    )
    def test_published_cameras_by_name(self, tmp_path, name: str, camera: tuple[float, ...], k1: float | None) -> None:
        sample = write_tum(tmp_path / "r", name)
        (sample.pose.parent / "calibration.txt").unlink()
        rng = np.random.default_rng(3)
        color = np.kron(rng.integers(0, 255, (48, 64, 3)), np.ones((10, 10, 1))).astype(np.uint8)
        depth = rng.integers(1, 30000, (480, 640)).astype(np.uint16)
        Image.fromarray(color).save(sample.color)
        Image.fromarray(depth).save(sample.depth)
        frame = open_recording(sample.root).scenes()[0].frame(0)
        assert frame.color_camera == pytest.approx((640, 480, *camera))
        assert frame.depth_camera == frame.color_camera
        if k1 is None:
            assert np.array_equal(frame.color, color)
            return
        lens = open_recording(sample.root).scenes()[0]._opened._cameras.color.lens
        assert lens.k[0] == k1
        assert np.array_equal(frame.color, undistort_color(color, frame.color_camera, lens))
        metres = (depth / 5000).astype(np.float32)
        np.testing.assert_allclose(frame.depth, undistort_nearest(metres, frame.color_camera, lens), rtol=1e-6)

    def test_an_image_of_another_size_is_refused(self, tmp_path) -> None:
        sample = write_tum(tmp_path / "r", "rgbd_dataset_freiburg1_xyz")
        (sample.pose.parent / "calibration.txt").unlink()
        with pytest.raises(FrameError, match="intrinsics belong to another size"):
            open_recording(sample.root).scenes()[0].frame(0)


def greedy(first: np.ndarray, second: np.ndarray, within: float) -> list[tuple[int, int]]:
    apart = sorted((abs(a - b), i, j) for i, a in enumerate(first) for j, b in enumerate(second) if abs(a - b) < within)
    result: dict[int, int] = {}
    for _, i, j in apart:
        if i not in result and j not in result.values():
            result[i] = j
    return sorted(result.items())


class TestAssociate:
    @pytest.mark.parametrize("seed", range(20))
    def test_as_the_slow_loop(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        first = np.sort(np.arange(40) / 30 + rng.normal(0, 0.006, 40))
        second = np.sort(np.delete(np.arange(40) / 30 + rng.normal(0.008, 0.008, 40), rng.integers(0, 40, 5)))
        pairs = associate(first, second, 0.02)
        assert [tuple(pair) for pair in pairs.tolist()] == greedy(first, second, 0.02)
        assert len(set(pairs[:, 0])) == len(set(pairs[:, 1])) == len(pairs)

    def test_nothing_to_pair(self) -> None:
        assert associate(np.zeros(0), np.ones(3), 0.1).shape == (0, 2)
        assert associate(np.ones(3), np.zeros(0), 0.1).shape == (0, 2)
        assert associate(np.zeros(1), np.ones(1), 0.1).shape == (0, 2)

    @pytest.mark.thorough
    def test_a_hundred_thousand_equal_stamps_take_little(self) -> None:
        assert len(associate(np.zeros(100_000), np.zeros(100_000), 0.02)) >= 1


class TestInterpolate:
    def test_turns_by_the_short_way_and_repeats_do_not_matter(self) -> None:
        angles = np.deg2rad((170, 170, -170))
        quaternions = Rotation.from_euler("z", angles[:, None]).as_quat() * np.array(((1,), (1,), (-1,)))
        rows = np.column_stack(((0.0, 0.0, 0.1), np.zeros((3, 3)), quaternions))
        poses, known = interpolate(rows, np.array((0.05, 0.1, 0.11, -0.01, 0.0)), 0.1)
        assert known.tolist() == [True, True, False, False, True]
        np.testing.assert_allclose(poses[0, :3, :3], np.diag((-1.0, -1, 1)), atol=1e-12)
        assert np.array_equal(poses[2], np.eye(4))

    def test_gaps_and_single_poses(self) -> None:
        rows = np.array(((0.0, 1, 2, 3, 0, 0, 0, 2), (1.0, 1, 2, 3, 0, 0, 0, 1), (2.0, 0, 0, 0, 0, 0, 0, 0)))
        _, known = interpolate(rows, np.array((0.0, 0.05, 0.95, 1.0, 2.0)), 0.1)
        assert known.tolist() == [True, False, False, True, False]
        poses, known = interpolate(rows[:1], np.array((0.0, 0.05)), 0.1)
        assert known.tolist() == [True, False]
        assert poses[0, :3, 3].tolist() == [1, 2, 3]
        assert not interpolate(rows[2:], np.array((2.0,)), 0.1)[1].any()
