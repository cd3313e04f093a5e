"""Views that differ by a few pixels, as undistortion gives them, are taken by prepare, the estimate and check alike."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pri3d.api.prepare import prepare
from pri3d.checking.evidence import Shots
from pri3d.errors import DataError, FrameError
from pri3d.preparation.frames import match_sizes
from pri3d.recordings import open_recording
from pri3d.store import Store
from pri3d.testing.reader import rendered

sys.path.insert(0, str(Path(__file__).parents[1] / "recordings"))

from samples_outdoor import write_ngp

FLAGS = {"size": "48x36", "distance": 0.1, "voxel": 0.1, "min_overlap": 0.02, "processes": 1}
CUTS = {1: (1, 0, 48, 34), 2: (2, 1, 47, 36)}  # left, top, right, bottom of two views


def undistorted(root: Path, cuts: dict[int, tuple[int, int, int, int]]) -> Path:
    """A recording with a camera for each view, some of which are cut by a pixel or two."""
    write_ngp(root)
    stated = json.loads((root / "transforms.json").read_text())
    for k, box in cuts.items():
        for path in (root / f"rgb/{k}.jpg", root / f"depth/{k}.png"):
            with Image.open(path) as image:
                image.crop(box).save(path, **({"quality": 98} if path.suffix == ".jpg" else {}))
        frame = stated["frames"][k]
        frame |= {"w": box[2] - box[0], "h": box[3] - box[1], "cx": frame["cx"] - box[0], "cy": frame["cy"] - box[1]}
    (root / "transforms.json").write_text(json.dumps(stated))
    return root


def test_they_are_resampled_and_pair_as_the_whole_ones(tmp_path: Path) -> None:
    for name, cuts in (("whole", {}), ("cut", CUTS)):
        prepare([undistorted(tmp_path / name, cuts)], tmp_path / f"{name}-out", **FLAGS)
    whole, cut = (Store(tmp_path / f"{name}-out") for name in ("whole", "cut"))
    assert (cut.manifest["scenes"]["cut"]["frames"], cut.manifest["scenes"]["cut"]["rejected"]) == (3, 0)
    tables = [(p.i.tolist(), p.j.tolist(), p.overlap) for p in (store.pairs() for store in (whole, cut))]
    assert tables[0][:2] == tables[1][:2]
    np.testing.assert_allclose(tables[0][2], tables[1][2], atol=0.06)
    shots = Shots(open_recording(tmp_path / "cut").scenes()[0])
    assert all(shots.get(k) is not None for k in range(3))


def test_every_pixel_looks_where_it_did() -> None:
    """The ray of a resampled pixel is that of the pixel it was taken from, within half a pixel."""
    frame = rendered()[1]
    left, top, right, bottom = 1, 0, 48, 34
    box = np.s_[top:bottom, left:right]
    camera = frame.color_camera._replace(
        width=47, height=34, cx=frame.color_camera.cx - left, cy=frame.color_camera.cy - top
    )
    confidence = np.arange(34 * 47, dtype=np.int64).reshape(34, 47).astype(np.uint8)
    cut = frame._replace(
        color=frame.color[box], depth=frame.depth[box], label=frame.label[box], instance=frame.instance[box],
        confidence=confidence, color_camera=camera, depth_camera=camera, color_jpeg=b"as it was",
    )  # fmt: skip
    found = match_sizes(cut, (48, 36), (48, 36))
    for image in (found.color, found.depth, found.label, found.instance, found.confidence):
        assert image.shape[:2] == (36, 48)
    assert found.color_jpeg is None
    k = found.depth_camera
    rows, columns = np.mgrid[0:36, 0:48] + 0.5
    x, y = (columns - k.cx) / k.fx * camera.fx + camera.cx, (rows - k.cy) / k.fy * camera.fy + camera.cy
    np.testing.assert_array_equal(found.depth, cut.depth[y.astype(int), x.astype(int)])
    assert match_sizes(frame, (48, 36), (48, 36)) is frame
    assert match_sizes(cut._replace(color_jpeg=b"x"), (47, 34), (48, 36)).color_jpeg == b"x"


def test_another_shape_is_refused_and_the_reasons_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = undistorted(tmp_path / "mixed", {1: (8, 0, 48, 36), 2: (0, 6, 48, 36)})
    scene = open_recording(root).scenes()[0]
    with pytest.raises(FrameError, match="colour image is 40x36, its size differs from the first frame's, 48x36"):
        match_sizes(scene.frame(1), (48, 36), (48, 36))
    with pytest.raises(DataError, match="its size differs"):
        prepare([root], tmp_path / "none", **FLAGS)
    prepare([root], tmp_path / "out", **{**FLAGS, "pairs": False, "surface": False})
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "frames rejected" in line)
    assert line.startswith("mixed: 2 of 3 frames rejected: 1: its colour image is 40x36")
    assert "; 2: its colour image is 48x30" in line
