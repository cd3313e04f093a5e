"""What there is to see of a store or a run: frames along time, cameras, surface, pairs; no viewer is known here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from pri3d.data.augment import to_tensor
from pri3d.drawing import color_labels, draw_detections
from pri3d.errors import DataError
from pri3d.geometry.images import parse_size, resize_color
from pri3d.labelled import LabelledImages
from pri3d.labelled.prepared import PreparedImages
from pri3d.networks.weights import load_model
from pri3d.reporting.cutaway import up_direction
from pri3d.reporting.figures import pca_colors
from pri3d.reporting.gather import distance_of, likely_objects, spread_rows, there, true_objects
from pri3d.reporting.locate import labelled_of, pairs_of
from pri3d.reporting.sources import Run, read_run
from pri3d.reporting.view_matches import ShownPair, pairs_of_scene, show_pairs
from pri3d.runs import RunPaths
from pri3d.store import MANIFEST, SceneStore, Store
from pri3d.tasks import load_task
from pri3d.types import Detections

_CELLS = 80  #: feature cells along the width of a picture of principal components; finer ones are averaged


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
    """Gather a prepared store, or a run with the data it was trained on (``data`` says where they lie now).

    Raises DataError for a folder that is neither, for data or a scene that is not there, WeightsError for damaged
    weights.
    """
    if (source / MANIFEST).is_file():
        return _show_scene(Store(source), scene, frames, pairs, f"Store {source.name}")
    if RunPaths(source).config.is_file():
        run = read_run(source, source.name)
        how = {"pretrain": _show_pretraining, "finetune": _show_finetuning}[run.verb]
        return how(run, data, scene, frames, pairs)
    if not source.exists():
        raise DataError(f"{source}: no such folder. Give a prepared store or a run.")
    raise DataError(
        f"{source}: neither a prepared store (it has no {MANIFEST}) nor a run (no {RunPaths(source).config.name}). A "
        "recording is prepared first: pri3d prepare."
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
        distance = distance_of({**made, **settings})
        found = show_pairs(store.path, pairs_of_scene(store, scene.id, pairs), size, distance, networks or {})
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


def _show_pretraining(run: Run, data: Path | None, scene: str | None, frames: int, pairs: int) -> Shown:
    """The store with the features of the network before and after."""
    found = there(pairs_of(run, data, scene))
    store, paths = Store(found.folder), RunPaths(run.path)
    files = {"before": paths.initial, "after": paths.weights}
    networks = {name: load_model(file)[0] for name, file in files.items() if file.is_file()}
    shown = _show_scene(store, scene, frames, pairs, f"Run {run.name}", run.settings, networks)
    shown.notes.extend(
        f"{run.name} has no {file.name}: no features {name}." for name, file in files.items() if name not in networks
    )
    shown.notes.extend([found.remark] if found.remark else [])
    settings = run.settings
    size = parse_size(settings["size"]) if "size" in settings else store.scene(store.scenes[0]).frames.size
    pictures = {
        f"features {name}": _components(shown.frames, net, size, f"features {name}") for name, net in networks.items()
    }
    with_pictures = [
        frame._replace(pictures={name: of[k] for name, of in pictures.items()}) for k, frame in enumerate(shown.frames)
    ]
    return shown._replace(frames=with_pictures)


def _show_finetuning(run: Run, data: Path | None, scene: str | None, frames: int, pairs: int) -> Shown:
    """Images the run was validated on, ground truth and predictions; in their scene where they are of a store."""
    images, remark = there(labelled_of(run, data))
    weights = RunPaths(run.path).weights
    task, model, _ = load_task(weights) if weights.is_file() else (None, None, None)
    rows = _rows(images, scene)
    chosen = [rows[k] for k in spread_rows(len(rows), frames)]
    shown_frames = []
    for row in track(chosen, description="predicting", transient=True):
        pictures = _truth(images, row, run)
        if task is not None and model is not None:
            predicted = task.predict(model, images.color(row))
            pictures["prediction"] = _draw(images, images.color(row), predicted, task.class_names)
        shown_frames.append(_placed(images, row)._replace(pictures=pictures))
    title = f"Run {run.name}: {images.path.name}"
    if isinstance(images, PreparedImages):
        base = _show_scene(images.store, images.names[rows[0]].rpartition("/")[0], 0, pairs, f"Run {run.name}")
        shown = base._replace(frames=shown_frames)
    else:
        none = np.zeros((0, 3))
        shown = Shown(title, {}, shown_frames, none, none, none.astype(np.uint8), [], [])
    shown.notes.extend([remark] if remark else [])
    if task is None:
        shown.notes.append(f"{run.name} has no {weights.name}: no predictions. Its training has not finished.")
    facts = {**shown.facts, "frames": f"{len(chosen)} of {len(rows)} labelled", "data": str(images.path)}
    return shown._replace(facts=facts)


def _rows(images: LabelledImages, scene: str | None) -> list[int]:
    """Rows of one scene of a store, the first if not said; of other sets all. Raises DataError for an unknown scene."""
    if not isinstance(images, PreparedImages):
        if scene is not None:
            raise DataError(f"--scene {scene}: {images.path} is no prepared store, its images are of no scene.")
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


def _truth(images: LabelledImages, row: int, run: Run) -> dict[str, NDArray[np.uint8]]:
    if run.provenance.get("task") != "instance":
        return {"ground truth": color_labels(images.label(row), images.class_names)}
    found = true_objects(images, row)
    return {"ground truth": draw_detections(images.color(row), found, images.thing_names, with_scores=False)}


def _draw(images: LabelledImages, color: NDArray[np.uint8], predicted: Any, names: list[str]) -> NDArray[np.uint8]:
    """Class ids as colours, objects over the image. Raises DataError for what another task predicts."""
    if isinstance(predicted, Detections):
        return draw_detections(color, likely_objects(predicted), names)
    if isinstance(predicted, np.ndarray) and predicted.ndim == 2:
        return color_labels(predicted, names)
    raise DataError(f"{images.path}: a {type(predicted).__name__} is predicted, which has no picture: class ids do.")


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


@torch.no_grad()
def _components(
    frames: list[ShownFrame], net: nn.Module, size: tuple[int, int], description: str
) -> list[NDArray[np.uint8]]:
    """Principal components of a network's features of all frames, in one basis, as RGB (h, w, 3)."""

    def maps() -> Iterator[Tensor]:
        for frame in track(frames, description=description, transient=True):
            found = net(to_tensor(resize_color(frame.color, size))[None].float() / 255).float()
            step = -(-found.shape[-1] // _CELLS)
            yield F.avg_pool2d(found, step, ceil_mode=True) if step > 1 else found

    if not frames:
        return []
    return list((255 * pca_colors(torch.cat(list(maps())))).round().astype(np.uint8))
