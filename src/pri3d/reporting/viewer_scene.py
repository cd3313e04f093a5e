"""Content of a view of a dataset or a run: frames, cameras, surface, pairs; independent of the viewer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pri3d.data.augment import to_tensor
from pri3d.data.pairs import PairDataset, PairItem
from pri3d.data.sampler import Draw
from pri3d.errors import DataError
from pri3d.geometry.matching import cell_pixels, cell_points, match_pixels
from pri3d.geometry.resize import parse_size, resize_color, shape_box
from pri3d.labelled import LabelledImages
from pri3d.labelled.prepared import PreparedImages
from pri3d.networks.load import WeightsSource
from pri3d.reporting.cutaway import up_direction
from pri3d.reporting.figures import pca_colors, spread
from pri3d.reporting.gather import match_distance, spread_rows, typical_pairs
from pri3d.reporting.sources import RunFolder, labelled_of, pairs_of, read_run, there
from pri3d.runs import RunPaths
from pri3d.store import MANIFEST, SceneStore, Store
from pri3d.tasks import find_task, load_task, task_of
from pri3d.terminal import track

_CELLS = 80  #: feature cells along the width of a picture of principal components; finer ones are averaged
SHOWN = 24  #: matches of a pair, far from each other
#: a predicted place is right within so many pixels of an image 320 wide, as in `pri3d probe`
TOLERANCE, _WIDTH = 10.0, 320
MEASURED = "measured"


#: colours of right and of wrong matches
RIGHT, WRONG = (0, 158, 115), (213, 94, 0)


class ShownFrame(NamedTuple):
    """One frame on the timeline; depth and camera are None where the source has none."""

    name: str
    color: NDArray[np.uint8]  #: (H, W, 3) RGB
    depth: NDArray[np.float32] | None = None  #: (H, W) metres, 0 = invalid
    intrinsics: NDArray[np.float64] | None = None  #: (4,) pixels of (H, W)
    world_from_camera: NDArray[np.float64] | None = None  #: (4, 4)
    pictures: Mapping[str, NDArray[np.uint8]] = {}  #: further RGB pictures (h, w, 3) by name


class Shown(NamedTuple):
    """All that a viewer shows."""

    title: str
    facts: Mapping[str, Any]
    frames: list[ShownFrame]
    path: NDArray[np.float64]  #: (K, 3) every camera centre of the scene in time order, world, metres
    points: NDArray[np.float64]  #: (N, 3) surface, world, metres
    colors: NDArray[np.uint8]  #: (N, 3)
    pairs: list[ShownPair]
    notes: list[str]  #: what is not there, and why


def show(source: Path, data: Path | None, scene: str | None, frames: int, pairs: int) -> Shown:
    """Gather a prepared dataset, or a run with the data it was trained on (``data`` says where they are now).

    Raises DataError for a folder that is neither, for data or a scene that is not there, WeightsError for damaged
    weights.
    """
    if (source / MANIFEST).is_file():
        return _show_scene(Store(source), scene, frames, pairs, f"Prepared dataset {source.name}")
    if RunPaths(source).config.is_file():
        run = read_run(source, source.name)
        how = {"pretrain": _show_pretraining, "finetune": _show_finetuning}[run.verb]
        return how(run, data, scene, frames, pairs)
    if not source.exists():
        raise DataError(f"{source}: no such folder. Give a prepared dataset or a run.")
    raise DataError(
        f"{source}: neither a prepared dataset (it has no {MANIFEST}) nor a run (no {RunPaths(source).config.name}). "
        f"Prepare a recording first: pri3d prepare."
    )


def _show_scene(
    store: Store,
    scene_id: str | None,
    frames: int,
    pairs: int,
    title: str,
    settings: Mapping[str, Any] | None = None,
    networks: Mapping[str, nn.Module] | None = None,
) -> Shown:
    """One scene; ``settings`` are a run's, which decide what its networks see."""
    scene = store.scene(store.scenes[0] if scene_id is None else scene_id)
    made, notes = store.manifest["settings"], []
    settings = settings or {}
    size = parse_size(settings["size"]) if "size" in settings else scene.frames.size
    valid = np.flatnonzero(scene.frames.valid)
    shown = [_frame(scene, int(valid[k])) for k in spread_rows(len(valid), frames)]
    found: list[ShownPair] = []
    if pairs and made["pairs"]:
        distance = match_distance(settings, made)
        found = show_pairs(store.path, typical_pairs(store, pairs, scene.id, settings), size, distance, networks or {})
    if pairs and not found:
        notes.append(f"Scene {scene.id} has no overlapping pairs.")
    points, colors = _surface(scene)
    if not len(points):
        notes.append(f"Scene {scene.id} was prepared without a surface.")
    facts = {
        "scene": f"{scene.id}, one of {len(store.scenes)}" if len(store.scenes) > 1 else scene.id,
        "frames": f"{len(shown)} of {len(valid)}",
        "surface": f"{len(points):,} cells",
        "pairs": f"{len(found)} of {len(scene.pairs().i):,}",
    }
    return Shown(
        f"{title}: {scene.id}",
        facts,
        shown,
        scene.frames.world_from_camera[valid, :3, 3],
        points,
        colors,
        found,
        notes,
    )


def _show_pretraining(run: RunFolder, data: Path | None, scene: str | None, frames: int, pairs: int) -> Shown:
    """The store with the features of the network before and after."""
    found = there(pairs_of(run, data, scene))
    store, paths = Store(found.folder), RunPaths(run.path)
    files = {"before": paths.initial, "after": paths.weights}
    networks = {name: WeightsSource(file).dense() for name, file in files.items() if file.is_file()}
    shown = _show_scene(store, scene, frames, pairs, f"Run {run.name}", run.settings, networks)
    shown.notes.extend(
        f"{run.name} has no {file.name}: no features {name}." for name, file in files.items() if name not in networks
    )
    shown.notes.extend([found.remark] if found.remark else [])
    settings = run.settings
    size = parse_size(settings["size"]) if "size" in settings else store.scene(store.scenes[0]).frames.size
    pictures: dict[str, list[NDArray[np.uint8]]] = {}  # principal components of the features, all in one basis
    for name, net in networks.items() if shown.frames else ():
        maps: list[Tensor] = []
        for frame in track(shown.frames, f"features {name}"):
            with torch.no_grad():
                left, top, width, height = shape_box((frame.color.shape[1], frame.color.shape[0]), size)
                seen = resize_color(frame.color[top : top + height, left : left + width], size)
                features = net(to_tensor(seen)[None].float() / 255).float()
            step = -(-features.shape[-1] // _CELLS)
            maps.append(F.avg_pool2d(features, step, ceil_mode=True) if step > 1 else features)
        pictures[f"features {name}"] = list((255 * pca_colors(torch.cat(maps))).round().astype(np.uint8))
    with_pictures = [
        frame._replace(pictures={name: of[k] for name, of in pictures.items()}) for k, frame in enumerate(shown.frames)
    ]
    return shown._replace(frames=with_pictures)


def _show_finetuning(run: RunFolder, data: Path | None, scene: str | None, frames: int, pairs: int) -> Shown:
    """Images the run was validated on, ground truth and predictions; in their scene where they are of a store."""
    images, remark = there(labelled_of(run, data))
    weights = RunPaths(run.path).weights
    kind = find_task(task_of(run.provenance))
    trained = load_task(weights) if weights.is_file() else None
    task = kind(kind.names_of(images)) if trained is None else trained.task
    rows = _rows(images, scene)
    chosen = [rows[k] for k in spread_rows(len(rows), frames)]
    shown_frames = []
    for row in track(chosen, "predicting"):
        color, truth = images.color(row), task.truth(images, row)
        pictures = {} if truth is None else task.panels(color, truth, {})
        if trained is not None:  # apart, or nothing would be seen of it where there is no ground truth
            pictures |= task.panels(color, None, {"prediction": task.predict(trained.model, color)})
        pictures.pop("image", None)  # it is shown anyway
        shown_frames.append(_placed(images, row)._replace(pictures=pictures))
    title = f"Run {run.name}: {images.path.name}"
    if isinstance(images, PreparedImages):
        base = _show_scene(images.store, images.names[rows[0]].rpartition("/")[0], 0, pairs, f"Run {run.name}")
        shown = base._replace(frames=shown_frames)
    else:
        none = np.zeros((0, 3))
        shown = Shown(title, {}, shown_frames, none, none, none.astype(np.uint8), [], [])
    shown.notes.extend([remark] if remark else [])
    if trained is None:
        shown.notes.append(f"{run.name} has no {weights.name}: no predictions. Its training has not finished.")
    facts = {**shown.facts, "frames": f"{len(chosen)} of {len(rows)} labelled", "data": str(images.path)}
    return shown._replace(facts=facts)


def _rows(images: LabelledImages, scene: str | None) -> list[int]:
    """Rows of one scene of a store, the first if not said; of other sets all. Raises DataError for an unknown scene."""
    if not isinstance(images, PreparedImages):
        if scene is not None:
            raise DataError(f"--scene {scene}: {images.path} is no prepared dataset, its images are of no scene.")
        return list(range(len(images.names)))
    scenes = [name.rpartition("/")[0] for name in images.names]
    wanted = scenes[0] if scene is None else images.store.scene(scene).id
    rows = [row for row, of in enumerate(scenes) if of == wanted]
    if not rows:
        raise DataError(
            f"--scene {wanted}: has no labelled frame to validate on. Choices: {', '.join(sorted(set(scenes)))}."
        )
    return rows


def _placed(images: LabelledImages, row: int) -> ShownFrame:
    """The image with its camera, where it has one."""
    if not isinstance(images, PreparedImages):
        return ShownFrame(images.names[row], images.color(row))
    scene, _, name = images.names[row].rpartition("/")
    of = images.store.scene(scene)
    return _frame(of, of.frames.names.tolist().index(name))


def _frame(scene: SceneStore, row: int) -> ShownFrame:
    view = scene.view(row)
    return ShownFrame(f"{scene.id}/{view.name}", view.color, view.depth, view.intrinsics, view.world_from_camera)


def _surface(scene: SceneStore) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Cell centres (N, 3), world, and their colours; without any, colours by height."""
    surface = scene.surface()
    points: NDArray[np.float64] = (surface.cells.astype(np.float64) + 0.5) * surface.size
    if surface.color is not None or not len(points):
        return points, np.zeros((0, 3), np.uint8) if surface.color is None else surface.color
    height = points @ up_direction(scene.frames.world_from_camera[scene.frames.valid])
    low, high = np.percentile(height, (1, 99))
    share = np.clip((height - low) / max(float(high - low), 1e-9), 0, 1)
    return points, (255 * mpl.colormaps["viridis"](share)[:, :3]).astype(np.uint8)


class Matched(NamedTuple):
    """M points of the first frame and their places in the second."""

    pixels: NDArray[np.float64]  #: (M, 4) u, v in the first and u, v in the second frame
    points: NDArray[np.float64]  #: (M, 2, 3) world, metres, of the two ends; NaN where nothing was measured
    right: NDArray[np.bool_]  #: (M,) whether the place is the measured one, within the tolerance


class ShownPair(NamedTuple):
    """Two frames of a scene, and their matches by name: ``measured``, and those of networks."""

    name: str  #: scene/frame+frame
    rows: tuple[int, int]  #: of the scene's frames
    colors: NDArray[np.uint8]  #: (2, H, W, 3) RGB
    centres: NDArray[np.float64]  #: (2, 3) of the cameras, world, metres
    overlap: float  #: fraction 0..1
    angle: float  #: radians between the viewing directions
    matches: Mapping[str, Matched]


def show_pairs(
    folder: Path,
    rows: NDArray[np.int64],
    size: tuple[int, int],
    distance: float,
    networks: Mapping[str, nn.Module],
) -> list[ShownPair]:
    """The pairs in ``rows`` of the store's table, with at most 24 matches each.

    Images are of ``size`` (width, height); points closer than ``distance`` metres are one. A network, RGB 0..1
    (B, 3, H, W) -> features (B, C, h, w), takes the most similar cell of all of the second frame.
    """
    store = Store(folder)
    dataset, table = PairDataset(folder, rows, size, seed=0), store.pairs()
    pairs = []
    for k, row in enumerate(rows.tolist()):
        item = dataset[Draw(0, k)]
        scene = store.scene(str(table.scene[row]))
        ends = int(table.i[row]), int(table.j[row])
        poses = scene.frames.world_from_camera[list(ends)]
        matches = _match(item, poses, distance, networks)
        colors = item.color.permute(0, 2, 3, 1).numpy()
        overlap, angle = float(table.overlap[row]), float(table.angle[row])
        pairs.append(ShownPair(item.name, ends, colors, poses[:, :3, 3], overlap, angle, matches))
    return pairs


def legs(pair: ShownPair, matched: Matched) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Lines (K, 2, 3) from one camera to its point, on to the other frame's point, and to that camera; which are right.

    The two points of a right match are one, or nearly. Points without measured depth have no lines.
    """
    known = np.isfinite(matched.points).all(axis=(1, 2))
    first, second = matched.points[known, 0], matched.points[known, 1]
    eyes = np.broadcast_to(pair.centres[:, None], (2, len(first), 3))
    lines = np.stack(
        [np.stack(ends, axis=1) for ends in ((eyes[0], first), (first, second), (second, eyes[1]))], axis=1
    )
    return lines.reshape(-1, 2, 3), np.repeat(matched.right[known], 3)


def paint(right: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Colours (K, 3) of right and wrong matches."""
    return np.where(right[:, None], RIGHT, WRONG).astype(np.uint8)


@torch.no_grad()
def _match(
    item: PairItem, poses: NDArray[np.float64], distance: float, networks: Mapping[str, nn.Module]
) -> dict[str, Matched]:
    """Measured matches, and those that each network makes of the same points of the first frame."""
    features = {name: F.normalize(net(item.color.float() / 255).float(), dim=1) for name, net in networks.items()}
    height, width = item.depth.shape[-2:]
    shapes = {(int(maps.shape[-2]), int(maps.shape[-1])) for maps in features.values()}
    grid = shapes.pop() if len(shapes) == 1 else (-(-height // 2), -(-width // 2))
    found = match_pixels(item.depth[None], item.intrinsics[None], item.world_from_camera[None], grid, distance)
    centres = cell_pixels(grid, item.depth).double().numpy()
    points, z = cell_points(item.depth, item.intrinsics, grid)
    world = np.einsum("kij,knj->kni", poses[:, :3, :3], points.double().numpy()) + poses[:, None, :3, 3]
    world[z.numpy() <= 0] = np.nan
    first, second = (cells[found.valid].numpy() for cells in (found.first, found.second))
    chosen = spread(centres[first], SHOWN)
    first, second = first[chosen], second[chosen]

    def matched(cells: NDArray[np.int64]) -> Matched:
        gap = np.linalg.norm(centres[cells] - centres[second], axis=1) * _WIDTH / width
        ends = np.concatenate((centres[first], centres[cells]), axis=1)
        # At the measured partner it is one point: the cell's own pixel may lie beyond an object's border.
        there = np.where((cells == second)[:, None], world[0, first], world[1, cells])
        return Matched(ends, np.stack((world[0, first], there), axis=1), gap <= TOLERANCE)

    result = {MEASURED: matched(second)}
    for name, (one, two) in ((name, maps.flatten(2)) for name, maps in features.items()):
        result[name] = matched((one[:, torch.from_numpy(first)].T @ two).argmax(dim=1).numpy())
    return result
