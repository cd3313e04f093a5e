"""Options of every verb that opens labelled images."""

from __future__ import annotations

from typing import Literal

from pri3d.api.options import AnyPath, Options, option


class LabelledFields(Options):
    """How a labelled data set is opened."""

    split: Literal["train", "val", "test", "all"] = option(
        "train, val, test or all of the images; of a set without a split of its own, all is taken where it is not the "
        "set a run was trained on",
        default="val",
    )
    dataset: str | None = option("format of the labelled images; auto-detected if not given", default=None)
    label_map: str | AnyPath | None = option(
        "label map, by name or as a YAML file; the run's or the format's own if not given", default=None
    )
