"""A training run's folder: its file names, checks at the start, config, metrics and scores."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import yaml

from pri3d.api.presets import current
from pri3d.api.results import Output
from pri3d.errors import ConfigError, DataError
from pri3d.files.atomic import replacing, write_atomic
from pri3d.files.lock import lock_folder
from pri3d.files.stamp import differences, refuse_differences
from pri3d.notation import parse_json, parse_yaml

#: parts of the provenance that a run cannot change when it is continued
_SAME = ("data_hash", "init", "init_data_hash", "part", "images_hash", "dataset", "labels")


#: what runs of earlier versions did where a setting did not exist yet and its present defaults do something else
_FORMERLY = {"min_overlap": 0.0, "backbone.mix": 1.0}


class RunPaths:
    """The folder of one run; the only place that knows the names of its files.

    ``config.yaml`` resolved settings and provenance, ``metrics.csv`` one row a logged step, ``last.ckpt`` everything
    needed to continue, ``initial.safetensors`` and ``weights.safetensors`` the network before and after,
    ``best.safetensors`` the best validated one and ``scores.json`` its scores, where there is validation;
    ``last.safetensors`` the network of the last step where ``weights.safetensors`` is that of another;
    ``loaded.json`` which tensors of the network the weights it began with have filled; ``tensorboard/``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.csv"
        self.checkpoint = path / "last.ckpt"
        self.initial = path / "initial.safetensors"
        self.weights = path / "weights.safetensors"
        self.best = path / "best.safetensors"
        self.last = path / "last.safetensors"
        self.scores = path / "scores.json"
        self.loaded = path / "loaded.json"

    def older(self, step: int) -> Path:
        """Checkpoint of an earlier step, where the run keeps more than the last."""
        return self.path / f"step-{step:08d}.ckpt"

    def all_older(self) -> list[Path]:
        """Every such checkpoint, oldest first."""
        return sorted(self.path.glob("step-*.ckpt"))

    def refuse_other(self, resume: bool) -> None:
        """Raise ConfigError where a run is in the way, or the remains of one that has lost its config.yaml."""
        if self.config.exists():
            if not resume:
                raise ConfigError(
                    f"{self.path}: already holds a run. Continue it with --resume, or choose another --run."
                )
            return
        of_a_run = (self.checkpoint, *self.all_older(), self.initial, self.weights, self.best)
        if remains := [path.name for path in of_a_run if path.exists()]:
            raise ConfigError(
                f"{self.path}: holds {', '.join(remains)} of a run, but not its {self.config.name}. Restore it and "
                f"continue with --resume, or choose another --run."
            )

    def open(self, verb: str, settings: Mapping[str, Any], provenance: Mapping[str, Any], resume: bool) -> None:
        """Create the folder of a run, or check that it holds this very run.

        Raises ConfigError where a run is in the way, or where the settings to resume with differ, naming them;
        DataError where config.yaml is damaged.
        """
        self.refuse_other(resume)
        if not self.config.exists():
            stated = {"verb": verb, "settings": dict(settings), "provenance": dict(provenance)}
            write_text(self.config, yaml.safe_dump(stated, sort_keys=False))
            return
        before = self.read_config()
        was, asked = ({".".join(way): value for way, value in leaves(part)} for part in (before["settings"], settings))
        # A run of an earlier version does not state what could not be set then; most of it changes nothing.
        was = {**{name: value for name, value in _FORMERLY.items() if name in asked}, **was}
        differ = differences(was, {name: value for name, value in asked.items() if name in was})
        differ += differences(before["provenance"], {name: provenance.get(name) for name in _SAME})
        fix = "Resume with those of config.yaml, or choose another --run."
        if any(line.startswith("steps was ") for line in differ):
            fix += (
                " The learning rate follows the steps from the first to the last, so a run keeps its number of steps: "
                f"to train further, begin another run from its weights: --weights {self.path} --run NEW --steps N."
            )
        refuse_differences(self.path, differ, fix)

    def finished(self, steps: int) -> str:
        """What is said where a run of so many steps is resumed that has done them all."""
        return (
            f"{self.path}: finished, all {steps:,} steps are done; nothing was trained. To train further, begin "
            f"another run from its weights: --weights {self.path} --run NEW."
        )

    def lock(self, rank: int) -> AbstractContextManager[None]:
        """Context in which this run alone writes the folder; the process of rank 0 holds it for all of them.

        Raises ConfigError naming the process that trains there now.
        """
        return lock_folder(self.path) if rank == 0 else nullcontext()

    def read_config(self) -> dict[str, Any]:
        """``verb``, ``settings`` and ``provenance`` of the run, the settings nested and by their present names.

        Raises DataError where config.yaml is missing or damaged.
        """
        try:
            stated = parse_yaml(self.config.read_text(encoding="utf-8"))
            if not isinstance(stated["settings"], dict) or not isinstance(stated.get("provenance", {}), dict):
                raise TypeError("its settings have no names")
        except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self.config}: not the settings of a run ({error}). Restore it, or run the training again."
            ) from error
        provenance = stated.get("provenance", {})
        kind = "pretrain" if stated.get("verb") == "pretrain" else str(provenance.get("task", ""))
        return {**stated, "settings": current(stated["settings"], kind), "provenance": provenance}

    def minutes(self) -> float:
        """Minutes of training and validating at the run's last speed. Raises DataError where a file is damaged."""
        rows, settings = read_metrics(self.metrics), self.read_config()["settings"]
        try:
            return float(settings["steps"] * settings["batch"] / rows[-1]["samples_per_s"] / 60)
        except (LookupError, TypeError, ZeroDivisionError) as error:
            raise DataError(f"{self.path}: config.yaml or metrics.csv is damaged ({error!r}). Restore them.") from error


class MetricsFile:
    """``metrics.csv``: rows of step and named numbers, appended; columns may join later."""

    def __init__(self, path: Path, keep_until: int) -> None:
        """Open for appending; rows after step ``keep_until`` belong to steps that will be run again and go."""
        self.path = path
        rows = [row for row in read_metrics(path) if row["step"] <= keep_until]
        self.rows: list[dict[str, float]] = [{**row, "step": int(row["step"])} for row in rows]
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
        with replacing(self.path) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)


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
        return parse_json(path.read_text(encoding="utf-8"))
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


class Run(Output):
    """A run: what ``pri3d.pretrain`` and ``pri3d.finetune`` return, and any run folder can be looked at through."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._files = RunPaths(self.path)

    @property
    def weights(self) -> Path:
        """File of the trained network."""
        return self._files.weights

    @property
    def best(self) -> Path | None:
        """File of the network that measured best while it trained; None where nothing was measured."""
        return self._files.best if self._files.best.exists() else None

    @property
    def scores(self) -> dict[str, Any]:
        """What was measured last on held-out pairs or validation images; empty where nothing was."""
        return dict(read_json(self._files.scores)["last"]) if self._files.scores.exists() else {}

    @property
    def comparison(self) -> dict[str, dict[str, Any]]:
        """What pre-training measured of its encoder at the ``start``, of the ``best`` network and at the ``last`` step.

        Each with its step and numbers by name, None for what could not be measured; empty where nothing was.
        """
        found = read_json(self._files.scores) if self._files.scores.exists() else {}
        return {name: dict(found[name]) for name in ("start", "best", "last") if found.get(name) is not None}

    @property
    def stopped(self) -> str | None:
        """Why a pre-training run stopped by itself; None where it did not."""
        return read_json(self._files.scores).get("stopped") if self._files.scores.exists() else None

    @property
    def metrics(self) -> list[dict[str, float]]:
        """Logged rows: step, loss and the rest, by name."""
        return read_metrics(self._files.metrics)

    @property
    def settings(self) -> dict[str, Any]:
        """Resolved settings, nested. Raises DataError where config.yaml is missing or damaged."""
        return dict(self._files.read_config()["settings"])

    def facts(self) -> list[str]:
        """Its last scores."""
        return [f"{name} {value:.4g}" for name, value in self.scores.items() if isinstance(value, int | float)]
