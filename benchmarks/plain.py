"""Loading pairs from a prepared dataset against loading them from plain files, by the clock, one worker each.

    OMP_NUM_THREADS=1 python -m benchmarks.plain [RECORDING]

Both sides are made of the same frames of 640 x 480: of a rendered room, or of every fifth of a real recording. Plain: a
colour PNG, a 16-bit depth PNG and a pose as text for each frame, and the point cloud of the whole scene as one .pth
that is loaded for each frame and cropped to what it sees; colours change by PIL and torchvision on the image, resized
to 320 x 240. Ours: the store that `prepare` writes at 320 x 240, read by PairDataset with the same augmentation and a
chunk of the surface for each frame. Cloud and surface have the same points, those of the fused depth at 2 cm, and again
at 4 cm: rendered rooms are large, and have as many points at 4 cm as a scanned room at 2. Both sides crop by the box of
the frustum; the plain one is spared to make voxels of its points. Items are the same pairs in the same order, in
batches through a DataLoader of one worker; the sides take turns, and the median of the rounds counts.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from pri3d.api.prepare import prepare
from pri3d.api.rooms import rooms
from pri3d.data.augment import STRONG
from pri3d.data.pairs import PairDataset, collate
from pri3d.data.sampler import Draw, StreamSampler
from pri3d.geometry.voxels import coarsen, frustum_box
from pri3d.recordings import open_recording
from pri3d.store import Store, millimetres

SIZE, BATCH, ROUNDS = (320, 240), 8, 3
VOXELS = (0.02, 0.04)  # metres
OURS, PLAIN = 12, 4  # batches of a round: of about as many seconds
Item = dict[str, Any]
Row = tuple[str, str | float, str | None]


def write_real(folder: Path, recording: Path) -> tuple[Path, Path]:
    """Every fifth frame of a recording as plain files, and the store prepared of it."""
    raw, store = folder / "raw", folder / "store"
    prepare([recording], store, size=f"{SIZE[0]}x{SIZE[1]}", voxel=min(VOXELS), frame_step=5, processes=1)
    for scene in open_recording(recording).scenes():
        for part in ("color", "depth", "pose"):
            (raw / scene.id / part).mkdir(parents=True)
        for index in range(0, len(scene.names), 5):
            frame = scene.frame(index)
            Image.fromarray(frame.color).save(raw / scene.id / "color" / f"{frame.name}.png")
            Image.fromarray(millimetres(frame.depth)).save(raw / scene.id / "depth" / f"{frame.name}.png")
            np.savetxt(raw / scene.id / "pose" / f"{frame.name}.txt", frame.world_from_camera)
    write_clouds(raw, store)
    return raw, store


def write(folder: Path, count: int, frames: int, size: str, **options: Any) -> tuple[Path, Path]:
    """Rooms as plain files, and the store prepared of them; ``options`` go to `prepare`."""
    raw, store = folder / "raw", folder / "store"
    rooms(raw, rooms=count, frames=frames, size=size, labels=False, processes=1)
    for path in raw.glob("*/mesh.ply"):
        path.unlink()  # the surface is what the frames see, as in a recording, not every side of the furniture
    for path in raw.glob("*/color/*.jpg"):
        with Image.open(path) as image:
            image.save(path.with_suffix(".png"))
        path.unlink()
    prepare([raw], store, size=f"{SIZE[0]}x{SIZE[1]}", voxel=min(VOXELS), processes=1, **options)
    write_clouds(raw, store)
    return raw, store


def write_clouds(raw: Path, store: Path) -> None:
    """The surface of every scene as the points of a .pth beside its plain files."""
    opened = Store(store)
    for name in opened.scenes:
        for voxel in VOXELS:
            surface = coarsen(opened.scene(name).surface(), voxel)
            points = torch.from_numpy((surface.cells + np.float32(0.5)) * np.float32(voxel)).float()
            color = torch.zeros_like(points) if surface.color is None else torch.from_numpy(surface.color).float() / 255
            torch.save(torch.cat((points, color), dim=1), raw / name / f"cloud-{voxel}.pth")


class PlainPairs(Dataset[Item]):
    """The pairs of a store, read from plain files."""

    def __init__(self, raw: Path, store: Path, voxel: float) -> None:
        self.raw, self.voxel, opened = raw, voxel, Store(store)
        self.table = opened.pairs()
        self.names = {name: opened.scene(name).frames.names for name in opened.scenes}
        self.intrinsics = opened.scene(opened.scenes[0]).frames.intrinsics[0]
        jitter = transforms.ColorJitter(STRONG.brightness, STRONG.contrast, STRONG.saturation, STRONG.hue)
        self.change = transforms.Compose(
            [
                transforms.RandomApply([jitter], STRONG.p_jitter),
                transforms.RandomGrayscale(STRONG.p_gray),
                transforms.RandomApply([blur], STRONG.p_blur),
                transforms.PILToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.table.i)

    def __getitem__(self, draw: Draw) -> Item:
        scene = str(self.table.scene[draw.item])
        rows = self.table.i[draw.item], self.table.j[draw.item]
        return {"frames": [self.frame(self.raw / scene, str(self.names[scene][row])) for row in rows]}

    def frame(self, folder: Path, name: str) -> Item:
        """Colour (3, H, W) uint8, depth (H, W) in metres, pose and the voxels that the frame sees."""
        with Image.open(folder / "color" / f"{name}.png") as image:
            color = self.change(image.convert("RGB").resize(SIZE, Image.Resampling.NEAREST))
        with Image.open(folder / "depth" / f"{name}.png") as image:
            depth = np.asarray(image.resize(SIZE, Image.Resampling.NEAREST)).astype(np.float32) / 1000
        pose = np.loadtxt(folder / "pose" / f"{name}.txt")
        cloud = torch.load(folder / f"cloud-{self.voxel}.pth", weights_only=True)
        return {"color": color, "depth": torch.from_numpy(depth), "pose": pose, "chunk": self.chunk(cloud, depth, pose)}

    def chunk(self, cloud: Tensor, depth: NDArray[np.float32], pose: NDArray[np.float64]) -> Tensor:
        """Points in the box round the frustum."""
        box = frustum_box(depth, self.intrinsics, pose)
        if box is None:
            return cloud[:0]
        low, high = (torch.from_numpy(corner).float() for corner in box)
        return cloud[((cloud[:, :3] >= low) & (cloud[:, :3] <= high)).all(dim=1)]


def blur(image: Image.Image) -> Image.Image:
    """As strong as ours."""
    sigma = float(torch.empty(1).uniform_(*STRONG.sigma))
    return image.filter(ImageFilter.GaussianBlur(sigma))


def collate_plain(items: list[Item]) -> Item:
    """Images stacked, chunks one after the other."""
    frames = [frame for item in items for frame in item["frames"]]
    batch = {name: torch.stack([frame[name] for frame in frames]) for name in ("color", "depth")}
    poses = torch.from_numpy(np.stack([frame["pose"] for frame in frames])).float()
    return {"color": batch["color"].float() / 255, "depth": batch["depth"], "pose": poses,
            "chunk": torch.cat([frame["chunk"] for frame in frames])}  # fmt: skip


def rate(dataset: Dataset[Any], stack: Any, batches: int, batch: int) -> float:
    """Items a second of one worker, from its first batch to its last."""
    sampler = StreamSampler(len(dataset), (batches + 1) * batch, seed=0)  # type: ignore[arg-type]
    stream = iter(DataLoader(dataset, batch, sampler=sampler, collate_fn=stack, num_workers=1))
    next(stream)  # starting the process does not count
    start = time.perf_counter()
    count = sum(1 for _ in stream)
    return count * batch / (time.perf_counter() - start)


def kilobytes(paths: Iterable[Path], frames: int) -> float:
    """Of all files below the paths, a frame."""
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    return sum(file.stat().st_size for file in files) / frames / 1000


def compare(raw: Path, store: Path, voxel: float, rounds: int, batches: tuple[int, int], batch: int) -> list[Row]:
    """Rows of one size of the surface's cells; ``batches`` of a round, ours and plain."""
    rows = np.arange(len(Store(store).pairs().i))
    prepared = PairDataset(store, rows, SIZE, seed=0, recipe=STRONG, voxel=voxel)
    files = PlainPairs(raw, store, voxel)
    rates = [
        (rate(prepared, collate, batches[0], batch), rate(files, collate_plain, batches[1], batch))
        for _ in range(rounds)
    ]
    ratios = [a / b for a, b in rates]
    opened = Store(store)
    points = median(len(coarsen(opened.scene(name).surface(), voxel).cells) for name in opened.scenes)
    return [
        (
            f"{voxel * 100:g} cm, {points:,.0f} points a scene: pairs/s of plain files",
            median(b for _, b in rates),
            None,
        ),
        ("  pairs/s of the prepared dataset", median(a for a, _ in rates), None),
        ("  times faster by the clock, one worker each, median", median(ratios), ">= 4"),
        ("  times faster, all rounds", f"{min(ratios):.2f} to {max(ratios):.2f}", None),
    ]


def sizes(raw: Path, store: Path) -> list[Row]:
    """Rows of kilobytes."""
    count = sum(1 for _ in raw.glob("*/pose/*.txt"))
    images = [path for part in ("color", "depth", "pose") for path in raw.glob(f"*/{part}")]
    kept = sum(int(scene["frames"]) for scene in Store(store).manifest["scenes"].values())
    return [
        ("kB a frame, plain images and poses", kilobytes(images, count), None),
        ("  and its share of the scene's cloud", kilobytes(raw.glob(f"*/cloud-{min(VOXELS)}.pth"), count), None),
        (
            "kB a frame of the prepared dataset, images and poses",
            kilobytes(store.glob("scenes/*/frames.*"), kept),
            "<= 100",
        ),
        ("  with its share of the scene's surface and pairs", kilobytes([store], kept), None),
    ]


def run(
    count: int = 1,
    frames: int = 30,
    size: str = "640x480",
    rounds: int = ROUNDS,
    batches: tuple[int, int] = (OURS, PLAIN),
    batch: int = BATCH,
    recording: Path | None = None,
    **options: Any,
) -> list[Row]:
    """Name, measured value and bar of every figure; ``options`` go to `prepare`, of a rendered room."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw, store = write_real(folder, recording) if recording else write(folder, count, frames, size, **options)
        compared = [compare(raw, store, voxel, rounds, batches, batch) for voxel in VOXELS]
        return [row for rows in compared for row in rows] + sizes(raw, store)


def main() -> None:
    """Print the table."""
    recording = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    for name, measured, bar in run(recording=recording):
        shown = measured if isinstance(measured, str) else f"{measured:.2f}"
        print(f"{name:62s} {shown:>14s}  {bar or ''}")


if __name__ == "__main__":
    main()
