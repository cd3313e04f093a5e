"""A training run's folder: begun or continued, its settings compared, its metrics appended."""

from __future__ import annotations

import csv
import dataclasses
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

import pri3d
from pri3d.errors import ConfigError, WeightsError
from pri3d.runs import RunPaths, read_metrics, write_text
from pri3d.settings import TrainSettings


class RunFolder(RunPaths):
    """The folder of a run that trains; beside the files of RunPaths it holds ``tensorboard/``."""

    def open(
        self, verb: str, settings: TrainSettings, provenance: Mapping[str, Any], resume: bool, rank: int = 0
    ) -> int:
        """Create the folder, or check that it holds this very run, and say how many steps are done.

        Of several processes only the one of ``rank`` 0 writes and compares.
        Raises ConfigError where a run is in the way, or where the settings to resume with differ, naming them.
        """
        if rank > 0:
            return self._steps_done() if resume else 0
        stated = {
            "verb": verb,
            "settings": dataclasses.asdict(settings),
            "provenance": {**provenance, "pri3d": pri3d.__version__, "torch": str(torch.__version__)},
        }
        if not self.config.exists():
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.config, yaml.safe_dump(stated, sort_keys=False))
            return 0
        self.refuse_other(resume)
        self._compare(self._stated(), stated)
        return self._steps_done()

    def refuse_other(self, resume: bool) -> None:
        """Raise ConfigError where a run is in the way."""
        if self.config.exists() and not resume:
            raise ConfigError(f"{self.path}: holds a run already. Continue it with --resume, or choose another --run.")

    def _stated(self) -> dict[str, Any]:
        """What the folder says of its run. Raises ConfigError where that cannot be read."""
        problem = "not what pri3d wrote"
        try:
            before = yaml.safe_load(self.config.read_text(encoding="utf-8"))
            if isinstance(before, dict) and all(
                isinstance(before.get(part), dict) for part in ("settings", "provenance")
            ):
                return before
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            problem = str(error)
        raise ConfigError(f"{self.config}: cannot be read ({problem}). Restore it, or choose another --run.")

    def _compare(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        differences = [
            f"{name} was {before[part].get(name)!r}, is {value!r}"
            for part, names in (
                ("settings", now["settings"]),
                ("provenance", ("data_hash", "init", "init_data_hash", "part", "images_hash", "dataset", "labels")),
            )
            for name in names
            if (value := now[part].get(name)) != before[part].get(name)
        ]
        if differences:
            raise ConfigError(f"{self.path}: cannot resume, this run had other settings: {'; '.join(differences)}.")

    def _steps_done(self) -> int:
        if not self.checkpoint.exists():
            return 0
        try:
            return int(torch.load(self.checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"])
        except (RuntimeError, OSError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
            older = [path.name for path in self.all_older()]
            instead = f"Put {older[-1]} in its place, or delete all to start" if older else "Delete it to start"
            raise WeightsError(f"{self.checkpoint}: damaged ({error}). {instead} this run anew.") from error


class MetricsFile:
    """``metrics.csv``: rows of step and named numbers, appended; columns may join later."""

    def __init__(self, path: Path, keep_until: int) -> None:
        """Open for appending; rows after step ``keep_until`` belong to steps that will be run again and go."""
        self.path = path
        rows = read_metrics(path) if path.exists() else []
        self.rows: list[dict[str, float]] = [row for row in rows if row["step"] <= keep_until]
        self.columns = list(dict.fromkeys(name for row in self.rows for name in row)) or ["step"]
        self._rewrite()

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Add one row."""
        row: dict[str, float] = {"step": step, **values}
        self.rows.append(row)
        new = [name for name in row if name not in self.columns]
        if new:
            self.columns += new
            self._rewrite()
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, restval="").writerow(row)

    def _rewrite(self) -> None:
        temporary = self.path.with_name(self.path.name + ".tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        temporary.replace(self.path)
