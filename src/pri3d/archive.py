"""Images in an uncompressed zip: any tool opens it, one file a scene, every read checked against its checksum."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pri3d.errors import DataError

_LOCAL_HEADER = 30  # bytes of a zip entry's header before its name


class ImageArchive:
    """Read side. Only the directory is kept; the file is opened for each read, so any process may use it."""

    def __init__(self, path: Path, remedy: str) -> None:
        """``remedy`` ends the message of every error: what to do about a damaged archive."""
        self.path, self.remedy = path, remedy

    def __contains__(self, entry: str) -> bool:
        """Whether there is such an entry. Raises DataError where the archive is not readable."""
        return entry in self._directory

    def read(self, entries: Sequence[str], size: tuple[int, int]) -> list[NDArray[Any]]:
        """Decode the entries; each must be of ``size`` (width, height).

        Raises DataError naming archive and entry where one is missing, damaged, compressed or of another size.
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
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.path}: not a readable archive ({error}). {self.remedy}") from error

    def _image(self, entry: str, content: bytes, size: tuple[int, int]) -> NDArray[Any]:
        where = f"{self.path}: entry {entry}"
        try:
            with Image.open(io.BytesIO(content)) as image:
                pixels = np.array(image)
        except OSError as error:  # pillow's own errors are OSErrors
            raise DataError(f"{where} is not a readable image ({error}). {self.remedy}") from error
        if pixels.shape[:2] != size[::-1]:
            raise DataError(f"{where} has shape {pixels.shape}, not {size[::-1]}. {self.remedy}")
        return pixels

    def _bytes(self, file: BinaryIO, entry: str) -> bytes:
        where = f"{self.path}: entry {entry}"
        info = self._directory.get(entry)
        if info is None:
            raise DataError(f"{where} is missing. {self.remedy}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise DataError(f"{where} is compressed; the archive must be stored uncompressed. {self.remedy}")
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
