from __future__ import annotations

import math

import numpy as np
import pytest

from pri3d.intervals import Measures, block_length, bootstrap_half, mean_interval, resample_blocks


def test_the_interval_is_students() -> None:
    """12.706 is Student's quantile of one degree of freedom, 4.303 of two: tables of textbooks."""
    assert mean_interval([0.2, 0.4]) == pytest.approx((0.3, 12.706 * 0.1), rel=1e-4)
    spread = math.sqrt(((0.1**2) * 2) / 2) / math.sqrt(3)
    assert mean_interval([0.2, 0.3, 0.4]) == pytest.approx((0.3, 4.303 * spread), rel=1e-3)


def test_what_cannot_be_told_is_nan() -> None:
    assert mean_interval([0.25]) == pytest.approx((0.25, math.nan), nan_ok=True)
    assert all(map(math.isnan, (*mean_interval([]), *mean_interval([0.1, None]))))


def mean_of(sums: np.ndarray) -> Measures:
    return {"mean": sums[..., 0] / sums[..., 1]}


def with_ones(values: np.ndarray) -> np.ndarray:
    return np.stack([values, np.ones(len(values))], axis=-1)


def test_the_deviation_of_blocks_is_the_closed_form() -> None:
    """Of blocks of L the mean of U values has the variance of the circular block means, over the number of blocks."""
    values = np.random.default_rng(0).normal(size=49)
    drawn = resample_blocks(with_ones(values), mean_of, 1, 20_000)["mean"]
    around = np.concatenate([values, values[:6]])
    blocks = np.array([around[k : k + 7].mean() for k in range(49)])
    assert drawn.std() == pytest.approx(blocks.std() / math.sqrt(7), rel=0.02)
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.01)
    # 2.447 is Student's quantile of six degrees of freedom, 7 / 6 the share of the variance that seven blocks lose.
    assert bootstrap_half(drawn, 49) == pytest.approx(2.447 * drawn.std() * math.sqrt(7 / 6), rel=1e-3)


def test_the_interval_of_independent_values_is_that_of_their_standard_error() -> None:
    rng = np.random.default_rng(0)
    halves = [
        bootstrap_half(resample_blocks(with_ones(rng.normal(size=400)), mean_of, k, 500)["mean"], 400)
        for k in range(20)
    ]
    assert np.mean(halves) == pytest.approx(2.093 / math.sqrt(400), rel=0.1)  # of 19 degrees of freedom


@pytest.mark.parametrize(("likeness", "least"), [(0.0, 0.92), (0.5, 0.89), (0.8, 0.8)])
def test_so_many_intervals_hold_the_true_mean(likeness: float, least: float) -> None:
    """Of neighbours that correlate; those of values that are taken for independent do so far less often."""
    rng, held, naive = np.random.default_rng(0), 0, 0
    for k in range(200):
        noise, value, values = rng.normal(size=250), 0.0, []
        for each in noise:
            value = likeness * value + each
            values.append(value)
        last = np.array(values[150:])
        drawn = resample_blocks(with_ones(last), mean_of, k, 200)["mean"]
        held += abs(last.mean()) <= bootstrap_half(drawn, 100)
        naive += abs(last.mean()) <= 1.984 * last.std(ddof=1) / 10
    assert least <= held / 200 <= 0.99
    assert likeness == 0 or naive < held - 20


def test_the_draw_depends_on_the_seed_and_the_number_alone() -> None:
    one, other = np.random.default_rng(0).normal(size=(2, 30))
    a, b, both = (resample_blocks(with_ones(x), mean_of, 3, 700)["mean"] for x in (one, other, one - other))
    assert np.allclose(a - b, both)
    assert not np.allclose(a, resample_blocks(with_ones(one), mean_of, 4, 700)["mean"])


def test_few_units_have_no_interval() -> None:
    assert [block_length(units) for units in (0, 1, 4, 5, 100, 101)] == [1, 1, 2, 3, 10, 11]
    for units in (0, 1, 3):
        drawn = resample_blocks(with_ones(np.arange(float(units))), mean_of, 0, 100)["mean"]
        assert math.isnan(bootstrap_half(drawn, units))
    values = resample_blocks(with_ones(np.arange(16.0)), mean_of, 0, 100)["mean"]
    assert bootstrap_half(values, 16) < bootstrap_half(values, 16, 8)  # half of them hold something
    assert math.isnan(bootstrap_half(values, 16, 7))
    values[:51] = math.nan
    assert math.isnan(bootstrap_half(values, 16))
