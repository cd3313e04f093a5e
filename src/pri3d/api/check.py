"""``pri3d check``: its options."""

from __future__ import annotations

from pri3d.api.options import AnyPath, implementation, option, verb
from pri3d.api.recording import RecordingFields
from pri3d.api.results import Record


class CheckOptions(RecordingFields):
    """Options of :func:`check`."""

    recording: AnyPath = option("folder or file of the recording; nothing is written there", kw_only=False)
    scene: str | None = option("id of the scene to check; default: the first that can be opened", default=None)
    max_frames: int = option(
        "number of sampled frames; some of their neighbours in time are read, too",
        default=40,
        least=4,
        most=1000,
    )
    max_pairs: int = option("number of pairs of the sampled frames", default=60, least=6, most=10000)
    out: AnyPath | None = option("folder for the results and images; default: ./check-NAME", default=None)
    seed: int = option("random seed for the choice of pairs and pixels", default=0, least=0)


@verb(CheckOptions, "pri3d check scans/kitchen --reader sevenscenes")
def check(options: CheckOptions) -> Record:
    """Validate a recording: its poses, camera axes, depth, intrinsics and times, with fixes for what is wrong.

    Some frames are reprojected into others: a pixel of one frame must project to where the other measured the
    same depth and shows the same colour. If that fails, common mistakes are tested, and the one under which the
    frames are consistent is named with the option that fixes it. ``out`` gets verdict.json, sheet.png with pairs, and
    cameras.yaml if other cameras are advised.

    Returns the content of verdict.json. Raises ConfigError if an option is out of range or the recording has no such
    scene, DataError if there are errors (the message lists them) or nothing can be opened.
    """
    return implementation("pri3d.checking.check:check")(options)
