"""KITTI: raw drives and odometry sequences, projection of the LiDAR, annotated depth, and damaged files."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from reader_contract import RecordingContract
from sample_frames import HEIGHT, WIDTH, Sample, rendered
from samples_outdoor import CAMERA2_FROM_LIDAR, DRIVE, EARTH, START, save, scan, words, write_kitti

from pri3d.errors import DataError, FrameError
from pri3d.recordings import detect, open_recording
from pri3d.recordings.kitti import KittiReader, project, read_scan
from pri3d.testing.reader import check_frame, mutations
from pri3d.types import Camera


class Kitti(RecordingContract):
    name, atol = "kitti", 1e-6  # a degree has many digits before the metres of a room

    def scene(self, sample: Sample):
        return self.open(sample.root).scenes()[0]

    def test_given_cameras_win(self, samples, tmp_path: Path) -> None:
        """Points are projected into the stated camera; they are metres, so ``depth_scale`` is of none."""
        cameras = tmp_path / "mine.yaml"
        cameras.write_text("color: {fx: 20, fy: 20, cx: 24, cy: 18}\ndepth_scale: 0.002\n")
        frame = open_recording(samples[self.sample_name].root, self.name, cameras).scenes()[0].frame(0)
        assert frame.color_camera == frame.depth_camera == (WIDTH, HEIGHT, 20, 20, 24, 18)
        points = np.frombuffer(scan(rendered()[0]), "<f4").reshape(-1, 4)[:, :3]
        np.testing.assert_allclose(frame.depth, project(points, CAMERA2_FROM_LIDAR, frame.color_camera), atol=1e-5)
        assert (frame.depth[:5] == 0).all(), "all points lie nearer to the middle than they did"
        assert frame.depth[18].any()

    @pytest.mark.parametrize("part", ["color", "depth"])
    def test_missing_or_cut_off_part_costs_its_frame(self, sample: Sample, part: str) -> None:
        path: Path = getattr(sample, part)
        scene = self.scene(sample)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5 + 1])
        with pytest.raises(FrameError, match=re.escape(str(path))):
            scene.frame(0)
        path.unlink()
        with pytest.raises(FrameError, match=re.escape(str(path))):
            scene.frame(0)
        check_frame(scene.frame(1))

    def test_annotated_depth_goes_before_the_scan(self, sample: Sample) -> None:
        """256 units a metre, where it lies; the first and last frames of a drive have none."""
        folder = sample.color.parents[1 if self.layout else 2]
        depth = np.zeros((HEIGHT, WIDTH), np.uint16)
        depth[3, 4:7] = 256, 640, 65535
        save(folder / f"proj_depth/groundtruth/image_02/{sample.color.name}", depth)
        scene = self.scene(sample)
        found = scene.frame(0).depth
        assert found[3, 4:8].tolist() == [1.0, 2.5, 0.0, 0.0]
        assert np.count_nonzero(found) == 2
        np.testing.assert_allclose(scene.frame(1).depth, rendered()[1].depth, atol=1e-4)

    def test_video_of_ten_frames_a_second(self) -> None:
        assert KittiReader.frame_step == 5


class TestRaw(Kitti):
    @pytest.mark.parametrize("where", [".", "2011_09_26", DRIVE])
    def test_any_folder_of_it_will_do(self, samples, where: str) -> None:
        root = samples[self.sample_name].root / where
        assert detect(root) == ["kitti"]
        scenes = open_recording(root).scenes()
        assert [scene.id for scene in scenes] == ["2011_09_26_drive_0001_sync"]
        check_frame(scenes[0].frame(2))

    def test_from_within_the_folder(self, samples, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(samples[self.sample_name].root / DRIVE)
        check_frame(open_recording(Path()).scenes()[0].frame(0))

    @pytest.mark.parametrize(
        ("moved", "wanted"),
        [
            ((1e-5, 0.0, 0.0), (0.0, EARTH * np.radians(1e-5), 0.0)),  # north; at its own latitude Mercator is true
            ((0.0, 1e-5, 0.0), (EARTH * np.radians(1e-5) * np.cos(np.radians(START[0])), 0.0, 0.0)),  # east
            ((0.0, 0.0, 2.5), (0.0, 0.0, 2.5)),
        ],
    )
    def test_places_are_metres_east_north_up(self, sample: Sample, moved, wanted) -> None:
        """The world is the first frame's inertial unit, which here looks east with its left to the north."""
        for k in range(3):
            values = [START[0], START[1], START[2], 0, 0, 0]
            if k:
                values[:3] = np.add(values[:3], moved)
            (sample.pose.parent / f"{k:010d}.txt").write_text(words([*values, *range(24)]))
        scene = self.scene(sample)
        travelled = scene.pose(1)[:3, 3] - scene.pose(0)[:3, 3]
        np.testing.assert_allclose(travelled, wanted, atol=1e-5)

    def test_turns_are_about_the_units_axes(self, sample: Sample) -> None:
        """Yaw about up, left turns positive: what was ahead (x) is then to the right of it."""
        for k, yaw in enumerate((0.0, np.pi / 2, 0.0)):
            (sample.pose.parent / f"{k:010d}.txt").write_text(words([*START[:3], 0, 0, yaw, *range(24)]))
        scene = self.scene(sample)
        turn = scene.pose(1)[:3, :3] @ scene.pose(0)[:3, :3].T
        np.testing.assert_allclose(turn, ((0, -1, 0), (1, 0, 0), (0, 0, 1)), atol=1e-9)

    @pytest.mark.parametrize("name", ["cam_to_cam", "velo_to_cam", "imu_to_velo"])
    @pytest.mark.parametrize("damage", ["missing", "empty", "cut", "nan", "scaled"])
    def test_calibration(self, sample: Sample, name: str, damage: str) -> None:
        path = sample.root / "2011_09_26" / f"calib_{name}.txt"
        text = path.read_text()
        key = "P_rect_02" if name == "cam_to_cam" else "R"
        line = next(line for line in text.splitlines() if line.startswith(f"{key}:"))
        numbers = [float(word) for word in line.split()[1:]]
        changed = {
            "missing": text,
            "empty": "",
            "cut": text.replace(line, " ".join(line.split()[:-1])),
            "nan": text.replace(line, line.rsplit(" ", 1)[0] + " nan"),
            "scaled": text.replace(line, f"{key}: {words(-2 * np.array(numbers))}"),
        }
        path.write_text(changed[damage])
        if damage == "missing":
            path.unlink()
        scene = self.scene(sample)
        with pytest.raises(DataError, match=re.escape(str(path))):
            len(scene.names)

    def test_images_of_another_size_than_calibrated(self, sample: Sample) -> None:
        save(sample.color, np.zeros((HEIGHT, WIDTH + 2, 3), np.uint8))
        with pytest.raises(FrameError, match="50x36"):
            self.scene(sample).frame(0)

    @pytest.mark.parametrize("text", ["", "49 8 116 0 0", "nan 8 116 0 0 0", "100 8 116 0 0 0", "49 8 116 0 0 x", "\0"])
    def test_a_damaged_measurement(self, sample: Sample, text: str) -> None:
        """It costs its frame; the first one's is where the world begins."""
        second = sample.pose.with_name("0000000001.txt")
        second.write_text(text)
        scene = self.scene(sample)
        for ask in (scene.frame, scene.pose):
            with pytest.raises(FrameError, match=r"oxts/data/0000000001\.txt"):
                ask(1)
        check_frame(scene.frame(2))
        sample.pose.write_text(text)
        with pytest.raises(DataError, match=r"oxts/data/0000000000\.txt"):
            len(self.scene(sample).names)

    def test_no_image(self, sample: Sample) -> None:
        shutil.rmtree(sample.color.parent)
        sample.color.parent.mkdir()
        with pytest.raises(DataError, match="holds no image"):
            len(self.scene(sample).names)

    def test_several_dates(self, sample: Sample) -> None:
        shutil.copytree(sample.root / "2011_09_26", sample.root / "2011_09_28")
        (sample.root / "2011_09_28/2011_09_26_drive_0001_sync").rename(
            sample.root / "2011_09_28/2011_09_28_drive_0002_sync"
        )
        (sample.root / "2011_09_28/calib_velo_to_cam.txt").unlink()
        scenes = self.open(sample.root).scenes()
        assert [scene.id for scene in scenes] == ["2011_09_26_drive_0001_sync", "2011_09_28_drive_0002_sync"]
        check_frame(scenes[0].frame(0))
        with pytest.raises(DataError, match=r"2011_09_28/calib_velo_to_cam\.txt"):
            len(scenes[1].names)


class TestOdometry(Kitti):
    layout = "odometry"

    @pytest.mark.parametrize("where", [".", "dataset", "dataset/sequences", "dataset/sequences/00"])
    def test_any_folder_of_it_will_do(self, samples, where: str) -> None:
        root = samples[self.sample_name].root / where
        assert detect(root) == ["kitti"]
        scenes = open_recording(root).scenes()
        assert [scene.id for scene in scenes] == ["00"]
        check_frame(scenes[0].frame(2))

    def test_sequences_without_poses(self, sample: Sample) -> None:
        """Those of 11 to 21 are not published: their frames are single images."""
        sequences = sample.root / "dataset/sequences"
        shutil.copytree(sequences / "00", sequences / "11")
        scenes = self.open(sample.root).scenes()
        assert [(scene.id, scene.posed) for scene in scenes] == [("00", True), ("11", False)]
        frame = scenes[1].frame(1)
        check_frame(frame)
        assert np.array_equal(frame.world_from_camera, np.eye(4))

    def test_images_are_found_by_their_numbers(self, sample: Sample) -> None:
        """A sequence that lacks its first images still has the poses of the others."""
        sample.color.unlink()
        scene = self.scene(sample)
        assert list(scene.names) == ["000001", "000002"]
        np.testing.assert_allclose(scene.pose(0), rendered()[1].world_from_camera, atol=1e-9)

    def test_poses(self, sample: Sample) -> None:
        lines = sample.pose.read_text().splitlines()
        sample.pose.write_text("\n".join([words(-np.eye(4)[:3]), *lines[1:2]]))
        scene = self.scene(sample)
        with pytest.raises(FrameError, match=r"00\.txt: frame 000000.*mirrors"):
            scene.frame(0)
        check_frame(scene.frame(1))
        with pytest.raises(FrameError, match=r"00\.txt: has 2 poses, none for frame 000002"):
            scene.pose(2)
        sample.pose.write_text("1 2 3\n")
        with pytest.raises(DataError, match=r"00\.txt"):
            len(self.scene(sample).names)

    def test_calibration_without_the_lidar(self, sample: Sample) -> None:
        path = sample.color.parents[1] / "calib.txt"
        path.write_text(path.read_text().split("Tr:")[0])
        with pytest.raises(DataError, match=r"calib\.txt: has no line Tr"):
            len(self.scene(sample).names)


def test_projection_takes_the_nearest_point_ahead() -> None:
    """Against a slow reference, with points behind, aside, beyond the sensor's reach and of no number."""
    rng = np.random.default_rng(0)
    camera = Camera(20, 10, 12.0, 11.0, 9.5, 5.25)
    turn = np.eye(4)
    turn[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn[:3, 3] = (0.1, -0.2, 0.3)
    points = rng.normal(scale=5, size=(4000, 3)).astype(np.float32)
    points[:6] = ((np.nan, 0, 0), (np.inf, 0, 0), (0, -np.inf, 0), (3e38, 1, 1), (0, 300, 0), (0, 0, 0))
    wanted = np.zeros((10, 20))
    for point in points[4:]:
        x, y, z = (turn @ (*point.astype(float), 1))[:3]
        column, row = (12.0 * x / z + 9.5) // 1, (11.0 * y / z + 5.25) // 1
        if z > 0.1 and np.abs(point).max() < 200 and 0 <= column < 20 and 0 <= row < 10:
            place = int(row), int(column)
            wanted[place] = min(wanted[place] or z, z)
    assert 100 < np.count_nonzero(wanted) <= 200
    found = project(points, turn, camera)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_sizes_of_scans(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for size in (0, 15, 17):
        path.write_bytes(bytes(size))
        with pytest.raises(FrameError, match=rf"a\.bin: has {size} bytes"):
            read_scan(path)
    with path.open("wb") as file:
        file.truncate(16 * 10**7 + 16)
    with pytest.raises(FrameError, match="not a scan"):
        read_scan(path)


class TestDamaged:
    def outcomes(self, path: Path, scene: Callable, count: int) -> None:
        good = 0
        versions = mutations(path.read_bytes(), np.random.default_rng(6), count)
        for version in versions:
            path.unlink()  # else some file systems wait for the disk when it is closed
            path.write_bytes(version)
            try:
                opened = scene()
                check_frame(opened.frame(1))
            except DataError as error:
                assert str(path) in str(error)
                continue
            good += 1
        assert 10 < good < len(versions) - 10

    @pytest.mark.thorough
    @pytest.mark.parametrize("part", ["oxts", "calib_cam_to_cam", "calib_imu_to_velo", "velodyne_points"])
    def test_raw(self, tmp_path: Path, part: str) -> None:
        sample = write_kitti(tmp_path / "k")
        calibration = sample.root / "2011_09_26" / f"{part}.txt"
        ending = "bin" if part == "velodyne_points" else "txt"
        path = calibration if part.startswith("calib") else sample.root / DRIVE / part / f"data/0000000001.{ending}"
        self.outcomes(path, lambda: KittiReader(sample.root / DRIVE).scenes()[0], 400)
