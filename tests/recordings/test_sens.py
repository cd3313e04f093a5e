"""The .sens container: what is read and how much of it, what is refused, and ten thousand damaged files."""

from __future__ import annotations

import io
import os
import re
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sample_frames import HEIGHT, WIDTH, rendered
from sens_writer import Parts, encoded, frame_bytes, header, matrix, parts, write_sens

from fuzz import tries
from pri3d.api.prepare import prepare
from pri3d.errors import DataError, FrameError, Pri3DError
from pri3d.recordings import open_recording
from pri3d.recordings._shared.sens import SensFile
from pri3d.testing.reader import check_frame
from pri3d.types import Camera, Frame

CAMERA = rendered()[0].color_camera
TINY = Camera(16, 12, 14.0, 14.0, 8.0, 6.0)


def tiny(count: int) -> list[Parts]:
    """Frames of 16 x 12 pixels, all different."""
    result = []
    for k in range(count):
        rng = np.random.default_rng(k)
        pose = np.eye(4)
        pose[0, 3] = 0.1 * k
        depth = rng.integers(500, 4000, (12, 16)).astype("<u2")
        color = rng.integers(256, size=(12, 16, 3), dtype=np.uint8)
        result.append(Parts(pose, encoded(color), zlib.compress(depth.tobytes())))
    return result


def frame(path: Path, index: int = 0) -> Frame:
    """A frame through the reader."""
    return open_recording(path.parent, "scannet").scenes()[0].frame(index)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r" / "scene0191_00.sens"


class TestReading:
    def test_what_the_header_says(self, path: Path) -> None:
        large = Camera(1296, 968, 1170.0, 1171.0, 648.0, 484.0)
        write_sens(path, [], large, depth_camera=TINY, frames=1, units=5000.0, sensor="Kinect µ".encode())
        path.write_bytes(path.read_bytes() + bytes(96))
        found = SensFile(path).header
        assert (found.sensor, found.color_format, found.depth_deflated) == ("Kinect µ", "JPEG", True)
        assert (found.color_size, found.depth_size, found.frames) == ((1296, 968), (16, 12), 1)
        assert found.depth_scale == pytest.approx(0.0002)
        np.testing.assert_allclose(found.color_matrix, matrix(large))
        np.testing.assert_allclose(found.depth_matrix, matrix(TINY))

    def test_bytes_come_as_they_lie(self, path: Path) -> None:
        frames = tiny(5)
        file = SensFile(write_sens(path, frames, TINY))
        for index in (3, 0, 4, 4):
            found = file.read(index)
            assert found.color == frames[index].color
            assert found.depth.tobytes() == zlib.decompress(frames[index].depth)
            np.testing.assert_allclose(found.pose, frames[index].pose)

    def test_nothing_is_read_of_the_frames_between(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        frames = tiny(200)
        write_sens(path, frames, TINY)
        sizes = []
        read = os.pread
        monkeypatch.setattr(os, "pread", lambda fd, size, at: sizes.append(size) or read(fd, size, at))
        file = SensFile(path)
        for index in range(0, 200, 25):
            file.read(index)
        wanted = sum(96 + len(frames[k].color) + len(frames[k].depth) for k in range(0, 200, 25))
        assert sum(sizes) == len(header(TINY)) + 96 * 175 + wanted
        sizes.clear()
        file.read(100)
        assert sum(sizes) == 96 + len(frames[100].color) + len(frames[100].depth), "headers are walked once"

    def test_memory_does_not_grow_with_the_length(self, path: Path) -> None:
        peaks = []
        for count in (100, 400):
            write_sens(path, tiny(4) * (count // 4), TINY)
            file = SensFile(path)
            file.read(0)
            tracemalloc.start()
            for index in range(0, count, 25):
                file.read(index)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] - peaks[0] < 300 * 16, "8 bytes a frame and room to grow"

    def test_without_pread_and_advice(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        frames = tiny(3)
        write_sens(path, frames, TINY)
        monkeypatch.delattr(os, "pread")
        monkeypatch.delattr(os, "posix_fadvise")
        assert SensFile(path).read(2).color == frames[2].color

    def test_short_reads_are_continued(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        frames = tiny(2)
        write_sens(path, frames, TINY)
        read = os.pread
        monkeypatch.setattr(os, "pread", lambda fd, size, at: read(fd, min(size, 7), at))
        assert SensFile(path).read(1).color == frames[1].color

    def test_two_cameras(self, path: Path) -> None:
        """A camera's own size and intrinsics; the extrinsic leads from the depth camera to the poses' one."""
        shift = np.eye(4)
        shift[:3, 3] = (0.025, 0, 0)
        depth = zlib.compress(np.full((12, 16), 1500, "<u2").tobytes())
        item = Parts(rendered()[0].world_from_camera, encoded(rendered()[0].color), depth)
        write_sens(path, [item], CAMERA, depth_camera=TINY, depth_extrinsic=shift)
        found = frame(path)
        assert found.color_camera == pytest.approx(CAMERA)
        assert found.depth_camera == pytest.approx(TINY)
        np.testing.assert_allclose(found.color_from_depth, shift, atol=1e-8)
        assert (found.depth == np.float32(1.5)).all()

    def test_raw_depth_and_png_colour(self, path: Path) -> None:
        source = rendered()[0]
        raw = np.round(source.depth * 1000).astype("<u2").tobytes()
        item = Parts(source.world_from_camera, encoded(source.color, "PNG"), raw)
        write_sens(path, [item], CAMERA, compression=(1, 0))
        found = frame(path)
        assert np.array_equal(found.color, source.color)
        assert found.color_jpeg is None
        np.testing.assert_allclose(found.depth, source.depth, atol=6e-4)

    def test_65535_is_no_measurement(self, path: Path) -> None:
        depth = np.full((12, 16), 65535, "<u2")
        depth[0, 0] = 1000
        write_sens(path, [tiny(1)[0]._replace(depth=zlib.compress(depth.tobytes()))], TINY)
        assert frame(path).depth.sum() == 1


def test_agrees_with_a_plain_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark has a writer and a reader of its own, and compares what both readers give."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    from benchmarks import sens  # noqa: PLC0415

    monkeypatch.setattr(sens, "STEP", 2)
    monkeypatch.setattr(sens, "COLOR", (96, 72))
    monkeypatch.setattr(sens, "DEPTH", (64, 48))
    rows = sens.run(6)
    assert len(sens.ours(sens.write_scan(tmp_path / "x.sens", 6))) == 3
    assert [bar for _, _, bar in rows if bar] == [">= 20", "<= 1.05"]


class TestPassingThrough:
    @pytest.mark.parametrize(("size", "same"), [("48x36", True), ("640x480", True), ("24x18", False)])
    def test_the_stored_colour_is_the_sensors_unless_resized(
        self, path: Path, tmp_path: Path, size: str, same: bool
    ) -> None:
        frames = [parts(frame) for frame in rendered()]
        write_sens(path, frames, CAMERA)
        prepare([path.parent], tmp_path / "out", size=size, pairs=False, surface=False, processes=1, frame_step=1)
        with zipfile.ZipFile(tmp_path / "out/scenes/scene0191_00/frames.zip") as archive:
            stored = [archive.read(f"color/{k:06d}.jpg") for k in range(len(frames))]
        assert [a == b.color for a, b in zip(stored, frames, strict=True)] == [same] * len(frames)

    def test_grey_is_not_passed_through(self, path: Path) -> None:
        """The store's images have three channels."""
        write_sens(path, [tiny(1)[0]._replace(color=encoded(np.full((12, 16), 90, np.uint8)))], TINY)
        found = frame(path)
        assert found.color.shape == (12, 16, 3)
        assert found.color_jpeg is None


class TestRefusal:
    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"version": 3}, "version 3; version 4 is read"),
            ({"compression": (0, 1)}, "colour is of compression 0; read are 1"),
            ({"compression": (-1, 1)}, "compression -1"),
            ({"compression": (2, 2)}, "depth is of compression 2; read are 0"),
            ({"sizes": (0, 12, 16, 12)}, "colour is 0x12"),
            ({"sizes": (16, 12, 100_000, 100_000)}, "depth is 100000x100000"),
            ({"units": 0.0}, "0 units"),
            ({"units": float("nan")}, "nan units"),
            ({"frames": 0}, "0 frames"),
            ({"frames": 1 << 63}, f"{1 << 63} frames and has room for 1 to"),
            ({"color_matrix": np.eye(4)}, "colour camera: is not an intrinsic matrix"),
            ({"depth_matrix": np.full((4, 4), np.nan)}, "depth camera: is not an intrinsic matrix"),
            ({"depth_extrinsic": 2 * np.eye(4)}, "extrinsic of the depth camera"),
        ],
    )
    def test_header(self, path: Path, changed: dict[str, object], message: str) -> None:
        write_sens(path, tiny(2), TINY, **changed)
        with pytest.raises(DataError, match=re.escape(message)) as caught:
            frame(path)
        assert str(path) in str(caught.value)

    def test_a_file_that_comes_whole_later(self, path: Path) -> None:
        """A refused header leaves nothing behind."""
        frames = tiny(2)
        write_sens(path, frames, TINY, frames=1 << 40)
        file = SensFile(path)
        for _ in range(2):
            with pytest.raises(DataError, match="has room for"):
                file.read(1)
        write_sens(path, frames, TINY)
        assert file.read(1).color == frames[1].color

    def test_a_name_of_petabytes(self, path: Path) -> None:
        write_sens(path, tiny(1), TINY)
        path.write_bytes(struct.pack("<IQ", 4, 1 << 50) + path.read_bytes()[12:])
        with pytest.raises(DataError, match="name has 1125899906842624 bytes"):
            frame(path)

    def test_missing_file(self, path: Path) -> None:
        with pytest.raises(DataError, match=r"scene0191_00\.sens: cannot be read"):
            SensFile(path).read(0)

    def test_lost_poses_are_named_and_the_others_kept(self, path: Path, tmp_path: Path) -> None:
        frames = [parts(frame) for frame in rendered()]
        frames[1] = frames[1]._replace(pose=np.full((4, 4), -np.inf))
        write_sens(path, frames, CAMERA)
        check_frame(frame(path, 0))
        check_frame(frame(path, 2))
        with pytest.raises(FrameError, match=r"scene0191_00\.sens: frame 1: the pose is not finite"):
            frame(path, 1)

    def test_a_copy_that_is_cut_off_keeps_its_whole_frames(self, path: Path) -> None:
        frames = tiny(4)
        write_sens(path, frames, TINY)
        whole = len(header(TINY)) + sum(len(frame_bytes(item)) for item in frames[:3])
        path.write_bytes(path.read_bytes()[: whole - 5])
        scene = open_recording(path.parent).scenes()[0]
        assert len(scene.names) == 4
        scene.frame(1)
        with pytest.raises(FrameError, match="frame 2 is truncated"):
            scene.frame(2)
        with pytest.raises(FrameError, match=r"frame 3 is truncated.*copied completely"):
            scene.frame(3)

    def test_a_file_that_shrinks_meanwhile(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_sens(path, tiny(2), TINY)
        monkeypatch.setattr(os, "pread", lambda _fd, _size, _at: b"")
        with pytest.raises(FrameError, match="became shorter"):
            frame(path)

    @pytest.mark.parametrize("part", ["color_bytes", "depth_bytes"])
    def test_impossible_sizes_end_the_walk(self, path: Path, part: str) -> None:
        frames = tiny(4)
        items = [frame_bytes(item) for item in frames]
        items[1] = frame_bytes(frames[1], **{part: 1 << 40})
        path.parent.mkdir(parents=True)
        path.write_bytes(header(TINY, frames=4) + b"".join(items))
        check_frame(frame(path, 0))
        for index in (1, 3):
            with pytest.raises(FrameError, match=r"frame 1 says its (colour|depth) has 1099511627776 bytes"):
                frame(path, index)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"color": b"no image"}, "frame 0: colour: damaged"),
            ({"color": b""}, "frame 0: colour: damaged"),
            ({"color": encoded(np.zeros((12, 17, 3), np.uint8))}, "17x12, stated is 16x12"),
            ({"color": encoded(np.zeros((12, 16, 3), np.uint8), "PNG")}, "frame 0: colour: damaged"),
            ({"depth": b""}, "frame 0: its depth"),
            ({"depth": b"no stream"}, "frame 0: its depth is damaged"),
            ({"depth": zlib.compress(bytes(16 * 12 * 2 - 1))}, "does not give 16x12"),
            ({"depth": zlib.compress(bytes(16 * 12 * 2 + 1))}, "does not give 16x12"),
            ({"depth": zlib.compress(bytes(16 * 12 * 2))[:-1]}, "does not give 16x12"),
        ],
    )
    def test_damaged_images(self, path: Path, change: dict[str, bytes], message: str) -> None:
        write_sens(path, [tiny(1)[0]._replace(**change)], TINY)
        with pytest.raises(FrameError, match=message):
            frame(path)

    def test_sixteen_bit_colour(self, path: Path) -> None:
        item = tiny(1)[0]._replace(color=encoded(np.full((12, 16), 900, np.uint16), "PNG"))
        write_sens(path, [item], TINY, compression=(1, 1))
        with pytest.raises(FrameError, match="16-bit"):
            frame(path)

    def test_a_bomb_is_not_inflated(self, path: Path) -> None:
        bomb = zlib.compress(bytes(60_000_000), 9)
        assert len(bomb) < 65_000
        write_sens(path, [tiny(1)[0]._replace(depth=bomb)], TINY)
        file = SensFile(path)
        tracemalloc.start()
        with pytest.raises(FrameError, match="does not give 16x12"):
            file.read(0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1_000_000


@pytest.fixture
def limited_memory() -> Iterator[None]:
    """No more than 300 MB beyond what the process has now, where the system can say and enforce that."""
    status = Path("/proc/self/statm")
    if not status.exists():
        yield
        return
    import resource  # noqa: PLC0415 - of Unix alone

    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(status.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 300_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut, overwritten, with a telling number in place of a field, or with bytes inserted or taken out."""
    changed = bytearray(data)
    first = len(header(TINY))
    for _ in range(int(rng.integers(1, 4))):
        # Half of the places in the file's header and the first frame's, which decide how the rest is read.
        at = int(rng.integers(min(first + 96, len(changed)) if rng.random() < 0.5 else len(changed)))
        kind = rng.random()
        if kind < 0.4:
            changed[at] = int(rng.integers(256))
        elif kind < 0.7:
            numbers = (0, 1, 2, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 64) - 1)
            number = numbers[int(rng.integers(len(numbers)))].to_bytes(8, "little")[: int(rng.choice((4, 8)))]
            changed[at : at + len(number)] = number
        elif kind < 0.8:
            changed[at:at] = changed[at : at + int(rng.integers(1, 100))]
        elif kind < 0.9:
            del changed[max(at, 1) : at + int(rng.integers(1, 100))]
        else:
            del changed[max(at, 1) :]
    return bytes(changed)


def overwrite(path: Path, data: bytes) -> None:
    """Without emptying the file first, for which some file systems wait for the disk."""
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()


@pytest.mark.thorough
def test_damaged_files_give_typed_errors_or_good_frames(path: Path, limited_memory: None) -> None:
    whole = write_sens(path, tiny(2), TINY).read_bytes()
    rng = np.random.default_rng(0)
    good = refused = 0
    for _ in range(tries(1000)):
        overwrite(path, damaged(whole, rng))
        try:
            scene = open_recording(path.parent, "scannet").scenes()[0]
            indices = range(min(len(scene.names), 3))
        except Pri3DError as error:
            assert str(path) in str(error)
            refused += 1
            continue
        for index in indices:
            try:
                found = scene.frame(index)
            except Pri3DError as error:
                assert str(path) in str(error)
                refused += 1
            else:
                good += 1
                assert np.isfinite(found.depth).all()
                assert 0 <= found.depth.min() <= found.depth.max() <= 656
                assert np.isfinite(found.world_from_camera).all()
                assert found.color.shape == (found.color_camera.height, found.color_camera.width, 3)
                assert found.depth.shape == (found.depth_camera.height, found.depth_camera.width)
    assert refused > tries(500)
    assert good > tries(200)


def test_the_samples_image_size() -> None:
    """The writer's JPEG is one that a camera could have made."""
    with Image.open(io.BytesIO(parts(rendered()[0]).color)) as image:
        assert (image.size, image.mode) == ((WIDTH, HEIGHT), "RGB")
