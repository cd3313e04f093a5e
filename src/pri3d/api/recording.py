"""Options of every command that opens a recording."""

from __future__ import annotations

from typing import Literal

from pri3d.api.options import AnyPath, Options, option


class RecordingFields(Options):
    """How a recording is opened."""

    reader: str | None = option("format of the recording; auto-detected from its layout if not given", default=None)
    cameras: AnyPath | None = option(
        "YAML file with the colour and the depth camera, for recordings without them", default=None
    )
    split: Literal["train", "val", "test", "all"] = option(
        "which scenes of a dataset with an official split (ScanNet); scenes in none of its lists, and other "
        "recordings, belong to train",
        default="train",
    )
    correct: str = option(
        "corrections that `pri3d check` advises, joined by commas: `inverse` (poses are world to camera), "
        "`opengl` (camera axes), `ray` (depth is the Euclidean distance along the ray), `depth=0.2` (depth "
        "factor), `translation=0.001` (factor of the camera positions), `shift=1` (delay of the depth in frames), "
        "`time=-0.02` (delay of the poses in seconds)",
        default="",
    )
