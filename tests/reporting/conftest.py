"""Rooms rendered in memory, written as small stores; untrained networks written as runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml

from finetuned import save_semantic
from pri3d.geometry.fusion import voxelise_triangles
from pri3d.labelled.prepared import PreparedImages
from pri3d.networks.encoders import build_encoder
from pri3d.networks.segmentation import build_segmentation
from pri3d.networks.unet import build_unet
from pri3d.networks.weights import save_model
from pri3d.store import PairTable, SceneWriter, Store, write_manifest, write_pairs
from pri3d.types import View
from pri3d.worlds.render import render_room
from pri3d.worlds.room import CLASS_NAMES, build_room

SIZE = (64, 48)


VOID = {"meta", "img", "link"}


class PageReader(HTMLParser):
    """Checks nesting and keeps what a browser would load, the texts, and the cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        asked = [value for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]
        self.loads += [value for value in asked if value != "data:," and not value.startswith("#")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data)


class Runs(NamedTuple):
    store: Path
    val: Path
    pretrain: Path
    finetune: dict[str, list[Path]]


def write_store(root: Path, rooms: Sequence[int], labels: bool = True) -> Path:
    """Store of rooms with 4 frames each; neighbours are pairs."""
    records, tables = {}, []
    for index in rooms:
        room, name = build_room(7, index), f"room-{index:04d}"
        frames = render_room(room, 4, *SIZE, noise=False)
        first = np.arange(3, dtype=np.int32)
        overlap = np.linspace(0.4, 0.6, 3, dtype=np.float32)
        table = PairTable(np.full(3, name), first, first + 1, overlap, np.ones(3, np.float32), np.ones(3, np.float32))
        with SceneWriter(root, name, SIZE) as writer:
            for frame in frames:
                camera = frame.color_camera
                intrinsics = np.array((camera.fx, camera.fy, camera.cx, camera.cy))
                view = View(frame.color, frame.depth, intrinsics, frame.world_from_camera, frame.name)
                writer.add(view, frame.label if labels else None)
            surface = voxelise_triangles(room.vertices, room.faces, 0.08)
            records[name] = writer.finish(table, surface, {"frames": len(frames)})
        tables.append(table)
    names = list(CLASS_NAMES) if labels else None
    settings = {"pairs": True, "size": "64x48"}
    write_manifest(root, {"state": "finished", "settings": settings, "class_names": names, "scenes": records})
    write_pairs(root, PairTable.concatenate(tables))
    return root


def write_metrics(path: Path, columns: dict[str, Sequence[float]]) -> None:
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n")


def write_config(run: Path, verb: str, settings: dict[str, object], provenance: dict[str, object]) -> None:
    stated = {"verb": verb, "settings": settings, "provenance": provenance}
    (run / "config.yaml").write_text(yaml.safe_dump(stated))


def write_finetune_run(path: Path, seed: int, miou: float, init: str, val: Path, fraction: float = 1.0) -> Path:
    path.mkdir()
    settings = {"seed": seed, "size": "64x48", "steps": 3, "batch": 4, "fraction": fraction}
    hashed = f"x+{PreparedImages(val, 'all').hash}"
    write_config(path, "finetune", settings, {"task": "semantic", "init": init, "val": val.name, "data_hash": hashed})
    torch.manual_seed(round(1000 * miou))
    model = build_segmentation("unet", build_encoder("resnet18"), len(CLASS_NAMES), "slim", 8)
    save_semantic(model, path / "weights.safetensors", CLASS_NAMES, {"init": "scratch"})
    write_metrics(path / "metrics.csv", {"step": [1, 2, 3], "loss": [2.0, 1.5, 1.0]})
    absent = None if seed % 2 else float("nan")  # JSON has no NaN, but Python's module reads and writes it
    iou = {name: miou for name in CLASS_NAMES} | {"lamp": absent}
    last = {"step": 3, "miou": miou, "accuracy": 0.5, "iou": iou}
    scores = {"last": last, "best": last, "history": [{**last, "step": 1, "miou": miou / 2}, last]}
    (path / "scores.json").write_text(json.dumps(scores))
    return path


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    root = tmp_path_factory.mktemp("report")
    pretrain = root / "pre"
    pretrain.mkdir()
    for seed, name in enumerate(("initial", "weights")):
        torch.manual_seed(seed)
        save_model(build_unet("resnet18", "slim", 8), pretrain / f"{name}.safetensors", {"steps": seed})
    chance = [5.0, 5.0, 5.0]
    columns = {"step": [1, 2, 3], "loss": [5, 4, 3], "view/loss": [5, 4, 3], "view/recall": [0.1, 0.2, 0.3]}
    write_metrics(pretrain / "metrics.csv", {**columns, "view/chance": chance, "lr": [1e-3, 1e-3, 0]})
    store, val = write_store(root / "store", [0, 1]), write_store(root / "val", [2])
    settings = {"size": "64x48", "distance": 0.05, "voxel": 0.16, "objectives": {"view": 1.0}}
    write_config(pretrain, "pretrain", settings, {"data": "store", "data_hash": Store(store).hash})
    finetune = {
        "scratch": [write_finetune_run(root / f"scratch{k}", k, 0.2 + 0.02 * k, "scratch", val) for k in range(2)],
        "pri3d": [write_finetune_run(root / f"pri3d{k}", k, 0.3 + 0.01 * k, str(pretrain), val) for k in range(2)],
    }
    return Runs(store, val, pretrain, finetune)


@pytest.fixture
def read_page() -> Callable[[str], PageReader]:
    return PageReader
