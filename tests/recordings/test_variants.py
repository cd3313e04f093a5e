"""Depth, colour and text as other systems write them: the same frames, whichever way they are written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sample_frames import FRAMES, rendered
from samples import SAMPLES
from samples_desk import START, write_tum
from samples_outdoor import write_nerfstudio

from pri3d.errors import DataError, FrameError
from pri3d.recordings import name_left_out, open_recording
from pri3d.recordings._shared.files import read_depth, read_matrix
from pri3d.recordings._shared.text import read_text, read_words


def save_depth(path: Path, metres: np.ndarray) -> None:
    if path.suffix.lower() == ".npy":
        with path.open("wb") as file:
            np.save(file, metres)
    elif path.suffix == ".exr":
        import OpenEXR  # noqa: PLC0415 (an extra)

        OpenEXR.File({}, {"Z": metres.astype(np.float32)}).write(str(path))
    else:
        with path.open("wb") as file:
            Image.fromarray(metres.astype(np.float32)).save(file, "TIFF")


@pytest.mark.parametrize("ending", [".npy", ".tiff", ".tif", ".TIFF", ".NPY", ".exr"])
@pytest.mark.parametrize("name", ["folder", "sevenscenes", "open3d", "polycam", "colmap-txt"])
def test_float_depth_in_metres_for_every_reader(name: str, ending: str, tmp_path: Path) -> None:
    if name not in SAMPLES:
        pytest.skip("no such sample")
    if ending == ".exr":
        pytest.importorskip("OpenEXR", reason='pip install "pri3d[exr]"')
    root = SAMPLES[name](tmp_path / "r").root
    for path in sorted(root.rglob("*.png")):
        if "depth" in (path.parent.name, path.name.split(".")[-2]):
            with Image.open(path) as image:
                raw = np.asarray(image, np.float64)
            save_depth(path.with_suffix(ending), np.where(raw == 65535, np.nan, raw / 1000))
            path.unlink()
    scene = open_recording(root).scenes()[0]
    for k, truth in enumerate(rendered()):
        np.testing.assert_allclose(scene.frame(k).depth, truth.depth, atol=6e-4)


def test_npy_of_a_nerfstudio_list(tmp_path: Path) -> None:
    """Metres, whatever the scale of its 16-bit images."""
    root = write_nerfstudio(tmp_path).root
    stated = json.loads((root / "transforms.json").read_text())
    for frame in stated["frames"]:
        path = root / frame["depth_file_path"]
        with Image.open(path) as image:
            save_depth(path.with_suffix(".npy"), np.asarray(image, np.float32)[..., None] / 1000)
        frame["depth_file_path"] = frame["depth_file_path"].replace(".png", ".npy")
    (root / "transforms.json").write_text(json.dumps(stated))
    np.testing.assert_allclose(open_recording(root).scenes()[0].frame(0).depth, rendered()[0].depth, atol=6e-4)


def test_damaged_arrays_are_named(tmp_path: Path) -> None:
    path = tmp_path / "0.npy"
    for array in (np.zeros((3, 4), np.int64), np.zeros((3, 4, 3), np.float32), np.zeros(5), np.array({"a": 1})):
        np.save(path, array, allow_pickle=True)
        with pytest.raises(FrameError, match=r"0\.npy: is not readable depth"):
            read_depth(path, 0.001)
    np.save(path, np.full((3, 4), 1500, np.uint16))
    np.testing.assert_allclose(read_depth(path, 0.001), 1.5)
    np.save(path, np.array(((np.inf, np.nan, -1.0, 70.0, 2.0),)))
    np.testing.assert_array_equal(read_depth(path, 0.001), ((0, 0, 0, 0, 2),))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(FrameError, match="bytes of shape"):
        read_depth(path, 0.001)


def test_channels_of_exr(tmp_path: Path) -> None:
    exr = pytest.importorskip("OpenEXR", reason='pip install "pri3d[exr]"')
    path, depth = tmp_path / "1.exr", rendered()[0].depth
    for channels in (
        {"Z": depth},
        {"RGB": np.stack((depth,) * 3, axis=-1)},  # grey, as Blender writes it where its nodes say nothing else
        {"R": np.zeros_like(depth), "G": np.ones_like(depth), "depth.V": depth},
        {"Y": depth.astype(np.float16)},
        {"R": depth},
    ):
        exr.File({}, channels).write(str(path))
        close = 2e-3 if "Y" in channels else 0
        np.testing.assert_allclose(read_depth(path, 5.0), depth, rtol=close)  # floats are metres, whatever the scale
        np.testing.assert_array_equal(read_depth(tmp_path / "1.png", 0.001), read_depth(path, 0.001))
    exr.File({}, {"R": depth, "G": depth + 1, "B": depth}).write(str(path))
    with pytest.raises(FrameError, match=r"1\.exr: holds the channels B, G, R; depth is the one"):
        read_depth(path, 0.001)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FrameError, match=r"1\.exr: is no readable OpenEXR image"):
        read_depth(path, 0.001)


def test_exr_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    (tmp_path / "1.exr").write_bytes(b"v/1\x01")
    with pytest.raises(FrameError, match=r'1\.exr: depth in \.exr is read by OpenEXR: pip install "pri3d\[exr\]"'):
        read_depth(tmp_path / "1.png", 0.001)


@pytest.mark.parametrize("ending", [".webp", ".JPG", ".PNG", ".WEBP"])
@pytest.mark.parametrize("name", ["folder", "open3d"])
def test_colour_of_other_endings(name: str, ending: str, tmp_path: Path) -> None:
    root = SAMPLES[name](tmp_path).root
    for path in sorted((root / "color").iterdir()):
        with Image.open(path) as image:
            pixels = image.convert("RGB")
        path.unlink()
        with path.with_suffix(ending).open("wb") as file:
            pixels.save(
                file,
                {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[ending.lower()],
                quality=98,
                lossless=True,
                **({"subsampling": 0} if ending == ".JPG" else {}),
            )
    frame = open_recording(root).scenes()[0].frame(0)
    assert np.abs(frame.color.astype(int) - rendered()[0].color).mean() < 8


POSE = np.array(((1, 0, 0, 0.5), (0, 1, 0, -0.25), (0, 0, 1, 1.5), (0, 0, 0, 1)))
PLAIN = "1 0 0 0.5\n0 1 0 -0.25\n0 0 1 1.5\n0 0 0 1\n"
MATRICES = {
    "plain": PLAIN.encode(),
    "Windows line ends": PLAIN.replace("\n", "\r\n").encode(),
    "UTF-8 with a mark": b"\xef\xbb\xbf" + PLAIN.encode(),
    "UTF-16": PLAIN.encode("utf-16"),
    "commas": PLAIN.replace(" ", ", ").encode(),
    "semicolons": PLAIN.replace(" ", "; ").encode(),
    "NumPy's print": b"[[1. 0. 0. 0.5]\n [0. 1. 0. -0.25]\n [0. 0. 1. 1.5]\n [0. 0. 0. 1.]]",
    "JSON": b"[[1, 0, 0, 0.5], [0, 1, 0, -0.25], [0, 0, 1, 1.5], [0, 0, 0, 1]]",
    "decimal commas": b"1,0 0,0 0,0 0,5\n0,0 1,0 0,0 -0,25\n0,0 0,0 1,0 1,5\n0,0 0,0 0,0 1,0\n",
    "comment": b"# camera to world\n" + PLAIN.encode(),
    "exponents": b"1e0 0 0 5e-1 0 1 0 -2.5E-1 0 0 1 1.5e+00 0 0 0 1",
    "3 x 4": PLAIN.removesuffix("0 0 0 1\n").encode(),
}


@pytest.mark.parametrize("case", MATRICES)
def test_matrices_of_every_writer(case: str, tmp_path: Path) -> None:
    path = tmp_path / "pose.txt"
    path.write_bytes(MATRICES[case])
    np.testing.assert_allclose(read_matrix(path, (4, 4)), POSE)


@pytest.mark.parametrize("text", ["585 0 320\n0 585 240\n0 0 1", "585 0 320 0\n0 585 240 0\n0 0 1 0",
                                  "585 0 320 0 0 585 240 0 0 0 1 0 0 0 0 1", "585, 585, 320, 240"])  # fmt: skip
def test_intrinsics_of_every_writer(text: str, tmp_path: Path) -> None:
    path = tmp_path / "camera-intrinsics.txt"
    path.write_text(text)
    np.testing.assert_array_equal(read_matrix(path, (3, 3)), ((585, 0, 320), (0, 585, 240), (0, 0, 1)))
    path.write_text("585 585 320")
    with pytest.raises(FrameError, match="holds 3 numbers, expected 3 x 3"):
        read_matrix(path, (3, 3))


def test_text_with_marks_and_commas(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for data in ("1, 2\r\nb\u00e9 # c\r\n".encode(), "1, 2\nb\u00e9\n".encode("utf-16"), b"\xef\xbb\xbf1,2\nb\xc3\xa9"):
        path.write_bytes(data)
        assert read_words(path) == [["1", "2"], ["b\u00e9"]]
    path.write_bytes(b"\xe9\x00\xff")
    with pytest.raises(DataError, match="is not text"):
        read_text(path)


@pytest.mark.parametrize("unit", [1e3, 1e6, 1e9])
def test_lists_of_other_units_separators_and_machines(unit: float, tmp_path: Path) -> None:
    """Milli-, micro- and nanoseconds, commas, backslashes and paths from the root of another machine."""
    root = write_tum(tmp_path).root
    prefixes = {"rgb": "C:\\captures\\desk\\", "depth": "/home/other/desk/"}
    for part in ("rgb", "depth", "groundtruth"):
        lines = []
        for words in read_words(root / f"{part}.txt"):
            stamp = str(round(float(words[0]) * unit))
            rest = words[1:] if part == "groundtruth" else [prefixes[part] + words[1]]
            lines.append(",".join([stamp, *([r.replace("/", "\\") if part == "rgb" else r for r in rest])]))
        (root / f"{part}.txt").write_text("\r\n".join(lines))
    scene = open_recording(root).scenes()[0]
    assert [float(name) for name in scene.names] == pytest.approx([START + k / 30 for k in range(FRAMES)], abs=2e-3)
    np.testing.assert_allclose(scene.frame(1).depth, rendered()[1].depth, atol=6e-4)


def test_quaternions_whose_heading_puts_w_first(tmp_path: Path) -> None:
    """As EuRoC's: a heading names the columns."""
    sample = write_tum(tmp_path)
    rows = [words for words in read_words(sample.pose)]
    swapped = [" ".join([*row[:4], row[7], *row[4:7]]) for row in rows]
    heading = "#timestamp [ns],p_x [m],p_y [m],p_z [m],q_RS_w [],q_RS_x [],q_RS_y [],q_RS_z []"
    sample.pose.write_text("\n".join([heading, *swapped]))
    pose = open_recording(sample.root).scenes()[0].pose(1)
    np.testing.assert_allclose(pose, rendered()[1].world_from_camera, atol=1e-6)


def test_files_that_no_reader_takes_are_counted(tmp_path: Path) -> None:
    root = SAMPLES["folder"](tmp_path / "r").root
    assert name_left_out(root) == ""  # images, poses and cameras.yaml
    for name in ("color/0.heic", "color/1.HEIC", "more/scan.usdz", ".hidden.heic", "notes.txt", "mesh.ply"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    assert name_left_out(root) == f"{root}: left out, since no reader takes files of this kind: 2 .heic, 1 .usdz"
