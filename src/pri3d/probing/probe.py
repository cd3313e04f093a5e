"""``pri3d probe``: 3D matching, linear probes and retention of frozen features.

Correspondences need no fit and no labels; linear probes read depth, normals and classes off frozen features;
retention compares a network with the one it began as.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pri3d import registry
from pri3d.api.probe import ProbeOptions
from pri3d.api.results import Record
from pri3d.data.crops import frame_table
from pri3d.data.measured import choose_evenly, read_frames
from pri3d.data.mixture import hashes_of
from pri3d.data.pairs import PairDataset, draw_pairs, split_pairs
from pri3d.data.sampler import derive
from pri3d.errors import ConfigError, DataError
from pri3d.files.atomic import usable
from pri3d.geometry.resize import parse_size
from pri3d.labelled.prepared import PreparedImages
from pri3d.networks.load import Dense, FeatureNet
from pri3d.probing.differences import Sample, Samples, compare, sample_correspondence, sample_matching
from pri3d.probing.linear import Side, open_guards, probe_linear
from pri3d.probing.networks import check_source, name_sources, open_dense
from pri3d.probing.pairs import Correspondences, Held, Matching, Measure, matching_recall, measure_pairs
from pri3d.probing.retention import check_same, retention
from pri3d.probing.tables import Scores, show, write_results
from pri3d.store import Store
from pri3d.terminal import Terminal

__all__ = ["Scores", "matching_recall", "probe"]

Split = Literal["heldout", "all"]

PAIR_TASKS = ("matching", "correspondence")
LINEAR_TASKS = ("depth", "normals", "segmentation")
TASKS = (*PAIR_TASKS, *LINEAR_TASKS, "retention")
_RETAINED = 64  # images that retention looks at


class Frozen(NamedTuple):
    """What is the same for every network."""

    pairs: Held | None
    angles: NDArray[np.float32]  #: (P,) radians between the viewing directions of the pairs
    first: NDArray[np.int64]  #: (P,) number of each pair's first frame among those of all pairs, in the order of time
    distance: float  #: metres within which two measured points are the same
    sides: list[Side]  #: frames that linear probes are fitted to and scored on
    guards: dict[str, list[Side]]  #: the same of labelled images of another kind, by their name


def probe(options: ProbeOptions) -> Record:
    """Compare networks by what their frozen features know, on frames that they were not trained on.

    See :func:`pri3d.probe` for the options.
    """
    data = Path(options.data)
    weights = [Path(each) for each in options.weights]
    reference = None if options.reference is None else Path(options.reference)
    out = Path(options.out)
    parse_size(options.size)
    if out.suffix != ".json":
        raise ConfigError(f"--out {out}: name a file that ends in .json; .csv, .md and .png are written beside it.")
    store = Store(data)
    sources = name_sources(weights)
    split, holdout, seed = options.portion, options.holdout, options.seed
    chosen = _choose_tasks(options.tasks, store, sources, reference, options.labels)
    if split == "heldout" and holdout <= 0:
        what = "pair" if set(chosen) & {*PAIR_TASKS} else "frame"
        raise ConfigError(
            f"holdout = {holdout}: leaves no {what} of {store.path} to probe on. Give a larger fraction, or, where no "
            "network has seen this dataset, --portion all."
        )
    networks = {}
    for name, source in sources.items():  # every one is opened before anything is measured
        networks[name] = open_dense(source, options.features, options.encoder, seed)
        _check_seen(source, networks[name].net.record, store, split, holdout)
    references = _references(networks, reference, options.encoder, seed, chosen)
    frozen = _read(options, store, chosen)
    results, samples = {}, {}
    for name, dense in networks.items():
        scores = Scores(str(sources[name]), dense.about)
        results[name], samples[name] = _measure(scores, name, dense, frozen, chosen, options, store)
        if name in references:
            color = torch.cat([side.test.color for side in frozen.sides])
            images = color[:: -(-len(color) // _RETAINED)]
            kept = retention(dense.net, references[name].net, images, name)
            results[name] = results[name]._replace(retention=kept)
    halves, differences = compare(samples, derive(seed))
    results = {
        name: scores._replace(intervals=halves[name], differences=differences.get(name))
        for name, scores in results.items()
    }
    show(results, options.pixels)
    say = Terminal(stderr=True, highlight=False, soft_wrap=True).print
    found = [one for others in differences.values() for by_measure in others.values() for one in by_measure.values()]
    if found and all(math.isnan(one.low) for one in found):
        fix = "Hold out more, with --holdout of pretrain and of probe, or probe another place with --portion all."
        say(f"{store.path}: too few frames for an interval. {fix}")
    # Say that metres are no metres where the unit of a scene is not known.
    unknown = [scene for scene, record in store.manifest["scenes"].items() if record.get("scale") is not None]
    if unknown:
        say(f"{store.path}: the unit of {len(unknown)} scenes is not known; values in m are in that unit.")
    settings: dict[str, Any] = {"tasks": chosen, "split": options.portion, "distance": frozen.distance}
    settings |= {name: getattr(options, name) for name in ("holdout", "features", "size", "pixels", "seed")}
    settings |= {"frames": options.max_frames}
    settings |= {"guard": [str(path) for path in options.guard]}
    settings |= {"pairs": 0 if frozen.pairs is None else len(frozen.pairs), "reference": reference and str(reference)}
    with usable(f"--out {out}"):
        write_results(out, results, {"data": str(data), "data_hash": store.hash, "settings": settings}, options.pixels)
    return Record(out, results)


def _choose_tasks(
    asked: str | None, store: Store, sources: dict[str, Path], reference: Path | None, labels: str | None
) -> list[str]:
    """Tasks in their order: all that are possible, or those asked for.

    Raises ConfigError for an unknown name or retention without a reference, DataError where the store cannot serve one.
    """
    reasons: dict[str, ConfigError | DataError] = {}
    if not store.manifest["settings"]["pairs"]:
        none = DataError(f"{store.path}: was prepared with --pairs false. Prepare it with pairs, in another folder.")
        reasons |= dict.fromkeys(PAIR_TASKS, none)
    named = (store.scene(scene) for scene in store.scenes if labels or store.class_names)
    if not any(scene.has_label(row) for scene in named for row in range(len(scene.frames.names))):
        fix = "Prepare a recording that has a label folder, or leave segmentation out of --tasks."
        reasons["segmentation"] = DataError(f"{store.path}: has no labels, or no names of classes. {fix}")
    if reference is None and not any(name.endswith(" after") for name in sources):
        reasons["retention"] = ConfigError(
            "--tasks retention: none of the weights is a run folder that holds what it began with. Give --reference."
        )
    if asked is None:
        return [task for task in TASKS if task not in reasons]
    words = [word.strip() for word in asked.split(",")]
    for word in words:
        if word not in TASKS:
            raise registry.unknown("--tasks", TASKS, word)
        if word in reasons:
            raise reasons[word]
    return [task for task in TASKS if task in words]


def _check_seen(path: Path, record: dict[str, Any], store: Store, split: Split, holdout: float) -> None:
    """Refuse to score a network on frames it was trained on. Raises ConfigError."""
    tuned = "task" in record  # its data_hash is of the training images + those it was scored on
    if tuned and hashes_of(str(record.get("data_hash")))[0].startswith(store.hash):
        raise ConfigError(
            f"{path}: was fine-tuned on {store.path}, whose split differs from --holdout: training frames would be "
            f"evaluated. Probe other recordings, or its initial weights."
        )
    before = str(record.get("init_data_hash" if tuned else "data_hash") or "")
    if not any(one.startswith(store.hash) for one in hashes_of(before)):
        return
    if split == "all":
        raise ConfigError(
            f"{path}: was trained on {store.path}, so --portion all would evaluate training frames. Probe other "
            f"recordings, or use --portion heldout."
        )
    trained = float(record.get("init_holdout" if tuned else "holdout") or 0)  # who does not say has seen everything
    if trained < holdout:
        raise ConfigError(
            f"{path}: was trained with --holdout {trained:g}, so --holdout {holdout:g} would evaluate training "
            f"frames. Probe on other recordings, or give the same fraction."
        )


def _references(
    networks: dict[str, Dense], reference: Path | None, encoder: str, seed: int, chosen: Sequence[str]
) -> dict[str, Dense]:
    """Network -> what retention compares it with. Raises ConfigError where --reference fits none of them."""
    if "retention" not in chosen:
        return {}
    if reference is None:
        pairs = {name: f"{name.removesuffix(' after')} before" for name in networks if name.endswith(" after")}
        return {name: networks[before] for name, before in pairs.items() if before in networks}
    check_source(reference)
    opened = open_dense(reference, "encoder", encoder, seed)
    parameters = [{k: x.shape for k, x in d.net.encoder.named_parameters()} for d in (opened, *networks.values())]
    fitting = [name for name, own in zip(networks, parameters[1:], strict=True) if own == parameters[0]]
    if not fitting:
        name = next(iter(networks))
        check_same(networks[name].net.encoder, opened.net.encoder, name)
    return dict.fromkeys(fitting, opened)


def _read(options: ProbeOptions, store: Store, chosen: Sequence[str]) -> Frozen:
    """Read all images once. Raises ConfigError or DataError where a side has no frame, or no labelled one."""
    size, whole = parse_size(options.size), options.portion == "all"
    distance = options.distance or float(store.manifest["settings"]["distance"])
    guards = open_guards(options.guard, size, options.max_frames, options.guard_dataset, options.guard_label_map)
    frozen = Frozen(None, np.zeros(0, np.float32), np.zeros(0, np.int64), distance, [], guards)
    if set(chosen) & {*PAIR_TASKS}:
        pairs = store.pairs()
        drawn = np.arange(len(pairs.i)) if whole else split_pairs(store, options.holdout)[1]
        if len(drawn) == 0:
            what = f"holdout = {options.holdout}: leaves no pair of {store.path} to probe on. Give a larger fraction."
            raise ConfigError(what)
        drawn = drawn[draw_pairs(pairs.angle[drawn], options.max_pairs, options.seed)]
        scene = np.unique(pairs.scene[drawn], return_inverse=True)[1]
        frame = scene * (int(pairs.i[drawn].max()) + 1) + pairs.i[drawn]
        frozen = frozen._replace(
            pairs=Held(PairDataset(store.path, drawn, size, options.seed)),
            angles=pairs.angle[drawn],
            first=np.unique(frame, return_inverse=True)[1],
        )
    if not set(chosen) - {*PAIR_TASKS}:
        return frozen
    images = PreparedImages(store.path, "all", options.labels) if "segmentation" in chosen else None
    table = frame_table(store)
    read = []
    holdout = 0.5 if whole else options.holdout  # of what nobody has seen both halves are scored, each by the other
    for rows, what in zip(split_pairs(store, holdout, table), ("training", "held-out"), strict=True):
        if len(rows) == 0:
            raise ConfigError(f"holdout = {holdout}: leaves no {what} frame of {store.path}. Give another fraction.")
        side = read_frames(store, table, choose_evenly(rows, options.max_frames), size, images)
        if images is not None and not bool((side.label < side.classes).any()):
            raise DataError(f"{store.path}: no {what} frame has a label. Give another --holdout, or more --max-frames.")
        read.append(side)
    sides = [Side(read[0], read[1])] + ([Side(read[1], read[0])] if whole else [])
    return frozen._replace(sides=sides)


def _measure(
    scores: Scores, name: str, dense: Dense, frozen: Frozen, chosen: Sequence[str], options: ProbeOptions, store: Store
) -> tuple[Scores, Samples]:
    """Add what is measured of one network, and what it is made of. Raises DataError where no pair has a match."""
    samples: dict[str, Sample] = {}
    matching = Matching(options.pixels, frozen.distance) if "matching" in chosen else None
    found = Correspondences() if "correspondence" in chosen else None
    if frozen.pairs is not None:
        measures: list[Measure] = [measure for measure in (matching, found) if measure is not None]
        measure_pairs(dense, frozen.pairs, measures, name)
    if matching:
        scores = scores._replace(matching=matching.result(frozen.angles))
        samples["matching"] = sample_matching(matching.pairs(), frozen.angles, frozen.first)
        if scores.matching and not scores.matching.points:
            raise DataError(f"{store.path}: no held-out pair has a match within {frozen.distance} m. Raise --distance.")
    if found:
        scores = scores._replace(correspondence=found.result(frozen.angles))
        samples["correspondence"] = sample_correspondence(found.pairs(), frozen.angles, frozen.first)
    linear = [task for task in chosen if task in LINEAR_TASKS]
    if linear:
        read, of = probe_linear(dense, frozen.sides, linear, options.seed, name)
        scores, samples = scores._replace(**read._asdict()), samples | of
    guard = {}
    for key, sides in frozen.guards.items():  # of the encoder: it is what goes on into other tasks
        encoder = Dense(FeatureNet(dense.net.encoder, {})).eval()
        read, of = probe_linear(encoder, sides, ["segmentation"], options.seed, f"{name}, {key}")
        if read.segmentation:
            guard[key], samples[f"guard / {key}"] = read.segmentation, of["segmentation"]
    return scores._replace(guard=guard or None), samples
