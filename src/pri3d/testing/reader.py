"""The contract of readers.

A new one inherits all checks with its name and a method that writes a recording of given frames::

    class TestMine(ReaderContract):
        name = "mine"

        def write(self, folder: Path, frames: list[Frame]) -> Path:
            ...

Where a frame's colour, depth or pose is a file of its own, ``parts`` and ``file_of`` say which: that each is named
where it is damaged is checked, too.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from copy import copy
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from pri3d.errors import ConfigError, DataError, FrameError
from pri3d.files.kinds import is_id
from pri3d.recordings import SPLITS, Recording, detect, load_reader, open_recording
from pri3d.types import Frame
from pri3d.worlds.render import render_room
from pri3d.worlds.room import build_room

WIDTH, HEIGHT = 48, 36  #: pixels of the frames that are written
FRAMES, SEED = 3, 7  #: how many, of which room
_FILES = 8  # of a recording that are damaged
_VERSIONS = 6  # damaged versions of each


@cache
def rendered() -> list[Frame]:
    """The frames that a sample holds: three of a rendered room, depth in whole millimetres and with holes."""
    return render_room(build_room(SEED, 0), FRAMES, WIDTH, HEIGHT)


def check_frame(frame: Frame, farthest: float = 65.5) -> None:
    """Whatever a reader returns has the shapes, dtypes, units and frames of the record; no depth beyond ``farthest``.

    In metres 65535 of a file is invalid.
    """
    height, width = frame.color.shape[:2]
    assert frame.color.dtype == np.uint8
    assert frame.color.shape == (height, width, 3)
    assert frame.depth.dtype == np.float32
    assert frame.depth.ndim == 2
    assert np.isfinite(frame.depth).all()
    assert frame.depth.min() >= 0
    assert frame.depth.max() < farthest
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


class ReaderContract:
    """Checks of one reader; ``name`` is what it is registered as."""

    name: ClassVar[str]
    atol: ClassVar[float] = 1e-8  #: of poses; 1e-5 where the format has float32
    units: ClassVar[int] = 1000  #: of a metre in the files of depth
    parts: ClassVar[tuple[str, ...]] = ()  #: what of a frame is a file of its own: of color, depth and pose

    def write(self, folder: Path, frames: list[Frame]) -> Path:
        """Write a recording of one scene with these frames into an empty folder; return its folder, or its file."""
        raise NotImplementedError(f"{type(self).__name__}: write a recording of the given frames into the folder.")

    def file_of(self, recording: Path, part: str) -> Path:
        """File of the first scene's first frame that holds one of :attr:`parts`."""
        raise NotImplementedError(f"{type(self).__name__}: return the file of the first frame's {part} in {recording}.")

    @pytest.fixture(scope="class")
    def recording(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A recording of :func:`rendered`, not to be changed."""
        return self.write(tmp_path_factory.mktemp("recording"), rendered())

    def open(self, root: Path) -> Recording:
        """Open a recording with this reader."""
        return open_recording(root, self.name)

    def test_says_what_it_looks_for(self) -> None:
        """Its name is known, and errors can say what it wants."""
        assert len(load_reader(self.name).looks_for) > 10

    def test_detects_its_own_layout(self, recording: Path, tmp_path: Path) -> None:
        """An empty folder is no recording."""
        assert load_reader(self.name).detect(recording)
        assert not load_reader(self.name).detect(tmp_path)

    def test_opens_without_being_named(self, recording: Path) -> None:
        """No other reader takes the recording for its own."""
        assert detect(recording) == [self.name]
        assert isinstance(open_recording(recording), load_reader(self.name))

    def test_the_split_that_it_declares(self, recording: Path) -> None:
        """A reader without an official split refuses val and test; every scene's split is a known one."""
        if not load_reader(self.name).splits:
            with pytest.raises(ConfigError, match="no official split"):
                open_recording(recording, self.name, split="val")
        for scene in open_recording(recording, self.name, split="all").scenes():
            assert scene.split in (None, *SPLITS[:3])

    def test_scenes_and_names_are_sorted_and_unique(self, recording: Path) -> None:
        """And can be part of a file's name."""
        scenes = self.open(recording).scenes()
        ids = [scene.id for scene in scenes]
        assert ids == sorted(set(ids))
        for scene in scenes:
            assert is_id(scene.id)
            assert list(scene.names) == sorted(set(scene.names))
            assert len(scene.names) == FRAMES
            assert scene.times is None or (len(scene.times) == FRAMES and (np.diff(scene.times) > 0).all())
            mesh = scene.mesh()
            assert mesh is None or mesh.is_file()

    def test_frames_are_the_ones_rendered(self, recording: Path) -> None:
        """Metres, camera to world, OpenCV axes, pixel centres at +0.5: any other convention shows."""
        scene = self.open(recording).scenes()[0]
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

    def test_poses_alone_are_those_of_the_frames(self, recording: Path) -> None:
        """Of a copy of the scene too, as every step of preparation makes one."""
        for scene in self.open(recording).scenes():
            for k in range(len(scene.names)):
                np.testing.assert_allclose(copy(scene).pose(k), scene.frame(k).world_from_camera, atol=1e-12)

    def test_given_cameras_win(self, recording: Path, tmp_path: Path) -> None:
        """``--cameras`` goes before what the format says, and its depth_scale before the format's millimetres."""
        cameras = tmp_path / "mine.yaml"
        cameras.write_text(f"color: {{fx: 40, fy: 41, cx: 24, cy: 18}}\ndepth_scale: {2 / self.units}\n")
        frame = open_recording(recording, self.name, cameras).scenes()[0].frame(0)
        assert tuple(frame.color_camera) == (WIDTH, HEIGHT, 40, 41, 24, 18)
        np.testing.assert_allclose(frame.depth, 2 * rendered()[0].depth, atol=2e-3)

    def test_wrong_cameras_are_refused(self, recording: Path, tmp_path: Path) -> None:
        """With the file and the key."""
        cameras = tmp_path / "mine.yaml"
        with pytest.raises(DataError, match=r"mine\.yaml"):
            open_recording(recording, self.name, cameras).scenes()
        cameras.write_text("colour: {fx: 40, fy: 41, cx: 24, cy: 18}\n")
        with pytest.raises(ConfigError, match=r"colour.*Known keys: color"):
            open_recording(recording, self.name, cameras).scenes()

    def test_a_missing_or_truncated_file_is_named(self, recording: Path, tmp_path: Path) -> None:
        """By the error of its frame alone: the next one is read."""
        for _, path, root in self._copies(recording, tmp_path):
            scene = self.open(root).scenes()[0]
            path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
            with pytest.raises(FrameError, match=re.escape(str(path))):
                scene.frame(0)
            path.unlink()
            with pytest.raises(FrameError, match=re.escape(str(path))):
                scene.frame(0)
            check_frame(scene.frame(1))

    def test_damaged_bytes_of_a_file_give_a_frame_or_name_it(self, recording: Path, tmp_path: Path) -> None:
        """Truncated versions, at the least, are refused."""
        for part, path, root in self._copies(recording, tmp_path):
            scene, refused = self.open(root).scenes()[0], 0
            for version in mutations(path.read_bytes(), np.random.default_rng(len(part)), count=80):
                path.write_bytes(version)
                try:
                    check_frame(scene.frame(0))
                except FrameError as error:
                    assert str(path) in str(error)
                    refused += 1
            assert refused >= 8, part

    def _copies(self, recording: Path, tmp_path: Path) -> Iterator[tuple[str, Path, Path]]:
        """Each part, its file in a copy of the recording, and the folder of that copy."""
        if not self.parts:
            pytest.skip("no part of a frame is a file of its own")
        for part in self.parts:
            root = tmp_path / part / recording.name
            shutil.copytree(recording, root)
            yield part, root / self.file_of(recording, part).relative_to(recording), root

    def test_damaged_files_give_frames_or_a_typed_error(self, recording: Path, tmp_path: Path) -> None:
        """Each file missing, truncated or with changed bytes: what is read is sound, or DataError or ConfigError."""
        root = tmp_path / recording.name
        if recording.is_dir():
            shutil.copytree(recording, root)
        else:
            shutil.copy(recording, root)
        files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
        rng = np.random.default_rng(0)
        for path in files[:: max(1, len(files) // _FILES)]:
            data = path.read_bytes()
            versions = mutations(data, rng, _VERSIONS) if data else []
            for version in [None, *(versions[k] for k in rng.permutation(len(versions))[:_VERSIONS])]:
                if version is None:
                    path.unlink()
                else:
                    path.write_bytes(version)
                try:
                    for scene in self.open(root).scenes():
                        for k in range(len(scene.names)):
                            try:
                                check_frame(scene.frame(k), farthest=float("inf"))
                            except FrameError:
                                continue  # left out by name
                except (DataError, ConfigError):
                    continue
            path.write_bytes(data)
