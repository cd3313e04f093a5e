"""How long a training step on the CPU waits for its data, and how fast the loader is by itself.

    OMP_NUM_THREADS=1 python -m benchmarks.loading

Short runs of `pri3d pretrain` with one loader process on rendered rooms stored at 320 x 240: the quick preset, and the
paper's decoder on ResNet-18 at 320 x 240. The share is that of metrics.csv, whose ``data_wait`` is of the time since
the row before; its mean over the steps after the first few, weighted with their time, counts. The loader alone:
items (pairs with augmentation and chunks) per processor second, in this process.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

import pri3d
from pri3d.api.plugins import gathered
from pri3d.api.prepare import prepare
from pri3d.api.presets import overlay
from pri3d.api.pretrain import PretrainOptions, PretrainSettings, resolve_pretraining
from pri3d.api.rooms import rooms
from pri3d.data.mixture import Mixture, parse_mixture
from pri3d.training.pretraining import PretrainData

VOXEL = 0.16
SIZE = "320x240"
#: what, flags on top of the quick preset, steps, steps that do not count
RUNS = (
    ("quick preset, 160x120", {}, 40, 10),
    ("ResNet-18 with the paper's decoder, 320x240", {"unet": {"decoder": "paper"}, "size": SIZE}, 12, 4),
)


def make_store(
    folder: Path,
    count: int = 4,
    frames: int = 20,
    size: str = SIZE,
    voxel: float = VOXEL,
    workers: int = 1,
    **options: Any,
) -> Path:
    """Rooms and their prepared dataset in an empty folder; ``options`` go to `prepare`."""
    rooms(folder / "raw", rooms=count, frames=frames, size=size, labels=False, processes=workers)
    prepare([folder / "raw"], folder / "store", size=size, voxel=voxel, processes=workers, **options)
    return folder / "store"


def share_waited(metrics: Sequence[Mapping[str, float]], skip: int) -> float:
    """Share of the time after row ``skip`` that a run waited for data.

    ``data_wait`` is a share of the time since the row before, and ``samples_per_s`` the rate since the beginning, which
    gives that time.
    """
    ends = [row["step"] / row["samples_per_s"] for row in metrics]
    spans = [b - a for a, b in zip(ends[skip - 1 :], ends[skip:], strict=False)]
    waits = [row["data_wait"] * span for row, span in zip(metrics[skip:], spans, strict=True)]
    return sum(waits) / sum(spans)


def loader(store: Path, settings: PretrainSettings, batches: int, workers: int, batch: int = 0) -> DataLoader[Any]:
    """Training batches of the settings, of the micro batch's size unless another is given."""
    feed = PretrainData(Mixture(parse_mixture(store)), settings).feed(("first", "second"))
    batch = batch or settings.micro_batch
    return DataLoader(
        feed.dataset,
        batch_size=batch,
        sampler=feed.sampler(batches * batch, 0),
        collate_fn=feed.collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )


def items_per_second(store: Path, settings: PretrainSettings, batches: int) -> float:
    """Items a processor second of the loader in this process, after one batch that opens the files."""
    stream = iter(loader(store, settings, batches + 1, workers=0))
    next(stream)
    start = time.process_time()
    count = sum(len(batch.names) for batch in stream)
    return count / (time.process_time() - start)


def measure(
    folder: Path, store: Path, what: str, flags: Mapping[str, Any], steps: int, skip: int
) -> list[tuple[str, str, str]]:
    """Rows of one run in ``folder``."""
    given = overlay(flags, {"steps": steps, "validation": {"every": 0}})
    run = pri3d.pretrain(store, run=folder, workers=1, **gathered("objectives", PretrainOptions, given))
    metrics, settings = run.metrics, resolve_pretraining("quick", flags)
    rate = metrics[-1]["samples_per_s"]
    alone = items_per_second(store, settings, batches=4)
    return [
        (f"{what}: share of the step that waits for data, 1 loader", f"{share_waited(metrics, skip):.1%}", "< 5 %"),
        ("  items/s the step takes / the loader alone makes (processor seconds)", f"{rate:.1f} / {alone:.0f}", ""),
    ]


def run(runs: Sequence[tuple[str, Mapping[str, Any], int, int]] = RUNS, **rooms: Any) -> list[tuple[str, str, str]]:
    """Name, measured value and bar of every figure; ``rooms`` goes to :func:`make_store`."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = make_store(folder, **rooms)
        return [row for k, what in enumerate(runs) for row in measure(folder / f"run-{k}", store, *what)]


def main() -> None:
    """Print the table."""
    for name, measured, bar in run():
        print(f"{name:92s} {measured:>14s}  {bar}")


if __name__ == "__main__":
    main()
