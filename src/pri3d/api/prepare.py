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
    out: AnyPath = option("folder of the prepared dataset, created where it is missing", kw_only=False)
    size: str = option(
        "largest stored image, WIDTHxHEIGHT in pixels; the aspect ratio is kept and nothing is enlarged",
        default="320x240",
    )
    frame_step: int | None = option(
        "take every so many frames; without it the format decides: all where frames were chosen already, of videos one "
        "every 0.83 s, as the paper does with ScanNet (every 25th where no times are stated), at least 30 a scene",
        default=None,
        least=1,
    )
    max_depth: float = option("metres; farther depth counts as invalid", default=6.0, least=0.01, most=65)
    overlap: Literal["paper", "max"] = option(
        "paper for corresponding pixels of both frames over valid pixels of both, max for the larger of the two "
        "frames' fractions, as the authors' code has it",
        default="paper",
    )
    min_overlap: float = option(
        "pairs that overlap by less are left out; training may ask for more, as the paper's 0.3",
        default=0.05,
        least=0.001,
        most=1,
    )
    distance: float = option(
        "metres within which two points correspond; relative to each point's depth with match relative",
        default=0.02,
        least=1e-4,
        most=10,
    )
    voxel: float = option("edge length of the surface's voxels in metres", default=0.02, least=1e-3, most=10)
    pairs: bool = option("mine pairs; labelled images for fine-tuning need none", default=True)
    surface: bool = option("voxelise the surface; only the Geometry objective needs it", default=True)
    min_confidence: int = option(
        "percent; depth that the device itself trusts less counts as invalid (phones say low, medium and high: 0, 50 "
        "and 100)",
        default=50,
        least=0,
        most=100,
    )
    match: Literal["point", "relative"] = option(
        "what the distance is: point, metres as in the paper, or relative, relative to the depth, for scenes with far "
        "things; scenes without a known unit (structure from motion) always take the latter",
        default="point",
    )
    select: Literal["every", "motion"] = option(
        "every frame (of each frame-step), or those that the camera's motion chooses: the sharpest of each stretch of "
        "10 cm or 10 degrees, of every frame of a video unless frame-step is given",
        default="every",
    )
    processes: int = option(
        "processes; 0 takes one per core. With cluster slurm, how many jobs to submit", default=0, least=0, most=1024
    )
    cluster: str | None = option(
        "machines to divide the scenes among, all with the same file system: slurm submits jobs as dask's "
        "jobqueue.yaml says, dask:tcp://HOST:8786 takes the workers of a running dask scheduler",
        default=None,
    )
    dry_run: bool = option(
        "say what there is to do and what it will take, from a few frames of a few scenes, and stop there",
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
