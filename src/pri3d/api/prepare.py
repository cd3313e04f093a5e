"""``pri3d prepare``: its options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pri3d.api.options import AnyPath, implementation, option, verb
from pri3d.api.recording import RecordingFields

if TYPE_CHECKING:
    from pri3d.store import Store


class PrepareOptions(RecordingFields):
    """Options of :func:`prepare`."""

    recordings: Sequence[AnyPath] = option("one or more recordings", kw_only=False)
    out: AnyPath = option("folder of the prepared dataset; created if missing", kw_only=False)
    size: str = option(
        "largest stored image, WIDTHxHEIGHT in pixels; the aspect ratio is kept and nothing is enlarged",
        default="320x240",
    )
    frame_step: int | None = option(
        "use every N-th frame. The default depends on the format: all frames if they are already a selection, one "
        "every 0.83 s for videos, as in the paper for ScanNet (every 25th without time stamps), at least 30 per "
        "scene",
        default=None,
        least=1,
    )
    max_depth: float = option("metres; farther depth is treated as invalid", default=6.0, least=0.01, most=65)
    overlap: Literal["paper", "max"] = option(
        "paper: corresponding pixels of both frames over valid pixels of both; max: the larger of the two frames' "
        "fractions, as in the authors' code",
        default="paper",
    )
    min_overlap: float = option(
        "pairs with less overlap are left out; training may ask for more, as the paper's 0.3",
        default=0.05,
        least=0.001,
        most=1,
    )
    distance: float = option(
        "metres within which two points correspond; relative to the depth of each point with match relative",
        default=0.02,
        least=1e-4,
        most=10,
    )
    voxel: float = option("edge length of the surface's voxels in metres", default=0.02, least=1e-3, most=10)
    pairs: bool = option("find overlapping pairs; labelled images for fine-tuning need none", default=True)
    surface: bool = option("voxelise the surface; only the Geometry objective needs it", default=True)
    min_confidence: int = option(
        "percent; depth with a lower confidence is treated as invalid (low, medium and high of phones are 0, 50 "
        "and 100)",
        default=50,
        least=0,
        most=100,
    )
    match: Literal["point", "relative"] = option(
        "type of the distance: point, in metres as in the paper; or relative to the depth, for scenes with "
        "distant objects; scenes without a known unit (structure from motion) always use relative",
        default="point",
    )
    select: Literal["every", "motion"] = option(
        "every: all frames (of each frame-step); motion: the sharpest frame per 10 cm or 10 degrees of camera "
        "motion, of every frame of a video unless frame-step is given",
        default="every",
    )
    processes: int = option(
        "processes; 0 uses one per core. With cluster slurm: number of jobs", default=0, least=0, most=1024
    )
    cluster: str | None = option(
        "distribute the scenes over machines with a common file system: slurm submits jobs as configured in "
        "dask's jobqueue.yaml, dask:tcp://HOST:8786 uses the workers of a running dask scheduler",
        default=None,
    )
    dry_run: bool = option(
        "print an estimate of scenes, frames, size and time, measured on a few frames, and stop",
        default=False,
    )


@verb(PrepareOptions, "pri3d prepare scans/kitchen out/kitchen --reader sevenscenes")
def prepare(options: PrepareOptions) -> Store | None:
    """Prepare recordings for pre-training: frames, overlapping pairs and the surface of every scene.

    Finished scenes are kept, so a stopped run continues, more recordings can be added later, and a second run changes
    nothing. A scene that fails is listed with its reason while the others go on.

    Returns the prepared dataset: its path, scenes and pairs; None with --dry-run. Raises ConfigError where an option is
    out of range or ``out`` was made with other settings, DataError where some scene failed (the others are there), the
    disk is full, or the cluster's scheduler is lost.
    """
    implementation("pri3d.preparation.prepare:prepare")(options)
    return None if options.dry_run else implementation("pri3d.store:Store")(options.out)
