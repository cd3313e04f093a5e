"""Scenes without poses: what `prepare` makes of them, and that crops alone can be learnt from it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "readers"))

from sample_frames import FRAMES, Sample, rendered
from samples_single import write_images, write_nyu_mat, write_sunrgbd

from pri3d.errors import DataError
from pri3d.preparation.run import prepare
from pri3d.store import Store

FLAGS = {"size": "48x36", "workers": 1}


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
