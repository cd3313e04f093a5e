"""How long a training step on the CPU waits for its data, and how fast the loader is by itself.

    OMP_NUM_THREADS=1 python -m benchmarks.loading
    OMP_NUM_THREADS=1 python -m benchmarks.loading --scans 4 1201        Geo's pairs at 2 cm, of so many scans

Short runs of `pri3d pretrain` with one loader process on rendered rooms stored at 320 x 240: the quick preset, and the
paper's decoder on ResNet-18 at 320 x 240. The share is that of metrics.csv, whose ``data_wait`` is of the time since
the row before; its mean over the steps after the first few, weighted with their time, counts. The loader alone:
items (pairs with augmentation and chunks) per processor second, in this process.

``--scans``: a store of so many scans, which are the files of four rendered rooms under other names (links), with
840,000 pairs drawn at random as a run does. Processor milliseconds a pair, the sizes in turn in one process; memory
that a process which loaded has of its own (not what it shares); seconds to open store and pairs. The disk is not
measured: the linked files are in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

import pri3d
from pri3d.api.plugins import gathered
from pri3d.api.prepare import prepare
from pri3d.api.presets import overlay
from pri3d.api.pretrain import PretrainOptions, PretrainSettings, resolve_pretraining
from pri3d.api.rooms import rooms
from pri3d.data.mixture import Mixture, parse_mixture
from pri3d.store import MANIFEST, PairTable, Store, write_manifest, write_pairs
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


def link_scans(store: Path, out: Path, scans: int, pairs: int) -> Path:
    """A store of ``scans`` scenes, whose files are those of ``store``, and ``pairs`` pairs in all."""
    manifest, table = json.loads((store / MANIFEST).read_text()), Store(store).pairs()
    known = sorted(manifest["scenes"])
    rows = {scene: np.flatnonzero(table.scene == scene) for scene in known}
    records, tables = {}, []
    for k in range(scans):
        scene, name = known[k % len(known)], f"scene{k:06d}"
        (out / "scenes" / name).mkdir(parents=True)
        for file in (store / "scenes" / scene).iterdir():
            os.link(file, out / "scenes" / name / file.name)
        records[name] = manifest["scenes"][scene]
        picked = np.resize(rows[scene], pairs // scans)
        columns = {column: values[picked] for column, values in table._asdict().items()}
        tables.append(PairTable(**{**columns, "scene": np.full(len(picked), name)}))
    write_manifest(out, {**manifest, "scenes": records})
    write_pairs(out, PairTable.concatenate(tables))
    return out


def load_scans(stores: Mapping[int, Path], count: int, rounds: int, flags: Mapping[str, Any]) -> None:
    """Print what loading of each store takes, in this process, the stores in turn."""
    settings = resolve_pretraining("paper", flags)
    feeds, opened, spent = {}, {}, {scans: 0.0 for scans in stores}
    for scans, store in stores.items():
        start = time.perf_counter()
        feed = PretrainData(Mixture(parse_mixture(store)), settings).feed(("first", "second"))
        opened[scans] = time.perf_counter() - start
        feeds[scans] = feed.dataset, iter(feed.sampler(10**6, 0))
        next(feeds[scans][1])
    for _ in range(rounds):
        for scans, (dataset, draws) in feeds.items():
            dataset[next(draws)]
            start = time.process_time()
            for _ in range(count):
                dataset[next(draws)]
            spent[scans] += time.process_time() - start
    for scans in stores:
        each = 1e3 * spent[scans] / rounds / count
        ratio = spent[scans] / spent[min(stores)]
        text = f"{scans:6,d} scans: {each:6.1f} ms of CPU a pair, {ratio:.2f} of the fewest"
        print(f"{text}, opened in {opened[scans]:.2f} s")


def private_memory() -> float:
    """MB that this process shares with no other: without libraries and mapped files."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1e3


def compare_scans(counts: Sequence[int], pairs: int = 840_000, drawn: int = 100, rounds: int = 4, **made: Any) -> None:
    """Print a line for each number of scans, and the memory of a loader process of the largest store."""
    torch.set_num_threads(1)
    flags = {"weights": "scratch", "geometry": {"voxel": made.get("voxel", 0.02)}, "size": made.get("size", SIZE)}
    with tempfile.TemporaryDirectory() as name:
        small = make_store(Path(name), **{"voxel": 0.02, **made})
        stores = {scans: link_scans(small, Path(name) / str(scans), scans, pairs) for scans in counts}
        load_scans(stores, drawn, rounds, flags)
        feed = PretrainData(Mixture(parse_mixture(stores[max(counts)])), resolve_pretraining("paper", flags))
        data = feed.feed(("first", "second"))
        sampler = iter(data.sampler(10**6, 0))
        draws = [next(sampler) for _ in range(2 * drawn)]
        child = os.fork()
        if child == 0:  # as a loader process begins
            before = private_memory()
            for draw in draws:
                data.dataset[draw]
            print(
                f"a loader process adds {private_memory() - before:.0f} MB of its own after {len(draws)} pairs",
                flush=True,
            )
            os._exit(0)
        os.waitpid(child, 0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, nargs="+", help="numbers of scans to compare, instead")
    if (counts := parser.parse_args().scans) is not None:
        compare_scans(counts)
        return
    for name, measured, bar in run():
        print(f"{name:92s} {measured:>14s}  {bar}")


if __name__ == "__main__":
    main()
