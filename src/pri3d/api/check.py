"""``pri3d check``: its options."""

from __future__ import annotations

from pri3d.api.options import AnyPath, implementation, option, verb
from pri3d.api.recording import RecordingFields
from pri3d.api.results import Record


class CheckOptions(RecordingFields):
    """Options of :func:`check`."""

    recording: AnyPath = option("folder or file of the recording; nothing is written there", kw_only=False)
    scene: str | None = option(
        "which scene is judged; the first that can be opened where it is not given", default=None
    )
    max_frames: int = option(
        "how many frames are looked at; some of their neighbours in time are read beside them",
        default=40,
        least=4,
        most=1000,
    )
    max_pairs: int = option("how many pairs of them", default=60, least=6, most=10000)
    out: AnyPath | None = option(
        "folder for the verdict and its images; ./check-NAME where it is not given", default=None
    )
    seed: int = option("random seed for the choice of pairs and pixels", default=0, least=0)


@verb(CheckOptions, "pri3d check scans/kitchen --reader sevenscenes")
def check(options: CheckOptions) -> Record:
    """Validate a recording: are its poses, axes, depth, cameras and times right, and what fixes them where not.

    Some frames are reprojected into others: by depth and pose a pixel of one must land where the other measured the
    same depth and shows the same colour. Where that fails, the usual mistakes are tried, and the one under which the
    frames agree is named with the option that fixes it. ``out`` gets verdict.json, sheet.png with pairs to look at, and
    cameras.yaml where the advice is to state other cameras.

    Returns what is in verdict.json. Raises ConfigError where an option is out of range or the recording has no such
    scene, DataError where there are faults (the message lists them) or nothing can be opened.
    """
    return implementation("pri3d.checking.check:check")(options)
