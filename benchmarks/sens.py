"""Every 25th frame of a .sens scan against a plain reader of the whole file, and memory by length.

    python -m benchmarks.sens

A written scan of 300 frames, colour 1296 x 968 (JPEG), depth 640 x 480 (zlib). Plain: the file is read front to back,
every field by one ``struct.unpack``, images as characters that are joined, all frames kept; then the wanted ones are
decoded. Both sides give the same: JPEG bytes or pixels of the colour, and the depth as 16-bit pixels, which is checked.
CPU seconds, file in the system's cache, our way and the plain one interleaved, the median of three rounds.
"""

from __future__ import annotations

import io
import struct
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pri3d.recordings._shared.sens import SensFile

FRAMES, STEP, ROUNDS = 300, 25, 3
COLOR, DEPTH = (1296, 968), (640, 480)

Read = tuple[bytes, NDArray[np.uint16]]  # JPEG bytes and depth


def images(k: int) -> tuple[bytes, bytes]:
    """JPEG colour and deflated depth of a made-up frame, together about as large as a real one, 260 kB.

    Depth comes in steps of disparity, as from structured light.
    """
    rng = np.random.default_rng(k)
    coarse = Image.fromarray(rng.integers(256, size=(61, 81, 3), dtype=np.uint8)).resize(COLOR)
    color = np.array(coarse) + rng.normal(0, 1.5, (COLOR[1], COLOR[0], 3))
    buffer = io.BytesIO()
    Image.fromarray(color.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=75)
    far = Image.fromarray(rng.uniform(1000, 4000, (7, 9)).astype(np.float32)).resize(DEPTH)
    depth = 5e5 / np.rint(5e5 / np.array(far))
    depth[rng.random(DEPTH[::-1]) < 0.01] = 0
    return buffer.getvalue(), zlib.compress(depth.astype("<u2").tobytes())


def write_scan(path: Path, frames: int) -> Path:
    """A .sens file whose frames repeat a few images."""
    kinds = [images(k) for k in range(4)]
    k = np.eye(4, dtype="<f4")
    k[0, 0], k[1, 1], k[0, 2], k[1, 2] = 1170, 1170, 647.5, 483.5
    identity = np.eye(4, dtype="<f4").tobytes()
    with path.open("wb") as file:
        file.write(struct.pack("<IQ", 4, 4) + b"made")
        file.write((k.tobytes() + identity) * 2)
        file.write(struct.pack("<2i4IfQ", 2, 1, *COLOR, *DEPTH, 1000.0, frames))
        for n in range(frames):
            color, depth = kinds[n % len(kinds)]
            file.write(identity + struct.pack("<4Q", n, n, len(color), len(depth)) + color + depth)
    return path


def plain(path: Path) -> list[Read]:
    """The whole file, field by field; then the wanted frames."""
    with path.open("rb") as file:

        def take(form: str) -> tuple:
            return struct.unpack(form, file.read(struct.calcsize(form)))

        _, length = take("<IQ")
        take("c" * length)
        for _ in range(4):
            np.array(take("<" + "f" * 16), np.float32).reshape(4, 4)
        take("<2i")
        take("<4I")
        take("<f")
        (count,) = take("<Q")
        frames = []
        for _ in range(count):
            pose = np.array(take("<" + "f" * 16), np.float32).reshape(4, 4)
            *times, color, depth = take("<4Q")
            frames.append((pose, times, b"".join(take("c" * color)), b"".join(take("c" * depth))))
    size = DEPTH[::-1]
    return [(c, np.frombuffer(zlib.decompress(d), "<u2").reshape(size)) for _, _, c, d in frames[::STEP]]


def ours(path: Path) -> list[Read]:
    """The wanted frames alone."""
    file = SensFile(path)
    return [(found.color, found.depth) for found in map(file.read, range(0, file.header.frames, STEP))]


def decoded(read: Callable[[Path], list[Read]], path: Path) -> list[NDArray[np.uint8]]:
    """The pixels of what a reader gives."""
    return [np.array(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg, _ in read(path)]


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of the process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(path: Path, pixels: bool) -> tuple[float, float, float]:
    """Seconds of ours and of the plain reader, and the ratio; medians."""
    rounds = []
    for _ in range(ROUNDS):
        mine, other = (
            seconds(lambda read=read: decoded(read, path) if pixels else read(path)) for read in (ours, plain)
        )
        rounds.append((mine, other))
    return median(a for a, _ in rounds), median(b for _, b in rounds), median(b / a for a, b in rounds)


def peak(path: Path, read: Callable[[Path], object]) -> float:
    """MB that reading allocates at most."""
    tracemalloc.start()
    read(path)
    size = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return size / 1e6


def one_at_a_time(path: Path) -> None:
    """The wanted frames, none kept."""
    file = SensFile(path)
    for index in range(0, file.header.frames, STEP):
        file.read(index)


def run(frames: int = FRAMES) -> list[tuple[str, str, str | None]]:
    """Name, measured value and bar of every figure, for a scan of ``frames`` frames."""
    with tempfile.TemporaryDirectory() as folder:
        path, short = (write_scan(Path(folder) / f"{n}.sens", n) for n in (frames, frames // 3))
        for a, b in zip(ours(path), plain(path), strict=True):
            if a[0] != b[0] or not np.array_equal(a[1], b[1]):
                raise RuntimeError("the two readers differ")
        megabytes = path.stat().st_size / 1e6
        mine, other, ratio = compare(path, pixels=False)
        title = f"every {STEP}th of {frames} frames, {COLOR[0]} x {COLOR[1]}, {megabytes:.0f} MB"
        rows: list[tuple[str, str, str | None]] = [
            (f"{title}, JPEG passed through, times faster", f"{ratio:.0f}", ">= 20"),
            ("  ours / plain reader, s", f"{mine:.3f} / {other:.2f}", None),
        ]
        mine, other, ratio = compare(path, pixels=True)
        rows += [
            ("  colour decoded by both, times faster", f"{ratio:.0f}", None),
            ("  ours / plain reader, s", f"{mine:.3f} / {other:.2f}", None),
        ]
        few, many = (peak(p, one_at_a_time) for p in (short, path))
        rows += [(f"memory of reading, {frames} over {frames // 3} frames", f"{many / few:.3f}", "<= 1.05")]
        rows += [(f"  MB, {frames // 3} / {frames} frames", f"{few:.2f} / {many:.2f}", None)]
        few, many = (peak(p, plain) for p in (short, path))
        rows += [(f"  plain reader, MB, {frames // 3} / {frames} frames", f"{few:.0f} / {many:.0f}", None)]
    return rows


def main() -> None:
    """Print the table."""
    for name, measured, bar in run():
        print(f"{name:92s} {measured:>14s}  {bar or ''}")


if __name__ == "__main__":
    main()
