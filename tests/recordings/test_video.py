"""Videos by frame number, against decoding everything; damaged ones; how many are open."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from samples_phone import write_video

from pri3d.errors import DataError, FrameError
from pri3d.recordings import stray
from pri3d.recordings.stray import VideoFrames
from pri3d.testing.reader import mutations

COUNT = 60


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    for opened in list(stray._OPEN):
        opened.close()


def images(count: int = COUNT, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """A bar that moves over a ground that grows lighter."""
    result = []
    for k in range(count):
        image = np.full((height, width, 3), 2 * k % 256, np.uint8)
        image[:, k % width] = (255, 0, 128)
        result.append(image)
    return result


def everything(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "rgb.mp4"
    write_video(path, images(), "mpeg4", bf="2")
    return path


class TestReading:
    @pytest.mark.parametrize("codec", ["mpeg4", "libx264", "libx265"])
    def test_any_order_gives_what_decoding_everything_gives(self, codec: str, tmp_path: Path) -> None:
        """With frames that refer to later ones, key frames every 12."""
        path = tmp_path / "v.mp4"
        options = {"x265-params": "log-level=none:bframes=2:keyint=12:pools=1"} if codec == "libx265" else {"bf": "2"}
        write_video(path, images(), codec, **options)
        truth = everything(path)
        found = VideoFrames(path)
        assert len(found) == len(truth) == COUNT
        order = [0, 1, 2, 25, 50, 59, 58, 3, 12, 11, 12, 12, 0, *np.random.default_rng(0).integers(COUNT, size=20)]
        for index in order:
            assert np.array_equal(found.read(int(index)), truth[index]), index

    def test_forward_decodes_each_frame_at_most_once(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        frames = VideoFrames(path)
        seeks = []
        opened = frames._opened

        class Counted:
            def __init__(self, container: object) -> None:
                self.container = container

            def __getattr__(self, name: str) -> object:
                if name == "seek":
                    seeks.append(name)
                return getattr(self.container, name)

        monkeypatch.setattr(frames, "_opened", lambda: Counted(opened()))
        for index in range(12):
            frames.read(index)
        assert len(seeks) <= 2, "to the beginning, and over one key frame at most"
        seeks.clear()
        frames.read(5)
        frames.read(6)
        assert len(seeks) == 1, "back, then on"

    def test_memory_does_not_grow_with_the_length(self, tmp_path: Path) -> None:
        peaks = []
        for count in (30, 240):
            write_video(tmp_path / "v.mp4", images(count), "mpeg4")
            tracemalloc.start()
            frames = VideoFrames(tmp_path / "v.mp4")
            for index in range(0, count, 10):
                frames.read(index)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            frames.close()
        assert peaks[1] - peaks[0] < 210 * 300, "a few numbers a frame, not its 9216 bytes"

    def test_few_are_open_and_any_can_be_read(self, path: Path) -> None:
        several = [VideoFrames(path) for _ in range(7)]
        truth = everything(path)
        for index in (3, 4):
            for frames in several:
                assert np.array_equal(frames.read(index), truth[index])
        assert len(stray._OPEN) == stray._MOST_OPEN
        assert sum(frames._container is not None for frames in several) == stray._MOST_OPEN


class TestDamage:
    def test_no_such_frame(self, path: Path) -> None:
        for index in (-1, COUNT):
            with pytest.raises(FrameError, match=rf"rgb\.mp4: has 60 frames; there is no frame {index}"):
                VideoFrames(path).read(index)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"none\.mp4: no such file"):
            VideoFrames(tmp_path / "none.mp4")

    @pytest.mark.parametrize("content", [b"", b"no video", bytes(10**5)])
    def test_no_video(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "v.mp4").write_bytes(content)
        with pytest.raises(DataError, match=r"v\.mp4: is not a readable video"):
            VideoFrames(tmp_path / "v.mp4")

    def test_cut_off(self, path: Path, tmp_path: Path) -> None:
        """The directory of an mp4 file is at its end."""
        (tmp_path / "v.mp4").write_bytes(path.read_bytes()[:-900])
        with pytest.raises(DataError, match=r"v\.mp4"):
            VideoFrames(tmp_path / "v.mp4")

    def test_gone_in_between(self, path: Path, tmp_path: Path) -> None:
        copy = tmp_path / "v.mp4"
        copy.write_bytes(path.read_bytes())
        frames = VideoFrames(copy)
        copy.unlink()
        with pytest.raises(FrameError, match=r"v\.mp4: no such file"):
            frames.read(0)

    @pytest.mark.thorough
    def test_damaged_bytes_give_a_frame_or_an_error(self, path: Path, tmp_path: Path) -> None:
        """Directory and pictures alike; a decoder hides some damage, the size stays."""
        copy, refused, good = tmp_path / "v.mp4", 0, 0
        data = path.read_bytes()
        start = data.index(b"moov") - 4
        for version in mutations(data[start:][::-1], np.random.default_rng(0), count=300):
            copy.write_bytes(data[:start] + version[::-1])
            good, refused = self.tried(copy, good, refused)
        for version in mutations(data[:start], np.random.default_rng(1), count=100):
            copy.write_bytes(version + data[start:])
            good, refused = self.tried(copy, good, refused)
        assert good > 50
        assert refused > 50

    @staticmethod
    def tried(path: Path, good: int, refused: int) -> tuple[int, int]:
        frames = None
        try:
            frames = VideoFrames(path)
            image = frames.read(20)
            assert image.dtype == np.uint8
            assert image.shape[2] == 3
            return good + 1, refused
        except DataError as error:
            assert "v.mp4" in str(error)
            return good, refused + 1
        finally:
            if frames is not None:
                frames.close()

    def test_a_frame_after_a_bad_one_is_read(self, path: Path, tmp_path: Path) -> None:
        copy = tmp_path / "v.mp4"
        copy.write_bytes(path.read_bytes())
        frames = VideoFrames(copy)
        with pytest.raises(FrameError):
            frames.read(COUNT)
        assert np.array_equal(frames.read(30), everything(path)[30])

    def test_without_pyav(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "av", None)
        with pytest.raises(DataError, match=r'rgb\.mp4.*pip install "pri3d\[video\]"'):
            VideoFrames(path)
