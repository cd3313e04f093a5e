"""ScanNet++: the contract, smaller depth, what is not extracted, lists of scenes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reader_contract import ImageContract
from sample_frames import FRAMES, HEIGHT, WIDTH, rendered
from samples_desk import write_scannetpp

from pri3d.errors import DataError, FrameError
from pri3d.recordings import open_recording


def change(sample, edit: Callable[[dict[str, Any]], object]) -> None:
    stated = json.loads(sample.pose.read_text())
    edit(stated)
    sample.pose.write_text(json.dumps(stated))


class TestScanNetpp(ImageContract):
    name = "scannetpp"

    def test_depth_is_the_same_view_with_fewer_pixels(self, sample) -> None:
        depth = rendered()[0].depth[1::2, ::2]
        Image.fromarray(np.round(depth * 1000).astype(np.uint16)).save(sample.depth)
        frame = self.open(sample.root).scenes()[0].frame(0)
        assert frame.depth_camera == pytest.approx(rendered()[0].color_camera.resized(WIDTH // 2, HEIGHT // 2))
        assert frame.color_camera == pytest.approx(rendered()[0].color_camera)
        np.testing.assert_allclose(frame.depth, depth, atol=6e-4)

    def test_every_frame_has_its_camera(self, sample) -> None:
        change(sample, lambda s: s["frame_000010"]["intrinsic"][0].__setitem__(0, 33.0))
        scene = self.open(sample.root).scenes()[0]
        assert [scene.frame(k).color_camera.fx for k in range(3)].count(33.0) == 1

    def test_frames_that_are_not_extracted_are_left_out(self, sample) -> None:
        sample.color.unlink()
        scene = self.open(sample.root).scenes()[0]
        assert list(scene.names) == ["frame_000010", "frame_000020"]
        change(sample, lambda s: s.pop("frame_000010"))
        assert list(self.open(sample.root).scenes()[0].names) == ["frame_000020"]
        change(sample, lambda s: s.pop("frame_000020"))
        with pytest.raises(DataError, match="none of 2 images has one of the 1 poses"):
            len(self.open(sample.root).scenes()[0].names)

    @pytest.mark.parametrize(("part", "packed"), [("rgb", "rgb.mp4"), ("depth", "depth.bin")])
    def test_still_packed(self, sample, part: str, packed: str) -> None:
        folder = sample.pose.parent
        for path in (folder / part).iterdir():
            path.unlink()
        (folder / packed).touch()
        scene = open_recording(sample.root).scenes()[0]
        with pytest.raises(DataError, match=rf"{packed}.*iphone\.prepare_iphone_data.*extract_{part}"):
            len(scene.names)

    @pytest.mark.parametrize("key", ["aligned_pose", "intrinsic"])
    @pytest.mark.parametrize("value", [None, "x", [1, 2], [[1, [2]]], float("nan")])
    def test_a_damaged_frame(self, sample, key: str, value: object) -> None:
        for edit in (
            lambda s: s["frame_000000"].__setitem__(key, value),
            lambda s: s["frame_000000"].pop(key),
            lambda s: s.__setitem__("frame_000000", value),
        ):
            change(sample, edit)
            scene = self.open(sample.root).scenes()[0]
            with pytest.raises(FrameError, match=r"pose_intrinsic_imu\.json: frame frame_000000"):
                scene.frame(0)
            assert scene.frame(1).depth.any()

    def test_surface(self, sample) -> None:
        scans = sample.pose.parents[1] / "scans"
        assert self.open(sample.root).scenes()[0].mesh() is None
        scans.mkdir()
        (scans / "mesh_aligned_0.05.ply").touch()
        assert self.open(sample.root).scenes()[0].mesh() == scans / "mesh_aligned_0.05.ply"

    def test_lists(self, tmp_path) -> None:
        scenes = {"nvs_sem_train": "02455b3d20", "nvs_sem_val": "3f15a9266d", "sem_test": "ca0e09014e"}
        (tmp_path / "splits").mkdir()
        for name, scene in scenes.items():
            write_scannetpp(tmp_path, scene)
            (tmp_path / "splits" / f"{name}.txt").write_text(f"{scene}\nffffffffff\n")
        write_scannetpp(tmp_path, "ababababab")
        for split, found in (
            ("train", ["02455b3d20", "ababababab"]),
            ("val", ["3f15a9266d"]),
            ("test", ["ca0e09014e"]),
        ):
            assert [scene.id for scene in open_recording(tmp_path, split=split).scenes()] == found
            assert [scene.id for scene in open_recording(tmp_path / "data", split=split).scenes()] == found
        assert len(open_recording(tmp_path, split="all").scenes()) == 4
        with pytest.raises(DataError, match=r"none of its 1 scenes is in the official train list.*--split val"):
            open_recording(tmp_path / "data" / "3f15a9266d").scenes()
        assert len(open_recording(tmp_path / "data" / "02455b3d20").scenes()[0].names) == FRAMES
