"""What a report is asked about: paths on the command line -> runs, groups of runs that differ in their seed, probes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pri3d.errors import DataError
from pri3d.runs import RunPaths, short_names

_VERBS = ("pretrain", "finetune")
#: what of a run's provenance makes its scores others than those of a run with the same settings
_DECIDES = ("part", "labels", "data", "val", "init_data_hash")


class Run(NamedTuple):
    """A run folder and what its config.yaml says."""

    path: Path
    name: str  #: unique on the page
    verb: str  #: pretrain or finetune
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]


class Group(NamedTuple):
    """Fine-tuning runs that differ in their seed alone."""

    name: str  #: unique among the groups of its task
    method: str  #: the name without the share of the labels
    fraction: float  #: of the labelled images, 0..1
    runs: Sequence[Run]  #: by seed


class Sources(NamedTuple):
    """Everything that the paths name."""

    pretrained: Sequence[Run]
    finetuned: Sequence[Run]
    probes: Sequence[Path]

    def groups(self) -> dict[str, list[Group]]:
        """Task -> its groups, in the order of the paths."""
        tasks = dict.fromkeys(str(run.provenance.get("task", "semantic")) for run in self.finetuned)
        ours = {run.path.resolve(): run.name for run in self.pretrained}
        return {
            task: _groups([run for run in self.finetuned if run.provenance.get("task", "semantic") == task], ours)
            for task in tasks
        }


def find_sources(paths: Sequence[Path]) -> Sources:
    """Runs, folders of runs, demo folders, and files of ``pri3d probe`` and of comparisons -> what is in them.

    Raises DataError naming a path that is nothing of these.
    """
    folders: dict[Path, None] = {}
    probes: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or folder. Give a run folder, or the results of pri3d probe.")
        if path.is_file() and path.name != "comparison.json":
            if path.suffix != ".json":
                raise DataError(f"{path}: no run folder, and no .json file of results. Give a run's folder.")
            probes[path] = None
            continue
        root = path.parent if path.is_file() else path
        found = _runs_in(root)
        beside = sorted(root.glob("probe*.json"))
        if not found and not beside:
            raise DataError(f"{root}: holds no run. Give the folder of a run, or one that holds runs.")
        folders |= dict.fromkeys(found)
        probes |= dict.fromkeys(beside)
    names = _unique_names(list(folders))
    runs = [read_run(path, names[path]) for path in folders]
    pretrained, finetuned = ([run for run in runs if run.verb == verb] for verb in _VERBS)
    return Sources(pretrained, finetuned, list(probes))


def read_config(run: Path) -> dict[str, Any]:
    """``verb``, ``settings`` and ``provenance`` of a run; empty where it has no config.yaml.

    Raises DataError where that is damaged.
    """
    path = RunPaths(run).config
    if not path.is_file():
        return {}
    try:
        stated = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(stated["settings"], dict) or not isinstance(stated.get("provenance", {}), dict):
            raise TypeError("its settings have no names")
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not the settings of a run ({error}). Restore it, or make the run anew.") from error
    return {"provenance": {}, **stated}


def differing_settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Setting, or part of the provenance -> its value in each run, where the runs differ in it."""
    stated = [{**run.provenance, **run.settings} for run in runs]
    names = dict.fromkeys(name for facts in stated for name in facts)
    values = {name: [facts.get(name) for facts in stated] for name in names}
    return {name: of for name, of in values.items() if any(value != of[0] for value in of)}


def _runs_in(root: Path) -> list[Path]:
    """The run that a folder is, else the runs in it, at most two levels deep: the demo's lie in ``runs``."""
    config = RunPaths(root).config
    if config.is_file():
        return [root]
    inside = {path.parent for depth in ("*", "*/*") for path in root.glob(f"{depth}/{config.name}")}
    return sorted(inside)


def read_run(path: Path, name: str) -> Run:
    """A run folder under a name. Raises DataError where it is of another verb, or damaged."""
    stated = read_config(path)
    if stated.get("verb") not in _VERBS:
        raise DataError(f"{RunPaths(path).config}: of no run of pri3d pretrain or finetune. Give another folder.")
    return Run(path, name, stated["verb"], stated["settings"], stated["provenance"])


def _unique_names(folders: Sequence[Path]) -> dict[Path, str]:
    """The last part of each path, as many parts as make it unique."""
    parts = {folder: folder.resolve().parts for folder in folders}
    length = dict.fromkeys(folders, 1)
    while True:
        names = {folder: "/".join(parts[folder][-length[folder] :]) for folder in folders}
        taken = Counter(names.values())
        clashing = [folder for folder in folders if taken[names[folder]] > 1 and length[folder] < len(parts[folder])]
        if not clashing:
            return names
        for folder in clashing:
            length[folder] += 1


def _groups(runs: Sequence[Run], ours: Mapping[Path, str]) -> list[Group]:
    """Groups of one task's runs; ``ours``: pre-training run of the page -> its name there."""
    short = short_names([str(run.provenance.get("init", "")) for run in runs])

    def weights(run: Run) -> str:
        init = str(run.provenance.get("init", ""))
        return ours.get(Path(init).resolve(), short[init]) or run.name

    facts = {run.path: _facts(run) for run in runs}
    keyed: dict[str, list[Run]] = {}
    for run in runs:
        keyed.setdefault(f"{weights(run)} {sorted(facts[run.path].items(), key=str)} {_fraction(run)}", []).append(run)
    shares = {_fraction(run) for run in runs}
    groups = []
    for members in keyed.values():
        own, name, share = facts[members[0].path], weights(members[0]), _fraction(members[0])
        siblings = [facts[run.path] for run in runs if weights(run) == name]
        varied = [key for key in own if any(other.get(key) != own[key] for other in siblings)]
        method = ", ".join([name, *(_said(key, own[key]) for key in varied)])
        label = f"{method}, {share:.0%} of the labels" if len(shares) > 1 else method
        groups.append(Group(label, method, share, sorted(members, key=lambda run: int(run.settings.get("seed", 0)))))
    return groups


def _facts(run: Run) -> dict[str, Any]:
    """What two runs of one group have in common; the rest of the provenance follows from it."""
    own = {key: value for key, value in run.settings.items() if key not in ("seed", "fraction")}
    return own | {key: run.provenance.get(key) for key in _DECIDES}


def _fraction(run: Run) -> float:
    return float(run.settings.get("fraction") or 1.0)


def _said(key: str, value: Any) -> str:
    if key in ("data", "val"):
        return f"{key} {Path(str(value)).name}"
    return f"data {str(value)[:8]}" if key == "init_data_hash" else f"{key} {value}"
