"""``pri3d evaluate``: its options."""

from __future__ import annotations

from typing import Literal

from pri3d.api.labelled import LabelledFields
from pri3d.api.options import AnyPath, implementation, option, verb
from pri3d.api.results import Record


class EvaluateOptions(LabelledFields):
    """Options of :func:`evaluate`."""

    run: AnyPath = option("folder of a fine-tuning run", kw_only=False)
    data: AnyPath | None = option(
        "labelled images; default: those that the run was validated on", default=None, kw_only=False
    )
    which: Literal["last", "best", "both"] = option("evaluate the last network, the best one, or both", default="both")
    resolution: Literal["training", "native"] = option(
        "semantic segmentation: training (images and class maps are resized, as in validation) or native "
        "(predictions are resized to each image's own size). Objects are always evaluated at the images' own size",
        default="training",
    )
    protocol: Literal["coco", "paper"] = option(
        "instance segmentation: coco (scores of 0.05 or more), or paper, which ignores objects with a score below 0.5",
        default="coco",
    )
    out: AnyPath | None = option(
        "json file for the scores; default: RUN/evaluation.json, with -PARENT-NAME for another dataset",
        default=None,
    )


@verb(EvaluateOptions, "pri3d evaluate runs/kitchen-seg --resolution native")
def evaluate(options: EvaluateOptions) -> Record:
    """Evaluate a fine-tuning run on labelled images: its last and its best network.

    Predictions are written once, to RUN/predictions/WHICH-SPLIT-RESOLUTION, and scored from these files; where they are
    of the same weights, images and classes they are used again, while the truth is read each time. Predictions are made
    in float32: validation during training runs in the run's own precision, so in bf16 its scores differ a little. Of
    another set than the run's own, names of folder and json end in that of the set. Prints a table; scores lie between
    0 and 1.

    Returns what was scored, and under `scores` for `last` and `best` name -> number or, per class, name -> numbers.
    Raises ConfigError for an option that does not fit the task, DataError where the data is missing, damaged, or of
    other classes than the network's, WeightsError where the run has no such network.
    """
    return implementation("pri3d.evaluation.evaluate:evaluate")(options)
