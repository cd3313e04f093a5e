"""Record3D: zip file and folder against the contract; cameras, kept JPEG, what is missing, damaged files."""

from __future__ import annotations

import json
import shutil
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import lzfse_writer
import numpy as np
import pytest
from reader_contract import RecordingContract
from sample_frames import HEIGHT, WIDTH, Sample, rendered
from samples_phone import INTRINSICS, levels, record3d_entries, record3d_pose, write_r3d

from fuzz import tries
from pri3d.api.prepare import prepare
from pri3d.errors import DataError, FrameError
from pri3d.recordings import open_recording
from pri3d.recordings._shared.scenes import LazyScene
from pri3d.store import Store
from pri3d.testing.reader import check_frame, mutations


def only(path: Path) -> LazyScene:
    (scene,) = open_recording(path, "record3d").scenes()
    return scene


def written(path: Path, changed: dict[str, bytes | None] | None = None, **metadata: Any) -> LazyScene:
    """The scene of a file with some entries changed, or left out for None."""
    entries = record3d_entries(**metadata) | (changed or {})
    return only(write_r3d(path / "a.r3d", {name: content for name, content in entries.items() if content is not None}))


class TestZip(RecordingContract):
    name = "record3d"


class TestUnpacked(RecordingContract):
    name = "record3d"
    layout = "unpacked"

    def test_missing_file(self, sample: Sample) -> None:
        sample.depth.unlink()
        with pytest.raises(FrameError, match=r"rgbd/0\.depth: no such file"):
            only(sample.root).frame(0)


class TestFiles:
    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_a_file_alone_is_a_recording(self, method: int, tmp_path: Path) -> None:
        path = write_r3d(tmp_path / "Kitchen 1.R3D", record3d_entries(), method)
        (scene,) = open_recording(path).scenes()
        assert scene.id == "Kitchen_1"
        check_frame(scene.frame(2))

    def test_several_files_and_their_cameras(self, tmp_path: Path) -> None:
        for name in ("b", "a"):
            write_r3d(tmp_path / f"{name}.r3d", record3d_entries())
        (tmp_path / "cameras.yaml").write_text("color: {fx: 40, fy: 41, cx: 24, cy: 18}\n")
        scenes = open_recording(tmp_path).scenes()
        assert [scene.id for scene in scenes] == ["a", "b"]
        assert scenes[1].frame(0).color_camera.fx == 40
        np.testing.assert_allclose(scenes[1].frame(0).depth, rendered()[0].depth)
        (alone,) = open_recording(tmp_path / "a.r3d").scenes()
        assert alone.frame(0).color_camera.fx == 40

    def test_one_damaged_file_costs_itself(self, tmp_path: Path) -> None:
        write_r3d(tmp_path / "a.r3d", record3d_entries())
        (tmp_path / "b.r3d").write_bytes(b"no zip file")
        good, bad = open_recording(tmp_path).scenes()
        check_frame(good.frame(0))
        with pytest.raises(DataError, match=r"b\.r3d: metadata cannot be read.*copied completely"):
            _ = bad.names

    def test_a_file_that_is_replaced(self, tmp_path: Path) -> None:
        scene = written(tmp_path)
        check_frame(scene.frame(0))
        write_r3d(tmp_path / "a.r3d", {"metadata": b"{}"})
        with pytest.raises(FrameError, match=r"a\.r3d: holds no rgbd/0\.jpg"):
            scene.frame(0)

    def test_the_jpeg_reaches_the_store(self, tmp_path: Path) -> None:
        scene = written(tmp_path)
        jpeg = scene.frame(0).color_jpeg
        assert jpeg == record3d_entries()["rgbd/0.jpg"]
        options = {"size": f"{WIDTH}x{HEIGHT}", "pairs": False, "surface": False, "processes": 1, "frame_step": 1}
        prepare([tmp_path / "a.r3d"], tmp_path / "out", **options)
        with zipfile.ZipFile(Store(tmp_path / "out").path / "scenes" / "a" / "frames.zip") as archive:
            assert jpeg in [archive.read(name) for name in archive.namelist()]


class TestMetadata:
    def test_poses_of_the_app(self, tmp_path: Path) -> None:
        """A camera upright at 1.5 m that looks along ARKit's -z; the quaternion need not have length 1."""
        scene = written(tmp_path, poses=[[0, 0, 0, 2, 0, 1.5, 0]])
        assert np.array_equal(scene.frame(0).world_from_camera @ (0, 1, 2, 1), (0, 0.5, -2, 1))

    def test_cameras_of_every_frame_win(self, tmp_path: Path) -> None:
        fx, fy, cx, cy = INTRINSICS
        scene = written(tmp_path, perFrameIntrinsicCoeffs=[[fx + k, fy, cx, cy + k] for k in range(3)])
        assert scene.frame(2).color_camera == (WIDTH, HEIGHT, fx + 2, fy, cx, cy + 2)

    def test_depth_of_fewer_pixels(self, tmp_path: Path) -> None:
        small = rendered()[0].depth[::2, ::2].astype("<f4")
        depth, confidence = (lzfse_writer.compress(v.tobytes()) for v in (small, levels(rendered()[0])[::2, ::2]))
        changed = {"rgbd/0.depth": depth, "rgbd/0.conf": confidence}
        frame = written(tmp_path, changed, dw=WIDTH // 2, dh=HEIGHT // 2).frame(0)
        check_frame(frame)
        np.testing.assert_array_equal(frame.depth, small)
        assert frame.depth_camera == frame.color_camera.resized(WIDTH // 2, HEIGHT // 2)
        assert frame.confidence.shape == small.shape

    def test_sizes_of_depth_that_are_not_stated_are_those_of_colour(self, tmp_path: Path) -> None:
        check_frame(written(tmp_path, dw=None, dh=None).frame(0))

    @pytest.mark.parametrize(
        ("changed", "reason"),
        [
            ({"w": 0}, "w and h are 0"),
            ({"h": 1 << 40}, "w and h"),
            ({"dw": True}, "dw and dh are True"),
            ({"dh": "36"}, "dw and dh"),
            ({"K": [1, 2, 3]}, "K: holds 3 numbers"),
            ({"K": None}, "K: holds"),
            ({"poses": []}, "holds no poses"),
            ({"poses": [[1, 2]]}, "poses: holds 2 numbers, expected 1 x 7"),
            ({"poses": "all"}, "holds no poses"),
            ({"perFrameIntrinsicCoeffs": [[1, 2, 3, 4]]}, "perFrameIntrinsicCoeffs: holds 4 numbers"),
        ],
    )
    def test_damaged(self, tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
        scene = written(tmp_path, **changed)
        with pytest.raises(DataError, match=rf"a\.r3d: metadata: {reason}"):
            _ = scene.names

    @pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100000, None])
    def test_no_metadata(self, tmp_path: Path, content: bytes | None) -> None:
        with pytest.raises(DataError, match=r"a\.r3d: (holds no )?metadata"):
            _ = written(tmp_path, {"metadata": content}).names

    @pytest.mark.parametrize(
        ("pose", "reason"),
        [([np.nan] * 7, "not finite"), ([0] * 7, "no rotation"), ([0, 0, 0, 1, 1e7, 0, 0], "damaged")],
    )
    def test_lost_tracking(self, tmp_path: Path, pose: list[float], reason: str) -> None:
        good = record3d_pose(rendered()[1].world_from_camera)
        scene = written(tmp_path, poses=[pose, good, good])
        for load in (scene.frame, scene.pose):
            with pytest.raises(FrameError, match=rf"a\.r3d: pose of frame 000000.*{reason}"):
                load(0)
        check_frame(scene.frame(1))


class TestParts:
    def test_depth_that_is_no_depth(self, tmp_path: Path) -> None:
        metres = np.full((HEIGHT, WIDTH), 2.5, "<f4")
        metres[0, :6] = (np.nan, np.inf, -np.inf, -1, 1e9, 65.6)
        frame = written(tmp_path, {"rgbd/0.depth": lzfse_writer.compress(metres.tobytes())}).frame(0)
        check_frame(frame)
        assert not frame.depth[0, :6].any()
        assert (frame.depth == 2.5).sum() == metres.size - 6

    def test_confidence_is_percent_and_may_be_missing(self, tmp_path: Path) -> None:
        assert np.array_equal(written(tmp_path / "a").frame(1).confidence, 50 * levels(rendered()[1]))
        assert written(tmp_path / "b", {"rgbd/1.conf": None}).frame(1).confidence is None

    @pytest.mark.parametrize(
        ("entry", "content", "reason"),
        [
            ("jpg", None, "holds no rgbd/0.jpg"),
            ("depth", None, "holds no rgbd/0.depth"),
            ("jpg", b"", "rgbd/0.jpg: damaged"),
            ("depth", b"", "rgbd/0.depth: .*truncated"),
            ("depth", lzfse_writer.compress(bytes(100)), "rgbd/0.depth: holds 100 bytes"),
            ("conf", lzfse_writer.compress(bytes([3]) * (WIDTH * HEIGHT)), "rgbd/0.conf: holds the confidence 3"),
            ("jpg", bytes(10**6), "rgbd/0.jpg: has more than"),
        ],
    )
    def test_damaged(self, tmp_path: Path, entry: str, content: bytes | None, reason: str) -> None:
        scene = written(tmp_path, {f"rgbd/0.{entry}": content})
        with pytest.raises(FrameError, match=rf"a\.r3d: {reason}"):
            scene.frame(0)
        check_frame(scene.frame(1))

    def test_a_bomb_takes_no_memory(self, tmp_path: Path) -> None:
        entries = record3d_entries() | {"rgbd/0.jpg": bytes(10**8)}
        scene = only(write_r3d(tmp_path / "a.r3d", entries, zipfile.ZIP_DEFLATED))
        assert len(scene.names) == 3
        tracemalloc.start()
        with pytest.raises(FrameError, match="more than"):
            scene.frame(0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 3 << 20

    def test_a_size_that_is_not_that_of_the_images(self, tmp_path: Path) -> None:
        fx, fy, cx, cy = (2 * value for value in INTRINSICS)
        scene = written(tmp_path, w=2 * WIDTH, h=2 * HEIGHT, K=[fx, 0, 0, 0, fy, 0, cx, cy, 1])
        with pytest.raises(FrameError, match=r"rgbd/0\.jpg: is 48x36, stated is 96x72"):
            scene.frame(0)

    @pytest.mark.thorough
    def test_damaged_bytes_give_frames_or_errors(self, tmp_path: Path) -> None:
        """Two thousand files: the directory of the zip file, metadata and entries alike."""
        data = write_r3d(tmp_path / "whole.r3d", record3d_entries()).read_bytes()
        path = tmp_path / "a" / "a.r3d"
        path.parent.mkdir()
        refused = good = 0
        middle = data.index(b"PK\x01\x02")
        versions = mutations(data, np.random.default_rng(0), count=tries(100))
        versions += [data[:middle] + v for v in mutations(data[middle:], np.random.default_rng(1), count=tries(100))]
        for version in versions:
            path.unlink(missing_ok=True)
            path.write_bytes(version)
            try:
                scene = only(path)
                if len(scene.names):
                    check_frame(scene.frame(0))
                good += 1
            except DataError as error:
                assert "a.r3d" in str(error)
                refused += 1
        assert refused > tries(30)
        assert good > tries(10)

    def test_damaged_metadata_gives_frames_or_errors(self, tmp_path: Path) -> None:
        write_r3d(tmp_path / "a.r3d", record3d_entries())
        with zipfile.ZipFile(tmp_path / "a.r3d") as archive:
            archive.extractall(tmp_path / "a")
        path = tmp_path / "a" / "metadata"
        for version in mutations(path.read_bytes(), np.random.default_rng(2), count=tries(60)):
            path.write_bytes(version)
            try:
                check_frame(only(tmp_path / "a").frame(0))
            except DataError as error:
                assert str(tmp_path / "a") in str(error)

    def test_metadata_of_one_pose_less(self, tmp_path: Path) -> None:
        poses = json.loads(record3d_entries()["metadata"])["poses"]
        assert len(written(tmp_path, poses=poses[:2]).names) == 2


def test_a_folder_of_something_else_is_none(tmp_path: Path) -> None:
    (tmp_path / "rgbd").mkdir()
    with pytest.raises(DataError, match="not a known recording"):
        open_recording(tmp_path)
    shutil.rmtree(tmp_path / "rgbd")
