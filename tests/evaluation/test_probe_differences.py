"""Differences of networks: the measures are those of the scores, verdicts follow the interval, units are frames."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pri3d.networks.readout import ClassErrors, DepthErrors, NormalErrors
from pri3d.probing.differences import (
    Sample,
    choose_comparisons,
    compare,
    measure_classes,
    measure_depth,
    measure_normals,
    sample_correspondence,
    sample_matching,
)
from pri3d.probing.pairs import Correspondences, Matching
from pri3d.probing.tables import plain
from pri3d.runs import leaves

PAIRS = 60


def values_of(score: object) -> dict[str, float]:
    return {" / ".join(way): value for way, value in leaves(plain(score))}


def total(sample: Sample) -> dict[str, float]:
    with np.errstate(invalid="ignore"):
        return {key: float(value) for key, value in sample.measure(sample.sums.sum(axis=0)).items()}


def agree(found: dict[str, float], wanted: dict[str, float]) -> None:
    assert found == pytest.approx({key: wanted[key] for key in found}, nan_ok=True)


def pairs_of(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Radians between views, none above 60 degrees, and the first frame of each of some pairs."""
    return np.radians(rng.uniform(0, 60, PAIRS)).astype(np.float32), np.sort(rng.integers(0, 20, PAIRS))


def test_measures_of_pairs_are_the_scores() -> None:
    rng = np.random.default_rng(0)
    angles, first = pairs_of(rng)
    first = np.unique(first, return_inverse=True)[1]
    matching, found = Matching(), Correspondences()
    counted = rng.integers(0, 30, PAIRS)
    counted[3] = 0
    matching.counts = [torch.tensor([rng.integers(0, n + 1), n]) for n in counted]
    found.rights = [torch.from_numpy(np.append(rng.integers(0, n + 1, 6), n)) for n in counted]
    one = sample_matching(matching.pairs(), angles, first)
    agree(total(one), values_of(matching.result(angles)))
    assert len(one.sums) == len(set(first.tolist()))
    two = sample_correspondence(found.pairs(), angles, first)
    agree(total(two), values_of(found.result(angles)))
    # Whole frames are drawn: what lies on one comes together.
    assert one.sums[0].sum() == pytest.approx(matching.pairs()[first == 0].sum())


def test_measures_of_frames_are_the_scores() -> None:
    generator = torch.Generator().manual_seed(0)
    true = 3 * torch.rand(9, 6, 8, generator=generator)
    true[2] = 0
    depth, normals, classes = DepthErrors(), NormalErrors(), ClassErrors(5)
    depth.update(true + 0.5 * torch.randn(9, 6, 8, generator=generator), true)
    agree(total(Sample(depth.frames().numpy(), measure_depth)), values_of(depth.result()))
    normal = torch.nn.functional.normalize(torch.randn(9, 3, 6, 8, generator=generator), dim=1)
    normal[0] = 0
    normals.update(normal + 0.3 * torch.randn(9, 3, 6, 8, generator=generator), normal)
    agree(total(Sample(normals.frames().numpy(), measure_normals)), values_of(normals.result()))
    label = torch.randint(0, 4, (9, 6, 8), generator=generator)
    label[4] = 255
    classes.update(torch.randint(0, 5, (9, 6, 8), generator=generator), label)
    agree(total(Sample(classes.frames().numpy(), measure_classes)), values_of(classes.result()))


def noisy(shift: float, seed: int) -> dict[str, Sample]:
    """A task whose error is a frame's own difficulty, alike for every network, plus the network's."""
    hard = np.random.default_rng(0).uniform(0, 5, 100)
    error = (hard + 1 + shift + 0.1 * np.random.default_rng(seed).normal(size=100)) ** 2
    count = np.full(100, 10.0)
    return {"depth": Sample(np.stack([error * 10, *[count * 0.5] * 3, count], axis=1), measure_depth)}


def test_a_small_difference_is_shown_where_frames_are_paired() -> None:
    halves, differences = compare(
        {"start": noisy(0, 1), "good": noisy(-0.1, 2), "bad": noisy(0.1, 3), "same": noisy(0, 4)}, 0
    )
    verdicts = {name: of["start"]["depth / rmse"].verdict for name, of in differences.items()}
    assert verdicts == {"good": "better", "bad": "worse", "same": "no difference shown"}
    gap = differences["good"]["start"]["depth / rmse"]
    assert gap.low < gap.difference < gap.high < 0
    assert gap.difference == pytest.approx(-0.1, abs=0.03)
    assert gap.high - gap.low < 0.3 * halves["start"]["depth / rmse"]  # levels alone could not tell
    assert differences["good"]["start"]["depth / delta1"].verdict == "no difference shown"


def test_more_is_better_of_all_but_errors() -> None:
    rng = np.random.default_rng(0)
    first, angles = np.arange(40), np.radians(np.where(np.arange(40) < 37, 10, 40)).astype(np.float32)
    counts = np.stack([rng.integers(20, 40, 40), np.full(40, 100)], axis=1).astype(float)
    samples = {
        name: {"matching": sample_matching(counts + np.array([more, 0]), angles, first)}
        for name, more in (("a", 0), ("b", 5))
    }
    halves, differences = compare(samples, 0)
    found = differences["b"]["a"]
    assert found["matching / mean"].verdict == "better"
    assert found["matching / mean"].difference == pytest.approx(0.05)
    assert "matching / by_angle / 15-30" not in found  # empty
    # Three frames are too few for an interval, and so is what is made of them.
    for key in ("matching / by_angle / 30-60", "matching / balanced"):
        assert math.isnan(halves["a"][key])
        assert math.isnan(found[key].low)
        assert found[key].verdict == "no difference shown"


def test_a_network_is_compared_with_its_beginning_and_the_first() -> None:
    names = ["imagenet", "a before", "a after", "b after"]
    wanted = [("a before", "imagenet"), ("a after", "a before"), ("a after", "imagenet"), ("b after", "imagenet")]
    assert list(choose_comparisons(names)) == wanted
    assert list(choose_comparisons(["a before", "a after"])) == [("a after", "a before")]
    assert list(choose_comparisons(["a"])) == []
