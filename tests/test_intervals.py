from __future__ import annotations

import math

import pytest

from pri3d.intervals import mean_interval


def test_the_interval_is_students() -> None:
    """12.706 is Student's quantile of one degree of freedom, 4.303 of two: tables of textbooks."""
    assert mean_interval([0.2, 0.4]) == pytest.approx((0.3, 12.706 * 0.1), rel=1e-4)
    spread = math.sqrt(((0.1**2) * 2) / 2) / math.sqrt(3)
    assert mean_interval([0.2, 0.3, 0.4]) == pytest.approx((0.3, 4.303 * spread), rel=1e-3)


def test_what_cannot_be_told_is_nan() -> None:
    assert mean_interval([0.25]) == pytest.approx((0.25, math.nan), nan_ok=True)
    assert all(map(math.isnan, (*mean_interval([]), *mean_interval([0.1, None]))))
