"""Where the data of a run lie: as its settings say, or where the user says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pri3d.data.mixture import hashes_of
from pri3d.errors import ConfigError, DataError
from pri3d.labelled import LabelledImages, open_labelled
from pri3d.reporting.gather import Missing
from pri3d.reporting.sources import Run
from pri3d.store import MANIFEST, Store

_LEVELS = 5  # folders above a run in which a relative path is looked for


class Pairs(NamedTuple):
    """A prepared store to show pairs of."""

    folder: Path
    remark: str  #: what is to be said of it beside its name; "" where the run was trained on it


class Labelled(NamedTuple):
    """Images that a fine-tuning run is scored on."""

    images: LabelledImages
    remark: str  #: as of Pairs


def pairs_of(run: Run, data: Path | None, scene: str | None = None) -> Pairs | Missing:
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
        if not store.manifest["settings"]["pairs"] or not len(store.pairs().i):
            continue
        if store.hash in seen:
            exact.append(Pairs(folder, ""))
        else:
            others.append(Pairs(folder, f"{run.name} was not trained on {folder.name} as it is now."))
    if found := exact or others:
        return next((pairs for pairs in found if scene in Store(pairs.folder).scenes), found[0])
    where = f"no store with pairs in {data}" if data is not None else _not_found(stated, run)
    return Missing(f"{where}. Say where the prepared store is: --data.")


def labelled_of(run: Run, data: Path | None) -> Labelled | Missing:
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
            return Labelled(images, "")
        others.append(images)
    if others:
        return Labelled(others[0], f"{run.name} was not scored on these images, or they have changed.")
    return Missing(f"{problem or _not_found(stated, run) + '.'} Say where the labelled images are: --data.")


def _not_found(stated: str, run: Run) -> str:
    if not stated:
        return f"{run.path} does not say what it was trained on"
    return f"{stated}, which {run.name} was trained on, is not found"


def _places(stated: str, run: Path, data: Path | None) -> Iterator[Path]:
    """Folders that exist: ``data`` and what lies in it, else what the run names, from here or from above the run."""
    if data is not None:
        if not data.exists():
            raise DataError(f"--data {data}: no such folder. Give a prepared store, or a folder of several.")
        yield data
        yield from sorted(path.parent for path in data.glob(f"*/{MANIFEST}"))
        return
    # Of several stores the run names all, each with its weight.
    parts = [stated, *(re.sub(r":[\d.]+$", "", part) for part in stated.split(" "))]
    roots = [Path(), *run.resolve().parents[:_LEVELS]]
    places = (root / part for part in dict.fromkeys(parts) if part for root in roots)
    yield from dict.fromkeys(place.resolve() for place in places if place.exists())
