"""Linear probes: how much of depth, normals and classes a linear map reads off frozen features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from pri3d.data.augment import to_tensor
from pri3d.geometry.camera import pixel_centres
from pri3d.geometry.resize import resize_color, resize_nearest
from pri3d.labelled import LabelledImages
from pri3d.labelled.spaces import IGNORED
from pri3d.networks.encoders import enlarge
from pri3d.probing.networks import Dense, check_finite
from pri3d.schedules import factor
from pri3d.store import PairTable, Store
from pri3d.tasks.semantic import Confusion

BATCH = 8  #: images a step
LEARNING_RATE = 1e-2  #: at the first step; falls to 0 along half a cosine
WEIGHT_DECAY = 1e-2
_SPREAD = 1e-6  # smallest deviation of a channel that is scaled to 1
WINDOW = 5  #: pixels on a side, to which a plane is fitted for a normal
ROUGHNESS = 0.02  #: root mean square distance from that plane, as a share of the depth, above which there is none
DEGREES = (11.25, 22.5, 30.0)
RATIO = 1.25  #: of depths, for delta 1 to 3


class DepthScore(NamedTuple):
    """Predicted against measured depth over all measured pixels."""

    rmse: float  #: metres
    delta1: float  #: share 0..1 of pixels whose larger depth is less than 1.25 times the smaller
    delta2: float  #: 1.25 to the power of 2
    delta3: float
    pixels: int


class NormalScore(NamedTuple):
    """Angle between predicted and measured normals over all pixels that have one."""

    mean: float  #: degrees
    median: float
    below_11: float  #: share 0..1 of pixels with less than 11.25 degrees
    below_22: float  #: 22.5
    below_30: float
    pixels: int


class SegmentationScore(NamedTuple):
    """Classes of labelled pixels."""

    miou: float  #: 0..1, over the classes that occur
    accuracy: float  #: share 0..1 of pixels
    classes: int  #: that occur


class DepthErrors:
    """Gathers :class:`DepthScore` on the device."""

    def __init__(self) -> None:
        self.sums: list[Tensor] = []

    def update(self, predicted: Tensor, true: Tensor) -> None:
        """Add images of metres (..., H, W). Pixels whose true depth is 0 do not count.

        In ratios a prediction below 1 mm is 1 mm.
        """
        valid = true > 0
        square = torch.where(valid, predicted - true, 0.0).double().square().sum()
        near, true = predicted.clamp(min=1e-3), torch.where(valid, true, 1.0)
        ratio = torch.maximum(near / true, true / near)
        close = [(valid & (ratio < RATIO**k)).sum() for k in (1, 2, 3)]
        self.sums.append(torch.stack([square, *(x.double() for x in close), valid.sum().double()]))

    def result(self) -> DepthScore:
        """Scores, NaN where no pixel was measured."""
        square, *close, count = torch.stack(self.sums).sum(dim=0).tolist()
        if not count:
            return DepthScore(math.nan, math.nan, math.nan, math.nan, 0)
        one, two, three = (x / count for x in close)
        return DepthScore(math.sqrt(square / count), one, two, three, int(count))


class NormalErrors:
    """Gathers :class:`NormalScore` on the device."""

    def __init__(self) -> None:
        self.angles: list[Tensor] = []

    def update(self, predicted: Tensor, true: Tensor) -> None:
        """Add normals (B, 3, H, W): predicted of any length, true of length 1, or 0 where there is none."""
        valid = true.square().sum(dim=1) > 0.5
        # atan2, since arccos of float32 cannot tell angles below 0.02 degrees from 0
        a, b = F.normalize(predicted, dim=1), true
        angle = 2 * torch.atan2((a - b).norm(dim=1), (a + b).norm(dim=1))
        self.angles.append(torch.rad2deg(angle[valid]))

    def result(self) -> NormalScore:
        """Scores, NaN where no pixel has a normal."""
        angles = torch.cat(self.angles)
        if not len(angles):
            return NormalScore(math.nan, math.nan, math.nan, math.nan, math.nan, 0)
        one, two, three = (float((angles < end).double().mean()) for end in DEGREES)
        return NormalScore(float(angles.double().mean()), float(angles.median()), one, two, three, len(angles))


def surface_normals(depth: Tensor, intrinsics: Tensor, window: int = WINDOW) -> Tensor:
    """Normals of measured surfaces in camera axes (x right, y down, z forward), towards the camera.

    A plane is fitted to the pixels around each by least squares. The inverse depth of a plane is linear in the pixel,
    so the fit has a closed form and is exact for a plane at any slant. There is no normal where a pixel of the window
    is not measured or outside the image, or where they lie off the plane by more than ``ROUGHNESS`` of the depth (an
    edge).

    Args:
        depth: (B, H, W) metres, 0 = invalid.
        intrinsics: (B, 4) in pixels of (H, W).
        window: odd number of pixels.

    Returns:
        (B, 3, H, W) of length 1, or 0 where there is none.
    """
    height, width = depth.shape[-2:]
    reach = window // 2
    inverse = torch.where(depth > 0, 1 / depth.clamp(min=1e-6), 0.0)
    offset = torch.arange(-reach, reach + 1, device=depth.device, dtype=depth.dtype).expand(window, window)
    kernel = torch.stack((torch.ones_like(offset), offset, offset.mT))[:, None]
    padded = F.pad(inverse[:, None], (reach,) * 4)
    total, across, down = F.conv2d(padded, kernel).unbind(1)
    count, spread = window**2, float(offset.square().sum())
    mean, du, dv = total / count, across / spread, down / spread
    whole = -F.max_pool2d(F.pad(-(depth > 0).to(depth.dtype)[:, None], (reach,) * 4), window, 1)[:, 0] > 0
    # Differences from the centre, so that float32 does not cancel
    local = F.unfold(padded, window).view(len(depth), window**2, height, width) - mean[:, None]
    u, v = offset.flatten()[:, None, None], offset.mT.flatten()[:, None, None]
    rough = (local - du[:, None] * u - dv[:, None] * v).square().mean(dim=1).sqrt()
    valid = whole & (rough < ROUGHNESS * mean)
    fx, fy, cx, cy = intrinsics[:, :, None, None].unbind(1)
    x, y = pixel_centres(height, width, like=depth).unbind(-1)
    # 1 / z = n . (ray of the pixel) / distance
    normal = torch.stack((du * fx, dv * fy, mean - du * (x - cx) - dv * (y - cy)), dim=1)
    return torch.where(valid[:, None], -F.normalize(normal, dim=1), 0.0)


class ProbeFrames(NamedTuple):
    """N images in memory with what probes predict."""

    color: Tensor  #: (N, 3, H, W) uint8
    depth: Tensor  #: (N, H, W) metres, 0 = invalid
    normal: Tensor  #: (N, 3, H, W) of length 1, 0 = none
    label: Tensor  #: (N, H, W) uint8, 255 = ignored
    classes: int  #: that labels count, 0 where there are none


class LinearScores(NamedTuple):
    """Scores on held-out frames; None where it was not asked for."""

    depth: DepthScore | None = None
    normals: NormalScore | None = None
    segmentation: SegmentationScore | None = None


class FrozenMaps(NamedTuple):
    """Maps of a network over N images, of each level (N, C, h, w) float16 divided by its ``scale``."""

    levels: list[Tensor]
    scales: list[float]


def read_frames(
    store: Store, table: PairTable, rows: NDArray[np.int64], size: tuple[int, int], labels: LabelledImages | None
) -> ProbeFrames:
    """Read the frames of ``rows`` of a :func:`frame_table` at ``size`` (width, height); normals are made of depth.

    Raises DataError where the store is damaged or a label has a class without a name.
    """
    at = {name: k for k, name in enumerate(labels.names)} if labels else {}
    color, depth, cameras, label = [], [], [], []
    for row in track(rows.tolist(), description="reading frames", transient=True):
        scene = store.scene(str(table.scene[row]))
        view = scene.view(int(table.i[row]))
        height, width = view.depth.shape
        color.append(to_tensor(resize_color(view.color, size)))
        depth.append(torch.from_numpy(resize_nearest(view.depth, size)))
        cameras.append(torch.from_numpy(view.intrinsics * np.tile((size[0] / width, size[1] / height), 2)).float())
        k = at.get(f"{scene.id}/{view.name}")
        found = np.full((size[1], size[0]), IGNORED, np.uint8)
        if labels and k is not None:
            found = resize_nearest(labels.label(k), size)
        label.append(torch.from_numpy(found))
    stacked = torch.stack(depth)
    few = torch.split(stacked, 4), torch.split(torch.stack(cameras), 4)
    normal = torch.cat([surface_normals(*part) for part in zip(*few, strict=True)])
    classes = len(labels.class_names) if labels else 0
    return ProbeFrames(torch.stack(color), stacked, normal, torch.stack(label), classes)


@torch.no_grad()
def extract(dense: Dense, color: Tensor, name: str = "network", scales: Sequence[float] = ()) -> FrozenMaps:
    """Maps of images (N, 3, H, W) uint8, on the CPU; ``scales`` are those of other images of the same probe.

    Raises WeightsError where they are not finite.
    """
    device = next(dense.parameters()).device
    found: list[list[Tensor]] = []
    for part in track(torch.split(color, BATCH), description=f"features, {name}", transient=True):
        maps = dense.maps(part.to(device).float() / 255)
        for x in maps:
            check_finite(x, name)
        if not scales:
            scales = [max(float(x.square().mean().sqrt()), _SPREAD) for x in maps]  # float16 ends at 65504
        found.append([(x / s).half().cpu() for x, s in zip(maps, scales, strict=True)])
    return FrozenMaps([torch.cat(level) for level in zip(*found, strict=True)], list(scales))


class LinearProbe(nn.Module):
    """A linear map of all levels' features at every pixel.

    Each level has a 1 x 1 convolution of its own, whose results are enlarged bilinearly to the image and summed:
    exactly one linear map of the enlarged features put behind each other, since both are linear, at a fraction of the
    cost. Channels are brought to mean 0 and deviation 1 by ``features``, those it is trained on. It begins at 0.
    """

    def __init__(self, features: FrozenMaps, strides: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.heads = nn.ModuleList()
        for k, level in enumerate(features.levels):
            count, parts = level.numel() // level.shape[1], torch.split(level, BATCH)
            mean = sum((x.double().sum(dim=(0, 2, 3)) for x in parts), torch.zeros(())) / count
            gaps = (x.double() - mean[:, None, None] for x in parts)
            square = sum((gap.square().sum(dim=(0, 2, 3)) for gap in gaps), torch.zeros(()))
            deviation, mean = (square / count).sqrt().float(), mean.float()
            self.register_buffer(f"mean{k}", mean[:, None, None])
            self.register_buffer(f"factor{k}", 1 / deviation.clamp(min=_SPREAD)[:, None, None])
            head = nn.Conv2d(level.shape[1], outputs, 1, bias=k == 0)
            for parameter in head.parameters():
                nn.init.zeros_(parameter)
            self.heads.append(head)

    def forward(self, levels: list[Tensor], size: tuple[int, int]) -> Tensor:
        """FrozenMaps of each level (B, C, h, w) -> (B, outputs, *size)."""
        parts = []
        for k, (level, stride) in enumerate(zip(levels, self.strides, strict=True)):
            x = (level.float() - self.get_buffer(f"mean{k}")) * self.get_buffer(f"factor{k}")
            parts.append(enlarge(self.heads[k](x), stride, size))
        return torch.stack(parts).sum(dim=0)


class Outputs:
    """Which channels of a probe are what, its losses, and its predictions."""

    def __init__(self, tasks: Sequence[str], train: ProbeFrames) -> None:
        self.tasks = [task for task in ("depth", "normals", "segmentation") if task in tasks]
        sizes = {"depth": 1, "normals": 3, "segmentation": train.classes}
        self.sizes = [sizes[task] for task in self.tasks]
        measured = train.depth[train.depth > 0]
        self.centre = float(measured.mean()) if len(measured) else 0.0
        self.spread = max(float(measured.std()), 0.01) if len(measured) > 1 else 1.0

    def split(self, predicted: Tensor) -> dict[str, Tensor]:
        """(B, outputs, H, W) -> task -> its part: depth (B, 1, H, W) in metres, normals, scores of classes."""
        parts = dict(zip(self.tasks, torch.split(predicted, self.sizes, dim=1), strict=True))
        if "depth" in parts:
            parts["depth"] = self.centre + self.spread * parts["depth"]
        if "normals" in parts:  # from facing the camera on: the direction of 0 has no gradient
            parts["normals"] = parts["normals"] - parts["normals"].new_tensor([0, 0, 1])[:, None, None]
        return parts

    def loss(self, predicted: Tensor, frames: ProbeFrames) -> Tensor:
        """Sum over tasks, each with weights of its own: none changes what another learns."""
        losses = []
        for task, x in self.split(predicted).items():
            if task == "depth":
                valid = frames.depth > 0
                gap = (x[:, 0] - frames.depth).abs() / self.spread
                losses.append(torch.where(valid, gap, 0.0).sum() / valid.sum().clamp(min=1))
            elif task == "normals":
                valid = frames.normal.square().sum(dim=1) > 0.5
                gap = 1 - F.cosine_similarity(x, frames.normal, dim=1, eps=1e-4)
                losses.append(torch.where(valid, gap, 0.0).sum() / valid.sum().clamp(min=1))
            else:
                labels = frames.label.long()
                total = F.cross_entropy(x, labels, ignore_index=IGNORED, reduction="sum")
                losses.append(total / (labels != IGNORED).sum().clamp(min=1))
        return torch.stack(losses).sum()


def probe_linear(
    dense: Dense,
    train: ProbeFrames,
    test: ProbeFrames,
    tasks: Sequence[str],
    steps: int,
    seed: int,
    name: str = "network",
) -> LinearScores:
    """Train a linear probe for each task on frozen features and score it on the held-out frames.

    AdamW over ``steps`` batches of 8 frames, drawn by ``seed`` alike for every network: absolute error of the depth,
    1 - cosine of normals, cross-entropy of classes. Raises WeightsError where features are not finite.
    """
    device = next(dense.parameters()).device
    features = extract(dense, train.color, name)
    outputs = Outputs(tasks, train)
    probe = LinearProbe(features, dense.strides, sum(outputs.sizes)).to(device)
    _train(probe, features, train, outputs, steps, seed, name)
    seen = extract(dense, test.color, name, features.scales)
    size = (int(test.depth.shape[-2]), int(test.depth.shape[-1]))
    depth, normals, confusion = DepthErrors(), NormalErrors(), Confusion([str(k) for k in range(test.classes)])
    for rows in torch.split(torch.arange(len(test.depth)), BATCH):
        batch = _take(test, rows, device)
        with torch.no_grad():
            parts = outputs.split(probe([level[rows].to(device) for level in seen.levels], size))
        if "depth" in parts:
            depth.update(parts["depth"][:, 0], batch.depth)
        if "normals" in parts:
            normals.update(parts["normals"], batch.normal)
        if "segmentation" in parts:
            confusion.add(parts["segmentation"].argmax(dim=1), batch.label)
    score = confusion.score()
    return LinearScores(
        depth.result() if "depth" in outputs.tasks else None,
        normals.result() if "normals" in outputs.tasks else None,
        SegmentationScore(score.miou, score.accuracy, score.classes) if "segmentation" in outputs.tasks else None,
    )


def _train(
    probe: LinearProbe, features: FrozenMaps, frames: ProbeFrames, outputs: Outputs, steps: int, seed: int, name: str
) -> None:
    device = next(probe.parameters()).device
    size = (int(frames.depth.shape[-2]), int(frames.depth.shape[-1]))
    optimizer = torch.optim.AdamW(probe.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = LambdaLR(optimizer, lambda step: factor("cosine", step, steps))
    generator = torch.Generator().manual_seed(seed)
    count = len(frames.depth)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(-(-steps * BATCH // count))])
    for k in track(range(steps), description=f"linear probes, {name}", transient=True):
        rows = order[k * BATCH : (k + 1) * BATCH]
        batch = _take(frames, rows, device)
        predicted = probe([level[rows].to(device) for level in features.levels], size)
        optimizer.zero_grad()
        outputs.loss(predicted, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()


def _take(frames: ProbeFrames, rows: Tensor, device: torch.device) -> ProbeFrames:
    """Targets of some frames on the device; their images stay behind."""
    depth, normal, label = (x[rows].to(device) for x in (frames.depth, frames.normal, frames.label))
    return ProbeFrames(frames.color[:0], depth, normal, label, frames.classes)
