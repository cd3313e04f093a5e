"""``pri3d report``: runs -> one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import pri3d
from pri3d.api.report import ReportOptions
from pri3d.errors import ConfigError, DataError
from pri3d.files.atomic import usable, write_atomic
from pri3d.networks.weights import read_provenance
from pri3d.reporting import gather
from pri3d.reporting.figures import overview_picture
from pri3d.reporting.html import Page
from pri3d.reporting.sections import (
    add_curves,
    add_data,
    add_features,
    add_pictures,
    add_probe,
    add_scores,
    add_validation,
    describe,
)
from pri3d.reporting.sources import (
    Missing,
    RunFolder,
    SeedGroup,
    Sources,
    differing_settings,
    find_sources,
    labelled_of,
    pairs_of,
    read_score,
    there,
    used_settings,
)
from pri3d.runs import RunPaths
from pri3d.store import Store
from pri3d.tasks import find_task
from pri3d.terminal import Terminal


def make_report(options: ReportOptions) -> Path:
    """Make one HTML page of a run, or of several side by side: curves, scores, features, predictions, settings.

    See :func:`pri3d.report` for the options.
    """
    runs = [Path(each) for each in options.runs]
    data = None if options.data is None else Path(options.data)
    out = Path(options.out)
    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder. Name a file, such as {out / 'report.html'}.")
    sources = find_sources(runs)
    console = Terminal(stderr=True, highlight=False, soft_wrap=True)
    with console.status("reading runs", spinner="line") as status:
        page = build_page(sources, data, tell=status.update)
    with usable(f"--out {out}"):
        page.write(out)
    console.print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, open it in a browser")
    return out


def build_page(
    sources: Sources, data: Path | None = None, title: str = "", lead: str = "", tell: Callable[[str], object] = str
) -> Page:
    """The page of all that ``sources`` hold, not yet written; ``data`` as of :func:`make_report`.

    ``title`` names the page (default: its runs), ``lead`` is what to take away, which the page begins with. ``tell`` is
    called with the name of each part before it is drawn.
    """
    names = [run.name for run in (*sources.pretrained, *sources.finetuned)] or [path.name for path in sources.probes]
    several = f"Comparison of {', '.join(names) if len(names) <= 4 else f'{len(names)} runs'}"
    counts = {"pre-training run": sources.pretrained, "fine-tuning run": sources.finetuned, "probe": sources.probes}
    said = ", ".join(f"{len(of)} {name}{'s' if len(of) > 1 else ''}" for name, of in counts.items() if of)
    about = "Pri3D: image backbones pre-trained on the geometry of RGB-D recordings, without labels."
    page = Page(
        title or (f"Run {names[0]}" if len(names) == 1 else several), " ".join(filter(None, (lead, f"{said}. {about}")))
    )
    for path in sources.probes:
        page.heading("Probes of the features" if len(sources.probes) == 1 else f"Probe: {path.name}")
        add_probe(page, path)
    for task, groups in sources.groups().items():
        tell(f"drawing scores and predictions of {task} runs")
        _add_task(page, task, groups, data)
    if sources.pretrained:
        tell("drawing the curves of pre-training")
        page.heading("Pre-training")
        header = ["run", "steps", "loss", "recall of each objective", "samples/s"]
        page.table(header, describe(sources.pretrained), "Means over the last tenth of the steps.")
        add_curves(page, sources.pretrained)
        page.heading("Training data of pre-training")
        found = pairs_of(sources.pretrained[0], data)
        if isinstance(found, Missing):
            page.note(f"Pair, surface and features are not shown: {found.reason}")
        else:
            if found.remark:
                page.note(found.remark)
            tell("drawing the pair and the surface")
            add_data(page, found.folder, sources.pretrained[0])
            tell("computing features")
            page.heading("Features")
            add_features(page, found.folder, sources.pretrained)
    if sources.pretrained or sources.finetuned:
        _add_provenance(page, [*sources.finetuned, *sources.pretrained], data)
    return page


def write_overview(path: Path, sources: Sources, data: Path | None = None) -> Path:
    """Write the whole method as one wide PNG: a pair, its surface and features, and segmentations, of the first runs.

    ``data`` as of :func:`make_report`. Raises DataError naming the first piece that is missing.
    """
    segmenting = [(task, groups) for task, groups in sources.groups().items() if find_task(task).colors_classes]
    if not sources.pretrained or not segmenting:
        raise DataError("an overview needs a pre-training run and a fine-tuning run for semantic segmentation.")
    run, (task, groups) = sources.pretrained[0], segmenting[0]
    folder = there(pairs_of(run, data)).folder
    pairs, images = gather.matched_pairs(folder, 1, run.settings)
    chunk = there(gather.median_chunk(folder, run.settings))
    maps = gather.feature_maps(images, there(gather.network_files([run])))
    methods = {group.method: [member.path for member in group.runs] for group in groups}
    found = there(gather.predictions(there(labelled_of(groups[0].runs[0], data)).images, methods, 2, task))
    return write_atomic(path, overview_picture(pairs[0], chunk, maps, found.frames, found.class_names))


def _add_task(page: Page, task: str, groups: Sequence[SeedGroup], data: Path | None) -> None:
    """Scores, curves and pictures of one task; pictures of the largest fraction of the labels."""
    page.heading(f"{find_task(task).words.title or task}, fine-tuned")
    add_scores(page, task, groups)
    every = [run for group in groups for run in group.runs]
    if any(run.provenance.get("shared_images") for run in every):
        page.note("Some validation images are training images too: scores on them only measure memorisation.")
    if any(run.provenance.get("pretrained_on_val") for run in every):
        page.note("Some weights were pre-trained, without labels, on the frames that the runs are evaluated on.")
    if len({str(run.provenance.get("data_hash", "")).partition("+")[2] for run in every}) > 1:
        page.note("The runs are evaluated on different images, or classes: their scores are not comparable.")
    absent = [run.path.name for run in every if read_score(run.path, task) is None]
    if absent:
        page.note(f"Not shown, since they have no scores: {', '.join(absent)}.")
    largest = max(group.fraction for group in groups)
    shown = [group for group in groups if group.fraction == largest]
    if len(shown) < len(groups):
        page.paragraph(f"The following parts show the runs with {largest:.0%} of the labels.")
    methods = {group.method: [run.path for run in group.runs] for group in shown}
    add_validation(page, task, methods)
    page.heading("Predictions", 3)
    found = labelled_of(shown[0].runs[0], data)
    if isinstance(found, Missing):
        add_pictures(page, task, methods, found)
    else:
        add_pictures(page, task, methods, found.images, found.remark)


def _add_provenance(page: Page, runs: Sequence[RunFolder], data: Path | None) -> None:
    """What made the numbers: settings that differ first, then all of every run."""
    page.heading("Settings and origin")
    for verb in ("pretrain", "finetune"):
        alike = [run for run in runs if run.verb == verb]
        differing = differing_settings(alike)
        if differing:
            page.heading(f"Settings that differ between the runs of pri3d {verb}", 3)
            rows = [[run.name] for run in alike]
            for row, value in ((rows[k], value) for values in differing.values() for k, value in enumerate(values)):
                named = isinstance(value, Mapping)
                said = ", ".join(f"{name} {weight:g}" for name, weight in value.items()) if named else str(value)
                said = "–" if value is None else said
                # Of what has an unwieldy length, such as a hash, the beginning.
                row.append(said if len(said) <= 32 else f"{said[:12]}…")
            page.table(["run", *differing], rows)
    for run in runs:
        facts: dict[str, Any] = {"settings": used_settings(run), "provenance": run.provenance}
        weights = RunPaths(run.path).weights
        if weights.is_file():
            facts["weights"] = read_provenance(weights)
        page.facts(f"{run.name}: pri3d {run.verb}", facts)
    stores = [pairs_of(run, data) for run in runs if run.verb == "pretrain"]
    for folder in dict.fromkeys(found.folder for found in stores if not isinstance(found, Missing)):
        store = Store(folder)
        facts = {"scenes": ", ".join(store.scenes), "hash": store.hash, "settings": store.manifest["settings"]}
        page.facts(f"Data of pre-training: {folder.name}", facts)
    page.facts("This page", {"pri3d": pri3d.__version__, "torch": str(torch.__version__)})
