"""The records that travel between folders: plain named tuples, every field with shape, unit and frame.

Conventions (stated in :mod:`pri3d.geometry.camera` and :mod:`pri3d.geometry.pose`): metres, OpenCV camera axes
(x right, y down, z forward), pixel centres at integer + 0.5, a transform ``a_from_b`` maps points of frame b to
frame a, depth is z with 0 = invalid, label 255 = ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


class Camera(NamedTuple):
    """Pinhole intrinsics of an image of a given size."""

    width: int  #: pixels
    height: int  #: pixels
    fx: float  #: pixels
    fy: float  #: pixels
    cx: float  #: pixels, of the pixel-centre-at-+0.5 grid
    cy: float  #: pixels

    def resized(self, width: int, height: int) -> Camera:
        """Intrinsics of the same view sampled at ``width`` x ``height``; exact because pixel centres lie at +0.5."""
        sx, sy = width / self.width, height / self.height
        return Camera(width, height, self.fx * sx, self.fy * sy, self.cx * sx, self.cy * sy)


class Frame(NamedTuple):
    """One posed RGB-D frame as a reader states it, before any resampling."""

    name: str  #: unique in its scene; sorted names are in time order
    color: NDArray[np.uint8]  #: (H, W, 3) RGB of the colour camera
    depth: NDArray[np.float32]  #: (h, w) metres along z of the depth camera, 0 = invalid
    color_camera: Camera  #: intrinsics of ``color``
    depth_camera: Camera  #: intrinsics of ``depth``
    color_from_depth: NDArray[np.float64]  #: (4, 4) depth-camera points -> colour camera
    world_from_camera: NDArray[np.float64]  #: (4, 4) colour-camera points -> world
    label: NDArray[np.uint8] | None = None  #: (H, W) class ids in the colour camera, 255 = ignored
    instance: NDArray[np.uint16] | None = None  #: (H, W) instance ids in the colour camera, 0 = none
    color_jpeg: bytes | None = None  #: the RGB JPEG that gave ``color``, to be stored as it is where the size stays
    confidence: NDArray[np.uint8] | None = None  #: (h, w) how far the device trusts ``depth``, 0..100 percent


class View(NamedTuple):
    """One prepared frame: depth registered into the colour camera, both of the stored size."""

    color: NDArray[np.uint8]  #: (H, W, 3) RGB
    depth: NDArray[np.float32]  #: (H, W) metres, 0 = invalid
    intrinsics: NDArray[np.float64]  #: (4,) fx, fy, cx, cy in pixels of (H, W)
    world_from_camera: NDArray[np.float64]  #: (4, 4)
    name: str  #: frame name


class Voxels(NamedTuple):
    """Occupied voxels of a surface; cell c covers [c, c+1) * size, its centre is (c + 0.5) * size."""

    cells: NDArray[np.int32]  #: (V, 3) integer world cells x, y, z, lexicographically sorted, unique
    size: float  #: edge length, metres
    color: NDArray[np.uint8] | None = None  #: (V, 3) RGB of the cells, where the source has it


class Instances(NamedTuple):
    """The N countable objects of one image."""

    masks: NDArray[np.bool_]  #: (N, H, W)
    boxes: NDArray[np.float32]  #: (N, 4) x0, y0, x1, y1 in pixels: pixel i covers [i, i + 1)
    classes: NDArray[np.int64]  #: (N,) 0..K-1 of the countable classes
    crowd: NDArray[np.bool_]  #: (N,) True where a mask covers a group that is neither to be learnt nor to be missed


class Detections(NamedTuple):
    """What a network finds in one image: N objects, best first, in pixels of that image."""

    masks: NDArray[np.bool_]  #: (N, H, W)
    boxes: NDArray[np.float32]  #: (N, 4) x0, y0, x1, y1
    classes: NDArray[np.int64]  #: (N,) 0..K-1 of the countable classes
    scores: NDArray[np.float32]  #: (N,) 0..1


class PairBatch(NamedTuple):
    """B pairs for pre-training. World coordinates are per pair: shifted by a whole number of voxels near camera a."""

    color: torch.Tensor  #: (B, K, 3, H, W) float 0..1, augmented: one image for each of ``views``
    depth: torch.Tensor  #: (B, 2, H, W) metres, 0 = invalid
    intrinsics: torch.Tensor  #: (B, 2, 4) fx, fy, cx, cy in pixels of (H, W)
    world_from_camera: torch.Tensor  #: (B, 2, 4, 4)
    voxel_cells: (
        torch.Tensor
    )  #: (V, 4) int32: chunk, x, y, z; rows sorted; V may be 0; chunk = chunks a pair * b + view
    voxel_color: torch.Tensor  #: (V, 3) uint8 RGB, zeros where the source has no colour
    voxel_size: torch.Tensor  #: () metres
    seeds: torch.Tensor  #: (B,) int64, every random choice inside a sample derives from it
    names: list[str]  #: B strings "scene/frame_a+frame_b", for error messages
    views: tuple[str, ...] = ("first", "second")  #: of these, in this order: frame a, frame b, "copy": a recoloured
    crops: torch.Tensor | None = None  #: (B, 2, 3, S, S) float 0..1, two crops of frame a; (B, 0, ...) for none
    clean: torch.Tensor | None = None  #: (B, 2, 3, H, W) float 0..1, both frames not augmented; (B, 0, ...) for none


class CropBatch(NamedTuple):
    """B images for instance discrimination (MoCo): two random crops of each."""

    crops: torch.Tensor  #: (B, 2, 3, S, S) float 0..1, augmented: query and key
    names: list[str]  #: B strings, for error messages


class LabelledBatch(NamedTuple):
    """B labelled images for semantic fine-tuning."""

    color: torch.Tensor  #: (B, 3, H, W) float 0..1
    label: torch.Tensor  #: (B, H, W) int64, 255 = ignored
    names: list[str]  #: B strings "scene/frame"


class InstanceBatch(NamedTuple):
    """B images with their objects for instance segmentation; sizes may differ."""

    images: list[torch.Tensor]  #: B times (3, H, W) float 0..1
    boxes: list[torch.Tensor]  #: B times (N, 4) float x0, y0, x1, y1 in pixels of (H, W)
    classes: list[torch.Tensor]  #: B times (N,) int64 0..K-1 of the countable classes
    masks: list[torch.Tensor]  #: B times (N, H, W) uint8 0 or 1
    names: list[str]  #: B strings
