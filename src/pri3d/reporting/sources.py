"""Sources of a report: paths -> runs, groups of runs that differ only in their seed, their scores and data."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pri3d.data.mixture import hashes_of
from pri3d.errors import ConfigError, DataError
from pri3d.labelled import LabelledImages, open_labelled
from pri3d.objectives import any_decodes
from pri3d.runs import RunPaths, leaves, read_json, short_names
from pri3d.store import MANIFEST, Store
from pri3d.tasks import find_task, task_of

_VERBS = ("pretrain", "finetune")
#: what of a run's provenance makes its scores others than those of a run with the same settings
_DECIDES = ("part", "labels", "data", "val", "init_data_hash")
Runs = Mapping[str, Sequence[Path]]  #: method -> run folders, one a seed

T = TypeVar("T")
_LEVELS = 5  # folders above a run in which a relative path is looked for


class RunFolder(NamedTuple):
    """A run folder and what its config.yaml says."""

    path: Path
    name: str  #: unique on the page
    verb: str  #: pretrain or finetune
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]


class SeedGroup(NamedTuple):
    """Fine-tuning runs that differ in their seed alone."""

    name: str  #: unique among the groups of its task
    method: str  #: the name without the fraction of the labels
    fraction: float  #: of the labelled images, 0..1
    runs: Sequence[RunFolder]  #: by seed


class Sources(NamedTuple):
    """Everything that the paths name."""

    pretrained: Sequence[RunFolder]
    finetuned: Sequence[RunFolder]
    probes: Sequence[Path]

    def groups(self) -> dict[str, list[SeedGroup]]:
        """Task -> its groups, in the order of the paths."""
        tasks = dict.fromkeys(task_of(run.provenance) for run in self.finetuned)
        ours = {run.path.resolve(): run.name for run in self.pretrained}
        return {
            task: _groups([run for run in self.finetuned if task_of(run.provenance) == task], ours) for task in tasks
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
        config = RunPaths(root).config
        # The run that the folder is, else the runs in it, at most two levels deep: the demo's lie in `runs`.
        inside = (path.parent for depth in ("*", "*/*") for path in root.glob(f"{depth}/{config.name}"))
        found = [root] if config.is_file() else sorted(set(inside))
        beside = sorted(root.glob("probe*.json"))
        if not found and not beside:
            raise DataError(f"{root}: contains no run. Give the folder of a run, or one that contains runs.")
        folders |= dict.fromkeys(found)
        probes |= dict.fromkeys(beside)
    # A run is called by the last part of its path, or by as many parts as make it unique.
    parts = {folder: folder.resolve().parts for folder in folders}
    length = dict.fromkeys(folders, 1)
    names: dict[Path, str] = {}
    clashing = list(folders)
    while clashing:
        names = {folder: "/".join(parts[folder][-length[folder] :]) for folder in folders}
        taken = Counter(names.values())
        clashing = [folder for folder in folders if taken[names[folder]] > 1 and length[folder] < len(parts[folder])]
        length |= {folder: length[folder] + 1 for folder in clashing}
    runs = [read_run(path, names[path]) for path in folders]
    pretrained, finetuned = ([run for run in runs if run.verb == verb] for verb in _VERBS)
    return Sources(pretrained, finetuned, list(probes))


def differing_settings(runs: Sequence[RunFolder]) -> dict[str, list[Any]]:
    """Setting, or part of the provenance -> its value in each run, where the runs differ in it."""
    stated = [{**run.provenance, **flat_settings(run)} for run in runs]
    names = dict.fromkeys(name for facts in stated for name in facts)
    values = {name: [facts.get(name) for facts in stated] for name in names}
    return {name: of for name, of in values.items() if any(value != of[0] for value in of)}


def flat_settings(run: RunFolder) -> dict[str, Any]:
    """Settings by dotted names, ``matching.distance``; the weights of the objectives are one setting."""
    grouped = {name: value for name, value in run.settings.items() if name != "objectives"}
    whole = {"objectives": run.settings["objectives"]} if "objectives" in run.settings else {}
    return {**whole, **{".".join(way): value for way, value in leaves(grouped)}}


def used_settings(run: RunFolder) -> dict[str, Any]:
    """Settings of a run without the decoder's and its contrast's where none of its objectives looks at the decoder."""
    unused = () if any_decodes(run.settings.get("objectives", {})) else ("unet", "contrast")
    return {name: value for name, value in run.settings.items() if name not in unused}


def read_run(path: Path, name: str) -> RunFolder:
    """A run folder under a name. Raises DataError where it is of another verb, or damaged."""
    stated = RunPaths(path).read_config()
    if stated.get("verb") not in _VERBS:
        raise DataError(f"{RunPaths(path).config}: not from a run of pri3d pretrain or finetune. Give another folder.")
    return RunFolder(path, name, stated["verb"], stated["settings"], stated["provenance"])


def _groups(runs: Sequence[RunFolder], ours: Mapping[Path, str]) -> list[SeedGroup]:
    """Groups of one task's runs; ``ours``: pre-training run of the page -> its name there."""
    short = short_names([str(run.provenance.get("init", "")) for run in runs])

    def weights(run: RunFolder) -> str:
        init = str(run.provenance.get("init", ""))
        return ours.get(Path(init).resolve(), short[init]) or run.name

    facts = {run.path: _facts(run) for run in runs}
    keyed: dict[str, list[RunFolder]] = {}
    for run in runs:
        keyed.setdefault(f"{weights(run)} {sorted(facts[run.path].items(), key=str)} {_fraction(run)}", []).append(run)
    shares = {_fraction(run) for run in runs}
    groups = []
    for members in keyed.values():
        own, name, share = facts[members[0].path], weights(members[0]), _fraction(members[0])
        siblings = [facts[run.path] for run in runs if weights(run) == name]
        varied = [key for key in own if any(other.get(key) != own[key] for other in siblings)]
        said = [name]
        for key in varied:
            value = Path(str(own[key])).name if key in ("data", "val") else str(own[key])
            said.append(f"data {value[:8]}" if key == "init_data_hash" else f"{key} {value}")
        method = ", ".join(said)
        label = f"{method}, {share:.0%} of the labels" if len(shares) > 1 else method
        groups.append(
            SeedGroup(label, method, share, sorted(members, key=lambda run: int(run.settings.get("seed", 0))))
        )
    return groups


def _facts(run: RunFolder) -> dict[str, Any]:
    """What two runs of one group have in common; the rest of the provenance follows from it."""
    own = {key: value for key, value in flat_settings(run).items() if key not in ("seed", "fraction")}
    return own | {key: run.provenance.get(key) for key in _DECIDES}


def _fraction(run: RunFolder) -> float:
    return float(run.settings.get("fraction") or 1.0)


class RunScores(NamedTuple):
    """scores.json of one run; unknown numbers are NaN."""

    last: Mapping[str, float]  #: score -> number after the last step
    best: float  #: the main score where it was best
    classes: Mapping[str, float]  #: class -> score after the last step
    history: Sequence[Mapping[str, float]]  #: ``step`` and scores of every validation


class TaskWords(NamedTuple):
    """What the scores of a task are called."""

    key: str  #: the main score
    main: str  #: its name
    by_class: str  #: name of the scores by class
    shown: Mapping[str, str]  #: score of a table -> its name


def words_of(task: str) -> TaskWords:
    """Raises ConfigError for an unknown task."""
    kind = find_task(task)
    words, key = kind.words.scores, kind.key
    shown = {name: words.get(name, name) for name in dict.fromkeys((key, *kind.recipe.shown))}
    by_class = kind.words.by_class
    return TaskWords(key, words.get(key, key), words.get(by_class, by_class or key), shown)


def read_score(run: Path, task: str) -> RunScores | None:
    """Scores of a run; None where it has none, or no main score. Raises DataError where the file is damaged."""
    path, key = RunPaths(run).scores, words_of(task).key
    if not path.is_file():
        return None
    found = _known(read_json(path))
    try:
        last, history = dict(found["last"]), [_numbers(entry) for entry in found["history"]]
        best = float(found.get("best", last)[key])
        if not math.isfinite(last[key]):
            return None
        by_class = find_task(task).words.by_class
        classes = dict(last[by_class]) if by_class else {}
    except (AttributeError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not the scores of a run ({error!r}). Delete it, or restore it.") from error
    return RunScores(_numbers(last), best, _numbers(classes), history)


def read_scores(runs: Runs, task: str) -> dict[str, list[RunScores]]:
    """:func:`read_score` of the runs that have one, method by method; methods without any are left out."""
    found = {method: [read_score(folder, task) for folder in folders] for method, folders in runs.items()}
    present = {method: [score for score in of if score is not None] for method, of in found.items()}
    return {method: of for method, of in present.items() if of}


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}


def _known(value: Any) -> Any:
    """What JSON held, null as NaN."""
    if isinstance(value, dict):
        return {key: _known(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_known(item) for item in value]
    return math.nan if value is None else value


class Missing(NamedTuple):
    """Why a part of the report cannot be made; not an error: runs are cut short, stores made without labels."""

    reason: str


def there(found: T | Missing) -> T:
    """What was looked for. Raises DataError with the reason where it is missing."""
    if isinstance(found, Missing):
        raise DataError(found.reason)
    return found


class FoundPairs(NamedTuple):
    """A prepared dataset to show pairs of."""

    folder: Path
    remark: str  #: what is to be said of it beside its name; "" where the run was trained on it


class FoundImages(NamedTuple):
    """Images that a fine-tuning run is scored on."""

    images: LabelledImages
    remark: str  #: as of FoundPairs


def pairs_of(run: RunFolder, data: Path | None, scene: str | None = None) -> FoundPairs | Missing:
    """The store that a pre-training run learnt from; where it has changed since, or ``data`` is another, a remark.

    Of several the first that has the scene.
    """
    stated = str(run.provenance.get("data", ""))
    seen = hashes_of(str(run.provenance.get("data_hash") or ""))
    exact, others = [], []
    for folder in _places(stated, run.path, data):
        if not (folder / MANIFEST).is_file():
            continue
        store = Store(folder)
        if not has_pairs(store):
            continue
        if store.hash in seen:
            exact.append(FoundPairs(folder, ""))
        else:
            others.append(FoundPairs(folder, f"{run.name} was trained on another version of {folder.name}."))
    if found := exact or others:
        return next((pairs for pairs in found if scene in Store(pairs.folder).scenes), found[0])
    where = f"no prepared dataset with pairs in {data}" if data is not None else _not_found(stated, run)
    return Missing(f"{where}. Give the prepared dataset with --data.")


def has_pairs(store: Store) -> bool:
    """Whether a store was prepared with pairs, and has some."""
    return bool(store.manifest["settings"]["pairs"]) and len(store.pairs().i) > 0


def labelled_of(run: RunFolder, data: Path | None) -> FoundImages | Missing:
    """The images that a fine-tuning run was scored on, or others of the same format with a remark, as pairs_of."""
    facts = run.provenance
    stated = str(facts.get("val") or facts.get("data") or "")
    others, problem = [], ""
    for path in _places(stated, run.path, data):
        try:
            images = open_labelled(path, "val", facts.get("dataset"), facts.get("labels"), facts.get("val") is not None)
        except (DataError, ConfigError) as error:
            problem = problem or str(error)
            continue
        if str(facts.get("data_hash", "")).endswith(f"+{images.hash}"):
            return FoundImages(images, "")
        others.append(images)
    if others:
        return FoundImages(others[0], f"{run.name} was evaluated on other images, or they have changed.")
    return Missing(f"{problem or _not_found(stated, run) + '.'} Give the labelled images with --data.")


def _not_found(stated: str, run: RunFolder) -> str:
    if not stated:
        return f"{run.path} does not state its training data"
    return f"{stated}, which {run.name} was trained on, is not found"


def _places(stated: str, run: Path, data: Path | None) -> Iterator[Path]:
    """Folders that exist: ``data`` and what lies in it, else what the run names, from here or from above the run."""
    if data is not None:
        if not data.exists():
            raise DataError(f"--data {data}: no such folder. Give a prepared dataset, or a folder of several.")
        yield data
        yield from sorted(path.parent for path in data.glob(f"*/{MANIFEST}"))
        return
    # Of several stores the run names all, each with its weight.
    parts = [stated, *(re.sub(r":[\d.]+$", "", part) for part in stated.split(" "))]
    roots = [Path(), *run.resolve().parents[:_LEVELS]]
    places = (root / part for part in dict.fromkeys(parts) if part for root in roots)
    yield from dict.fromkeys(place.resolve() for place in places if place.exists())
