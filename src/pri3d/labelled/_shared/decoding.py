"""Image files of any kind -> RGB or ids; the only place that knows their variants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from pri3d.errors import DataError

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

_LOSSY = {"JPEG", "MPO", "JPEG2000"}  # WebP has colours only
_SCALED = {"L;2": 85, "L;4": 17}  # by which pillow stretches such grey values to 0..255
_SIDEWAYS = range(5, 9)  # EXIF orientations that swap width and height


def read_rgb(path: Path, enough: int | None = None) -> NDArray[np.uint8]:
    """Any image file -> RGB (H, W, 3): turned upright, grey repeated, 16 bits scaled, transparency over white.

    A JPEG of twice ``enough`` pixels or more along both sides is decoded at a half, quarter or eighth of its size,
    which is several times faster; None keeps the size.
    Raises DataError naming the file where it is missing, damaged, larger than pillow allows, or of float pixels.
    """
    with _opened(path) as image:
        if enough is not None:
            image.draft(None, (enough, enough))  # of JPEG only; None: no other colours
        return np.asarray(_rgb(ImageOps.exif_transpose(image)), dtype=np.uint8)


def read_ids(path: Path, like: Path | None = None) -> NDArray[np.int32]:
    """Image file of one number a pixel -> these numbers (H, W), turned upright: the stored ones, whatever the bits.

    That is 1 to 16 bits of grey, 32-bit integers, or the indices of a palette, not its colours. ``like`` is the
    colour image that it belongs to, whose header must state the same size.
    Raises DataError naming the file where it is missing, damaged, of colours, of lossy JPEG or of another size.
    """
    with _opened(path) as image:
        if image.format in _LOSSY:
            raise DataError(f"{path}: JPEG alters ids. Write masks as PNG.")
        if image.mode not in {"1", "L", "P"} and not image.mode.startswith("I"):
            raise DataError(
                f"{path}: its pixels are colours or fractions ({image.mode}), expected one whole number a pixel. "
                "Write class or object ids as a grey PNG of 8 or 16 bits, or with a palette."
            )
        tile = getattr(image, "tile", None)  # how the pixels are stored; empty once they are decoded
        packed = _SCALED.get(str(tile[0].args), 1) if image.format == "PNG" and tile else 1
        ids = np.asarray(ImageOps.exif_transpose(image)).astype(np.int32) // packed
    if like is not None:
        check_size(ids.shape, str(path), image_size(like), str(like))
    return ids


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of :func:`read_rgb`'s result, from the file's header. Raises DataError as that does."""
    with _opened(path) as image:
        width, height = image.size
        # Not image.getexif(), which decodes a whole PNG. The sizes of TIFF files are those of the upright image.
        exif = Image.Image.getexif(image)
        sideways = exif.get(ExifTags.Base.Orientation) in _SIDEWAYS and image.format != "TIFF"
    return (width, height) if sideways else (height, width)


def check_headers(color: Path, *maps: Path | None) -> None:
    """Refuse map files whose headers state another size than that of their colour image; None is no map.

    Raises DataError as :func:`check_size`, or naming the file that is missing or damaged.
    """
    size = image_size(color)
    for file in maps:
        if file is not None:
            check_size(image_size(file), str(file), size, str(color))


def check_size(found: tuple[int, ...], what: str, size: tuple[int, int], color: str) -> None:
    """Refuse a map of another size: ``found`` and ``size`` are (height, width) of the map and the image ``color``.

    Raises DataError naming both, which a map that was drawn on the image before its EXIF rotation meets too.
    """
    if found != size:
        turned = " It was drawn before the image was rotated upright: rotate it, too." if found == size[::-1] else ""
        raise DataError(
            f"{what}: is {found[1]}x{found[0]}, its image {color} is {size[1]}x{size[0]}."
            f"{turned or ' A mask has the size of its image.'}"
        )


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        # Of the file, not its name: pillow maps uncompressed TIFFs into memory, and garbles those that are turned.
        with path.open("rb") as file, Image.open(file) as image:
            yield image
    except DataError:
        raise
    except Exception as error:  # damaged files make pillow's decoders raise errors of a dozen kinds
        raise DataError(f"{path}: not a readable image ({error}). Replace or remove it.") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; 8 or 16 bits are read")
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.int64)
        return Image.fromarray((grey.clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in {"LA", "PA", "RGBA", "La", "RGBa"} or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
