"""Images and arrays in zip files: any tool can open them, and the checksum of every read is verified.

Nothing that a file states about itself is believed before it is compared with the file's length: a damaged or hostile
one costs no more memory than a sound one of its length can.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pri3d.errors import DataError

_LOCAL_HEADER = 30  # bytes of a zip entry's header before its name
_DEFLATED = 1032  # bytes that one compressed byte gives at most
_LAST_CODE_POINT = 0x10FFFF
Column = tuple[str, tuple[int | None, ...]]  #: numpy's letter for the kind of values, and the shape; None for rows


class ImageArchive:
    """Read side. Only the directory is kept; the file is opened for each read, so any process may use it."""

    def __init__(self, path: Path, remedy: str, modes: Mapping[str, str] | None = None) -> None:
        """``remedy`` ends the message of every error: what to do about a damaged archive.

        ``modes`` are those (pillow's names) that images of a folder of the archive must have; None: any.
        """
        self.path, self.remedy, self.modes = path, remedy, modes or {}

    def __contains__(self, entry: str) -> bool:
        """Whether there is such an entry. Raises DataError where the archive is not readable."""
        return entry in self._directory

    def read(self, entries: Sequence[str], size: tuple[int, int]) -> list[NDArray[Any]]:
        """Decode the entries; each must be of ``size`` (width, height).

        Raises DataError naming archive and entry where one is missing, damaged, compressed, or of another size or mode.
        """
        try:
            # Opened per read: a data set has more scenes than a process may hold open files.
            with self.path.open("rb", buffering=0) as file:
                data = [self._bytes(file, entry) for entry in entries]
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error}). {self.remedy}") from error
        return [self._image(entry, content, size) for entry, content in zip(entries, data, strict=True)]

    @cached_property
    def _directory(self) -> dict[str, zipfile.ZipInfo]:
        try:
            with zipfile.ZipFile(self.path) as archive:
                return {entry.filename: entry for entry in archive.infolist()}
        except Exception as error:  # the library raises what it likes on damaged bytes
            raise DataError(f"{self.path}: not a readable archive ({error}). {self.remedy}") from error

    def _image(self, entry: str, content: bytes, size: tuple[int, int]) -> NDArray[Any]:
        where = f"{self.path}: entry {entry}"
        mode = self.modes.get(entry.partition("/")[0])
        try:
            with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
                if image.size == size and mode in (None, image.mode):
                    return np.array(image)
                found = f"{image.width}x{image.height} ({image.mode})"
        except Exception as error:  # decoders raise what they like on damaged bytes
            raise DataError(f"{where} is not a readable image ({error}). {self.remedy}") from error
        raise DataError(f"{where} is {found}, expected is {size[0]}x{size[1]} ({mode or 'any'}). {self.remedy}")

    def _bytes(self, file: BinaryIO, entry: str) -> bytes:
        where = f"{self.path}: entry {entry}"
        info = self._directory.get(entry)
        if info is None:
            raise DataError(f"{where} is missing. {self.remedy}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise DataError(f"{where} is compressed; the archive must be stored uncompressed. {self.remedy}")
        length = os.fstat(file.fileno()).st_size
        if not (0 <= info.header_offset < length and 0 <= info.file_size <= length):
            raise DataError(f"{where} reaches beyond the end of the file. {self.remedy}")
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER + len(entry.encode()) + info.file_size)
        start = _LOCAL_HEADER + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        data = header[start : start + info.file_size]
        if start + info.file_size > len(header):  # an extra field in the local header, or the file ends too early
            data += file.read(info.file_size - len(data))
        if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            raise DataError(f"{where} is damaged (wrong checksum or length). {self.remedy}")
        return data


def encode(pixels: NDArray[np.uint8] | NDArray[np.uint16], form: str) -> bytes:
    """Encode an image as "PNG" or as "JPEG" of quality 95."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, quality=95)  # PNG has no quality and ignores it
    return buffer.getvalue()


def read_arrays(
    path: Path, columns: Mapping[str, Column], remedy: str, optional: Sequence[str] = (), mapped: bool = False
) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz file: those of ``columns``, of which ``optional`` ones may be missing.

    With ``mapped`` entries that are not compressed are mapped into memory, read-only: what is not looked at is not
    read, and no checksum is verified; the headers are, all the same.

    ``remedy`` ends the message of every error. Raises DataError where the file is missing or damaged, lacks one, or
    one has other values or another shape than its column's, or columns differ in their rows.
    """
    try:
        length = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            found = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = [name for name in columns if name in found or name not in optional]
            arrays = {name: _array(archive, found[name], length, path if mapped else None) for name in wanted}
        rows = set()
        for name, array in arrays.items():
            kind, shape = columns[name]
            same = array.ndim == len(shape) and all(w in (None, n) for w, n in zip(shape, array.shape, strict=True))
            if array.dtype.kind != kind or not same:
                raise ValueError(f"{name} is {array.dtype} of shape {array.shape}")
            rows |= {len(array)} if None in shape else set()
        if len(rows) > 1:
            raise ValueError(f"columns of {' and '.join(map(str, sorted(rows)))} rows")
    except Exception as error:  # as in the archive of images
        raise DataError(f"{path}: missing or damaged ({error}). {remedy}") from error
    return arrays


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, length: int, path: Path | None) -> NDArray[Any]:
    """Array of an .npy entry, mapped where ``path`` is that of the archive. Raises ValueError.

    It does so where the entry is not exactly what its headers say; ``length`` is the archive's in bytes. Both headers
    are compared before anything is inflated.
    """
    most = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _DEFLATED}.get(info.compress_type, 0)
    if not (0 <= info.compress_size <= length and 0 <= info.file_size <= most * info.compress_size):
        raise ValueError(f"{info.filename} says it has {info.file_size} bytes")
    with archive.open(info) as stream:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("another version of .npy")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
        count, rest = math.prod(shape), info.file_size - stream.tell()
        if dtype.hasobject or not dtype.isnative or min(shape, default=0) < 0 or count * dtype.itemsize != rest:
            raise ValueError(f"{dtype} of shape {shape} in {rest} bytes")
        if path is not None and count and info.compress_type == zipfile.ZIP_STORED and not fortran:
            with path.open("rb") as file:
                file.seek(info.header_offset)
                header = file.read(_LOCAL_HEADER)
            names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            start = info.header_offset + _LOCAL_HEADER + names + stream.tell()
            if len(header) < _LOCAL_HEADER or start + rest > length:
                raise ValueError(f"{info.filename} reaches beyond the end of the file")
            return np.asarray(np.memmap(path, dtype, "r", start, shape))
        array = np.frombuffer(stream.read(), dtype, count)
    if dtype.kind == "U" and array.view(np.uint32).max(initial=0) > _LAST_CODE_POINT:
        raise ValueError("text that is none")
    return array.reshape(shape, order="F" if fortran else "C").copy()
