"""The files of a run folder: their names, and how the small ones are read and written."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pri3d.errors import DataError
from pri3d.files.atomic import write_atomic


class RunPaths:
    """Where the files of one run lie; the only place that knows their names.

    ``config.yaml`` resolved settings and provenance, ``metrics.csv`` one row a logged step, ``last.ckpt`` everything
    needed to continue, ``initial.safetensors`` and ``weights.safetensors`` the network before and after,
    ``best.safetensors`` the best validated one and ``scores.json`` its scores, where there is validation;
    ``loaded.json`` which tensors of the network the weights it began with have filled.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.csv"
        self.checkpoint = path / "last.ckpt"
        self.initial = path / "initial.safetensors"
        self.weights = path / "weights.safetensors"
        self.best = path / "best.safetensors"
        self.scores = path / "scores.json"
        self.loaded = path / "loaded.json"

    def minutes(self) -> float:
        """Minutes of training and validating at the run's last speed. Raises DataError where metrics.csv is damaged."""
        rows = read_metrics(self.metrics)
        try:
            settings = yaml.safe_load(self.config.read_text(encoding="utf-8"))["settings"]
            return float(settings["steps"] * settings["batch"] / rows[-1]["samples_per_s"] / 60)
        except (OSError, yaml.YAMLError, LookupError, TypeError, ZeroDivisionError) as error:
            raise DataError(f"{self.path}: config.yaml or metrics.csv is damaged ({error!r}). Restore them.") from error

    def older(self, step: int) -> Path:
        """Checkpoint of an earlier step, where the run keeps more than the last."""
        return self.path / f"step-{step:08d}.ckpt"

    def all_older(self) -> list[Path]:
        """Every such checkpoint, oldest first."""
        return sorted(self.path.glob("step-*.ckpt"))


def short_names(weights: Sequence[str]) -> dict[str, str]:
    """Weights of runs -> a name for folders and tables: the last part of a path, the whole where two share that."""
    names = {each: Path(each).name.removesuffix(".safetensors").replace(":", "-") for each in weights}
    taken = list(names.values())
    return {each: each.replace("/", "-") if taken.count(name) > 1 else name for each, name in names.items()}


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of a metrics.csv, empty cells left out; none where there is no file. Raises DataError where damaged."""
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [{k: float(v) for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise DataError(f"{path}: not a table of numbers ({error}). Remove the damaged lines.") from error


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    write_atomic(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all. JSON has neither NaN nor infinity: they become null."""
    write_text(path, json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; null is None. Raises DataError naming a file that is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Delete it, or restore it.") from error


def leaves(value: Any, way: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What nested mappings hold, each with the keys that lead to it."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves(item, (*way, str(key)))
    else:
        yield way, value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
