"""The result of an experiment on disk: Markdown, CSV and figure of a table, or the picture."""

from __future__ import annotations

from pathlib import Path

from pri3d.errors import DataError
from pri3d.files.atomic import write_atomic
from pri3d.labelled import open_labelled
from pri3d.reporting import figures, gather
from pri3d.reporting.sources import there
from pri3d.reproduction.layout import figure, markdown, table_csv
from pri3d.reproduction.plan import Plan
from pri3d.reproduction.scores import read_entries
from pri3d.reproduction.work import finished
from pri3d.runs import write_text

IMAGES = 5  #: rows of figure 4


def write_result(plan: Plan) -> Path:
    """Write OUT/results/EXPERIMENT-ON-SIZE.md, .csv and .png, or the PNG alone of a picture; return the first of them.

    Raises DataError where no run of it has finished, or the data of a picture are not there.
    """
    place, experiment, matrix = plan
    path = place.root / "results" / f"{experiment.name}-{place.study.on}-{place.study.size}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = path.with_suffix(".png")
    if experiment.kind != "table":
        write_atomic(picture, _matches(plan) if experiment.kind == "matches" else _segmentations(plan))
        return picture
    entries = read_entries(place, experiment, matrix)
    if not any(entry.values for entry in entries):
        raise DataError(f"{place.root}: no run of {experiment.name} has scores. Run it without --only first.")
    write_text(path.with_suffix(".csv"), table_csv(experiment, entries))
    write_atomic(picture, figure(experiment, entries))
    write_text(path, markdown(place, experiment, matrix, entries) + f"\n![{experiment.title}]({picture.name})\n")
    return path


def _matches(plan: Plan) -> bytes:
    """Figure 3: the pair of median overlap with its matches."""
    folder = there(gather.store_with_pairs([plan.place.store("pretrain")]))
    pairs, _ = gather.matched_pairs(folder, 1, plan.place.root)
    return figures.pair_figure(pairs[0])


def _segmentations(plan: Plan) -> bytes:
    """Figure 4: held-out images, ground truth, and what each row's first finished run says."""
    place, data = plan.place, plan.experiment.data
    parts = place.study.settings["parts"]
    ended = finished(place, plan.matrix.runs)
    runs = {cell.row: [place.folder(run) for run in cell.runs if run in ended] for cell in plan.matrix.cells}
    apart = f"{data}-val" in parts  # else the set has a val split of its own
    images = open_labelled(
        place.store(f"{data}-val" if apart else data), "val", labels=parts[data].get("labels"), whole=apart
    )
    found = there(gather.predictions(images, runs, IMAGES, plan.experiment.task))
    return figures.segmentation_figure(found.segmented, found.class_names)
