"""A frame from its files: images, depth, confidence, labels and poses, with checks for damage.

Phones with ARKit give depth of the colour camera at a lower resolution, in millimetres, with a confidence of 0 (low), 1
or 2 (high) a pixel.
"""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pri3d.errors import FrameError
from pri3d.geometry.pose import check_rigid
from pri3d.geometry.warping import undistort_color, undistort_nearest
from pri3d.recordings._shared.cameras import Cameras
from pri3d.recordings._shared.text import framed, read_text
from pri3d.types import Frame

COLOR = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  #: endings of colour images, in either case
DEPTH = (".png", ".tif", ".tiff", ".npy", ".exr")  #: of depth
LARGEST = 10**8  #: pixels of an image; a damaged header can claim any size
MILLIMETRES = 0.001  #: metres per unit of depth
_SEPARATORS = re.compile(r"[\s,;\[\]()]+")
#: channels of an OpenEXR file that hold depth, the surest first; programs that know colours alone write it to these
_EXR_DEPTH = ("z", "depth", "v", "y", "r", "x")
_FARTHEST_DEPTH = 65.5  # metres; the store holds millimetres of 16 bits
_FARTHEST = 1e6  # metres; beyond it a pose is damaged text


class Origin(NamedTuple):
    """What error messages call the parts of a frame: usually their files."""

    color: str
    depth: str
    pose: str


def build_frame(
    name: str,
    color: NDArray[np.uint8],
    depth: NDArray[np.float32] | None,
    pose: NDArray[np.float64],
    cameras: Cameras,
    origin: Origin,
    *,
    confidence: NDArray[np.uint8] | None = None,
    label: NDArray[np.uint8] | None = None,
    instance: NDArray[np.uint16] | None = None,
    color_jpeg: bytes | None = None,
) -> Frame:
    """Put a frame together from what its files hold, all as :class:`pri3d.types.Frame` describes it.

    ``pose`` (4, 4) is camera to world with OpenCV axes, of the camera that ``cameras`` says; ``depth`` None gives a
    frame without any. Distortion that ``cameras`` states is undone. Raises FrameError naming the part where an
    image does not fit its camera, sizes differ or the pose is not rigid.
    """
    height, width = color.shape[:2]
    camera = cameras.color.of_image(width, height, origin.color)
    if depth is None:
        depth, depth_camera, lens = np.zeros((height, width), np.float32), camera, None
    else:
        depth_camera, lens = cameras.depth.of_image(depth.shape[1], depth.shape[0], origin.depth), cameras.depth.lens
    if confidence is not None and confidence.shape != depth.shape:
        sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in (depth, confidence)]
        raise FrameError(f"{origin.depth}: depth is {sizes[0]}, its confidence {sizes[1]}.")
    if lens is not None:
        depth = undistort_nearest(depth, depth_camera, lens)
        confidence = None if confidence is None else undistort_nearest(confidence, depth_camera, lens)
    frame = Frame(
        name=name,
        color=color,
        depth=depth,
        color_camera=camera,
        depth_camera=depth_camera,
        color_from_depth=cameras.color_from_depth,
        world_from_camera=cameras.world_from_color(check_rigid(pose, origin.pose)),
        label=label,
        instance=instance,
        color_jpeg=color_jpeg,
        confidence=confidence,
    )
    lens = cameras.color.lens
    if lens is None:
        return frame
    return frame._replace(  # as the pinhole camera would see it
        color=undistort_color(color, camera, lens),
        label=None if label is None else undistort_nearest(label, camera, lens, outside=255),
        instance=None if instance is None else undistort_nearest(instance, camera, lens),
        color_jpeg=None,
    )


def load_files(name: str, color: Path, depth: Path, pose: NDArray[np.float64], cameras: Cameras, poses: Path) -> Frame:
    """Read a frame of an image and a depth file, with its pose (4, 4) of the file ``poses``.

    Raises FrameError naming the file that is missing, damaged or of another size.
    """
    origin = Origin(str(color), str(depth), f"{poses}: frame {name}")
    return build_frame(name, read_color(color), read_depth(depth, cameras.depth_scale), pose, cameras, origin)


def read_image(path: Path, ids: bool = False) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Decode an image whole: 16-bit ones as uint16 (H, W), others as uint8 (H, W, 3) RGB, or (H, W) for ``ids``.

    Raises FrameError for a missing, damaged, truncated or absurdly large file.
    """
    if not path.is_file():
        beside = sorted(other.name for other in path.parent.glob(f"{glob.escape(path.stem)}.*"))
        hint = f" {beside[0]} is there, but {path.suffix} is the supported type." if beside else ""
        raise FrameError(f"{path}: no such file.{hint}")
    return decode_image(path, str(path), ids)


def decode_image(
    source: Path | IO[bytes],
    what: str,
    ids: bool = False,
    size: tuple[int, int] | None = None,
    formats: tuple[str, ...] | None = None,
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """:func:`read_image` of a file or of bytes, which errors call ``what``.

    ``size`` is the width and height that it must have and ``formats`` are pillow's names of those it may have; both
    are looked at before anything is decoded.
    """
    try:
        with Image.open(source, formats=formats) as image:
            if image.width * image.height > LARGEST:
                raise FrameError(f"{what}: claims to be {image.width}x{image.height}; the file is damaged.")
            if size is not None and image.size != size:
                raise FrameError(f"{what}: is {image.width}x{image.height}, stated is {size[0]}x{size[1]}.")
            if image.mode.startswith(("I", "F")):
                values = np.asarray(image)
                if values.dtype.kind not in "iu" or (values.size and (values.min() < 0 or values.max() > 65535)):
                    raise FrameError(f"{what}: holds {values.dtype} values, expected 16-bit unsigned ones.")
                return values.astype(np.uint16)
            if ids and image.mode not in ("L", "P", "1"):
                raise FrameError(f"{what}: holds colours ({image.mode}), expected one number a pixel.")
            return np.array(image if ids and image.mode != "1" else image.convert("L" if ids else "RGB"))
    except FrameError:
        raise
    except Exception as error:  # decoders raise what they like on damaged bytes
        kind = Path(what).suffix
        if kind in (".npy", ".npz", ".exr"):
            hint = "depth is read from 16-bit PNG, and from TIFF, .npy and .exr, as floats in metres too"
            raise FrameError(f"{what}: {kind} is not an image; {hint}. Convert it.") from error
        raise FrameError(f"{what}: damaged or truncated image ({error}).") from error


def read_color(path: Path) -> NDArray[np.uint8]:
    """Read RGB (H, W, 3). Raises FrameError for a missing or damaged file and for one of 16 bits."""
    return eight_bits(read_image(path), str(path))


def eight_bits(color: NDArray[np.uint8] | NDArray[np.uint16], what: str) -> NDArray[np.uint8]:
    """Return the RGB (H, W, 3) that an image is. Raises FrameError for one of 16 bits."""
    if color.dtype != np.uint8:
        raise FrameError(f"{what}: a 16-bit image is not a colour image; is it the depth?")
    return color.astype(np.uint8, copy=False)


def read_depth(path: Path, scale: float) -> NDArray[np.float32]:
    """Read depth (H, W) in metres: whole numbers of 16 bits of ``scale`` metres per unit, or floats, which are metres.

    An image (PNG, TIFF, OpenEXR) or an array of NumPy's file format; where there is no such file, the one of the same
    stem and another of these endings. 0, 65535 and what is not finite are invalid and become 0. Raises FrameError for a
    missing or damaged file and for one of 8 bits.
    """
    if not path.is_file():
        beside = sorted(path.parent.glob(f"{glob.escape(path.stem)}.*")) if path.parent.is_dir() else []
        path = next((other for other in beside if other.suffix.lower() in DEPTH), path)
    if path.suffix.lower() == ".npy":
        values = _read_npy(path)
        return metres(values) if values.dtype.kind == "f" else in_metres(values, scale)
    if path.suffix.lower() == ".exr" and path.is_file():
        return metres(_read_exr(path))
    if path.suffix.lower() in (".tif", ".tiff") and path.is_file() and (floats := _read_float_image(path)) is not None:
        return metres(floats)
    raw = read_image(path)
    if raw.dtype != np.uint16:
        raise FrameError(f"{path}: depth must be a 16-bit image; this one has 8 bits, too few for metres.")
    return in_metres(raw, scale)


def in_metres(raw: NDArray[np.uint8] | NDArray[np.uint16], scale: float) -> NDArray[np.float32]:
    """Depth (H, W) of ``scale`` metres per unit -> metres; 0 and 65535 are invalid and become 0."""
    return np.array(np.where(raw == 65535, 0, raw) * scale, dtype=np.float32)


def metres(values: NDArray[Any]) -> NDArray[np.float32]:
    """Depth (H, W) of floats, which are metres; what is negative, not finite or beyond 65 m becomes 0."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.where((values > 0) & (values < _FARTHEST_DEPTH), values, 0).astype(np.float32)


def _read_float_image(path: Path) -> NDArray[np.float32] | None:
    """Values (H, W) of an image of floats, None where it holds something else or cannot be read."""
    try:
        with Image.open(path) as image:
            if image.mode != "F" or image.width * image.height > LARGEST:
                return None
            return np.array(image, np.float32)
    except Exception:  # decoders raise what they like; whoever reads it as another kind says what is wrong
        return None


def _read_exr(path: Path) -> NDArray[Any]:
    """Read the depth (H, W) of an OpenEXR file, by the extra exr.

    The channel Z, depth, V or Y, of any layer, or the colours where they are equal. Raises FrameError where the package
    is missing, the file is damaged, or no channel is depth.
    """
    try:
        import OpenEXR  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise FrameError(
            f'{path}: depth in .exr is read by OpenEXR: pip install "pri3d[exr]", or convert it to .tiff.'
        ) from error
    try:
        (left, top), (right, bottom) = OpenEXR.File(str(path), header_only=True).header()["dataWindow"]
        if not 0 < (int(right) - int(left) + 1) * (int(bottom) - int(top) + 1) <= LARGEST:
            raise ValueError(f"its window is {left} {top} {right} {bottom}")
        channels = {
            name: np.asarray(channel.pixels)
            for name, channel in OpenEXR.File(str(path), separate_channels=True).channels().items()
        }
    except Exception as error:  # the library raises what it likes on damaged bytes
        raise FrameError(f"{path}: is no readable OpenEXR image ({error}).") from error
    floats = {name: pixels for name, pixels in channels.items() if pixels.ndim == 2 and pixels.dtype.kind == "f"}
    ends = {name: name.rsplit(".", 1)[-1].lower() for name in floats}
    colours = [floats[name] for name in floats if ends[name] in "rgb"]
    coloured = len(colours) > 1 and not all(np.array_equal(colours[0], one, equal_nan=True) for one in colours)
    for wanted in _EXR_DEPTH:
        found = [name for name in floats if ends[name] == wanted]
        if len(found) == 1 and not (coloured and wanted == "r"):
            return floats[found[0]]
    raise FrameError(
        f"{path}: holds the channels {', '.join(sorted(channels)) or 'none'}; depth is the one of floats that is "
        "called Z, depth, V or Y, or colours that are equal."
    )


def _read_npy(path: Path) -> NDArray[Any]:
    """Read an array (h, w) or (h, w, 1) of 16-bit whole numbers or of floats, of NumPy's file format, never pickled.

    Raises FrameError where it is missing, damaged or holds something else.
    """
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, by_columns, dtype = read_header(file)
            shape = shape[:2] if shape[2:] == (1,) else shape
            fits = (dtype.kind == "u" and dtype.itemsize == 2) or (dtype.kind == "f" and dtype.itemsize in (2, 4, 8))
            if not fits or len(shape) != 2 or not 0 < shape[0] * shape[1] <= LARGEST:
                raise ValueError(f"{dtype} of shape {shape}")
            data = file.read(dtype.itemsize * shape[0] * shape[1] + 1)
            if len(data) != dtype.itemsize * shape[0] * shape[1]:
                raise ValueError(f"{len(data)} bytes of shape {shape}")
            array = np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")
            return array.astype(dtype.newbyteorder("="))
    except FileNotFoundError as error:
        raise FrameError(f"{path}: no such file.") from error
    except Exception as error:  # numpy's parser of headers raises what it likes on damaged bytes
        raise FrameError(f"{path}: is not readable depth, of 16 bits or of floats ({error}).") from error


def percent(levels: NDArray[np.uint8], what: str) -> NDArray[np.uint8]:
    """Confidence levels 0, 1, 2 (h, w) -> 0, 50, 100 percent. Raises FrameError for other levels."""
    if levels.max(initial=0) > 2:
        raise FrameError(f"{what}: holds the confidence {levels.max()}, expected 0, 1 or 2.")
    return (levels * 50).astype(np.uint8)


def read_levels(path: Path) -> NDArray[np.uint8] | None:
    """Read an image of confidence levels 0, 1, 2 as percent (h, w); None where there is no such file.

    Raises FrameError where it is damaged or holds something else.
    """
    return percent(read_bytes(path), str(path)) if path.is_file() else None


def read_bytes(path: Path) -> NDArray[np.uint8]:
    """Read an image of one byte a pixel (h, w). Raises FrameError for a missing or damaged file and for 16 bits."""
    image = read_image(path, ids=True)
    if image.dtype != np.uint8:
        raise FrameError(f"{path}: has 16 bits a pixel, expected 8.")
    return image.astype(np.uint8, copy=False)


def read_frame_ids(path: Path, shape: tuple[int, int]) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Read class or instance ids (H, W). Raises FrameError for a damaged file or one of another size."""
    ids = read_image(path, ids=True)
    if ids.shape != shape:
        raise FrameError(f"{path}: is {ids.shape[1]}x{ids.shape[0]}, the colour image {shape[1]}x{shape[0]}.")
    return ids


def read_pose(path: Path) -> NDArray[np.float64]:
    """Read 16 numbers, a rigid camera-to-world matrix (4, 4), metres. Raises FrameError where they are not that."""
    return check_rigid(read_matrix(path, (4, 4)), str(path))


def read_matrix(path: Path, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Read a matrix as text: numbers between white space, commas, semicolons or brackets; '#' begins a comment.

    A decimal comma is understood where nothing else can be meant. Poses may lack their last row (3 x 4), and intrinsics
    may have one more row or column, or be fx fy cx cy. Raises FrameError for a missing file and for other contents.
    """
    text = "\n".join(line.split("#", 1)[0] for line in framed(lambda: read_text(path)).splitlines())
    words = _SEPARATORS.sub(" ", text).split()
    if len(words) == 2 * shape[0] * shape[1] and "." not in text:  # 0,5 0,25: with the comma between numbers too many
        words = _SEPARATORS.sub(" ", text.replace(",", ".")).split()
    try:
        numbers = np.array([float(word) for word in words])
    except ValueError as error:
        raise FrameError(f"{path}: is not a matrix of numbers ({error}).") from error
    if shape == (4, 4) and numbers.size == 12:
        numbers = np.append(numbers, (0, 0, 0, 1))
    elif shape == (3, 3) and numbers.size in (12, 16):
        numbers = numbers.reshape(-1, 4)[:3, :3].reshape(-1)
    elif shape == (3, 3) and numbers.size == 4:
        numbers = np.array((numbers[0], 0, numbers[2], 0, numbers[1], numbers[3], 0, 0, 1))
    if numbers.size != shape[0] * shape[1]:
        raise FrameError(f"{path}: holds {numbers.size} numbers, expected {shape[0]} x {shape[1]}.")
    if (np.abs(numbers) > _FARTHEST).any() and not np.isinf(numbers).any():
        raise FrameError(f"{path}: holds {np.abs(numbers).max():g}; the text is damaged.")
    return numbers.reshape(shape)
