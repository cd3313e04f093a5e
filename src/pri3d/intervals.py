"""Confidence intervals: over seeds by Student's t, over correlated frames by a block bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 4000  #: of a bootstrap
_PART = 500  # resamples at a time, which bounds the memory

Measures = Mapping[str, NDArray[np.float64]]


def interval_text(mean: float, half: float) -> str:
    """A known mean to one decimal, and its interval where that is known too."""
    return f"{mean:.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}")


def mean_interval(values: Sequence[float | None]) -> tuple[float, float]:
    """Mean of one value a seed, and the half width of its 95 % interval by Student's t.

    None is an unknown value: both are NaN then. Of a single value the interval is unknown, NaN; of none both are.
    """
    known = np.array([math.nan if value is None else value for value in values], float)
    if len(known) < 2:
        return (float(known[0]) if len(known) else math.nan), math.nan
    spread = known.std(ddof=1) / math.sqrt(len(known))
    return float(known.mean()), float(stats.t.ppf(0.975, len(known) - 1) * spread)


def resample_blocks(
    sums: NDArray[np.float64],
    measure: Callable[[NDArray[np.float64]], Measures],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Measures:
    """Circular block bootstrap: what the measures would be of other frames of the same kind.

    Neighbours are alike, so whole blocks of ceil(sqrt(U)) units that follow each other are drawn, as many as there are
    in U units, with replacement, from any start and around the end (Politis and Romano, "A Circular Block-Resampling
    Procedure for Stationary Data", 1992). The same number of units, seed and resamples give the same draw: two networks
    on the same frames are compared resample by resample.

    Args:
        sums: (U, S) of each unit, a frame or what lies on one, in the order of time: whatever measures are made of.
        measure: (..., S) sums over units -> each measure (...).
        seed: of the draw.
        resamples: R.

    Returns:
        Each measure (R,); NaN where a resample holds nothing to measure.
    """
    units = len(sums)
    if units == 0:
        with np.errstate(invalid="ignore", divide="ignore"):
            return {name: np.full(resamples, math.nan) for name in measure(sums.sum(axis=0))}
    block, rng = block_length(units), np.random.default_rng(seed)
    around = np.concatenate([sums, sums[: block - 1]]).cumsum(axis=0)
    blocks = around[block - 1 :].copy()  # sum of each block by its start
    blocks[1:] -= around[: units - 1]
    parts = []
    for begin in range(0, resamples, _PART):
        size = min(_PART, resamples - begin)
        counts = rng.multinomial(-(-units // block), np.full(units, 1 / units), size=size)
        with np.errstate(invalid="ignore", divide="ignore"):
            parts.append(measure(counts @ blocks))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def bootstrap_half(values: NDArray[np.float64], units: int, measured: int | None = None) -> float:
    """Half width of the 95 % interval, from the (R,) resampled values of :func:`resample_blocks` of ``units`` units.

    Their deviation, widened for the number of blocks: by 1 / sqrt(1 - 1 / blocks), since the deviation of few blocks is
    too small, and by Student's t of blocks - 1 degrees of freedom. ``measured`` is the number of units that have
    anything to measure, all where it is not given; blocks are so many as it fills. NaN of less than two, and where less
    than half of the resamples have a value.
    """
    known = values[np.isfinite(values)]
    blocks = (units if measured is None else measured) / block_length(units)
    if blocks < 2 or 2 * len(known) < len(values):
        return math.nan
    widen = stats.t.ppf(0.975, blocks - 1) / math.sqrt(1 - 1 / blocks)
    return float(known.std(ddof=1) * widen)


def block_length(units: int) -> int:
    """Units that are drawn together, at least 1."""
    return max(1, math.ceil(math.sqrt(units)))
