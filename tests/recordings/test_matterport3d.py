"""Matterport3D: the contract, the origin at the lower edge, cameras by groups, houses and lists."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from reader_contract import ImageContract
from sample_frames import FRAMES, HEIGHT, rendered
from samples_desk import write_matterport3d

from pri3d.errors import DataError
from pri3d.recordings import open_recording
from pri3d.recordings.matterport3d import OFFICIAL


class TestMatterport3d(ImageContract):
    name, units = "matterport3d", 4000

    def change(self, sample, old: str, new: str) -> None:
        text = sample.pose.read_text()
        assert old in text
        sample.pose.write_text(text.replace(old, new, 1))

    def test_centre_counts_from_the_lower_edge(self, sample) -> None:
        """A centre at index HEIGHT - 1 - 14.25 from below is at 14.25 from above, and at 14.75 on our grid."""
        words = sample.pose.read_text().split()
        at = words.index("intrinsics_matrix")
        self.change(sample, " ".join(words[at + 4 : at + 7]), f"0 {words[at + 5]} {HEIGHT - 1 - 14.25}")
        first, second, third = (self.open(sample.root).scenes()[0].frame(k).color_camera for k in range(FRAMES))
        assert first.cy == second.cy == 14.75
        assert third.cy == pytest.approx(rendered()[2].color_camera.cy)

    def test_a_given_camera_counts_from_the_upper_edge(self, sample, tmp_path) -> None:
        cameras = tmp_path / "mine.yaml"
        cameras.write_text("color: {fx: 40, fy: 40, cx: 24, cy: 15}\n")
        assert open_recording(sample.root, self.name, cameras).scenes()[0].frame(0).color_camera.cy == 15

    def test_names(self, samples) -> None:
        assert list(self.open(samples[self.sample_name].root).scenes()[0].names) == [
            "ab12_i0_0",
            "ab12_i1_0",
            "ab12_i2_0",
        ]

    @pytest.mark.parametrize(
        ("old", "new", "reason"),
        [
            ("n_images 3", "n_images 4", "holds 3 images, 4 are stated"),
            ("n_images 3", "n_images x", "n_images"),
            ("n_images 3", "n_images", "n_images"),
            ("intrinsics_matrix", "matrix", "before any intrinsics_matrix"),
            ("intrinsics_matrix ", "intrinsics_matrix 1 ", "holds 10 numbers"),
            ("ab12_i0_0.jpg ", "ab12_i0_0.jpg 1 ", "holds 17 numbers"),
            ("ab12_i0_0.jpg ", "../../../x.jpg ", "which is not in"),
        ],
    )
    def test_damaged_cameras(self, sample, old: str, new: str, reason: str) -> None:
        self.change(sample, old, new)
        with pytest.raises(DataError, match=rf"17DRP5sb8fy\.conf.*{reason}"):
            len(self.open(sample.root).scenes()[0].names)

    def test_surface(self, sample) -> None:
        house = sample.pose.parents[1]
        assert self.open(house).scenes()[0].mesh() is None
        for part in ("poisson_meshes", "house_segmentations"):
            (house / part).mkdir()
            (house / part / "17DRP5sb8fy.ply").touch()
            assert self.open(house).scenes()[0].mesh() == house / part / "17DRP5sb8fy.ply"

    @pytest.mark.parametrize("where", ["", "v1/scans", "v1/scans/17DRP5sb8fy"])
    def test_any_folder_of_it_will_do(self, samples, where: str) -> None:
        scene = open_recording(samples[self.sample_name].root / where).scenes()[0]
        assert (scene.id, scene.split) == ("17DRP5sb8fy", None)
        np.testing.assert_allclose(scene.frame(0).depth, rendered()[0].depth, atol=6e-4)

    def test_lists(self, tmp_path) -> None:
        assert Counter(OFFICIAL.values()) == {"val": 11, "test": 18}
        assert not any(len(house) != 11 for house in OFFICIAL)
        for house in ("17DRP5sb8fy", "2azQ1b91cZZ", "2t7WUuJeko7"):
            write_matterport3d(tmp_path, house)
        for split, house in (("train", "17DRP5sb8fy"), ("val", "2azQ1b91cZZ"), ("test", "2t7WUuJeko7")):
            assert [scene.id for scene in open_recording(tmp_path, split=split).scenes()] == [house]
        assert len(open_recording(tmp_path, split="all").scenes()) == 3
        with pytest.raises(DataError, match=r"none of its 1 scenes is in the official train list.*--split val"):
            open_recording(tmp_path / "v1" / "scans" / "2azQ1b91cZZ").scenes()
