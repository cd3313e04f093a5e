"""What every reader promises. A new reader adds a writer to ``samples.SAMPLES`` and inherits in three lines::

class TestTum(ReaderContract):
    reader = "tum"
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from sample_frames import FRAMES, HEIGHT, WIDTH, Sample, rendered
from samples import SAMPLES

from pri3d.errors import ConfigError, DataError, FrameError
from pri3d.recordings import READERS, Reader, open_recording
from pri3d.registry import load
from pri3d.types import Frame


def check_frame(frame: Frame) -> None:
    """Whatever a reader returns has the shapes, dtypes, units and frames of the record."""
    height, width = frame.color.shape[:2]
    assert frame.color.dtype == np.uint8
    assert frame.color.shape == (height, width, 3)
    assert frame.depth.dtype == np.float32
    assert frame.depth.ndim == 2
    assert np.isfinite(frame.depth).all()
    assert frame.depth.min() >= 0
    assert frame.depth.max() < 65.5, "metres, and 65535 is invalid"
    assert (frame.color_camera.width, frame.color_camera.height) == (width, height)
    assert (frame.depth_camera.height, frame.depth_camera.width) == frame.depth.shape
    for transform in (frame.world_from_camera, frame.color_from_depth):
        assert transform.dtype == np.float64
        assert transform.shape == (4, 4)
        np.testing.assert_allclose(transform[:3, :3] @ transform[:3, :3].T, np.eye(3), atol=1e-9)
        assert np.linalg.det(transform[:3, :3]) > 0
        assert np.array_equal(transform[3], (0, 0, 0, 1))
    for ids, dtype in ((frame.label, np.uint8), (frame.instance, np.uint16)):
        assert ids is None or (ids.dtype == dtype and ids.shape == (height, width))


def mutations(data: bytes, rng: np.random.Generator, count: int) -> list[bytes]:
    """Truncated, flipped, overwritten and repeated versions of a file's bytes."""
    result = [data[: len(data) * k // 8] for k in range(8)]
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(int(rng.integers(1, 6))):
            changed[int(rng.integers(len(data) if rng.random() < 0.5 else min(64, len(data))))] = int(rng.integers(256))
        if rng.random() < 0.3:
            cut = int(rng.integers(len(changed)))
            changed[cut:cut] = changed[cut : cut + 7]
        result.append(bytes(changed))
    return result


class RecordingContract:
    """Inherit and name the reader; for formats whose frames are not files of their own."""

    reader: ClassVar[str]
    layout: ClassVar[str] = ""  #: one of the reader's layouts: its sample is called reader-layout
    atol: ClassVar[float] = 1e-8  #: of poses; 1e-5 where the format has float32

    @property
    def name(self) -> str:
        return f"{self.reader}-{self.layout}" if self.layout else self.reader

    @pytest.fixture(scope="class")
    def samples(self, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sample]:
        folder = tmp_path_factory.mktemp("samples")
        return {name: write(folder / name) for name, write in SAMPLES.items()}

    @pytest.fixture
    def sample(self, samples: dict[str, Sample], tmp_path: Path) -> Sample:
        """A copy of this reader's sample to damage."""
        source = samples[self.name]
        root = tmp_path / source.root.name
        shutil.copytree(source.root, root)
        return Sample(root, *(root / path.relative_to(source.root) for path in source[1:]))

    def open(self, root: Path) -> Reader:
        return open_recording(root, self.reader)

    def test_detects_its_own_layout_alone(self, samples: dict[str, Sample], tmp_path: Path) -> None:
        for name, other in samples.items():
            its_own = name.split("-")[0] == self.reader
            assert load("readers", READERS, self.reader).detect(other.root) == its_own, name
        assert not load("readers", READERS, self.reader).detect(tmp_path)

    def test_opens_without_being_named(self, samples: dict[str, Sample]) -> None:
        assert type(open_recording(samples[self.name].root)) is load("readers", READERS, self.reader)

    def test_says_what_it_looks_for(self) -> None:
        assert len(load("readers", READERS, self.reader).looks_for) > 10

    def test_scenes_and_names_are_sorted_and_unique(self, samples: dict[str, Sample]) -> None:
        scenes = self.open(samples[self.name].root).scenes()
        ids = [scene.id for scene in scenes]
        assert ids == sorted(set(ids))
        for scene in scenes:
            assert re.fullmatch(r"[A-Za-z0-9._-]+", scene.id)
            assert list(scene.names) == sorted(set(scene.names))
            assert len(scene.names) == FRAMES
            mesh = scene.mesh()
            assert mesh is None or mesh.is_file()

    def test_frames_are_the_ones_rendered(self, samples: dict[str, Sample]) -> None:
        scene = self.open(samples[self.name].root).scenes()[0]
        for k, truth in enumerate(rendered()):
            frame = scene.frame(k)
            check_frame(frame)
            assert frame.name == scene.names[k]
            np.testing.assert_allclose(frame.depth, truth.depth, atol=6e-4)
            assert np.array_equal(frame.depth == 0, truth.depth == 0)
            np.testing.assert_allclose(frame.world_from_camera, truth.world_from_camera, atol=self.atol)
            np.testing.assert_allclose(frame.color_camera, truth.color_camera, atol=max(self.atol, 1e-6))
            np.testing.assert_allclose(frame.depth_camera, truth.depth_camera, atol=max(self.atol, 1e-6))
            assert np.abs(frame.color.astype(int) - truth.color).mean() < 6

    def test_poses_alone_are_those_of_the_frames(self, samples: dict[str, Sample]) -> None:
        for scene in self.open(samples[self.name].root).scenes():
            for k in range(len(scene.names)):
                np.testing.assert_allclose(scene.pose(k), scene.frame(k).world_from_camera, atol=1e-12)

    def test_given_cameras_win(self, samples: dict[str, Sample], tmp_path: Path) -> None:
        cameras = tmp_path / "mine.yaml"
        cameras.write_text("color: {fx: 40, fy: 41, cx: 24, cy: 18}\ndepth_scale: 0.002\n")
        frame = open_recording(samples[self.name].root, self.reader, cameras).scenes()[0].frame(0)
        assert frame.color_camera == (WIDTH, HEIGHT, 40, 41, 24, 18)
        np.testing.assert_allclose(frame.depth, 2 * rendered()[0].depth, atol=2e-3)

    def test_wrong_cameras_are_refused(self, samples: dict[str, Sample], tmp_path: Path) -> None:
        cameras = tmp_path / "mine.yaml"
        with pytest.raises(DataError, match=r"mine\.yaml"):
            open_recording(samples[self.name].root, self.reader, cameras).scenes()
        cameras.write_text("colour: {fx: 40, fy: 41, cx: 24, cy: 18}\n")
        with pytest.raises(ConfigError, match=r"colour.*Known keys: color"):
            open_recording(samples[self.name].root, self.reader, cameras).scenes()


class ReaderContract(RecordingContract):
    """Inherit and name the reader; for formats with a file for each of a frame's colour, depth and pose."""

    @pytest.mark.parametrize("part", ["color", "depth", "pose"])
    def test_missing_or_truncated_part_names_the_file(self, sample: Sample, part: str) -> None:
        path: Path = getattr(sample, part)
        scene = self.open(sample.root).scenes()[0]
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
        with pytest.raises(FrameError, match=re.escape(str(path))):
            scene.frame(0)
        path.unlink()
        with pytest.raises(FrameError, match=re.escape(str(path))):
            scene.frame(0)
        check_frame(scene.frame(1))

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

    @pytest.mark.parametrize("part", ["color", "depth", "pose"])
    def test_damaged_bytes_give_a_frame_or_a_frame_error(self, sample: Sample, part: str) -> None:
        path: Path = getattr(sample, part)
        scene = self.open(sample.root).scenes()[0]
        refused = 0
        versions = mutations(path.read_bytes(), np.random.default_rng(len(part)), count=80)
        for version in versions:
            path.write_bytes(version)
            try:
                check_frame(scene.frame(0))
            except FrameError as error:
                assert str(path) in str(error)
                refused += 1
        assert refused >= 8, "at least the truncated ones"
