"""Options of every verb that opens a recording."""

from __future__ import annotations

from typing import Literal

from pri3d.api.options import AnyPath, Options, option


class RecordingFields(Options):
    """How a recording is opened."""

    reader: str | None = option("format of the recording; auto-detected from its layout if not given", default=None)
    cameras: AnyPath | None = option(
        "YAML file that states the colour and the depth camera, for recordings that do not", default=None
    )
    split: Literal["train", "val", "test", "all"] = option(
        "which scenes of a data set that has an official split (ScanNet); scenes in none of its lists, and other "
        "recordings, count as train",
        default="train",
    )
    correct: str = option(
        "mistakes that `pri3d check` found: `inverse` (poses are world to camera), `opengl` (camera axes), `ray` "
        "(depth along the ray), `depth=0.2` (its factor), `translation=0.001` (that of the positions), `shift=1` "
        "(frames that depth is late), `time=-0.02` (seconds after its frame at which the right pose is stated), joined "
        "by commas",
        default="",
    )
