"""Images without poses: NYUv2, SUN RGB-D and plain colour images."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from reader_contract import RecordingContract
from sample_frames import FRAMES, HEIGHT, WIDTH, Sample, rendered
from samples_single import save, write_sunrgbd

from fuzz import tries
from pri3d.errors import ConfigError, DataError, FrameError
from pri3d.recordings import detect, open_recording
from pri3d.testing.reader import check_frame, mutations


class UnposedContract(RecordingContract):
    """Colour, depth and cameras as everywhere; the poses are none."""

    damaged: tuple[str, ...] = ("color", "depth")

    def test_frames_are_the_ones_rendered(self, samples: dict[str, Sample]) -> None:
        scene = self.open(samples[self.sample_name].root).scenes()[0]
        assert scene.posed is False
        for k, truth in enumerate(rendered()):
            frame = scene.frame(k)
            check_frame(frame)
            assert frame.name == scene.names[k]
            np.testing.assert_allclose(frame.depth, truth.depth, atol=6e-4)
            assert np.array_equal(frame.depth == 0, truth.depth == 0)
            assert np.array_equal(frame.world_from_camera, np.eye(4))
            np.testing.assert_allclose(frame.color_camera, truth.color_camera, atol=1e-6)
            assert np.abs(frame.color.astype(int) - truth.color).mean() < 6

    def test_missing_or_truncated_part_names_the_file(self, sample: Sample) -> None:
        for part in self.damaged:
            path: Path = getattr(sample, part)
            scene = self.open(sample.root).scenes()[0]
            list(scene.names)
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) * 3 // 5])
            with pytest.raises(FrameError, match=re.escape(str(path))):
                scene.frame(0)
            path.unlink()
            with pytest.raises(FrameError, match=re.escape(str(path.parent))):
                scene.frame(0)
            check_frame(scene.frame(1))
            path.write_bytes(whole)

    def test_damaged_bytes_give_a_frame_or_a_frame_error(self, sample: Sample) -> None:
        for part in self.damaged:
            path: Path = getattr(sample, part)
            scene = self.open(sample.root).scenes()[0]
            list(scene.names)
            refused = 0
            for version in mutations(whole := path.read_bytes(), np.random.default_rng(len(part)), count=80):
                path.write_bytes(version)
                try:
                    check_frame(scene.frame(0))
                except FrameError as error:
                    assert str(path) in str(error)
                    refused += 1
            path.write_bytes(whole)
            assert refused >= 7, "the truncated ones"


class TestNYUExported(UnposedContract):
    name, layout = "nyuv2", "exported"

    def test_missing_or_truncated_part_names_the_file(self, sample: Sample) -> None:
        """Depth that is missing when the scene is opened is named by the colour image."""
        sample.depth.unlink()
        with pytest.raises(FrameError, match=re.escape(f"{sample.color}: has no depth image of the same number")):
            self.open(sample.root).scenes()[0].frame(0)
        sample.color.write_bytes(b"")
        scene = self.open(sample.root).scenes()[0]
        shutil.copy(sample.depth.with_name("000004.png"), sample.depth)
        with pytest.raises(FrameError, match=re.escape(str(sample.color))):
            self.open(sample.root).scenes()[0].frame(0)
        check_frame(scene.frame(1))

    def test_official_split(self, sample: Sample) -> None:
        assert [s.id for s in open_recording(sample.root, split="all").scenes()] == ["nyuv2-test", "nyuv2-train"]
        for split, names in (("train", ["0003", "0004", "0005"]), ("val", ["0001"]), ("test", ["0001"])):
            (scene,) = open_recording(sample.root, split=split).scenes()
            assert (list(scene.names), scene.split) == (names, "train" if split == "train" else "test")
        shutil.rmtree(sample.root / "val")
        with pytest.raises(DataError, match=r"no image of the official test set.*--split"):
            len(open_recording(sample.root, split="val").scenes()[0].names)

    def test_camera_of_whole_images(self, sample: Sample) -> None:
        """As published, on a grid whose pixel centres lie at +0.5; other sizes are not guessed."""
        (sample.root / "cameras.yaml").unlink()
        with pytest.raises(FrameError, match="is 48x36, but the camera is stated as 640x480"):
            self.open(sample.root).scenes()[0].frame(0)
        save(np.zeros((480, 640, 3), np.uint8), sample.color)
        save(np.full((480, 640), 1500, np.uint16), sample.depth)
        camera = self.open(sample.root).scenes()[0].frame(0).color_camera
        np.testing.assert_allclose(camera, (640, 480, 518.857901, 519.469611, 326.082449, 254.236166))

    def test_real_images(self, real_data: Path) -> None:
        (scene,) = open_recording(real_data / "nyuv2").scenes()
        frame = scene.frame(0)
        check_frame(frame)
        assert (frame.depth > 0).mean() > 0.5
        assert 0.4 < frame.depth[frame.depth > 0].min() < frame.depth.max() < 10


class TestNYUMat(UnposedContract):
    name = "nyuv2"

    def test_given_cameras_win(self, samples: dict[str, Sample], tmp_path: Path) -> None:
        """But for the depth's unit: the file holds metres."""
        cameras = tmp_path / "mine.yaml"
        cameras.write_text("color: {fx: 40, fy: 41, cx: 24, cy: 18}\n")
        frame = open_recording(samples["nyuv2"].root, None, cameras).scenes()[0].frame(0)
        assert frame.color_camera == (WIDTH, HEIGHT, 40, 41, 24, 18)

    def test_the_file_itself_is_a_recording(self, sample: Sample) -> None:
        assert len(open_recording(sample.color).scenes()[0].names) == FRAMES
        (sample.root / "other.mat").write_bytes(b"")
        assert detect(sample.root / "other.mat") == []

    def test_filled_in_depth_where_there_is_no_measured_one(self, sample: Sample) -> None:
        with h5py.File(sample.color, "r+") as file:
            del file["rawDepths"]
        frame = self.open(sample.root).scenes()[0].frame(0)
        assert (frame.depth[rendered()[0].depth == 0] == 2).all()
        with h5py.File(sample.color, "r+") as file:
            del file["depths"]
        with pytest.raises(FrameError, match=r"nyu_depth_v2_labeled\.mat: depths cannot be read"):
            self.open(sample.root).scenes()[0].frame(0)

    @pytest.mark.parametrize("depth", [np.zeros((5, 48, 35), np.float32), np.zeros((5, 48, 36), np.uint16)])
    def test_other_depth(self, sample: Sample, depth: np.ndarray) -> None:
        with h5py.File(sample.color, "r+") as file:
            del file["rawDepths"]
            file["rawDepths"] = depth
        with pytest.raises(FrameError, match=r"rawDepths is .* not as published"):
            self.open(sample.root).scenes()[0].frame(0)

    def test_missing_or_truncated_part_names_the_file(self, sample: Sample) -> None:
        """All parts lie in one file: the scene cannot be opened."""
        for size in (0, 600, 5000):
            sample.color.write_bytes(sample.color.read_bytes()[:size])
            with pytest.raises(DataError, match=r"nyu_depth_v2_labeled\.mat: .* cannot be read"):
                len(self.open(sample.root).scenes()[0].names)

    @pytest.mark.thorough
    def test_damaged_bytes_give_a_frame_or_a_frame_error(self, sample: Sample) -> None:
        """The library cannot be asked for 10,000 files in a moment; its headers lie in the first kilobytes."""
        whole, rng, refused = sample.color.read_bytes(), np.random.default_rng(0), 0
        for _ in range(tries(30)):
            damaged = bytearray(whole)
            damaged[int(rng.integers(512, 512 + 2600))] ^= 1 << int(rng.integers(8))
            sample.color.unlink()  # the library would answer for an open file from what it has read
            sample.color.write_bytes(damaged)
            try:
                check_frame(self.open(sample.root).scenes()[0].frame(0))
            except DataError as error:
                assert sample.color.name in str(error)
                refused += 1
        assert tries(2) < refused < tries(30)


class TestSunRgbd(UnposedContract):
    name = "sunrgbd"

    def test_missing_or_truncated_part_names_the_file(self, sample: Sample) -> None:
        """Where there is no other depth to take instead."""
        shutil.rmtree(sample.depth.parents[1] / "depth_bfx")
        super().test_missing_or_truncated_part_names_the_file(sample)

    def test_a_subset_is_a_scene_wherever_the_recording_begins(self, sample: Sample) -> None:
        shutil.copytree(sample.root / "xtion/sun3ddata", sample.root / "kv1/NYUdata")
        ids = [scene.id for scene in self.open(sample.root).scenes()]
        assert ids == ["kv1-NYUdata", "xtion-sun3ddata"]
        for inner in ("xtion", "xtion/sun3ddata", "xtion/sun3ddata/home_1"):
            (scene,) = open_recording(sample.root / inner).scenes()
            assert (scene.id, len(scene.names)) == ("xtion-sun3ddata", FRAMES)
        assert scene.names[0] == "home_1-home_1-0000000-000000000000"
        (single,) = open_recording(sample.color.parents[1]).scenes()
        assert (single.id, len(single.names)) == ("xtion-sun3ddata", 1)

    def test_folders_of_other_names(self, sample: Sample, tmp_path: Path) -> None:
        mine = (sample.root / "xtion/sun3ddata/home_1/home_1").rename(tmp_path / "mine")
        (scene,) = open_recording(mine).scenes()
        assert (scene.id, scene.names[1]) == ("mine", "0000001-000000000001")

    def test_filled_depth_where_there_is_no_measured_one(self, sample: Sample) -> None:
        shutil.rmtree(sample.depth.parent)
        assert (self.open(sample.root).scenes()[0].frame(0).depth == 0).all()

    def test_intrinsics_are_each_frames_own(self, sample: Sample) -> None:
        text = sample.pose.read_text()
        sample.pose.write_text(" ".join(text.split()))  # in one line
        scene = self.open(sample.root).scenes()[0]
        assert scene.frame(0).color_camera == pytest.approx(scene.frame(1).color_camera)
        for damaged in ("", "1 2 3", text.replace("0.0", "x"), "nan " * 9):
            sample.pose.write_text(damaged)
            with pytest.raises(FrameError, match=r"intrinsics\.txt"):
                scene.frame(0)
            check_frame(scene.frame(1))

    def test_depth_of_eight_bits(self, sample: Sample) -> None:
        save(np.full((HEIGHT, WIDTH), 9, np.uint8), sample.depth)
        with pytest.raises(FrameError, match="16-bit"):
            self.open(sample.root).scenes()[0].frame(0)

    def test_a_video_of_the_same_parts_is_another_format(self, sample: Sample) -> None:
        frame = sample.color.parents[1]
        shutil.copy(sample.color, sample.color.with_name("0000002.jpg"))
        assert "sunrgbd" not in detect(frame)


class TestImages(UnposedContract):
    name, damaged = "images", ("color",)

    def test_detects_its_own_layout_alone(self, samples: dict[str, Sample], tmp_path: Path) -> None:
        """Where no other reader knows the layout."""
        for name, other in samples.items():
            assert ("images" in detect(other.root)) == (name == "images"), name
        assert detect(tmp_path) == []
        save(np.zeros((9, 9, 3), np.uint8), tmp_path / "inner" / "a.png")
        assert detect(tmp_path) == ["images"]
        (tmp_path / "inner" / ".hidden").write_text("")
        assert detect(tmp_path) == ["images"]
        (tmp_path / "inner" / "poses.txt").write_text("")
        assert detect(tmp_path) == []
        with pytest.raises(DataError, match="not a known recording") as caught:
            open_recording(tmp_path)
        assert "did you mean" not in str(caught.value), "every folder of images could be meant"

    def test_frames_are_the_ones_rendered(self, samples: dict[str, Sample]) -> None:
        """Colour alone."""
        scenes = self.open(samples["images"].root).scenes()
        assert [scene.id for scene in scenes] == ["first", "second-inner"]
        for k, truth in enumerate(rendered()):
            frame = scenes[1].frame(k)
            check_frame(frame)
            assert np.array_equal(frame.color, truth.color)
            assert frame.depth.shape == (HEIGHT, WIDTH)
            assert not frame.depth.any()
            assert frame.color_camera == (WIDTH, HEIGHT, WIDTH, WIDTH, WIDTH / 2, HEIGHT / 2)

    def test_given_cameras_win(self, samples: dict[str, Sample], tmp_path: Path) -> None:
        cameras = tmp_path / "mine.yaml"
        cameras.write_text("color: {fx: 40, fy: 41, cx: 24, cy: 18}\n")
        frame = open_recording(samples["images"].root, None, cameras).scenes()[0].frame(0)
        assert frame.color_camera == (WIDTH, HEIGHT, 40, 41, 24, 18)

    def test_others_are_cut_to_the_first_ones_size(self, sample: Sample) -> None:
        wide = np.zeros((HEIGHT, 2 * WIDTH, 3), np.uint8)
        wide[:, WIDTH // 2 : -WIDTH // 2] = 200
        save(wide, sample.color.with_name("z.png"))
        scene = self.open(sample.root).scenes()[0]
        assert scene.names[-1] == "z"
        frame = scene.frame(FRAMES)
        assert frame.color.shape == (HEIGHT, WIDTH, 3)
        assert (frame.color == 200).all()

    def test_turned_upright(self, sample: Sample) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        picture = Image.fromarray(rendered()[0].color.transpose(1, 0, 2)[::-1])  # a camera that was turned
        for path in sample.color.parent.iterdir():
            path.unlink()
        picture.save(sample.color, exif=exif)
        assert np.array_equal(self.open(sample.root).scenes()[0].frame(0).color, rendered()[0].color)

    def test_two_kinds_of_one_name(self, sample: Sample) -> None:
        save(rendered()[0].color, sample.color.with_suffix(".jpg"))
        names = self.open(sample.root).scenes()[0].names
        assert names[:2] == [f"{sample.color.stem}.jpg", sample.color.name]

    def test_sixteen_bits_and_nothing_readable(self, sample: Sample) -> None:
        scene = self.open(sample.root).scenes()[0]
        assert len(scene.names) == FRAMES
        save(np.ones((HEIGHT, WIDTH), np.uint16), sample.color)
        with pytest.raises(FrameError, match="16-bit"):
            scene.frame(0)
        for path in sample.color.parent.iterdir():
            path.write_bytes(b"no image")
        with pytest.raises(DataError, match="none of its 3 images is readable"):
            len(self.open(sample.root).scenes()[0].names)


def test_unknown_split(tmp_path: Path) -> None:
    root = write_sunrgbd(tmp_path / "raw").root
    with pytest.raises(ConfigError, match="no official split"):
        open_recording(root, split="val")
