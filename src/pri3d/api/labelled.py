"""Options of every command that opens labelled images."""

from __future__ import annotations

from typing import Literal

from pri3d.api.options import AnyPath, Options, option


class LabelMapField(Options):
    """Which classes labels have."""

    label_map: str | AnyPath | None = option(
        "label map: scannet20, nyu13, nyu40, cityscapes19, ... or a YAML file; default: that of the run or of the "
        "format",
        default=None,
    )

    @property
    def labels(self) -> str | None:
        """The label map as text: a name, or the path of a file."""
        return None if self.label_map is None else str(self.label_map)


class LabelledFields(LabelMapField):
    """How a labelled data set is opened."""

    split: Literal["train", "val", "test", "all"] = option(
        "train, val, test or all of the images; a dataset without a split is used completely if it is not the one "
        "a run was trained on",
        default="val",
    )
    dataset: str | None = option("format of the labelled images; auto-detected if not given", default=None)
