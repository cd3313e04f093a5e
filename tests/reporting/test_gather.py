"""What the pictures of a report are made of: pairs, surface, predictions and scores, from small stores and runs."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from finetuned import load_semantic
from pri3d.data.labelled import LabelledDataset
from pri3d.data.sampler import Draw
from pri3d.drawing import color_labels
from pri3d.errors import DataError
from pri3d.labelled.prepared import PreparedImages
from pri3d.reporting import gather
from pri3d.reporting.cutaway import drawable
from pri3d.reporting.sources import find_sources, read_scores
from pri3d.store import Store, read_manifest, write_manifest

SETTINGS = {"size": "64x48", "matching": {"distance": 0.05}, "geometry": {"voxel": 0.16}}


def test_matches_are_points_that_both_frames_see(runs):
    pairs, images = gather.matched_pairs(runs.store, 2, SETTINGS)
    assert images.shape == (4, 3, 48, 64)
    store = Store(runs.store)
    for pair in pairs:
        scene_id, frames = pair.name.split("/")
        scene = store.scene(scene_id)
        names = scene.frames.names.tolist()
        first, second = (scene.view(names.index(name)) for name in frames.split("+"))
        assert len(pair.points) > 20
        gap = np.linalg.norm(lift(first, pair.points[:, :2]) - lift(second, pair.points[:, 2:]), axis=1)
        # A cell stands for the pixel its centre falls into, a match lies within 5 cm: both ends move by a pixel.
        assert np.median(gap) < 0.1


def test_the_run_says_what_is_one_point_else_its_data():
    assert gather.match_distance({"matching": {"distance": 0.05}}, {"distance": 0.1}) == 0.05
    assert gather.match_distance({"matching": {"distance": None}}, {"distance": 0.1}) == 0.1
    assert 0 < gather.match_distance({}, {}) < 0.1


def test_typical_pairs_are_at_even_ranks(runs):
    store = Store(runs.store)
    overlap = store.pairs().overlap
    assert overlap[gather.typical_pairs(store, 1)] == pytest.approx(np.median(overlap), abs=1e-6)
    assert len(gather.typical_pairs(store, 2)) == 2
    assert len(gather.typical_pairs(store, 50)) == len(overlap)


def test_typical_pairs_are_those_a_run_trains_on(runs):
    store = Store(runs.store)
    overlap = store.pairs().overlap
    least = float(np.quantile(overlap, 0.6))
    shown = gather.typical_pairs(store, 99, settings={"min_overlap": least})
    assert sorted(shown.tolist()) == np.flatnonzero(overlap >= np.float32(least)).tolist()
    assert len(gather.typical_pairs(store, 99, settings={"min_overlap": 1.0})) == len(overlap)  # none: all


def test_typical_pairs_of_one_scene(runs):
    store = Store(runs.store)
    table = store.pairs()
    assert gather.typical_pairs(store, 1, "room-0001").tolist() == [4]  # overlaps rise within a room: the median
    assert gather.typical_pairs(store, 9, "room-0001").tolist() == [3, 4, 5]
    assert (table.scene[gather.typical_pairs(store, 3, "room-0000")] == "room-0000").all()
    assert len(gather.typical_pairs(store, 3, "room-9999")) == 0


def test_the_chunk_has_the_voxels_of_the_run(runs):
    chunk = gather.median_chunk(runs.store, find_sources([runs.pretrain]).pretrained[0].settings)
    assert drawable(chunk).size == pytest.approx(0.16)
    assert np.array_equal(chunk.up, (0, 0, 1))


def test_a_voxel_size_that_does_not_fit_falls_back_to_the_stores(runs):
    assert gather.median_chunk(runs.store, {"geometry": {"voxel": 0.1}}).voxel == pytest.approx(0.08)


def test_a_store_without_pairs_has_none_to_show(tmp_path, runs):
    shutil.copytree(runs.val, tmp_path / "single")
    manifest = read_manifest(runs.val)
    write_manifest(tmp_path / "single", manifest | {"settings": {**manifest["settings"], "pairs": False}})
    with pytest.raises(DataError, match="no overlapping pairs"):
        gather.matched_pairs(tmp_path / "single", 1, {})


@pytest.mark.thorough
def test_segmentations_are_the_networks_own(runs):
    images = PreparedImages(runs.val, "all")
    found = gather.predictions(images, runs.finetune, 2, "semantic")
    frames = found.frames
    dataset = LabelledDataset(images, (64, 48))
    assert [frame.name for frame in frames] == [dataset[Draw(0, row)][2] for row in (1, 3)]
    assert found.class_names == images.class_names
    model = load_semantic(runs.finetune["pri3d"][0])[0]
    with torch.no_grad():
        expected = model(dataset[Draw(0, 3)][0][None].float() / 255).argmax(1)[0]
    label = dataset[Draw(0, 3)][1]
    expected[label == 255] = 255
    assert np.array_equal(frames[1].panels["pri3d"], color_labels(expected.numpy(), found.class_names))
    assert np.array_equal(frames[1].panels["ground truth"], color_labels(label.numpy(), found.class_names))


def test_classes_that_differ_are_no_predictions(tmp_path, runs):
    shutil.copytree(runs.val, tmp_path / "other")
    names = read_manifest(runs.val)["class_names"]
    write_manifest(tmp_path / "other", {**read_manifest(runs.val), "class_names": [*names[:-1], "thing"]})
    images = PreparedImages(tmp_path / "other", "all")
    assert "other classes" in gather.predictions(images, runs.finetune, 2, "semantic").reason


def test_scores_of_unfinished_runs_are_skipped(tmp_path, runs):
    scores = read_scores({"pri3d": [tmp_path, *runs.finetune["pri3d"]], "scratch": [tmp_path]}, "semantic")
    assert list(scores) == ["pri3d"]
    assert [score.last["miou"] for score in scores["pri3d"]] == [0.3, 0.31]


def lift(view, points: np.ndarray) -> np.ndarray:
    """World points (N, 3) of image points (N, 2) by the view's depth."""
    u, v = points.astype(int).T
    z = view.depth[v, u]
    fx, fy, cx, cy = view.intrinsics
    camera = np.stack(((u + 0.5 - cx) / fx * z, (v + 0.5 - cy) / fy * z, z), axis=1)
    return camera @ view.world_from_camera[:3, :3].T + view.world_from_camera[:3, 3]
