"""What every built-in reader promises: the shipped contract, and what only samples of all formats can show.

A new format adds a writer to ``samples.SAMPLES`` and inherits in three lines::

class TestTum(FilesContract):
    name = "tum"
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from sample_frames import HEIGHT, WIDTH, Sample
from samples import SAMPLES

from pri3d.errors import DataError, FrameError
from pri3d.recordings import load_reader
from pri3d.testing import ReaderContract
from pri3d.testing.reader import check_frame, mutations


class RecordingContract(ReaderContract):
    """Inherit and name the reader; for formats whose frames are not files of their own."""

    written: ClassVar[Sample]  #: the recording
    layout: ClassVar[str] = ""  #: one of the reader's layouts: its sample is called name-layout

    @property
    def sample_name(self) -> str:
        return f"{self.name}-{self.layout}" if self.layout else self.name

    @pytest.fixture(scope="class")
    def samples(self, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sample]:
        folder = tmp_path_factory.mktemp("samples")
        return {name: write(folder / name) for name, write in SAMPLES.items()}

    @pytest.fixture(scope="class")
    def recording(self, request: pytest.FixtureRequest, samples: dict[str, Sample]) -> Path:
        request.cls.written = samples[self.sample_name]
        return samples[self.sample_name].root

    @pytest.fixture
    def sample(self, samples: dict[str, Sample], tmp_path: Path) -> Sample:
        """A copy of this reader's sample to damage."""
        source = samples[self.sample_name]
        root = tmp_path / source.root.name
        shutil.copytree(source.root, root)
        return Sample(root, *(root / path.relative_to(source.root) for path in source[1:]))

    def test_detects_its_own_layout_alone(self, samples: dict[str, Sample]) -> None:
        for name, other in samples.items():
            assert load_reader(self.name).detect(other.root) == (name.split("-")[0] == self.name), name


class FilesContract(RecordingContract):
    """Inherit and name the reader; for formats with a file for each of a frame's colour, depth and pose."""

    parts = ("color", "depth", "pose")

    def file_of(self, recording: Path, part: str) -> Path:
        return Path(getattr(self.written, part))

    @pytest.mark.parametrize(
        ("pose", "reason"),
        [
            (np.full((4, 4), -np.inf), "not finite"),
            (np.diag((1.0, 1, np.nan, 1)), "not finite"),
            (np.diag((2.0, 2, 2, 1)), "not rigid"),
            (np.diag((1.0, 1, -1, 1)), "mirrors"),
            (np.eye(4) + np.eye(4)[::-1] * 1e200, "damaged"),
            (np.eye(3), "9 numbers"),
        ],
    )
    def test_bad_pose_is_refused(self, sample: Sample, pose: np.ndarray, reason: str) -> None:
        np.savetxt(sample.pose, pose)
        with pytest.raises(FrameError, match=reason):
            self.open(sample.root).scenes()[0].frame(0)

    def test_depth_of_eight_bits_is_refused(self, sample: Sample) -> None:
        Image.fromarray(np.full((HEIGHT, WIDTH), 9, np.uint8)).save(sample.depth)
        with pytest.raises(FrameError, match="16-bit"):
            self.open(sample.root).scenes()[0].frame(0)

    @pytest.mark.parametrize("part", ["color", "depth"])
    def test_image_of_another_size_is_refused(self, sample: Sample, part: str) -> None:
        shape, dtype = ((9, 200, 3), np.uint8) if part == "color" else ((9, 200), np.uint16)
        Image.fromarray(np.ones(shape, dtype)).save(getattr(sample, part))
        with pytest.raises(FrameError, match="200x9"):
            self.open(sample.root).scenes()[0].frame(0)


class ImageContract(FilesContract):
    """Inherit and name the reader; for formats whose poses stand in one common file, which is ``sample.pose``."""

    parts = ("color", "depth")
    test_bad_pose_is_refused = None  # the poses are not one matrix a file

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
