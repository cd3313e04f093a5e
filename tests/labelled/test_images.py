"""Image files of every kind a user may have: colours, ids, orientation, damage."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pri3d.errors import DataError
from pri3d.labelled._shared.decoding import check_size, image_size, read_ids, read_rgb


def noise(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(256, size=(height, width, channels), dtype=np.uint8)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


#: EXIF orientation -> what has to be done to the stored pixels (the EXIF standard's table)
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def test_every_kind_of_image_becomes_rgb(tmp_path: Path) -> None:
    grey = np.arange(0, 256, 8, dtype=np.uint8).reshape(4, 8)
    clear = np.dstack([noise(4, 8), np.zeros((4, 8), np.uint8)])
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.tif")
    Image.fromarray(clear).save(tmp_path / "clear.png")
    Image.fromarray(clear[..., 2:]).save(tmp_path / "grey-clear.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png", transparency=0)
    Image.fromarray(np.full((4, 8, 3), 90, np.uint8)).convert("CMYK").save(tmp_path / "print.jpg")
    Image.fromarray(grey > 100).save(tmp_path / "bits.png")
    images = {path.name: read_rgb(path) for path in tmp_path.iterdir()}
    assert all(image.shape == (4, 8, 3) and image.dtype == np.uint8 for image in images.values())
    for name in ("grey.png", "deep.png", "deep.tif"):
        np.testing.assert_array_equal(images[name], np.repeat(grey[..., None], 3, axis=2))
    assert (images["clear.png"] == 255).all()
    assert (images["grey-clear.png"] == 255).all()
    assert (images["palette.png"][0, 0] == 255).all()
    assert (images["palette.png"][1:] == np.repeat(grey[1:, :, None], 3, axis=2)).all()
    assert np.abs(images["print.jpg"].astype(int) - 90).max() <= 2
    assert set(np.unique(images["bits.png"])) == {0, 255}


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    image = Image.fromarray(noise(6, 9))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_rgb(tmp_path / "turned.png"), np.rot90(np.asarray(image), 3))


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_every_orientation_of_every_format(tmp_path: Path, suffix: str, orientation: int) -> None:
    path, pixels = tmp_path / f"a.{suffix}", noise(6, 9)
    Image.fromarray(pixels).save(path, exif=turned(orientation), **({"lossless": True} if suffix == "webp" else {}))
    wanted = UPRIGHT[orientation](pixels)
    np.testing.assert_array_equal(read_rgb(path), wanted)
    assert image_size(path) == wanted.shape[:2]
    if suffix != "webp":
        Image.fromarray(pixels[..., 0]).save(path, exif=turned(orientation))
        np.testing.assert_array_equal(read_ids(path), wanted[..., 0])


def test_size_of_a_turned_jpeg(tmp_path: Path) -> None:
    Image.fromarray(noise(16, 24)).save(tmp_path / "a.jpg", exif=turned(8))
    assert image_size(tmp_path / "a.jpg") == read_rgb(tmp_path / "a.jpg").shape[:2] == (24, 16)


def test_colours_keep_their_size_unless_less_is_enough(tmp_path: Path) -> None:
    Image.fromarray(noise(400, 600)).save(tmp_path / "a.jpg")
    assert read_rgb(tmp_path / "a.jpg").shape == (400, 600, 3)
    assert read_rgb(tmp_path / "a.jpg", enough=100).shape == (100, 150, 3)


@pytest.mark.parametrize(
    ("kind", "dtype", "largest", "suffix"),
    [
        ("L", np.uint8, 255, "png"),
        ("L", np.uint8, 255, "bmp"),
        ("I;16", np.uint16, 65535, "png"),
        ("I;16", np.uint16, 65535, "tiff"),
        ("I", np.int32, 2**31 - 1, "tiff"),
        ("1", np.bool_, 1, "png"),
    ],
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.data())
def test_ids_come_back_as_written(
    tmp_path: Path, kind: str, dtype: Any, largest: int, suffix: str, data: st.DataObject
) -> None:
    height, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
    flat = data.draw(st.lists(st.integers(0, largest), min_size=height * width, max_size=height * width))
    ids = np.array(flat, np.int64).reshape(height, width)
    image = Image.fromarray(ids.astype(dtype))
    assert image.mode == kind
    image.save(tmp_path / f"ids.{suffix}")
    found = read_ids(tmp_path / f"ids.{suffix}")
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, ids)


def test_palette_gives_indices_not_colours(tmp_path: Path) -> None:
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = Image.fromarray(ids)
    image.putpalette(noise(256, 1).ravel().tolist())
    assert image.mode == "P"
    for name, options in {"a.png": {}, "few-bits.png": {"bits": 4}, "clear.png": {"transparency": 3}}.items():
        image.save(tmp_path / name, **options)
        np.testing.assert_array_equal(read_ids(tmp_path / name), ids)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_png_of_few_bits_gives_the_stored_numbers(tmp_path: Path, bits: int) -> None:
    """Bytes of the PNG specification, since no usual library writes 2 and 4 bits of grey."""
    ids = np.arange(16).reshape(2, 8) % 2**bits
    rows = b""
    for row in ids:
        number = int("".join(f"{value:0{bits}b}" for value in row), 2)
        rows += b"\0" + number.to_bytes(bits, "big")

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    path = tmp_path / "a.png"
    header = struct.pack(">IIBBBBB", 8, 2, bits, 0, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    np.testing.assert_array_equal(read_ids(path), ids)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "F", "CMYK"])
def test_masks_of_colours_are_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "mask.tiff"
    Image.new(mode, (4, 3)).save(path)
    with pytest.raises(DataError, match=rf"{path}: its pixels are .*\({mode}\).* grey PNG"):
        read_ids(path)


def test_masks_of_jpeg_are_refused(tmp_path: Path) -> None:
    Image.fromarray(noise(8, 8)[..., 0]).save(tmp_path / "mask.jpg")
    with pytest.raises(DataError, match=r"mask\.jpg: JPEG alters ids\. Write masks as PNG"):
        read_ids(tmp_path / "mask.jpg")


def test_masks_of_another_size_are_refused(tmp_path: Path) -> None:
    color, mask = tmp_path / "a.jpg", tmp_path / "a.png"
    Image.fromarray(noise(16, 24)).save(color)
    for shape in ((16, 24), (16, 23), (24, 16)):
        Image.fromarray(np.zeros(shape, np.uint8)).save(mask)
        if shape == (16, 24):
            assert read_ids(mask, like=color).shape == shape
            continue
        with pytest.raises(DataError, match=f"{mask}: is {shape[1]}x{shape[0]}, its image {color} is 24x16") as info:
            read_ids(mask, like=color)
        assert ("rotate it, too" in str(info.value)) == (shape == (24, 16))
    Image.fromarray(noise(16, 24)).save(color, exif=turned(6))
    assert read_ids(mask, like=color).shape == (24, 16)
    with pytest.raises(DataError, match="the mask: is 3x2"):
        check_size((2, 3), "the mask", (4, 4), "the image")


@pytest.mark.parametrize("read", [read_rgb, read_ids, image_size])
@pytest.mark.parametrize("damage", ["text", "empty", "gone", "folder", "huge"])
def test_what_is_no_image_is_named(tmp_path: Path, read: Any, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bad.png"
    if damage == "folder":
        path.mkdir()
    elif damage == "huge":
        Image.new("L", (64, 64)).save(path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    elif damage != "gone":
        path.write_text("no image" if damage == "text" else "")
    with pytest.raises(DataError, match=f"{path}: not a readable image"):
        read(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of pillow, about the damage
@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.data())
def test_damaged_bytes_never_pass_as_another_size(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    """Cut or altered files give ids of the right size (a flipped pixel cannot be seen) or a DataError, nothing else."""
    path, color = tmp_path / f"a.{suffix}", tmp_path / "color.png"
    Image.fromarray(noise(12, 7)[..., 0]).save(path)
    Image.fromarray(noise(12, 7)).save(color)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        assert read_ids(path, like=color).shape == (12, 7)
    except DataError as error:
        assert str(path) in str(error)


def test_cut_png_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(noise(40, 40)[..., 0]).save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 40, 50):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="not a readable image"):
            read_ids(path)
