"""Input of predict and embed: an image, a folder of images, a video -> one image after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pri3d.errors import ConfigError, DataError
from pri3d.files.atomic import replacing
from pri3d.files.kinds import count_kinds
from pri3d.labelled._shared.decoding import SUFFIXES, read_rgb

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
#: FFmpeg's names of the formats that hold pictures themselves
VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,asf,flv,ogg"
_MOVING = {"GIF", "PNG", "WEBP"}  # formats of several pictures that are an animation; TIFF's and MPO's are none
_IMAGES = (*SUFFIXES, ".gif")
_RESERVED = {"classes"}  # names that the output folder needs for itself
_WHOLE = 0.95  # share of the frames stated in a video's header that are there; some state a few too many
_LARGE = 10_000_000  # pixels
FINEST = 1001  #: denominator of a frame rate, as in 30000/1001


class Picture(NamedTuple):
    """One image to predict."""

    name: str  #: of its outputs, unique among them: a path below the output folder without suffix
    source: str  #: what errors and records call it
    load: Callable[[], NDArray[np.uint8]]  #: RGB (H, W, 3), upright; raises DataError where it cannot be read
    pixels: int = 0  #: of a video's frame, which is in memory; 0 of a file
    enough: int | None = None  #: pixels along a side that a JPEG is decoded with at least; None: all

    def size(self) -> int:
        """Pixels of the image as it is decoded, by its file's header; 0 where that cannot be read: loading says so."""
        if self.pixels:
            return self.pixels
        with suppress(Exception), Image.open(self.source) as image:
            if self.enough is not None:
                image.draft(None, (self.enough, self.enough))
            return image.width * image.height
        return 0

    def label(self) -> str:
        """What a progress line calls it: its name, of a large one with the size that takes the time."""
        size = self.size()
        return f"{self.name}, {size / 1e6:.0f} megapixels" if size >= _LARGE else self.name


class Media(NamedTuple):
    """What was asked to be predicted."""

    pictures: Iterable[Picture]  #: a video's raise DataError where the video is damaged
    total: int | None  #: of the pictures, None where that is not known before
    rate: Fraction | None  #: pictures a second, None where they are no video
    left_out: str = ""  #: files of a folder that are not read, counted by kind


def open_media(source: Path, every: int = 1, out: Path | None = None, enough: int | None = None) -> Media:
    """Open an image, a folder (with its subfolders, sorted) or a video; of it every so many pictures.

    What lies in the folder ``out`` is left out. Animated GIF, WebP and PNG are videos, too; in a folder they are their
    first picture. ``enough`` is as :func:`read_rgb` has it.
    Raises DataError where there is nothing to read, ConfigError where ``every`` is under 1.
    """
    if every < 1:
        raise ConfigError(f"--frame-step {every}: give 1 for every image, 10 for every tenth.")
    if not source.exists():
        raise DataError(f"{source}: no such file or folder. Give an image, a folder of images or a video.")
    if source.is_dir():
        files, others = _listed(source, out)
        return _images(files[::every], source, enough)._replace(left_out=count_kinds(others))
    if source.suffix.lower() in VIDEOS:
        return _video(source, every)
    frames = _frames(source)
    if frames <= 1:
        return _images([source], source.parent, enough)
    shown = range(0, frames, every)
    pictures = (Picture(_numbered(source, k), f"{source} picture {k}", partial(_picture, source, k)) for k in shown)
    with Image.open(source) as image:
        duration = float(image.info.get("duration") or 100)  # milliseconds
    return Media(pictures, len(shown), Fraction(1000) / Fraction(duration) / every)


def until_damaged(pictures: Iterable[Picture], failed: list[str]) -> Iterator[Picture]:
    """The pictures up to where they cannot be read any more; that is added to ``failed``."""
    try:
        yield from pictures
    except DataError as error:
        failed.append(str(error))


def refuse_failed(failed: Sequence[str], done: int, out: Path) -> None:
    """Raise DataError with the list of pictures that could not be read, if any; ``done`` others are in ``out``."""
    if failed:
        listed = "".join(f"\n  {reason}" for reason in failed)
        raise DataError(f"{len(failed)} of {len(failed) + done} failed, the others are in {out}:{listed}")


def write_video(path: Path, pictures: Sequence[Path], rate: Fraction) -> bool:
    """Write image files as a video, MPEG-4 of ``rate`` pictures a second, and tell whether that was possible.

    It needs the extra ``video``. Pictures of different sizes lie at the top left of the largest. The file appears whole
    or not at all.
    """
    av = _library()
    if av is None or not pictures:
        return False
    sizes = [_size(file) for file in pictures]
    width, height = ((max(side) + 1) // 2 * 2 for side in zip(*sizes, strict=True))  # colours are shared by 2 x 2
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with replacing(path) as part, av.open(str(part), "w", format="mp4") as container:
        stream: Any = container.add_stream(codec, rate=rate.limit_denominator(FINEST))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        canvas = np.full((height, width, 3), 255, np.uint8)
        for file in pictures:
            pixels = read_rgb(file)
            canvas[:] = 255
            canvas[: pixels.shape[0], : pixels.shape[1]] = pixels
            container.mux(stream.encode(av.VideoFrame.from_ndarray(canvas, format="rgb24")))
        container.mux(stream.encode())
    return True


def _images(files: Sequence[Path], root: Path, enough: int | None) -> Media:
    """Images by their path below ``root`` without suffix; with it where that would be no name of its own.

    Names that differ in case alone are the same file on some systems.
    """
    paths = [file.relative_to(root).as_posix() for file in files]
    stems = [file.relative_to(root).with_suffix("").as_posix() for file in files]
    taken = Counter(stem.casefold() for stem in stems)
    plain = [taken[stem.casefold()] == 1 and stem.casefold() not in _RESERVED for stem in stems]
    names = [stem if alone else path for stem, path, alone in zip(stems, paths, plain, strict=True)]
    again = Counter(name.casefold() for name in names)
    names = [name if again[name.casefold()] == 1 else f"{name}-{k}" for k, name in enumerate(names)]
    pictures = (
        Picture(name, str(file), partial(read_rgb, file, enough), enough=enough)
        for name, file in zip(names, files, strict=True)
    )
    return Media(pictures, len(files), None)


def _listed(folder: Path, out: Path | None) -> tuple[list[Path], list[Path]]:
    """Image files of a folder and its subfolders, and the other files; ``out`` and hidden ones left out.

    Raises DataError for no image.
    """
    own = None if out is None else out.resolve()
    if own == folder.resolve():
        raise ConfigError(f"--out {out}: is the folder of the images. Name another one.")
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and (own is None or own not in path.resolve().parents)
    ]
    images = [path for path in files if path.suffix.lower() in _IMAGES]
    others = [path for path in files if path.suffix.lower() not in _IMAGES]
    if not images:
        kinds = " ".join(SUFFIXES)
        found = f" It holds {count_kinds(others)}." if others else ""
        raise DataError(f"{folder}: holds no image ({kinds}).{found} Give a video by its file name.")
    return images, others


def _frames(path: Path) -> int:
    try:
        with Image.open(path) as image:
            return int(getattr(image, "n_frames", 1)) if image.format in _MOVING else 1
    except Exception:  # reading it says what is wrong with it
        return 1


def _picture(path: Path, k: int) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            image.seek(k)
            upright = image.convert("RGBA")
            return np.array(Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB"))
    except Exception as error:  # damaged files make pillow's decoders raise errors of a dozen kinds
        raise DataError(f"{path}: its image {k} cannot be read ({error}). Replace or cut the file.") from error


def _library() -> Any:
    """PyAV, None where the extra ``video`` is not installed."""
    try:
        import av  # noqa: PLC0415  (optional)
    except ImportError:
        return None
    return av


def _video(path: Path, every: int) -> Media:
    """A video through PyAV. Raises DataError where that is not installed or the file holds no video."""
    av = _library()
    if av is None:
        raise DataError(
            f'{path}: videos need one more package: pip install "pri3d[video]". Or give a folder of frames.'
        )
    try:
        with _opened(av, path) as container:
            stream = container.streams.video[0]
            total, rate = int(stream.frames), Fraction(stream.average_rate or 25)
    except (av.FFmpegError, OSError, IndexError) as error:
        raise DataError(f"{path}: not a readable video ({error}). Replace it, or give a folder of frames.") from error
    return Media(_decoded(av, path, every), -(-total // every) or None, rate / every)


def _opened(av: Any, path: Path) -> Any:
    """Container of a video file: a name with a colon is no protocol, and a list of other files is no video."""
    allowed = {"format_whitelist": VIDEO_FORMATS, "protocol_whitelist": "file"}
    return av.open(f"file:{path}", metadata_errors="replace", options=allowed)


def _decoded(av: Any, path: Path, every: int) -> Iterator[Picture]:
    def upright(frame: Any) -> NDArray[np.uint8]:
        """RGB (H, W, 3), turned as the file says: phones store their videos as the sensor lies."""
        turns = round(getattr(frame, "rotation", 0) / 90)  # counterclockwise
        return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))

    count, stated = 0, 0
    problem: object = "the file is truncated or damaged"
    try:
        with _opened(av, path) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            stated = int(stream.frames)
            for frame in container.decode(stream):
                if count % every == 0:
                    size = int(frame.width * frame.height)
                    yield Picture(_numbered(path, count), f"{path} frame {count}", partial(upright, frame), size)
                count += 1
    except (av.FFmpegError, OSError) as error:
        problem, stated = error, max(stated, 2 * count)
    if count < max(1, _WHOLE * stated):
        raise DataError(f"{path}: ends after {count} frames ({problem}). The frames before are used.")


def _numbered(path: Path, k: int) -> str:
    return f"{path.stem}-{k:06d}"


def _size(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size
