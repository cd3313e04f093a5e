"""The end of a run: the pairs of all scenes in one table, the manifest, and what is printed of it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pri3d.store import (
    PairTable,
    SceneStore,
    finished_scenes,
    read_scene_record,
    scene_folder,
    write_manifest,
    write_pairs,
)

SHOWN = 40  #: scenes, and reasons of failure, that are printed; the manifest has all
_READERS = 8  # files read at a time: file systems of clusters answer late


def finish(out: Path, manifest: dict[str, Any], failed: dict[str, str]) -> None:
    """Write the pairs of all finished scenes and the manifest, which gets their records and the failed ones."""
    scenes = finished_scenes(out)
    with ThreadPoolExecutor(_READERS) as pool:
        if manifest["settings"]["pairs"]:
            write_pairs(out, _all_pairs(scenes, list(pool.map(lambda scene: _pairs(out, scene), scenes))))
        records = pool.map(lambda scene: read_scene_record(out, scene), scenes)
        manifest["scenes"] = dict(zip(scenes, records, strict=True))
    # One that failed here may be there all the same, made by a run at the same time.
    manifest["failed"] = {scene: why for scene, why in sorted(failed.items()) if scene not in manifest["scenes"]}
    manifest["state"] = "finished" if scenes else "failed"
    write_manifest(out, manifest)


def summary(out: Path, manifest: dict[str, Any]) -> None:
    """Print one line a scene, of ``SHOWN`` at most, and totals."""
    columns = ("frames", "rejected", "pairs", "voxels", "seconds", "bytes")
    table = Table("scene", *columns[:-1], "MB", title=str(out))
    scenes, failed = manifest["scenes"], manifest["failed"]
    for scene, record in list(scenes.items())[:SHOWN]:
        table.add_row(escape(scene), *_cells(record))
    if len(scenes) > SHOWN:
        table.add_row(f"... and {len(scenes) - SHOWN:,} more")
    for scene, reason in list(failed.items())[:SHOWN]:
        table.add_row(escape(scene), f"[red]failed: {escape(reason)}")
    if len(failed) > SHOWN:
        table.add_row(f"... and {len(failed) - SHOWN:,} more", "[red]failed")
    if len(scenes) > 1:
        totals = {column: sum(record[column] for record in scenes.values()) for column in columns}
        table.add_row(f"all {len(scenes):,}" if len(scenes) > SHOWN else "all", *_cells(totals), style="bold")
    Console(stderr=True).print(table)


def listed(failed: dict[str, str]) -> str:
    """The reasons as indented lines, of ``SHOWN`` scenes at most."""
    lines = [f"\n  {scene}: {why}" for scene, why in sorted(failed.items())]
    more = f"\n  and {len(lines) - SHOWN:,} more, all in dataset.json" * (len(lines) > SHOWN)
    return "".join(lines[:SHOWN]) + more


def _cells(record: dict[str, Any]) -> list[str]:
    counts = [f"{record[name]:,.0f}" for name in ("frames", "rejected", "pairs", "voxels")]
    return [*counts, f"{record['seconds']:,.1f}", f"{record['bytes'] / 1e6:,.1f}"]


def _pairs(out: Path, scene: str) -> PairTable:
    """The scene's pairs, but for the column of its name: a hundred thousand scenes have gigabytes of it."""
    return SceneStore(scene_folder(out, scene)).pairs()._replace(scene=np.zeros(0, "<U1"))


def _all_pairs(scenes: Sequence[str], tables: Sequence[PairTable]) -> PairTable:
    together = PairTable.concatenate(list(tables))
    names = np.repeat(np.array(scenes, dtype=str), [len(table.i) for table in tables])
    return together._replace(scene=names)
