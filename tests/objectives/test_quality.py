"""Diagnostics of features: closed forms, slow loops, and agreement with the probe."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_objectives import CountSyncs
from torch.nn import functional as F

from pri3d.data.pairs import PairDataset, collate
from pri3d.data.sampler import Draw
from pri3d.geometry.matching import choose, match_pixels
from pri3d.networks.unet import build_unet
from pri3d.objectives import Features
from pri3d.objectives.quality import PairQuality, alignment, cell_distance, feature_rank, uniformity
from pri3d.probing.probe import matching_recall
from pri3d.store import Store
from pri3d.types import PairBatch


def everywhere(rows: torch.Tensor) -> torch.Tensor:
    return torch.ones(rows.shape[0], dtype=torch.bool)


@given(st.integers(0, 10_000), st.integers(2, 12))
def test_alignment_and_uniformity_equal_loops(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(count, 3, generator=generator) * 5 for _ in range(2))
    valid = torch.rand(count, generator=generator) < 0.7
    valid[:2] = True
    a, b = (F.normalize(x.double(), dim=1) for x in (first, second))
    used = [i for i in range(count) if valid[i]]
    gaps = [float((a[i] - b[i]).square().sum()) for i in used]
    assert float(alignment(first, second, valid)) == pytest.approx(np.mean(gaps), rel=1e-5)
    pairs = [math.exp(-2 * float((a[i] - a[j]).square().sum())) for i in used for j in used if i != j]
    assert float(uniformity(first, valid)) == pytest.approx(math.log(np.mean(pairs)), rel=1e-4, abs=1e-5)


def test_alignment_by_hand() -> None:
    east, north = torch.tensor([[2.0, 0], [2, 0]]), torch.tensor([[0.0, 3], [0, 3]])
    both = everywhere(east)
    assert [float(alignment(east, other, both)) for other in (east, north, -east)] == pytest.approx([0, 2, 4])
    assert math.isnan(alignment(east, north, ~both))


def test_uniformity_of_one_point_of_opposite_points_and_of_the_sphere() -> None:
    one = torch.ones(5, 3)
    assert float(uniformity(one, everywhere(one))) == pytest.approx(0, abs=1e-5)
    poles = torch.tensor([[1.0, 0, 0], [-2, 0, 0]])
    assert float(uniformity(poles, everywhere(poles))) == pytest.approx(-8)
    # In three dimensions the cosine of two random directions is uniform in -1..1: the mean is (1 - exp(-8)) / 8.
    sphere = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    assert float(uniformity(sphere, everywhere(sphere))) == pytest.approx(math.log((1 - math.exp(-8)) / 8), abs=0.01)
    wide = torch.randn(2000, 128, generator=torch.Generator().manual_seed(0))
    assert float(uniformity(wide, everywhere(wide))) == pytest.approx(-4 + 8 / 128, abs=0.01)


def test_uniformity_of_many_rows_thins_them() -> None:
    rows = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))
    whole, third = uniformity(rows, everywhere(rows)), uniformity(rows[::3], everywhere(rows[::3]))
    assert torch.equal(whole, third)


@pytest.mark.parametrize("valid", [[], [True], [True, False, False]])
def test_uniformity_needs_two_rows(valid: list[bool]) -> None:
    assert math.isnan(uniformity(torch.randn(len(valid), 3), torch.tensor(valid, dtype=torch.bool)))


def test_rank_of_orthogonal_equal_and_stretched_rows() -> None:
    eye = torch.eye(8)
    assert float(feature_rank(3 * eye)) == pytest.approx(8)
    assert float(feature_rank(torch.cat((eye, torch.zeros(20, 8), -eye)))) == pytest.approx(8)
    assert float(feature_rank(torch.randn(1, 8).expand(50, 8))) == pytest.approx(1, abs=1e-3)
    assert float(feature_rank(eye[:3])) == pytest.approx(3)
    # Singular values 3 and 1: shares 3/4 and 1/4.
    wanted = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert float(feature_rank(torch.tensor([[3.0, 0], [0, 1]]))) == pytest.approx(wanted)


@pytest.mark.parametrize("rows", [torch.zeros(4, 3), torch.tensor([[1.0, torch.nan], [0, 1]])])
def test_rank_of_nothing_is_nan(rows: torch.Tensor) -> None:
    assert math.isnan(feature_rank(rows))


@pytest.fixture(scope="module")
def dataset(rooms_store: Path) -> PairDataset:
    return PairDataset(rooms_store, np.arange(len(Store(rooms_store).pairs().i))[:5], (64, 48), 0)


def batches(dataset: PairDataset) -> list[PairBatch]:
    return [collate([dataset[Draw(0, k)] for k in part]) for part in ((0, 1), (2, 3), (4,))]


def test_distance_to_the_most_similar_cell_equals_loops() -> None:
    """Similar by the cosine of the channels, whatever the lengths."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 6, 3, 5, generator=generator) * torch.rand(2, 1, 3, 5, generator=generator).exp() ** 3
    first, second = torch.arange(15), torch.randperm(15, generator=generator)
    found = cell_distance(features, first, second).tolist()
    for one, other, distance in zip(first.tolist(), second.tolist(), found, strict=True):
        query = features[0, :, one // 5, one % 5]
        similar = {
            (row, column): float(F.cosine_similarity(query, features[1, :, row, column], dim=0))
            for row in range(3)
            for column in range(5)
        }
        row, column = max(similar, key=lambda cell: similar[cell])
        assert distance == pytest.approx(math.hypot(row - other // 5, column - other % 5))


@pytest.mark.thorough
@torch.no_grad()
def test_recall_is_the_probes(dataset: PairDataset) -> None:
    torch.manual_seed(0)
    unet = build_unet("resnet18", "slim", 8).eval()
    quality = PairQuality(pixels=40)
    for batch in batches(dataset):
        dense = unet(batch.color.flatten(0, 1)).unflatten(0, batch.color.shape[:2])
        quality.update(Features(dense, []), batch, points=100, distance=0.1)
    angles = Store(dataset.store.path).pairs().angle[:5]
    wanted = matching_recall(unet, dataset, angles, pixels=40, distance=0.1, points=100)
    result = quality.result()
    assert result["points"] == wanted.points > 100
    assert 0 < result["recall"] == pytest.approx(wanted.mean)
    assert result["recall"] < 1


def test_measures_over_batches_are_those_of_all_rows(dataset: PairDataset) -> None:
    quality, first, second = PairQuality(), [], []
    for batch in batches(dataset):
        dense = torch.randn(len(batch.names), 2, 8, 24, 32)
        quality.update(Features(dense, []), batch, points=50, distance=0.1)
        matches = match_pixels(batch.depth, batch.intrinsics, batch.world_from_camera, (24, 32), 0.1)
        matches = choose(matches, 50, batch.seeds)
        for b in range(len(batch.names)):
            keep = matches.valid[b]
            first.append(dense[b, 0].flatten(1)[:, matches.first[b, keep]].T)
            second.append(dense[b, 1].flatten(1)[:, matches.second[b, keep]].T)
    rows, others = torch.cat(first), torch.cat(second)
    result = quality.result()
    assert result["points"] == len(rows)
    assert result["alignment"] == pytest.approx(float(alignment(rows, others, everywhere(rows))), rel=1e-5)
    assert result["uniformity"] == pytest.approx(float(uniformity(rows, everywhere(rows))), rel=1e-5)
    assert result["rank"] == pytest.approx(float(feature_rank(F.normalize(rows, dim=1))), rel=1e-4)
    assert all(type(value) is float for value in result.values())


def test_reduced_precision_round_about_changes_nothing(dataset: PairDataset) -> None:
    results = []
    for enabled in (False, True):
        quality = PairQuality()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            for seed, batch in enumerate(batches(dataset)):
                generator = torch.Generator().manual_seed(seed)
                dense = torch.randn(len(batch.names), 2, 8, 24, 32, generator=generator)
                quality.update(Features(dense, []), batch, distance=0.1)
            results.append(quality.result())
    assert results[0] == results[1]


def test_matches_follow_the_mode(dataset: PairDataset) -> None:
    counts = {}
    for mode in ("point", "depth", "relative"):
        quality = PairQuality()
        for batch in batches(dataset):
            dense = torch.randn(len(batch.names), 2, 8, 24, 32)
            quality.update(Features(dense, []), batch, points=0, distance=0.04, match=mode)
        counts[mode] = quality.result()["points"]
    assert counts["depth"] > counts["point"] > 0  # a gap in depth is never larger than one in 3D
    assert counts["relative"] > counts["point"]  # the rooms are deeper than a metre


def test_true_features_are_found_and_the_copy_is_ignored(dataset: PairDataset) -> None:
    batch = batches(dataset)[0]
    matches = match_pixels(batch.depth, batch.intrinsics, batch.world_from_camera, (24, 32), 0.1)
    true = torch.randn(2, 3, 64, 24 * 32)
    for b in range(2):
        keep = matches.valid[b]
        true[b, 1, :, matches.second[b, keep]] = true[b, 0, :, matches.first[b, keep]]
    quality = PairQuality()
    quality.update(Features(true.unflatten(-1, (24, 32)), [], ("first", "second", "copy")), batch, distance=0.1)
    result = quality.result()
    assert result["recall"] == 1
    assert result["alignment"] == pytest.approx(0, abs=1e-6)
    assert result["rank"] > 32


def test_update_does_not_wait_for_the_device(dataset: PairDataset) -> None:
    quality, batch = PairQuality(), batches(dataset)[0]
    with CountSyncs() as counter:
        quality.update(Features(torch.randn(2, 2, 8, 24, 32), []), batch)
    assert counter.calls == []
    assert counter.total > 50


def test_without_a_match_everything_is_nan(dataset: PairDataset) -> None:
    quality, batch = PairQuality(), batches(dataset)[0]
    nothing = quality.result()
    quality.update(Features(torch.randn(2, 2, 8, 24, 32), []), batch._replace(depth=torch.zeros_like(batch.depth)))
    for result in (nothing, quality.result()):
        assert result.pop("points") == 0
        assert list(result) == ["recall", "alignment", "uniformity", "rank"]
        assert all(math.isnan(value) for value in result.values())
