"""Stray Scanner: both versions against the contract; the table of poses, the video, both forms of depth."""

from __future__ import annotations

import io
import re
import shutil
import struct

import numpy as np
import pytest
from PIL import Image
from reader_contract import RecordingContract
from sample_frames import HEIGHT, WIDTH, Sample, rendered
from samples_phone import levels, write_video

from pri3d.errors import DataError, FrameError
from pri3d.testing.reader import check_frame, mutations


class StrayContract(RecordingContract):
    """Colour is a video and poses are a table, so that only depth is a file of a frame."""

    name = "stray"

    def test_the_apps_half_turn_makes_opencv_axes(self, sample: Sample) -> None:
        """The app writes a phone that looks along ARKit's -z, upright at 1.5 m, as a half turn about x."""
        lines = sample.pose.read_text().splitlines()
        words = lines[1].split(", ")
        words[2:9] = ["0", "1.5", "0", "1", "0", "0", "0"]
        sample.pose.write_text("\n".join((lines[0], ", ".join(words), *lines[2:])))
        pose = self.open(sample.root).scenes()[0].frame(0).world_from_camera
        np.testing.assert_allclose(pose @ (0, 1, 2, 1), (0, 0.5, -2, 1), atol=1e-12)

    def test_confidence_is_percent(self, sample: Sample) -> None:
        assert np.array_equal(self.open(sample.root).scenes()[0].frame(2).confidence, 50 * levels(rendered()[2]))
        shutil.rmtree(sample.depth.parent.parent / "confidence")
        assert self.open(sample.root).scenes()[0].frame(2).confidence is None

    def test_depth_of_fewer_pixels_is_of_the_same_view(self, sample: Sample) -> None:
        large = [frame.color.repeat(2, axis=0).repeat(2, axis=1) for frame in rendered()]
        write_video(sample.color, large)
        (sample.color.parent / "cameras.yaml").write_text("color: {fx: 80, fy: 82, cx: 48, cy: 36}\ndepth:\n")
        with pytest.raises(Exception, match=r"cameras\.yaml"):
            _ = self.open(sample.root).scenes()[0].names
        (sample.color.parent / "cameras.yaml").unlink()
        self.double_camera(sample)
        frame = self.open(sample.root).scenes()[0].frame(1)
        check_frame(frame)
        camera = rendered()[1].color_camera
        np.testing.assert_allclose(frame.depth_camera, camera)
        np.testing.assert_allclose(frame.color_camera, camera.resized(2 * WIDTH, 2 * HEIGHT))

    def double_camera(self, sample: Sample) -> None:
        raise NotImplementedError

    def test_lost_tracking(self, sample: Sample) -> None:
        lines = sample.pose.read_text().splitlines()
        for values, reason in (("nan " * 7, "not finite"), ("0 " * 7, "no rotation"), ("1e9 0 0 0 0 0 1", "damaged")):
            words = lines[2].split(", ")
            words[2:9] = values.split()
            sample.pose.write_text("\n".join((*lines[:2], ", ".join(words), lines[3])))
            scene = self.open(sample.root).scenes()[0]
            for load in (scene.frame, scene.pose):
                with pytest.raises(FrameError, match=rf"odometry\.csv: frame 000001.*{reason}"):
                    load(1)
            check_frame(scene.frame(2))

    def test_a_line_that_was_not_written_whole(self, sample: Sample) -> None:
        text = sample.pose.read_text()
        sample.pose.write_text(text[: len(text) - 60])
        assert list(self.open(sample.root).scenes()[0].names) == ["000000", "000001"]

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda lines: lines[1:], "first line should name"),
            (lambda lines: lines[:1], "0 lines"),
            (lambda lines: [], "first line"),
            (lambda lines: [*lines, lines[-1]], "4 lines of 3 frames"),
            (lambda lines: [lines[0], lines[1][:20], *lines[2:]], "no frame number or another length"),
            (lambda lines: [line.replace("000001", "one") for line in lines], "no frame number"),
        ],
    )
    def test_damaged_odometry(self, sample: Sample, change: object, reason: str) -> None:
        sample.pose.write_text("\n".join(change(sample.pose.read_text().splitlines())))
        with pytest.raises(DataError, match=rf"odometry\.csv.*{reason}"):
            _ = self.open(sample.root).scenes()[0].names

    def test_damaged_bytes_of_the_odometry(self, sample: Sample) -> None:
        refused = 0
        for version in mutations(sample.pose.read_bytes(), np.random.default_rng(0), count=150):
            sample.pose.write_bytes(version)
            try:
                scene = self.open(sample.root).scenes()[0]
                for k in range(len(scene.names)):
                    scene.pose(k)
            except DataError as error:
                assert "odometry.csv" in str(error)
                refused += 1
        assert refused > 40

    def test_damaged_bytes_of_depth(self, sample: Sample) -> None:
        scene = self.open(sample.root).scenes()[0]
        content, refused = sample.depth.read_bytes(), 0
        for version in mutations(content, np.random.default_rng(1), count=150):
            sample.depth.write_bytes(version)
            try:
                check_frame(scene.frame(0))
            except FrameError as error:
                assert str(sample.depth) in str(error)
                refused += 1
        assert refused >= 8

    def test_missing_depth(self, sample: Sample) -> None:
        scene = self.open(sample.root).scenes()[0]
        assert len(scene.names) == 3
        sample.depth.unlink()
        with pytest.raises(FrameError, match=r"depth/000000\.png: no such file"):
            scene.frame(0)

    def test_missing_and_damaged_video(self, sample: Sample) -> None:
        sample.color.write_bytes(sample.color.read_bytes()[:500])
        with pytest.raises(DataError, match=re.escape(str(sample.color))):
            _ = self.open(sample.root).scenes()[0].names
        sample.color.unlink()
        if self.layout:  # nothing but the table is left
            return
        with pytest.raises(DataError, match=re.escape(str(sample.color))):
            _ = self.open(sample.root).scenes()[0].names

    def test_a_video_of_fewer_frames(self, sample: Sample) -> None:
        write_video(sample.color, [frame.color for frame in rendered()[:2]])
        scene = self.open(sample.root).scenes()[0]
        check_frame(scene.frame(1))
        with pytest.raises(FrameError, match=r"rgb\.mp4: has 2 frames"):
            scene.frame(2)

    def test_the_video_is_read_by_frame_number(self, sample: Sample) -> None:
        lines = sample.pose.read_text().splitlines()
        sample.pose.write_text("\n".join((lines[0], lines[3])))
        frame = self.open(sample.root).scenes()[0].frame(0)
        assert np.abs(frame.color.astype(int) - rendered()[2].color).mean() < 6

    def test_several_scenes(self, sample: Sample) -> None:
        first = sample.color.parent
        shutil.copytree(first, first.with_name("00ff"))
        (first / "odometry.csv").write_text("")
        scenes = self.open(sample.root).scenes()
        assert [scene.id for scene in scenes] == ["00ff", "71de12f9"]
        check_frame(scenes[0].frame(0))


class TestMatrix(StrayContract):
    def double_camera(self, sample: Sample) -> None:
        path = sample.color.parent / "camera_matrix.csv"
        matrix = 2 * np.array([[float(word) for word in line.split(",")] for line in path.read_text().splitlines()])
        path.write_text("\n".join(",".join(map(repr, map(float, row))) for row in matrix))

    @pytest.mark.parametrize("text", [None, "", "1, 2, 3", "0, 0, 0\n" * 3, "a, b, c\n" * 3])
    def test_bad_matrix(self, sample: Sample, text: str | None) -> None:
        path = sample.color.parent / "camera_matrix.csv"
        path.unlink() if text is None else path.write_text(text)
        with pytest.raises(DataError, match=r"camera_matrix\.csv"):
            _ = self.open(sample.root).scenes()[0].names


class TestColumns(StrayContract):
    """Newer: the camera of every frame in the table. Depth in numpy's format is older; both in one sample."""

    layout = "columns"

    def double_camera(self, sample: Sample) -> None:
        head, *rows = (line.split(", ") for line in sample.pose.read_text().splitlines())
        doubled = [[*row[:9], *(repr(2 * float(word)) for word in row[9:])] for row in rows]
        sample.pose.write_text("\n".join(", ".join(row) for row in (head, *doubled)))

    def test_damaged_camera(self, sample: Sample) -> None:
        lines = sample.pose.read_text().splitlines()
        lines[1] = ", ".join((*lines[1].split(", ")[:9], "0, 0, 0, 0"))
        sample.pose.write_text("\n".join(lines))
        with pytest.raises(FrameError, match=r"odometry\.csv: frame 000000.*camera"):
            self.open(sample.root).scenes()[0].frame(0)

    @pytest.mark.parametrize(
        "values",
        [
            np.ones((HEIGHT, WIDTH), np.int16),
            np.ones((HEIGHT, WIDTH, 3), np.uint16),
            np.array([{"a": 1}], dtype=object),
        ],
    )
    def test_other_arrays_are_refused(self, sample: Sample, values: np.ndarray) -> None:
        np.save(sample.depth, values, allow_pickle=True)
        with pytest.raises(FrameError, match=r"000000\.npy: is not readable depth"):
            self.open(sample.root).scenes()[0].frame(0)

    @pytest.mark.parametrize(
        ("values", "metres"),
        [(np.ones((HEIGHT, WIDTH), np.float32), 1.0), (np.full((HEIGHT, WIDTH, 1), 500, np.uint16), 0.5)],
    )
    def test_floats_are_metres_and_an_axis_of_one_is_none(
        self, sample: Sample, values: np.ndarray, metres: float
    ) -> None:
        np.save(sample.depth, values)
        assert np.allclose(self.open(sample.root).scenes()[0].frame(0).depth, metres)

    def test_a_header_of_gigabytes(self, sample: Sample) -> None:
        head = b"{'descr': '<u2', 'fortran_order': False, 'shape': (9999, 10000), }".ljust(117) + b"\n"
        sample.depth.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(100))
        with pytest.raises(FrameError, match="100 bytes of shape"):
            self.open(sample.root).scenes()[0].frame(0)

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_order_and_byte_order(self, sample: Sample, order: str) -> None:
        depth = np.round(rendered()[0].depth * 1000).astype(">u2", order=order)
        np.save(sample.depth, depth)
        found = self.open(sample.root).scenes()[0].frame(0).depth
        np.testing.assert_allclose(found, rendered()[0].depth, atol=6e-4)

    def test_png_beside_npy(self, sample: Sample) -> None:
        buffer = io.BytesIO()
        Image.fromarray(np.full((HEIGHT, WIDTH), 65535, np.uint16)).save(buffer, "PNG")
        sample.depth.unlink()
        sample.depth.with_suffix(".png").write_bytes(buffer.getvalue())
        assert not self.open(sample.root).scenes()[0].frame(0).depth.any()
