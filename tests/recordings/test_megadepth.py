"""MegaDepth: where its depth lies, what is refused, and damaged HDF5 files."""

from __future__ import annotations

import re
import shutil
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from reader_contract import RecordingContract
from sample_frames import HEIGHT, WIDTH, Sample, rendered
from samples_outdoor import images_bin, save_h5, write_megadepth

from fuzz import tries
from pri3d.errors import DataError, FrameError
from pri3d.recordings import detect, open_recording
from pri3d.recordings.megadepth import read_h5_depth
from pri3d.testing.reader import check_frame, mutations


class MegaDepth(RecordingContract):
    name = "megadepth"

    def scene(self, sample: Sample):
        return self.open(sample.root).scenes()[0]

    def test_given_cameras_win(self, samples, tmp_path: Path) -> None:
        """Depth is in the unit of the poses, so that ``depth_scale`` is of no image."""
        cameras = tmp_path / "mine.yaml"
        cameras.write_text("color: {fx: 40, fy: 41, cx: 24, cy: 18}\ndepth_scale: 0.002\n")
        frame = open_recording(samples[self.sample_name].root, self.name, cameras).scenes()[0].frame(0)
        assert frame.color_camera == frame.depth_camera == (WIDTH, HEIGHT, 40, 41, 24, 18)
        np.testing.assert_allclose(frame.depth, rendered()[0].depth, rtol=1e-6)

    def test_unit_is_unknown(self, samples) -> None:
        assert not self.scene(samples[self.sample_name]).metric

    @pytest.mark.parametrize("part", ["color", "depth"])
    def test_missing_or_cut_off_part_costs_its_frame(self, sample: Sample, part: str) -> None:
        path: Path = getattr(sample, part)
        scene = self.scene(sample)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
        with pytest.raises(FrameError, match=re.escape(str(path))):
            scene.frame(0)
        path.unlink()
        with pytest.raises(FrameError, match=r"8_o\.(h5|jpg): no such file"):
            scene.frame(0)
        check_frame(scene.frame(1))

    @pytest.mark.parametrize("where", [".", "Undistorted_SfM", "Undistorted_SfM/0022"])
    def test_any_folder_of_it_will_do(self, samples, where: str) -> None:
        root = samples[self.sample_name].root / where
        assert detect(root) == ["megadepth"]
        scenes = open_recording(root).scenes()
        assert [scene.id for scene in scenes] == ["0022"]
        check_frame(scenes[0].frame(2))

    def test_damaged_model_costs_the_scene(self, sample: Sample) -> None:
        sample.pose.write_bytes(b"")
        scene = self.scene(sample)
        with pytest.raises(DataError, match="images"):
            len(scene.names)


class TestBeside(MegaDepth):
    def test_what_is_no_depth_is_invalid(self, sample: Sample) -> None:
        depth = rendered()[0].depth.astype(np.float64)
        depth[0, :4] = (np.nan, np.inf, -0.5, 0)
        save_h5(sample.depth, depth, compression="gzip")
        found = self.scene(sample).frame(0).depth
        assert (found[0, :4] == 0).all()
        np.testing.assert_allclose(found[1:], depth[1:], rtol=1e-6)

    def test_ordinal_depth_is_refused(self, sample: Sample) -> None:
        depth = rendered()[0].depth.copy()
        depth[3, 4] = -1
        save_h5(sample.depth, depth)
        with pytest.raises(FrameError, match=r"8_o\.h5: holds -1.*ordinal"):
            self.scene(sample).frame(0)

    def test_other_contents(self, sample: Sample, tmp_path: Path) -> None:
        image = rendered()[0].depth
        for depth in (image[None], image.astype(np.int32), np.zeros((0, 5), np.float32), np.float32(3)):
            save_h5(sample.depth, depth)
            with pytest.raises(FrameError, match=r"8_o\.h5"):
                self.scene(sample).frame(0)
        save_h5(sample.depth, image, name="deepness")
        with pytest.raises(FrameError, match="no dataset named depth"):
            self.scene(sample).frame(0)
        with h5py.File(sample.depth, "w") as file:
            file.create_group("depth")
        with pytest.raises(FrameError, match="no dataset named depth"):
            self.scene(sample).frame(0)

    def test_depth_in_other_files_is_not_followed(self, sample: Sample, tmp_path: Path) -> None:
        other = tmp_path / "other.h5"
        save_h5(other, rendered()[0].depth)
        raw = tmp_path / "raw"
        raw.write_bytes(rendered()[0].depth.tobytes())
        for link in ("soft", "raw", "virtual"):
            with h5py.File(sample.depth, "w") as file:
                if link == "soft":
                    file["depth"] = h5py.ExternalLink(str(other), "depth")
                elif link == "raw":
                    outside = [(str(raw), 0, raw.stat().st_size)]
                    file.create_dataset("depth", (HEIGHT, WIDTH), np.float32, external=outside)
                else:
                    layout = h5py.VirtualLayout((HEIGHT, WIDTH), np.float32)
                    layout[:] = h5py.VirtualSource(str(other), "depth", (HEIGHT, WIDTH))
                    file.create_virtual_dataset("depth", layout)
            with pytest.raises(FrameError, match="in the file itself"):
                self.scene(sample).frame(0)

    def test_sizes_that_a_file_has_no_room_for(self, sample: Sample) -> None:
        """Chunks that were never written are zeros: a file of kilobytes may say it holds gigabytes of them."""
        with h5py.File(sample.depth, "w") as file:
            file.create_dataset("depth", (9000, 9000), np.float32, chunks=(64, 64))
        tracemalloc.start()
        with pytest.raises(FrameError, match="9000x9000"):
            read_h5_depth(sample.depth)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1e6

    @pytest.mark.thorough
    def test_damaged_bytes(self, tmp_path: Path) -> None:
        path = tmp_path / "a.h5"
        save_h5(path, rendered()[0].depth[:6, :8], compression="gzip")
        versions = mutations(path.read_bytes(), np.random.default_rng(5), tries(200))
        good = 0
        for version in versions:
            path.unlink()  # else some file systems wait for the disk when it is closed
            path.write_bytes(version)
            try:
                depth = read_h5_depth(path)
            except FrameError as error:
                assert str(path) in str(error)
                continue
            assert depth.dtype == np.float32
            assert np.isfinite(depth).all()
            good += 1
        assert tries(5) < good < len(versions) - 50


class TestTree(MegaDepth):
    layout = "tree"

    def test_without_what_leads_to_the_archive(self, sample: Sample) -> None:
        (sample.root / "phoenix/S6/zl548/MegaDepth_v1").rename(sample.root / "MegaDepth_v1")
        check_frame(self.scene(sample).frame(0))

    @pytest.mark.parametrize("where", [".", "phoenix/S6/zl548/MegaDepth_v1", "phoenix/S6/zl548/MegaDepth_v1/0022"])
    def test_the_archive_alone_has_no_poses(self, sample: Sample, where: str) -> None:
        shutil.rmtree(sample.root / "Undistorted_SfM")
        root = sample.root / where
        assert detect(root) == ["megadepth"]
        with pytest.raises(DataError, match=r"no poses.*image_undistorter.*Undistorted_SfM"):
            open_recording(root).scenes()

    def test_images_without_depth_are_left_out(self, sample: Sample) -> None:
        names = {f"{k + 8}_o.jpg": frame for k, frame in enumerate([*rendered(), rendered()[0]])}
        sample.pose.write_bytes(images_bin(names))
        shutil.copy(sample.color, sample.color.with_name("11_o.jpg"))
        scene = self.scene(sample)
        with pytest.raises(FrameError, match=r"11_o\.h5: no such file"):
            scene.frame(3)
        check_frame(scene.frame(0))

    def test_damaged_scene_costs_itself_alone(self, sample: Sample) -> None:
        other = write_megadepth(sample.root.parent / "more", tree=True)
        for place in ("Undistorted_SfM", "phoenix/S6/zl548/MegaDepth_v1"):
            shutil.copytree(other.root / place / "0022", sample.root / place / "0015")
        (sample.root / "Undistorted_SfM/0015/sparse/images.bin").write_bytes(b"")
        scenes = self.open(sample.root).scenes()
        assert [scene.id for scene in scenes] == ["0015", "0022"]
        check_frame(scenes[1].frame(0))
        with pytest.raises(DataError, match=r"0015/sparse/images\.bin"):
            len(scenes[0].names)
