"""Scenes without poses: what `prepare` makes of them, and that crops alone can be learnt from it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "recordings"))

from sample_frames import FRAMES, Sample, rendered
from samples_single import write_images, write_nyu_mat, write_sunrgbd

from flat import pretrain
from pri3d.api.prepare import prepare
from pri3d.data.crops import PairFrames, crop_table
from pri3d.data.pairs import split_pairs
from pri3d.errors import DataError
from pri3d.store import Store

FLAGS = {"size": "48x36", "processes": 1}


@pytest.mark.parametrize("wrong", [{}, {"pairs": False}, {"surface": False}])
def test_pairs_and_surface_are_refused(tmp_path: Path, wrong: dict[str, bool]) -> None:
    root = write_sunrgbd(tmp_path / "raw").root
    with pytest.raises(DataError, match=r"have no poses[^$]*--no-pairs --no-surface"):
        prepare([root], tmp_path / "out", **FLAGS, **wrong)


@pytest.mark.parametrize("write", [write_images, write_nyu_mat, write_sunrgbd])
def test_without_both_every_frame_is_kept(tmp_path: Path, write: Callable[[Path], Sample]) -> None:
    prepare([write(tmp_path / "raw").root], tmp_path / "out", **FLAGS, pairs=False, surface=False)
    store = Store(tmp_path / "out")
    scene = store.scene(store.scenes[0])
    assert scene.frames.valid.tolist() == [True] * FRAMES
    for k, truth in enumerate(rendered()):
        view = scene.view(k)
        np.testing.assert_allclose(view.depth, 0 if write is write_images else truth.depth, atol=6e-4)
        assert np.abs(view.color.astype(int) - truth.color).mean() < 12  # JPEG of small noisy images


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two scenes of single images, one of which is damaged."""
    folder = tmp_path_factory.mktemp("flat")
    root = write_images(folder / "raw").root
    (root / "second/inner/000001.png").write_bytes(b"no image")
    prepare([root], folder / "store", **FLAGS, pairs=False, surface=False)
    return folder / "store"


def test_frames_stand_for_themselves_where_there_are_no_pairs(flat: Path) -> None:
    store = Store(flat)
    table = crop_table(store)
    frames = [("first", 0), ("first", 1), ("first", 2), ("second-inner", 0), ("second-inner", 2)]
    assert list(zip(table.scene, table.i, strict=True)) == frames
    train, held = split_pairs(store, 0.4, table)
    assert (train.tolist(), held.tolist()) == ([0, 1, 3], [2, 4])
    source = PairFrames(flat, train)
    color, name = source.read(len(source) - 1)
    assert (len(source), name, color.shape) == (3, "second-inner/000000", (36, 48, 3))


@pytest.mark.thorough
def test_crops_alone_are_learnt_from_it(flat: Path, tmp_path: Path) -> None:
    options = {"encoder": "resnet18", "init": "scratch", "steps": 1, "batch": 2, "micro_batch": 2, "crop": 32}
    run = pretrain(
        flat, "moco", run=tmp_path / "run", workers=0, holdout=0.0, moco_queue=4, eval_every=0, **options
    ).path
    assert (run / "weights.safetensors").is_file()
    with pytest.raises(DataError, match="was prepared with --pairs false"):
        pretrain(flat, "quick", run=tmp_path / "other", workers=0, steps=1)
