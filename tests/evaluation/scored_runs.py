"""Fine-tuned runs of a moment: networks that need no training, whose answers are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from pri3d.geometry.resize import parse_size
from pri3d.networks.state_files import read_state
from pri3d.networks.weights import save_state
from pri3d.registry import TASKS
from pri3d.runs import RunPaths
from pri3d.tasks import Task
from pri3d.tasks.instance import InstanceTask
from pri3d.tasks.semantic import SemanticTask
from pri3d.types import Detections


class Level(nn.Module):
    """One number."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(float(level)))


class Fake(Task):
    """Counts its predictions and keeps one number as its network."""

    calls = 0

    def save(self, model, path, record):
        own = {"task": self.name, "class_names": self.class_names}
        save_state(model.state_dict(), path, {**record, **own})

    @classmethod
    def load(cls, path, record):
        task = cls(record["class_names"])
        task.size = parse_size(record["size"]) if "size" in record else None
        return task, Level(float(read_state(path)["level"])).eval()


class Brightness(Fake, SemanticTask):
    """Class 0 for the darkest pixels, the last one for the brightest; the number makes all brighter."""

    def predict(self, model, color):
        assert not model.training
        Brightness.calls += 1
        return self.classes(color, model.level.item())

    def classes(self, color, level=0.0):
        bright = np.clip(color.astype(float).mean(2) + level, 0, 255)
        return (bright * len(self.class_names) / 256).astype(np.uint8)


class Halves(Fake, InstanceTask):
    """Two objects: the left half with score 0.9 as the last class, the upper half with 0.3 as the first."""

    def predict(self, model, color):
        Halves.calls += 1
        height, width = color.shape[:2]
        masks = np.zeros((2, height, width), bool)
        masks[0, :, : width // 2] = True
        masks[1, : height // 2] = True
        boxes = np.array([[0, 0, width // 2, height], [0, 0, width, height // 2]], np.float32)
        last = len(self.class_names) - 1
        return Detections(masks, boxes, np.array([last, 0]), np.array([0.9, 0.3], np.float32))


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both tasks are the fake ones."""
    monkeypatch.setitem(TASKS, "semantic", "scored_runs:Brightness")
    monkeypatch.setitem(TASKS, "instance", "scored_runs:Halves")
    Brightness.calls = Halves.calls = 0


def write_run(
    run: Path, task: Task, models: dict[str, nn.Module], record: dict[str, Any] | None = None, **facts: Any
) -> Path:
    """A finished run: ``models`` are those of "last" and "best", ``facts`` its provenance and settings."""
    settings = {"min_area": facts.pop("min_area")} if "min_area" in facts else {}
    run.mkdir(parents=True, exist_ok=True)
    stated = {"verb": "finetune", "settings": settings, "provenance": {"task": task.name, **facts}}
    RunPaths(run).config.write_text(yaml.safe_dump(stated))
    for which, model in models.items():
        task.save(model, RunPaths(run).best if which == "best" else RunPaths(run).weights, record or {})
    return run
