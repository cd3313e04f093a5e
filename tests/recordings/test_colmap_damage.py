"""Damaged files of COLMAP's: our errors, or poses and depth of numbers, and no memory."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sample_frames import rendered
from samples_outdoor import MODELS, cameras_txt, colmap_camera, depth_map, write_colmap

from pri3d.errors import DataError, FrameError
from pri3d.recordings import open_recording
from pri3d.recordings._shared.colmap_model import ModelFrames, read_model
from pri3d.recordings.colmap import read_depth_map
from pri3d.testing.reader import mutations

CAMERA = rendered()[0].color_camera


def poses(cameras: Path, images: Path) -> int:
    """How many poses a model gives; any error must be ours."""
    frames = ModelFrames(read_model(cameras, images), cameras.parent, lambda name: (np.zeros((1, 1)), name))
    found = 0
    for k in range(min(3, len(frames.names))):
        try:
            assert np.isfinite(frames.pose(k)).all()
        except FrameError as error:
            assert str(images) in str(error)
            continue
        found += 1
    return found


def damage(path: Path, data: bytes, read: Callable[[], object], count: int) -> None:
    """Thousands of versions of a file: each gives our error or is read, and none takes memory."""
    good, peak = 0, 0
    versions = mutations(data, np.random.default_rng(len(data)), count)
    for k, version in enumerate(versions):
        path.unlink(missing_ok=True)  # else some file systems wait for the disk when it is closed
        path.write_bytes(version)
        if k % 10 == 0:  # following the memory makes it slow
            tracemalloc.start()
        try:
            good += read() is not None
        except DataError as error:
            assert str(path) in str(error)
        peak = max(peak, tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert 50 < good < len(versions) - 50
    assert peak < 500_000


class TestDamaged:
    @pytest.mark.slow
    @pytest.mark.parametrize("ending", ["bin", "txt"])
    @pytest.mark.parametrize("file", ["cameras", "images"])
    def test_model(self, tmp_path: Path, file: str, ending: str) -> None:
        sample = write_colmap(tmp_path / "w", ending)
        path = sample.pose.with_stem(file)
        cameras = sample.pose.with_stem("cameras")
        damage(path, path.read_bytes(), lambda: poses(cameras, sample.pose), 5000 if ending == "bin" else 2000)

    @pytest.mark.thorough
    def test_depth_map(self, tmp_path: Path) -> None:
        path = tmp_path / "a.bin"

        def read() -> np.ndarray:
            depth = read_depth_map(path)
            assert depth.dtype == np.float32
            assert np.isfinite(depth).all()
            assert depth.min() >= 0
            return depth

        damage(path, depth_map(rendered()[0].depth[:6, :8]), read, 5000)

    @pytest.mark.parametrize("count", [2**63, 10**9, 4])
    @pytest.mark.parametrize("file", ["cameras", "images"])
    def test_counts_allocate_nothing(self, tmp_path: Path, file: str, count: int) -> None:
        sample = write_colmap(tmp_path / "w")
        path = sample.pose.with_stem(file)
        path.write_bytes(struct.pack("<Q", count) + path.read_bytes()[8:])
        with pytest.raises(DataError, match=f"{file}.bin: is truncated or damaged"):
            len(open_recording(sample.root).scenes()[0].names)

    def test_model_numbers(self, tmp_path: Path) -> None:
        sample = write_colmap(tmp_path / "w")
        path = sample.pose.with_stem("cameras")
        path.write_bytes(path.read_bytes().replace(struct.pack("<Ii", 1, 1), struct.pack("<Ii", 1, len(MODELS))))
        with pytest.raises(DataError, match=r"model number 12.*0\.\.11"):
            len(open_recording(sample.root).scenes()[0].names)

    @pytest.mark.parametrize(
        "line", ["1 PINHOLE 48", "x PINHOLE 48 36 1 2 3 4", "1 PINHOLE 48 36 1 2 3 y", "1", "-1 FOV 1 1 1 1 1 1 1"]
    )
    def test_lines(self, tmp_path: Path, line: str) -> None:
        sample = write_colmap(tmp_path / "w", "txt")
        path = sample.pose.with_stem("cameras")
        path.write_text(cameras_txt([colmap_camera(CAMERA)]) + line + "\n")
        with pytest.raises(DataError, match=r"cameras\.txt"):
            len(open_recording(sample.root).scenes()[0].names)
