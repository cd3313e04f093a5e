"""Recall of 3D correspondences: perfect and random features, distances by hand, angle bins."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pri3d.errors import ConfigError, DataError
from pri3d.models.unet import build_unet
from pri3d.models.weights import save_model
from pri3d.scoring.probe import _summary, cell_distance, probe
from pri3d.store import Store


def test_distance_in_cells() -> None:
    features = torch.zeros(2, 12, 3, 4)
    features.view(2, 12, 12)[0] = torch.eye(12)
    features.view(2, 12, 12)[1] = torch.eye(12).roll(5, 1)
    # Cell k of view 0 has its feature at cell k + 5 of view 1 (row-major, 4 columns).
    first = torch.tensor([0, 1])
    assert cell_distance(features, first, torch.tensor([5, 6])).tolist() == [0, 0]
    assert cell_distance(features, first, torch.tensor([4, 11])).tolist() == pytest.approx([1, math.hypot(1, 1)])


def test_bins_and_mean() -> None:
    result = _summary(np.array([5.0, 0, 8]), np.array([10.0, 0, 10]), np.array([10.0, 20, 45], np.float32))
    assert result.mean == pytest.approx(13 / 20)
    assert result.by_angle["0-15"] == pytest.approx(0.5)
    assert math.isnan(result.by_angle["15-30"])
    assert result.by_angle["30-60"] == pytest.approx(0.8)
    assert (result.points, result.pairs) == (20, 2)
    assert result.balanced == pytest.approx((0.5 + 0.8) / 2)


def test_probe_compares_networks_on_the_same_points(rooms_store: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_model(build_unet("resnet18", "slim", 32), tmp_path / f"{seed}.safetensors", {})
    weights = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    results = probe(rooms_store, weights, holdout=0.4, size="64x48", pixels=40)
    assert list(results) == ["0.safetensors", "1.safetensors"]
    one, two = results.values()
    assert one.points == two.points > 0
    assert 0 < one.mean < 1
    assert one.mean != two.mean


def test_probe_refuses_frames_the_network_was_trained_on(rooms_store: Path, tmp_path: Path) -> None:
    record = {"holdout": 0.1, "data_hash": Store(rooms_store).hash}
    save_model(build_unet("resnet18", "slim", 32), tmp_path / "net.safetensors", record)
    with pytest.raises(ConfigError, match="has seen"):
        probe(rooms_store, [tmp_path / "net.safetensors"], holdout=0.4, size="64x48")


def test_networks_of_one_name_stay_apart(rooms_store: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_model(build_unet("resnet18", "slim", 32), tmp_path / name / "net.safetensors", {})
    weights = [tmp_path / name / "net.safetensors" for name in ("a", "b")]
    assert len(probe(rooms_store, weights, holdout=0.4, size="64x48")) == 2


def test_probe_refuses_what_it_cannot_measure(rooms_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holdout"):
        probe(rooms_store, [tmp_path], holdout=0.0)
    with pytest.raises(DataError, match=r"none.safetensors"):
        probe(rooms_store, [tmp_path / "none.safetensors"], holdout=0.4)
