"""Runs that say what they were trained on, small enough for every test of view."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pri3d.reporting.viewer_scene import MEASURED, Matched, Shown, ShownFrame, ShownPair

SIZE = "64x48"


def stated(run: Path, out: Path, verb: str, **facts: Any) -> Path:
    """Copy of a run folder with a config.yaml of these facts."""
    shutil.copytree(run, out)
    settings = {"size": SIZE, "distance": 0.05}
    (out / "config.yaml").write_text(yaml.safe_dump({"verb": verb, "settings": settings, "provenance": facts}))
    return out


def pretrained(runs: Any, out: Path) -> Path:
    return stated(runs.pretrain, out, "pretrain", data=str(runs.store))


def finetuned(runs: Any, out: Path, **facts: Any) -> Path:
    given = {"task": "semantic", "data": str(runs.store), "val": str(runs.val), **facts}
    return stated(runs.finetune["pri3d"][0], out, "finetune", **given)


def made_up(text: str = "made up", frames: int = 2) -> Shown:
    """A scene with one frame of each kind of picture; ``text`` stands wherever a text can."""
    rng = np.random.default_rng(0)

    def color() -> np.ndarray:
        return rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)

    camera = np.array((30.0, 30.0, 16.0, 12.0))
    depth = np.full((24, 32), 1.5, np.float32)
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, 0, 3] = np.arange(frames)
    matched = Matched(rng.uniform(0, 24, (3, 4)), rng.uniform(-1, 1, (3, 2, 3)), np.array((True, False, True)))
    pair = ShownPair(
        text, (0, 1), np.stack((color(), color())), np.zeros((2, 3)), 0.5, 0.2, {MEASURED: matched, "after": matched}
    )
    shown = [ShownFrame(text, color(), depth, camera, pose, {text: color()}) for pose in poses]
    points = np.stack(np.meshgrid(*[np.arange(5) * 0.04] * 3), axis=-1).reshape(-1, 3)
    colors = rng.integers(0, 256, points.shape, dtype=np.uint8)
    return Shown(text, {text: text}, shown, poses[:, :3, 3], points, colors, [pair], [text])
