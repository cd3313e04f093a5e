"""One scene through all steps: frames, pairs, surface, and into the prepared dataset."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from copy import copy
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import trimesh
from numpy.typing import NDArray

from pri3d.errors import DataError, FrameError
from pri3d.geometry.fusion import REACH, color_cells, fuse_depth, voxelise_triangles
from pri3d.geometry.resize import parse_size
from pri3d.preparation.frames import SceneFrames, Select, pick_frames, read_frames
from pri3d.preparation.overlap import Mode, find_better_centre, mine_pairs, pair_table
from pri3d.recordings import ChangedScene, Recording, Scene, find_reader, open_recording
from pri3d.recordings._shared.text import absolute, clean_id
from pri3d.store import PairTable, SceneWriter, millimetres
from pri3d.types import Frame, Voxels

Match = Literal["point", "relative"]
Report = Callable[[str, int, int], None]  #: told a step's name, how much of it is done, and how much there is


_JUDGED = 8  # frames of a scene from which on its result is judged
_SEEN = 0.2  # overlap of pairs that are judged by: less is found between wrong poses, too
_NEIGHBOURS = 0.15  # fraction of neighbouring frames that overlap, below which something is wrong
_SEVERAL = 20  # frames that see a surface several times
_NEW, _ELSEWHERE = 1.5, 20.0  # surface over what all frames show together: of their own depth, and of a mesh
STILL = 1e-6  #: metres; a smaller baseline is rounding, none
MEDIAN = 2.0  #: metres; the median depth of a scaled scene, about that of a room
_LOOKED_AT = 9  # frames of it, evenly spread
_MOST_CELLS = 3e7  # 12,000 square metres at 2 cm


class StoreSettings(NamedTuple):
    """What decides the content of a prepared dataset, see :func:`pri3d.preparation.prepare.prepare`."""

    size: str
    frame_step: int | None  #: None leaves it to the format
    max_depth: float
    overlap: Mode
    min_overlap: float
    distance: float
    voxel: float
    pairs: bool
    surface: bool
    cameras: str | None  #: digest of the file of cameras, None where none is given
    split: str = "train"  #: which scenes of a data set with an official split; what older stores were made with
    correct: str = ""  #: mistakes of the recording, see pri3d.recordings._shared.correction
    min_confidence: int = 50  #: percent; depth that its device trusts less is invalid
    match: Match = "point"  #: whether the distance is in metres or a share of the depth
    select: Select = "every"  #: frames in steps, or as the camera's motion has it


class SceneJob(NamedTuple):
    """One scene to prepare; plain values, so that it travels to a worker process."""

    recording: Path
    reader: str | None
    cameras: Path | None
    scene: str
    out: Path
    settings: StoreSettings
    threads: int = 1  #: for the mining


class Opened(NamedTuple):
    """A recording that is open."""

    name: str  #: of its format
    reader: Recording
    scenes: dict[str, Scene]  #: by id
    camera_files: dict[str, list[tuple[int, Path]]]  #: its files that state cameras, see :func:`_camera_files`


@lru_cache(maxsize=4)
def open_cached(
    recording: Path, reader: str | None, cameras: Path | None, split: str = "train", correct: str = ""
) -> Opened:
    """A recording and its scenes by id; a worker opens a recording once for all its scenes."""
    name = reader or find_reader(recording)
    opened = open_recording(recording, name, cameras, split, correct)
    files = {} if cameras is not None else _camera_files(recording)  # --cameras stands for them
    return Opened(name, opened, {scene.id: scene for scene in opened.scenes()}, files)


def _camera_files(recording: Path) -> dict[str, list[tuple[int, Path]]]:
    """Files that state cameras by the names that scenes of their folder may begin with, and their rank.

    A cameras.yaml goes before other files, a deeper one before those above it.
    """
    names = ("cameras.yaml", "camera-intrinsics.txt")
    files = [path for name in names for level in ("*/*/", "*/", "") for path in recording.glob(level + name)]
    # Of a scene that is given alone, see Reader.stated.
    files += [path for name in names if (path := absolute(recording).parent / name).is_file()]
    found: dict[str, list[tuple[int, Path]]] = {}
    for rank, path in enumerate(files):
        parts = () if path.parent == absolute(recording).parent else path.parent.relative_to(recording).parts
        for name in {clean_id("-".join(parts)), parts[-1]} if parts else {""}:
            found.setdefault(name, []).append((rank, path))
    return found


def open_job(job: SceneJob) -> Opened:
    """:func:`open_cached` of the scene's recording."""
    return open_cached(job.recording, job.reader, job.cameras, job.settings.split, job.settings.correct)


def open_scene(job: SceneJob) -> Scene:
    """Return the job's scene, of its own: what it reads goes with it, and does not add up over thousands of scenes."""
    return copy(open_job(job).scenes[job.scene])


def prepare_scene(
    job: SceneJob, report: Report = lambda _step, _done, _total: None, source: Scene | None = None
) -> dict[str, Any]:
    """Prepare and store one scene; return its record (scene.json).

    ``source`` takes the place of the job's own scene, as a part of it does. Raises DataError where no frame is usable
    or no two frames overlap; nothing is left behind then.
    """
    start = time.perf_counter()
    settings = job.settings
    opened = open_job(job)
    source = source or open_scene(job)
    if not source.posed and (settings.pairs or settings.surface):
        raise DataError(
            "its frames have no poses, which pairs and the surface need. Add --no-pairs "
            "--no-surface; objectives on single images, such as --preset moco, need neither."
        )
    scene = ScaledScene(source) if source.posed and not source.metric else source
    picked = pick_frames(scene, opened.reader, settings.select, settings.frame_step)
    cells = [settings.voxel] * settings.surface + [2 * settings.distance] * settings.pairs  # of the steps to come
    with SceneWriter(job.out, job.scene) as writer:
        frames = read_frames(
            scene,
            writer,
            size=parse_size(settings.size),
            max_depth=settings.max_depth,
            select=settings.select,
            picked=picked.indices,
            min_confidence=settings.min_confidence,
            reach=REACH * min(cells, default=float("inf")),
            keep_depth=settings.pairs or settings.surface,
            keep_views=settings.surface,
            progress=lambda done, total: report("frames", done, total),
        )
        relative = not source.metric or settings.match == "relative"
        pairs = _pairs(job, frames, relative, report) if settings.pairs else PairTable.empty()
        surface, mesh = Voxels(np.zeros((0, 3), np.int32), settings.voxel), None
        if settings.surface:
            report("surface", 0, 1)
            mesh = scene.mesh()
            surface = scene_surface(mesh, frames, settings.voxel)
        doubts = (
            []
            if not source.posed
            else find_doubts(frames, pairs if settings.pairs else None, surface, scene.mesh() is None)
        )
        record = {
            "source": str(job.recording.resolve()),
            "cameras": stated_cameras(job),
            "reader": opened.name,
            "split": source.split,
            "match": "relative" if relative else "point",
            "scale": scene.factor if isinstance(scene, ScaledScene) else None,
            "source_frames": len(scene.names),
            "frame_rule": picked.rule,
            "assumed": scene.assumed,
            "frames": len(frames.rows),
            "rejected": len(frames.reasons),
            "first_rejected": "; ".join(frames.reasons[:3]),
            "pairs": len(pairs.i),
            "still_pairs": int((pairs.baseline < STILL).sum()),
            "surface": "none" if not settings.surface else "depth" if mesh is None else "mesh",
            "voxels": len(surface.cells),
            "doubts": doubts,
            "width": writer.size[0],
            "height": writer.size[1],
            "seconds": round(time.perf_counter() - start, 2),
        }
        return writer.finish(pairs, surface, record)


def stated_cameras(job: SceneJob) -> dict[str, str]:
    """Return the file of the recording that states the scene's cameras, relative to it, and its digest.

    That is the nearest ``cameras.yaml`` of the scene's folder and those above it up to the recording, else the nearest
    ``camera-intrinsics.txt``; empty where there is neither, or where --cameras stands for them.
    """
    cameras, parts = open_job(job).camera_files, job.scene.split("-")
    names = {"", job.scene, *("-".join(parts[:end]) for end in range(1, len(parts)))}
    for _, path in sorted({item for name in names for item in cameras.get(name, ())}):
        above = path.parent == job.recording.parent
        if above or _holds(job.recording, path.parent, job.scene):
            name = f"../{path.name}" if above else path.relative_to(job.recording).as_posix()
            return {name: hashlib.sha256(path.read_bytes()).hexdigest()[:16]}
    return {}


def _holds(recording: Path, folder: Path, scene: str) -> bool:
    """Whether the scene's folder is ``folder`` or lies in it: readers name a scene by the folders down to it."""
    parts = folder.relative_to(recording).parts
    name = clean_id("-".join(parts))
    inner = scene.removeprefix(f"{name}-")
    own = scene == name or (scene == folder.name and not (recording / scene).is_dir())  # scans/scene0000_00
    return not parts or own or (inner != scene and (folder / inner).is_dir())


def _pairs(job: SceneJob, frames: SceneFrames, relative: bool, report: Report) -> PairTable:
    settings = job.settings
    if len(frames.rows) < 2:
        why = f" The first rejected: {frames.reasons[0]}" if frames.reasons else ""
        raise DataError(f"pairs need two usable frames, found {len(frames.rows)} of {frames.total}.{why}")
    pairs, overlaps, best = mine_pairs(
        frames.stack,
        distance=settings.distance,
        min_overlap=settings.min_overlap,
        mode=settings.overlap,
        relative=relative,
        threads=job.threads,
        progress=lambda done, total: report("pairs", done, total),
    )
    if len(pairs) == 0:
        raise DataError(
            f"no two of {len(frames.rows)} frames overlap by {settings.min_overlap:g}; the best pair by "
            f"{best:.2f}. Check poses and cameras (docs/own-data.md), or lower --min-overlap, --frame-step."
        )
    return pair_table(job.scene, frames.rows, pairs, overlaps, frames.stack.world_from_camera)


def scene_surface(mesh: Path | None, frames: SceneFrames, size: float) -> Voxels:
    """Surface cells of edge ``size`` m with the mean colour of the frames that see them.

    Raises DataError where the mesh cannot be read, has no triangles or lies too far from the origin.
    """
    stack = frames.stack
    if mesh is None:
        voxels = fuse_depth(stack.depth, stack.intrinsics, stack.world_from_camera, size)
    else:
        try:
            # Of bytes, which have no folder: textures beside the file are not looked for, whatever they are.
            content = io.BytesIO(mesh.read_bytes())
            loaded = trimesh.load_mesh(content, file_type=mesh.suffix[1:], process=False)
        except Exception as error:  # the parsers of a dozen formats raise what they like
            fix = "Repair it, or remove it to fuse the depth."
            raise DataError(f"{mesh}: not a readable mesh ({error!r}). {fix}") from error
        faces = np.asarray(getattr(loaded, "faces", ()))
        if len(faces) == 0:
            raise DataError(f"{mesh}: holds no triangles. Give a triangle mesh, or remove it to fuse the depth images.")
        if not 0 <= int(faces.min()) <= int(faces.max()) < len(loaded.vertices):
            raise DataError(
                f"{mesh}: its triangles name corners {faces.min()} to {faces.max()} of {len(loaded.vertices)}: it "
                "is damaged. Repair it, or remove it to fuse the depth images."
            )
        cells = float(loaded.area) / size**2
        if not cells < _MOST_CELLS or not np.isfinite(loaded.bounds).all():
            raise DataError(f"{mesh}: its triangles span {loaded.area:.3g} square metres; is it written in metres?")
        farthest = float(np.abs(loaded.bounds).max())
        if farthest > REACH * size:
            raise DataError(
                f"{mesh}: a coordinate of {farthest:.6g} m is beyond the {REACH * size:.6g} m that cells of {size:g} m "
                "reach; move the recording, mesh and poses alike, near the origin."
            )
        voxels = voxelise_triangles(np.asarray(loaded.vertices, np.float64), faces.astype(np.int64), size)
    color = [view.color for view in frames.views]
    depth = [millimetres(view.depth) for view in frames.views]
    intrinsics = np.array([view.intrinsics for view in frames.views])
    return color_cells(voxels, color, depth, intrinsics, stack.world_from_camera)


def find_doubts(frames: SceneFrames, pairs: PairTable | None, surface: Voxels, fused: bool) -> list[str]:
    """What speaks against poses, cameras or depth in a scene's own result.

    ``pairs`` None where none were mined; ``fused``: the surface is made of the frames' own depth. Right recordings of
    several frames have pairs, neighbours that see the same, a surface that is seen often, and a centre of the camera
    that no other betters.
    """
    found: list[str] = []
    count = len(frames.rows)
    if count < _JUDGED:
        return found
    if pairs is not None:
        near = pairs.overlap >= _SEEN
        if near.sum() < count:
            found.append(f"{near.sum():,} pairs of {count:,} frames that overlap by {_SEEN:.0%}")
        paired = set(zip(pairs.i[near].tolist(), pairs.j[near].tolist(), strict=True))
        rows = frames.rows.tolist()
        neighbours = sum(pair in paired for pair in pairwise(rows)) / (count - 1)
        if neighbours < _NEIGHBOURS:
            found.append(f"{neighbours:.0%} of neighbouring frames overlap")
    most = _NEW if fused else _ELSEWHERE  # a mesh has parts that no frame shows
    if len(surface.cells) and (count >= _SEVERAL or not fused):
        # Cells that the frames would show without any common view: pixels facing the camera, of a cell's size.
        stack = frames.stack
        squares = [float((depth.astype(np.float64) ** 2).sum()) / 1e6 for depth in stack.depth]
        shown = float((np.array(squares) / (stack.intrinsics[:, 0] * stack.intrinsics[:, 1])).sum()) / surface.size**2
        if shown and len(surface.cells) > most * shown:
            words = f"a surface of {len(surface.cells):,} voxels, {len(surface.cells) / shown:.0%} of what the frames"
            found.append(f"{words} would show without any common view")
    if pairs is not None and (centre := find_better_centre(frames.stack)) is not None:
        way = f"{centre.right:+.0f} px along x" if centre.right else f"{centre.down:+.0f} px along y"
        size = f"{frames.stack.depth.shape[2]}x{frames.stack.depth.shape[1]}"
        found.append(f"depth of neighbouring frames agrees {centre.gain - 1:.0%} better with a centre {way} of {size}")
    return found


class ScaledScene(ChangedScene):
    """A scene with poses and depth multiplied by ``factor``, so that its median depth is ``MEDIAN`` metres.

    Its mesh, in the unit of the source, is left out. Raises DataError where no frame has depth.
    """

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self.metric = True  # of the unit that the factor makes
        count = len(scene.names)
        medians, reason = [], "there is no frame"  # of the valid depth of some frames, in the unit of the source
        for index in np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).round().astype(int)).tolist():
            try:
                depth = scene.frame(index).depth
            except FrameError as error:
                reason = str(error)
                continue
            valid = depth[np.isfinite(depth) & (depth > 0)]
            if valid.size:
                medians.append(float(np.median(valid)))
            else:
                reason = f"{scene.names[index]}: has no valid depth"
        if not medians:
            raise DataError(f"its unit is not known, and no depth tells how large it is. {reason}")
        self.factor = MEDIAN / float(np.median(medians))  #: metres a unit of the source

    def frame(self, index: int) -> Frame:
        """Load and scale frame ``names[index]``. Raises FrameError where it is unusable."""
        frame = self.scene.frame(index)
        return frame._replace(
            depth=(frame.depth * self.factor).astype(np.float32),
            color_from_depth=_scaled(frame.color_from_depth, self.factor),
            world_from_camera=_scaled(frame.world_from_camera, self.factor),
        )

    def pose(self, index: int) -> NDArray[np.float64]:
        """Return the frame's scaled pose (4, 4). Raises FrameError where it is unusable."""
        return _scaled(self.scene.pose(index), self.factor)

    def pose_at(self, index: int, seconds: float) -> NDArray[np.float64]:
        """Return the scaled pose (4, 4) so many seconds later. Raises FrameError where it is not known."""
        return _scaled(self.scene.pose_at(index, seconds), self.factor)

    def mesh(self) -> Path | None:
        """Return None: the surface is fused from the depth."""
        return None


def _scaled(transform: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    result = transform.copy()
    result[:3, 3] *= factor
    return result
