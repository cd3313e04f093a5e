"""The mean of a score over seeds, and how far it may be off."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats


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
