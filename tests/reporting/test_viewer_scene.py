"""What view gathers of stores and runs, without any viewer."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from view_cases import finetuned, pretrained, stated

from pri3d.drawing import color_labels
from pri3d.errors import DataError, WeightsError
from pri3d.reporting import viewer_scene
from pri3d.reporting.gather import spread_rows
from pri3d.reporting.sources import FoundImages
from pri3d.reporting.viewer_scene import MEASURED, Matched, ShownPair, legs, show, show_pairs
from pri3d.store import Store, write_manifest
from pri3d.tasks import Trained
from pri3d.tasks.instance import InstanceTask
from pri3d.types import Detections, Instances


def test_a_store_is_shown_as_it_is(runs):
    shown = show(runs.store, None, None, 40, 2)
    scene = Store(runs.store).scene("room-0000")
    assert [frame.name for frame in shown.frames] == [f"room-0000/{name}" for name in scene.frames.names]
    for row, frame in enumerate(shown.frames):
        view = scene.view(row)
        np.testing.assert_array_equal(frame.color, view.color)
        np.testing.assert_array_equal(frame.depth, view.depth)
        np.testing.assert_array_equal(frame.world_from_camera, view.world_from_camera)
    np.testing.assert_array_equal(shown.path, scene.frames.world_from_camera[:, :3, 3])
    assert len(shown.points) == len(shown.colors) == len(scene.surface().cells)
    assert len(shown.pairs) == 2
    assert shown.notes == []


def test_the_surface_lies_where_the_depth_is(runs):
    """A measured point is near the centre of some cell: its cube has 8 cm."""
    shown = show(runs.store, None, "room-0001", 1, 0)
    frame = shown.frames[0]
    v, u = np.argwhere(frame.depth > 0)[::97].T
    z = frame.depth[v, u]
    fx, fy, cx, cy = frame.intrinsics
    local = np.stack(((u + 0.5 - cx) / fx * z, (v + 0.5 - cy) / fy * z, z), axis=1)
    world = local @ frame.world_from_camera[:3, :3].T + frame.world_from_camera[:3, 3]
    gap = np.linalg.norm(world[:, None] - shown.points, axis=2).min(axis=1)
    assert np.median(gap) < 0.08


@pytest.mark.parametrize(("count", "most"), [(250, 40), (4, 40), (1, 1), (0, 5), (7, 3)])
def test_frames_are_even(count, most):
    rows = spread_rows(count, most)
    assert len(rows) == len(set(rows)) == min(count, most)
    assert all(0 <= row < count for row in rows)
    if rows:
        assert np.ptp(np.diff(rows)) <= 1 if len(rows) > 1 else True
        assert abs((rows[0] + rows[-1]) / 2 - (count - 1) / 2) <= 1


def test_measured_matches_are_one_place(runs):
    """The point of the first frame is seen by the second camera at the second pixel."""
    store = Store(runs.store)
    pairs = show_pairs(runs.store, np.arange(3), (64, 48), 0.05, {})
    assert sum(len(pair.matches[MEASURED].right) for pair in pairs) > 20
    for pair in pairs:
        matched = pair.matches[MEASURED]
        assert matched.right.all()
        np.testing.assert_array_equal(matched.points[:, 0], matched.points[:, 1])
        scene = store.scene("room-0000").frames
        world_from_camera, (fx, fy, cx, cy) = scene.world_from_camera[pair.rows[1]], scene.intrinsics[pair.rows[1]]
        local = (matched.points[:, 0] - world_from_camera[:3, 3]) @ world_from_camera[:3, :3]
        pixels = local[:, :2] / local[:, 2:] * (fx, fy) + (cx, cy)
        assert np.abs(pixels - matched.pixels[:, 2:]).max(initial=0) < 2.5  # cells of 2 pixels


class Oracle(torch.nn.Module):
    """Features under which exactly the measured partners are alike, or all cells."""

    def __init__(self, matched: dict[int, int], cells: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.matched, self.cells, self.grid = matched, cells, grid

    def forward(self, images):
        maps = torch.zeros(2, self.cells + 1, self.cells)
        maps[0, :-1] = torch.eye(self.cells)
        maps[1, -1] = 1
        for first, second in self.matched.items():
            maps[1, :, second] = torch.eye(self.cells + 1)[first]
        return maps.unflatten(-1, self.grid)


def cells_of(pixels: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    column, row = (pixels / 2).astype(int).T
    return row * grid[1] + column


def test_networks_are_told_right_from_wrong(runs):
    grid = (24, 32)
    measured = show_pairs(runs.store, np.array([2]), (64, 48), 0.05, {})[0].matches[MEASURED]
    first, second = cells_of(measured.pixels[:, :2], grid), cells_of(measured.pixels[:, 2:], grid)
    assert len(first) > 5
    truth = dict(zip(first.tolist(), second.tolist(), strict=True))
    corner = dict.fromkeys(first.tolist(), 0)
    networks = {"good": Oracle(truth, 768, grid), "bad": Oracle(corner, 768, grid)}
    pair = show_pairs(runs.store, np.array([2]), (64, 48), 0.05, networks)[0]
    assert list(pair.matches) == [MEASURED, "good", "bad"]
    assert pair.matches["good"].right.all()
    np.testing.assert_array_equal(pair.matches["good"].pixels, measured.pixels)
    np.testing.assert_allclose(pair.matches["good"].points, measured.points)
    far = np.linalg.norm(measured.pixels[:, 2:] - (1, 1), axis=1) * 320 / 64 > 10
    np.testing.assert_array_equal(pair.matches["bad"].right, ~far)
    assert far.sum() > 3


def test_legs_lead_from_camera_to_camera():
    points = np.arange(12, dtype=float).reshape(2, 2, 3)
    centres = np.array(((0, 0, 0), (9, 9, 9.0)))
    matched = Matched(
        np.zeros((3, 4)), np.concatenate((points, np.full((1, 2, 3), np.nan))), np.array((True, False, True))
    )
    pair = ShownPair("p", (0, 1), np.zeros((2, 4, 4, 3), np.uint8), centres, 0.5, 0.1, {MEASURED: matched})
    lines, right = legs(pair, matched)
    assert right.tolist() == [True] * 3 + [False] * 3  # the third was not measured
    np.testing.assert_array_equal(lines[0], (centres[0], points[0, 0]))
    np.testing.assert_array_equal(lines[1], points[0])
    np.testing.assert_array_equal(lines[2], (points[0, 1], centres[1]))


@pytest.mark.thorough
def test_pretraining_shows_features_before_and_after(runs, tmp_path):
    shown = show(pretrained(runs, tmp_path / "run"), None, "room-0001", 3, 2)
    assert [list(frame.pictures) for frame in shown.frames] == [["features before", "features after"]] * 3
    before, after = shown.frames[0].pictures.values()
    assert before.shape == after.shape == (24, 32, 3)
    assert (before != after).mean() > 0.5
    assert [list(pair.matches) for pair in shown.pairs] == [[MEASURED, "before", "after"]] * 2
    assert all(name.startswith("room-0001/") for name in (f.name for f in shown.frames))
    assert shown.notes == ["run was trained on another version of store."]


@pytest.mark.thorough
def test_the_hash_says_whether_it_is_the_store(runs, tmp_path):
    run = stated(runs.pretrain, tmp_path / "run", "pretrain", data=str(runs.store), data_hash=Store(runs.store).hash)
    assert show(run, None, None, 1, 0).notes == []
    assert "was trained on another version of val" in show(run, runs.val, None, 1, 0).notes[0]


def test_an_unfinished_pretraining_shows_what_is_there(runs, tmp_path):
    run = pretrained(runs, tmp_path / "run")
    (run / "weights.safetensors").unlink()
    shown = show(run, None, None, 1, 1)
    assert list(shown.frames[0].pictures) == ["features before"]
    assert "run has no weights.safetensors: no features after." in shown.notes


@pytest.mark.thorough
def test_of_several_stores_the_one_that_has_the_scene(runs, tmp_path):
    run = stated(runs.pretrain, tmp_path / "run", "pretrain", data=f"{runs.store}:2 {runs.val}:1")
    assert show(run, None, None, 1, 0).title == "Run run: room-0000"
    assert show(run, None, "room-0002", 1, 0).title == "Run run: room-0002"


def test_finetuning_shows_truth_and_prediction(runs, tmp_path):
    shown = show(finetuned(runs, tmp_path / "run"), None, None, 2, 1)
    store = Store(runs.val)
    scene = store.scene("room-0002")
    rows = [scene.frames.names.tolist().index(frame.name.partition("/")[2]) for frame in shown.frames]
    assert rows == [1, 3]
    for row, frame in zip(rows, shown.frames, strict=True):
        assert list(frame.pictures) == ["ground truth", "prediction"]
        truth = color_labels(scene.label(row), store.class_names)
        np.testing.assert_array_equal(frame.pictures["ground truth"], truth)
        assert frame.pictures["prediction"].shape == truth.shape
        np.testing.assert_array_equal(frame.world_from_camera, scene.frames.world_from_camera[row])
    assert len(shown.points)
    assert len(shown.pairs) == 1


def test_finetuning_without_a_network_yet(runs, tmp_path):
    run = finetuned(runs, tmp_path / "run")
    (run / "weights.safetensors").unlink()
    shown = show(run, None, None, 2, 0)
    assert list(shown.frames[0].pictures) == ["ground truth"]
    assert any("no predictions" in note for note in shown.notes)


class Objects:
    """One image with one object, of no store."""

    path = Path("objects")
    names = ("only",)
    thing_names = ("chair", "lamp")

    def color(self, k):
        return np.full((40, 60, 3), 90, np.uint8)

    def instances(self, k):
        mask = np.zeros((1, 40, 60), bool)
        mask[0, 10:30, 10:40] = True
        return Instances(mask, np.array(((10, 10, 40, 30),), np.float32), np.array((1,)), np.array((False,)))


def test_objects_of_images_without_a_scene(runs, tmp_path, monkeypatch):
    class Told(InstanceTask):
        def predict(self, model, color):
            found = Objects().instances(0)
            masks, boxes = np.repeat(found.masks, 2, 0), np.repeat(found.boxes, 2, 0)
            return Detections(masks, boxes, np.array((1, 0)), np.array((0.9, 0.1), np.float32))

    run = finetuned(runs, tmp_path / "run", task="instance")
    monkeypatch.setattr(viewer_scene, "labelled_of", lambda *_: FoundImages(Objects(), ""))
    monkeypatch.setattr(viewer_scene, "load_task", lambda _: Trained(Told(Objects.thing_names), None, {}, run))
    shown = show(run, None, None, 5, 3)
    assert [frame.name for frame in shown.frames] == ["only"]
    truth, predicted = shown.frames[0].pictures.values()
    assert truth.shape == predicted.shape
    inside = truth[truth.shape[0] // 2, truth.shape[1] // 3]
    assert (inside != 90).any()
    np.testing.assert_array_equal(predicted[truth.shape[0] // 2, truth.shape[1] // 3], inside)  # the sure one alone
    assert len(shown.points) == len(shown.path) == len(shown.pairs) == 0
    with pytest.raises(DataError, match="no prepared dataset"):
        show(run, None, "room-0000", 5, 3)


def broken(runs, tmp_path: Path, what: str) -> tuple[Path, Path | None, str | None]:
    run = tmp_path / "run"
    if what == "scene":
        return runs.store, None, "kitchen"
    if what == "nothing":
        return tmp_path / "absent", None, None
    if what == "neither":
        return tmp_path, None, None
    if what == "moved":
        return stated(runs.pretrain, run, "pretrain", data=str(tmp_path / "gone")), None, None
    if what == "untold":
        return stated(runs.pretrain, run, "pretrain"), None, None
    if what == "untold images":
        return stated(runs.finetune["pri3d"][0], run, "finetune", task="semantic"), None, None
    if what == "moved images":
        return finetuned(runs, run, val=str(tmp_path / "gone")), None, None
    if what == "no store":
        return pretrained(runs, run), tmp_path, None
    if what == "scene of a run":
        return finetuned(runs, run), None, "room-0000"
    run.mkdir()
    content = {"damaged": "settings: [", "verb": "{verb: embed, settings: {}}", "list": "[1, 2]"}[what]
    (run / "config.yaml").write_text(content)
    return run, None, None


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("scene", "no scene 'kitchen'. It has room-0000, room-0001"),
        ("nothing", "absent: no such folder"),
        ("neither", "neither a prepared dataset .* nor a run"),
        ("moved", "gone, which run was trained on, is not found.*--data"),
        ("untold", "does not state its training data.*--data"),
        ("untold images", "does not state its training data.*--data"),
        ("moved images", "gone, which run was trained on, is not found.*--data"),
        ("no store", "no prepared dataset with pairs in .*--data"),
        ("scene of a run", "no scene 'room-0000'"),
        ("damaged", "config.yaml: not the settings of a run"),
        ("list", "config.yaml: not the settings of a run"),
        ("verb", "not from a run of pri3d pretrain or finetune"),
    ],
)
def test_what_cannot_be_shown_is_named(runs, tmp_path, what, message):
    with pytest.raises(DataError, match=re.compile(message, re.DOTALL)):
        show(*broken(runs, tmp_path, what), 4, 2)


def test_damaged_weights_are_named(runs, tmp_path):
    run = pretrained(runs, tmp_path / "run")
    (run / "weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match=r"weights\.safetensors"):
        show(run, None, None, 1, 1)


def test_a_store_without_pairs_or_colours(runs, tmp_path):
    folder = tmp_path / "store"
    shutil.copytree(runs.store, folder)
    manifest = dict(Store(folder).manifest)
    manifest["settings"] = {**manifest["settings"], "pairs": False}
    write_manifest(folder, manifest)
    shown = show(folder, None, None, 2, 2)
    assert shown.pairs == []
    assert shown.notes == ["Scene room-0000 has no overlapping pairs."]
    assert len(np.unique(shown.colors, axis=0)) > 10  # by height
