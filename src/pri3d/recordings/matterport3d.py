"""Matterport3D (Chang et al. 2017): the undistorted images of panoramic scans of houses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pri3d.errors import DataError
from pri3d.geometry.pose import OPENGL_FLIP
from pri3d.recordings._shared.cameras import Cameras, Intrinsics, from_matrix, same_camera
from pri3d.recordings._shared.files import Origin, build_frame, read_color, read_depth
from pri3d.recordings._shared.scenes import LazyScene, PosedList, SceneReader
from pri3d.recordings._shared.text import clean_id, inside, numbers, read_words
from pri3d.types import Frame

UNITS = 4000  #: of the depth images, per metre
_PARAMETERS, _COLOR, _DEPTH = (f"undistorted_{part}" for part in ("camera_parameters", "color_images", "depth_images"))
_DOWNLOAD_FOLDERS = ("scans", "v1/scans")  # where the download script puts houses
# The houses of the benchmark's validation and test lists; the other 61 of the 90 are for training.
_VAL = (
    "2azQ1b91cZZ 8194nk5LbLH EU6Fwq7SyZv QUCTc6BB5sX TbHJrupSAjP X7HyMhZNoso Z6MFQCViBuw oLBMNvg9in8 pLe4wQe7qrG "
    "x8F5xyUWy9e zsNo4HB9uLZ"
)
_TEST = (
    "2t7WUuJeko7 5ZKStnWn8Zo ARNzJeq3xxb RPmz2sHmrrY UwV83HsGsw3 Vt2qJdWjCF2 WYY7iVyf5p8 YFuZgdQ5vWj YVUC4YcDtcY "
    "fzynW3qQPVF gYvKGZ5eRqb gxdoqLR6rwA jtcxE69GiFV pa4otMbVnkk q9vSo1VnCiC rqfALeAoiTq wc2JMjhGNzB yqstnuAEVhm"
)
OFFICIAL = {**dict.fromkeys(_VAL.split(), "val"), **dict.fromkeys(_TEST.split(), "test")}  #: house -> "val" or "test"


class StatedImage(NamedTuple):
    """One image as the .conf file states it."""

    color: Path
    depth: Path
    pose: NDArray[np.float64]  #: (4, 4) camera to world, OpenCV axes
    camera: Intrinsics  #: whose cy counts from the lower edge of the image


class Matterport3dReader(SceneReader):
    """HOUSE/undistorted_color_images/*.jpg, undistorted_depth_images/*.png, undistorted_camera_parameters/HOUSE.conf.

    The recording is a house, or a folder of houses, which may lie in its ``scans`` or ``v1/scans``. Lines of the
    .conf file are ``n_images N``, ``intrinsics_matrix`` with 9 numbers, which holds for the images after it, and
    ``scan DEPTH COLOR`` with 16 numbers, camera to world, metres, whose camera has OpenGL's axes (x right, y up,
    looking along -z). The images' origin is their lower left corner with centres at integers: cx gets 0.5 more on our
    grid, and cy becomes height - (cy + 0.5); the numbers of a cameras.yaml count from the upper left corner as any of
    ours. Depth is registered to colour, along z, 16 bits, 4000 units a metre, 0 where there is none. All of this is
    from the data set's own description of its folders.

    house_segmentations/HOUSE.ply, else poisson_meshes/HOUSE.ply, is the surface. Only houses of ``split`` are read, by
    the lists of the benchmark. The images are those of panoramas, not of a video: neighbours overlap little.
    """

    looks_for: ClassVar[str] = "undistorted_camera_parameters/HOUSE.conf beside undistorted_color_images (Matterport3D)"
    splits: ClassVar[bool] = True

    @staticmethod
    def is_scene(path: Path) -> bool:
        """Whether the folder is a house."""
        return (path / _COLOR).is_dir() and next((path / _PARAMETERS).glob("*.conf"), None) is not None

    @classmethod
    def find(cls, path: Path) -> Iterator[Path]:
        """The recording itself where it is a house, else those in it, else those where downloads lie."""
        for place in (path, *(path / name for name in _DOWNLOAD_FOLDERS)):
            found = list(super().find(place))
            yield from found
            if found:
                return

    def scene(self, source: Path) -> LazyScene:
        """The scene of a house, with its mesh and official split."""
        name = _conf(source).stem
        meshes = [source / part / f"{name}.ply" for part in ("house_segmentations", "poisson_meshes")]
        mesh = next((path for path in meshes if path.is_file()), None)
        return LazyScene(clean_id(name), lambda: self.open(source, self.stated(source)), mesh, split=OFFICIAL.get(name))

    def open(self, source: Path, given: Cameras | None) -> PosedList:
        """Raises DataError where the .conf file is missing, cut off or damaged."""
        conf = _conf(source)
        views = _read(source, conf)
        return PosedList(
            list(views),
            lambda name: _load(name, views[name], given, conf),
            lambda name: views[name].pose,
            given,
            str(conf),
        )


def _conf(folder: Path) -> Path:
    """The house's file of cameras: the only .conf there, else the one named like the folder."""
    found = sorted(p for p in (folder / _PARAMETERS).glob("*.conf") if not p.name.startswith("."))
    return found[0] if len(found) == 1 else folder / _PARAMETERS / f"{folder.resolve().name}.conf"


def _read(folder: Path, conf: Path) -> dict[str, StatedImage]:
    """Image name -> what the .conf file says. Raises DataError where it is missing, cut off or damaged."""
    views: dict[str, StatedImage] = {}
    camera, count = None, 0.0
    for words in read_words(conf):
        if words[0] == "n_images":
            count = float(numbers(words[1:2], (1,), f"{conf}: n_images")[0])
        elif words[0] == "intrinsics_matrix":
            camera = from_matrix(numbers(words[1:], (9,), f"{conf}: intrinsics_matrix").reshape(3, 3), str(conf))
        elif words[0] == "scan" and len(words) > 2:
            if camera is None:
                raise DataError(f"{conf}: image {words[2][:80]} stands before any intrinsics_matrix.")
            pose = numbers(words[3:], (16,), f"{conf}: {words[2][:80]}").reshape(4, 4) * OPENGL_FLIP.diagonal()
            depth, color = inside(folder / _DEPTH, words[1], conf), inside(folder / _COLOR, words[2], conf)
            views[clean_id(color.stem)] = StatedImage(color, depth, pose, camera)
    if not views or count > len(views):
        raise DataError(f"{conf}: holds {len(views)} images, {count:g} are stated; is the file truncated?")
    return views


def _load(name: str, view: StatedImage, given: Cameras | None, conf: Path) -> Frame:
    """Read one image with its depth. Raises FrameError naming the file that is missing, damaged or of another size."""
    color = read_color(view.color)
    upright = view.camera._replace(cy=color.shape[0] - view.camera.cy)
    cameras = given or same_camera(upright)._replace(depth_scale=1 / UNITS)
    depth = read_depth(view.depth, cameras.depth_scale)
    origin = Origin(str(view.color), str(view.depth), f"{conf}: {name}")
    return build_frame(name, color, depth, view.pose, cameras, origin)
