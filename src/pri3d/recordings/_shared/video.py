"""Frames of a video by number: sequential where it can be, from the last key frame before where it must."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError, FrameError
from pri3d.recordings._shared.files import LARGEST

_MOST_OPEN = 4  # videos a process keeps open: a data set has more scenes than it may hold open files
_OPEN: list[VideoFrames] = []  # the one used last is the last
_LOCK = RLock()  # of the above and of every decoder: one decodes at a time


class VideoFrames:
    """The frames of a video's first picture stream, in the order in which they are shown.

    The packets are walked once to learn when each frame is shown and which are key frames: 9 bytes of memory a frame,
    nothing is decoded. Reading forward decodes on; reading back, or beyond the next key frame, begins at the key
    frame before. No rotation that the file asks a player for is applied.
    """

    def __init__(self, path: Path) -> None:
        """Raises DataError where PyAV is missing, or the file is missing, damaged or has no pictures."""
        self.path = path
        self._av = _library(path)
        self._container: Any = None
        self._frames: Iterator[Any] = iter(())
        self._next = 0  # number of the frame that the decoder will give next, if it is sound
        self._times, self._keys = self._walk()

    def __len__(self) -> int:
        """Return how many frames it has."""
        return len(self._times)

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return frame ``index`` as RGB (H, W, 3).

        Raises FrameError naming file and frame where it does not exist, is damaged or is missing in the stream.
        """
        if not 0 <= index < len(self):
            raise FrameError(f"{self.path}: has {len(self)} frames; there is no frame {index}.")
        with _LOCK:
            try:
                return self._decode(index)
            except FrameError:
                self.close()  # a decoder that failed is not trusted with the next frame
                raise
            except self._errors() as error:
                self.close()
                raise FrameError(f"{self.path}: frame {index} cannot be decoded ({error}).") from error

    def close(self) -> None:
        """Give back the decoder and the file; reading opens them again."""
        with _LOCK:
            self._frames = iter(())
            if self._container is not None:
                self._container.close()
                self._container = None
            if self in _OPEN:
                _OPEN.remove(self)

    def _errors(self) -> tuple[type[Exception], ...]:
        return (self._av.error.FFmpegError, OSError, ValueError, EOFError, IndexError, MemoryError)

    def _decode(self, index: int) -> NDArray[np.uint8]:
        start = self._keys[max(bisect_right(self._keys, index) - 1, 0)]
        container = self._opened()
        if not (start <= self._next <= index):
            stream = container.streams.video[0]
            container.seek(self._times[start], stream=stream, backward=True)
            self._frames = container.decode(stream)
        wanted = self._times[index]
        for frame in self._frames:
            if frame.pts is None or frame.pts < wanted:
                continue
            if frame.pts > wanted:
                break
            self._next = index + 1
            if frame.is_corrupt:
                raise FrameError(f"{self.path}: frame {index} is damaged.")
            image: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
            return image
        raise FrameError(f"{self.path}: frame {index} cannot be decoded; the stream is damaged there.")

    def _opened(self) -> Any:
        """The container with a decoder, the oldest of the others closed."""
        if self._container is None:
            self._container = self._container_of()
            stream = self._container.streams.video[0]
            _check_size(stream.codec_context, self.path)
            stream.codec_context.options = {"max_pixels": str(LARGEST)}
            self._frames, self._next = iter(()), len(self) + 1  # so that it seeks
        if self in _OPEN:
            _OPEN.remove(self)
        _OPEN.append(self)
        while len(_OPEN) > _MOST_OPEN:
            _OPEN[0].close()
        return self._container

    def _container_of(self) -> Any:
        if not self.path.is_file():
            raise FrameError(f"{self.path}: no such file.")
        return self._av.open(str(self.path), mode="r", metadata_errors="ignore")

    def _walk(self) -> tuple[array[int], array[int]]:
        """When each frame is shown, in the stream's ticks, sorted; and the numbers of the key frames."""
        try:
            with self._container_of() as container:
                if not container.streams.video:
                    raise DataError(f"{self.path}: holds no pictures. Is it a video?")
                stream = container.streams.video[0]
                packets = [
                    (packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.pts is not None
                ]
        except self._errors() as error:
            raise DataError(f"{self.path}: is not a readable video ({error}). Is it copied whole?") from error
        packets.sort()
        times = array("q", (time for time, _ in packets))
        keys = array("q", (k for k, (_, key) in enumerate(packets) if key))
        if not keys or keys[0] != 0 or len(set(times)) != len(times):
            raise DataError(f"{self.path}: its frames have no order or do not begin with a key frame; it is damaged.")
        return times, keys


def _library(path: Path) -> Any:
    try:
        import av  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise DataError(f'{path}: reading videos needs PyAV. Install it: pip install "pri3d[video]"') from error
    return av


def _check_size(codec: Any, path: Path) -> None:
    if codec is None:
        raise FrameError(f"{path}: its pictures are of a codec that PyAV cannot decode, or it is damaged.")
    if not 0 < codec.width * codec.height <= LARGEST:
        raise FrameError(f"{path}: claims to be {codec.width}x{codec.height}; the file is damaged.")
