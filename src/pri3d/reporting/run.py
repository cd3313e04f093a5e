"""The chain's runs -> one HTML page of it all, and the picture that stands in the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pri3d.files.atomic import write_atomic
from pri3d.labelled import LabelledImages
from pri3d.labelled.prepared import PreparedImages
from pri3d.networks.weights import read_provenance
from pri3d.reporting import charts, gather
from pri3d.reporting.figures import overview_picture
from pri3d.reporting.html import Page
from pri3d.reporting.sections import (
    BASELINE,
    Scores,
    add_curves,
    add_data,
    add_features,
    add_pictures,
    add_unfinished,
    add_validation,
    in_words,
)
from pri3d.reporting.sources import Missing, Runs, read_scores, there
from pri3d.reporting.style import series_label
from pri3d.runs import RunPaths, leaves
from pri3d.store import Store

OURS = "pri3d"  #: the method whose difference to the baseline the report states, where both were run
_TASK = "semantic"


def write_report(
    out: Path,
    *,
    title: str,
    store: Path,
    pretrain_run: Path,
    val_store: Path,
    finetune_runs: Runs,
    results: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Path:
    """Write one self-contained HTML page about a pre-training run and the fine-tuning runs that started from it.

    What is not there (fine-tuning that was cut short, a store without labels) is left out, and the page says so.

    Args:
        out: the HTML file.
        title: of the page.
        store: prepared store of pre-training.
        pretrain_run: its run folder.
        val_store: prepared store with labels that fine-tuning was scored on.
        finetune_runs: method -> run folders, one a seed; ``scratch`` and ``pri3d`` are compared.
        results: further numbers to show, name -> number or text; ``semantic_miou`` (method -> mIoU a seed, 0..1) is
            shown where the runs have no scores.json, ``minutes`` is what everything took.
        settings: what the page states under "Settings", name -> value or mapping.

    Returns:
        ``out``.

    Raises:
        DataError, WeightsError: a file is there but damaged.
    """
    page = Page(
        title, "Pri3D: an image backbone pre-trained on the geometry of posed RGB-D recordings, without labels."
    )
    miou = _miou(read_scores(finetune_runs, _TASK), results)
    _add_result(page, miou, results, _held_out(store, val_store))
    named = {pretrain_run.name: pretrain_run}
    page.heading("What pre-training learns from")
    learnt = gather.store_with_pairs([store])
    if isinstance(learnt, Missing):
        page.note(f"Pair and surface are left out: {learnt.reason}")
    else:
        add_data(page, learnt, pretrain_run)
    page.heading("Pre-training")
    add_curves(page, named)
    folder = gather.store_with_pairs([val_store, store])
    if isinstance(folder, Missing):
        page.note(f"Features are left out: {folder.reason}")
    else:
        add_features(page, folder, named)
    page.heading("Fine-tuning for semantic segmentation")
    add_validation(page, _TASK, finetune_runs)
    add_unfinished(page, _TASK, finetune_runs)
    add_pictures(page, _TASK, finetune_runs, _labelled(val_store))
    _add_settings(page, store, pretrain_run, val_store, finetune_runs, settings)
    return page.write(out)


def write_overview(path: Path, *, store: Path, pretrain_run: Path, val_store: Path, finetune_runs: Runs) -> Path:
    """Write the wide picture of the whole method as a PNG: pair, chunk, features, segmentation.

    Arguments as :func:`write_report`. Raises DataError naming the first piece that is missing.
    """
    folder = there(gather.store_with_pairs([val_store, store]))
    pairs, images = gather.matched_pairs(folder, 1, pretrain_run)
    chunk = there(gather.chunk(folder, pretrain_run))
    files = there(gather.network_files({pretrain_run.name: pretrain_run}))
    maps = gather.feature_maps(images, files)
    found = there(gather.predictions(there(_labelled(val_store)), finetune_runs, 2, _TASK))
    return write_atomic(path, overview_picture(pairs[0], chunk, maps, found.segmented, found.class_names))


def compare(baseline: Sequence[float], ours: Sequence[float]) -> str:
    """Say in words what two lists of mIoU (0..1, one a seed, same order) show, and what they do not."""
    points = 100 * (float(np.mean(ours)) - float(np.mean(baseline)))
    first = (
        f"Fine-tuned from Pri3D the network reaches {np.mean(ours):.1%} mIoU, from scratch {np.mean(baseline):.1%}: "
        f"{_signed(points)} points."
    )
    if len(baseline) != len(ours):
        return f"{first} The methods have different numbers of seeds ({len(baseline)} and {len(ours)})."
    if len(ours) == 1:
        return f"{first} That is one seed each: how much of it is chance, one seed cannot tell."
    gains = [100 * (b - a) for a, b in zip(baseline, ours, strict=True)]
    if min(gains) > 0:
        sense = "it is positive for every seed"
    elif max(gains) < 0:
        sense = "it is negative for every seed: here pre-training did not help"
    else:
        sense = "its sign differs between seeds, so these runs do not settle which is better"
    few = " So few seeds give an indication, not an error bound." if len(gains) < 5 else ""
    return (
        f"{first} Over {len(gains)} seeds the difference lies between {_signed(min(gains))} and {_signed(max(gains))} "
        f"points; {sense}.{few}"
    )


def _add_result(page: Page, miou: Mapping[str, Sequence[float]], results: Mapping[str, Any], held_out: str) -> None:
    page.heading("Result")
    tiles = {f"mIoU, {series_label(name)}": f"{np.mean(values):.1%}" for name, values in miou.items()}
    both = BASELINE in miou and OURS in miou
    if both:
        tiles["points, Pri3D less scratch"] = _signed(100 * float(np.mean(miou[OURS]) - np.mean(miou[BASELINE])))
    if "minutes" in results:
        tiles["minutes, everything"] = f"{results['minutes']:.1f}"
    page.tiles(tiles)
    if both:
        page.paragraph(compare(miou[BASELINE], miou[OURS]))
    if not miou:
        page.note("Semantic segmentation is left out: no fine-tuning run has scores.")
    else:
        page.paragraph(held_out)
        seeds = max(len(values) for values in miou.values())
        rows = [_score_row(series_label(name), values, seeds) for name, values in miou.items()]
        if both and len(miou[BASELINE]) == len(miou[OURS]):
            gains = [b - a for a, b in zip(miou[BASELINE], miou[OURS], strict=True)]
            rows.append(_score_row("difference, points", gains, seeds, signed=True))
        header = ["mIoU, %", "mean", *(f"run {k + 1}" for k in range(seeds))]
        page.table(
            header, rows, "Mean intersection over union on the held-out frames, at the last step. Runs differ by seed."
        )
        bars = {series_label(name): {name: values} for name, values in miou.items()}
        page.figure(
            charts.bars_figure(bars, "mIoU, %, on held-out frames"),
            "mIoU by method. Bars: means; dots: seeds; whiskers: 95 % interval of the mean.",
            f"Bars of mIoU: {in_words(miou)}.",
        )
    rest = {name: value for name, value in results.items() if name not in {"semantic_miou", "minutes"}}
    if rest:
        page.heading("Further numbers", 3)
        page.table(["", "value"], [(".".join(way), _number(value)) for way, value in leaves(rest)])


def _add_settings(page: Page, store: Path, run: Path, val_store: Path, runs: Runs, settings: Mapping[str, Any]) -> None:
    page.heading("Settings")
    page.paragraph("The settings that made these numbers.")
    page.facts("This report", settings)
    weights = RunPaths(run).weights
    if weights.is_file():
        page.facts("Pre-trained weights", read_provenance(weights))
    page.facts("Pre-training", gather.read_settings(run))
    first = next((folder for folders in runs.values() for folder in folders), None)
    if first is not None:
        page.facts("Fine-tuning (first run)", gather.read_settings(first))
    for name, folder in (("Data of pre-training", store), ("Data of validation", val_store)):
        opened = gather.open_store(folder)
        if isinstance(opened, Store):
            page.facts(
                f"{name}: {folder.name}",
                {"scenes": ", ".join(opened.scenes), "hash": opened.hash, **opened.manifest["settings"]},
            )


def _held_out(store: Path, val_store: Path) -> str:
    """What the scored frames are to pre-training."""
    pretrain, val = gather.open_store(store), gather.open_store(val_store)
    if isinstance(pretrain, Missing) or isinstance(val, Missing):
        return "Whether pre-training saw the scored scenes cannot be told: a store is missing."
    frames = sum(int(val.scene(name).frames.valid.sum()) for name in val.scenes)
    what = f"Scored on {frames:,} frames of {len(val.scenes)} scenes ({val_store.name})"
    if gather.shares_scenes(pretrain, val):
        return f"{what}; scenes of the same name are in the data of pre-training, so it may have seen them."
    return f"{what}; pre-training did not see these scenes. Pre-training uses no labels."


def _labelled(folder: Path) -> LabelledImages | Missing:
    """All labelled frames of a prepared store."""
    store = gather.open_store(folder)
    if isinstance(store, Missing):
        return store
    return PreparedImages(folder, "all") if store.class_names else Missing(f"{folder.name} has no labels.")


def _miou(scores: Scores, results: Mapping[str, Any]) -> dict[str, list[float]]:
    if scores:
        return {method: [score.last["miou"] for score in of] for method, of in scores.items()}
    stated = results.get("semantic_miou", {})
    known = {method: [float(v) for v in values if v is not None] for method, values in stated.items()}
    finite = {method: [v for v in values if np.isfinite(v)] for method, values in known.items()}
    return {method: values for method, values in finite.items() if values}


def _score_row(name: str, values: Sequence[float], seeds: int, signed: bool = False) -> list[str]:
    text = [_signed(100 * v) if signed else f"{100 * v:.1f}" for v in (float(np.mean(values)), *values)]
    return [name, *text, *["–"] * (seeds - len(values))]


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _signed(points: float) -> str:
    """One decimal with its sign; a true minus, and no sign at zero."""
    return f"{points:+.1f}".replace("-", "−") if round(points, 1) else "0.0"
