"""What readers promise whose colour and depth are files of their own, and whose poses stand in one common file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from reader_contract import FilesContract
from sample_frames import HEIGHT, WIDTH, Sample, rendered

from pri3d.errors import DataError
from pri3d.recordings import open_recording
from pri3d.testing.reader import check_frame, mutations


class ImageContract(FilesContract):
    """Inherit and name the reader; ``sample.pose`` is the file with the poses of all frames."""

    units: ClassVar[int] = 1000  #: of the depth images, per metre
    test_bad_pose_is_refused = None  # the poses are not one matrix a file

    @pytest.mark.parametrize("part", ["color", "depth"])
    def test_missing_or_truncated_part_names_the_file(self, sample: Sample, part: str) -> None:
        super().test_missing_or_truncated_part_names_the_file(sample, part)

    @pytest.mark.parametrize("part", ["color", "depth"])
    def test_damaged_bytes_give_a_frame_or_a_frame_error(self, sample: Sample, part: str) -> None:
        super().test_damaged_bytes_give_a_frame_or_a_frame_error(sample, part)

    def test_given_cameras_win(self, samples: dict[str, Sample], tmp_path: Path) -> None:
        """As in the base class, in the units of this format."""
        cameras = tmp_path / "mine.yaml"
        cameras.write_text(f"color: {{fx: 40, fy: 41, cx: 24, cy: 18}}\ndepth_scale: {2 / self.units}\n")
        frame = open_recording(samples[self.sample_name].root, self.name, cameras).scenes()[0].frame(0)
        assert frame.color_camera == (WIDTH, HEIGHT, 40, 41, 24, 18)
        np.testing.assert_allclose(frame.depth, 2 * rendered()[0].depth, atol=2e-3)

    def test_missing_poses(self, sample: Sample) -> None:
        scene = self.open(sample.root).scenes()[0]
        sample.pose.unlink()
        with pytest.raises(DataError, match=re.escape(sample.pose.suffix)):
            len(scene.names)

    def test_damaged_poses_give_frames_or_a_typed_error(self, sample: Sample) -> None:
        root, refused = sample.root, 0
        versions = mutations(sample.pose.read_bytes(), np.random.default_rng(5), count=150)
        reader = self.open(root)
        for version in versions:
            sample.pose.write_bytes(version)
            try:
                check_frame(reader.scenes()[0].frame(0))
            except DataError as error:
                assert str(root) in str(error)
                refused += 1
        assert refused >= 8, "at least the truncated ones"
