"""What readers build their scenes of: opened late, put together and checked, distortion undone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sample_frames import HEIGHT, WIDTH, rendered

from pri3d.errors import DataError, FrameError, IntrinsicsError
from pri3d.geometry.warping import Lens
from pri3d.recordings._shared.cameras import Cameras, Intrinsics, same_camera
from pri3d.recordings._shared.files import Origin, build_frame
from pri3d.recordings._shared.scenes import FrameList, LazyScene
from pri3d.types import Frame

ORIGIN = Origin("a.jpg", "a.png", "poses.txt")


def cameras(lens: Lens | None = None, depth_lens: Lens | None = None) -> Cameras:
    camera = rendered()[0].color_camera
    color, depth = (Intrinsics(*camera[2:], lens=lens) for lens in (lens, depth_lens))
    return Cameras(color, depth, np.eye(4))


def build(given: Cameras, **changes: object) -> Frame:
    truth = rendered()[0]
    parts = {"color": truth.color, "depth": truth.depth, "pose": truth.world_from_camera, **changes}
    more = {name: value for name, value in parts.items() if name not in ("color", "depth", "pose")}
    return build_frame("a", parts["color"], parts["depth"], parts["pose"], given, ORIGIN, **more)


def test_a_scene_is_opened_when_it_is_asked(tmp_path: Path) -> None:
    opened = []

    def opener() -> FrameList:
        opened.append(1)
        return FrameList(["b", "a"], lambda name: rendered()[0]._replace(name=name))

    scene = LazyScene("one", opener, tmp_path / "mesh.ply", split="val")
    assert (scene.id, scene.split, scene.posed, scene.metric, scene.mesh(), opened) == (
        "one",
        "val",
        True,
        True,
        None,
        [],
    )
    assert list(scene.names) == ["a", "b"]
    assert scene.frame(1).name == "b"
    assert len(opened) == 1
    (tmp_path / "mesh.ply").touch()
    assert scene.mesh() == tmp_path / "mesh.ply"


def test_a_scene_that_cannot_be_opened_says_so_each_time() -> None:
    def opener() -> FrameList:
        raise DataError("poses.txt: no such file.")

    scene = LazyScene("one", opener)
    for _ in range(2):
        with pytest.raises(DataError, match=r"poses\.txt"):
            _ = scene.names


def test_what_does_not_fit_is_named() -> None:
    small = np.zeros((5, 7), np.uint8)
    with pytest.raises(FrameError, match=r"a\.png: depth is 48x36, its confidence 7x5"):
        build(cameras(), confidence=small)
    with pytest.raises(FrameError, match=r"poses\.txt: the pose is not finite"):
        build(cameras(), pose=np.full((4, 4), np.nan))
    with pytest.raises(IntrinsicsError, match=r"a\.jpg: is 96x72, but the camera's centre"):
        build(same_camera(Intrinsics(50, 50, 90, 18)), color=np.zeros((72, 96, 3), np.uint8))
    with pytest.raises(IntrinsicsError, match=r"a\.png: is 48x36, but the camera is stated as 40x30"):
        build(cameras()._replace(depth=Intrinsics(50, 50, 20, 15, 40, 30)))


def test_a_frame_without_depth_has_an_empty_one() -> None:
    frame = build(cameras(), depth=None)
    assert frame.depth.shape == (HEIGHT, WIDTH)
    assert not frame.depth.any()
    assert frame.depth_camera == frame.color_camera


def test_distortion_is_undone_in_each_camera() -> None:
    lens = Lens("radial", (-0.3, 0.1, 0.0, 0.0))
    ids = np.full((HEIGHT, WIDTH), 3, np.uint8)
    inward = Lens("radial", (0.6, 0.0, 0.0, 0.0))  # its corners were never seen
    plain = build(cameras(), label=ids, color_jpeg=b"jpeg")
    assert plain.color_jpeg == b"jpeg"
    of_color = build(cameras(inward), label=ids, instance=ids.astype(np.uint16), color_jpeg=b"jpeg")
    assert of_color.color_jpeg is None, "the source's own bytes are distorted"
    assert not of_color.color[0, 0].any()
    assert (of_color.label[0, 0], of_color.label[HEIGHT // 2, WIDTH // 2]) == (255, 3)
    assert (of_color.instance[0, 0], of_color.instance[HEIGHT // 2, WIDTH // 2]) == (0, 3)
    assert np.array_equal(of_color.depth, plain.depth)
    of_depth = build(cameras(depth_lens=lens), confidence=np.full((HEIGHT, WIDTH), 100, np.uint8))
    assert np.array_equal(of_depth.color, plain.color)
    assert not np.array_equal(of_depth.depth, plain.depth)
    assert set(np.unique(of_depth.depth)) <= {0.0, *np.unique(plain.depth)}, "depth is never mixed"
