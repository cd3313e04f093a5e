"""Learning-rate schedules of pre-training and fine-tuning: a factor for every step."""

from __future__ import annotations

import math
from collections.abc import Callable

WARM_UP = 0.1  #: fraction of a one-cycle run in which the rate rises
DETECTION_WARM_UP = 1000  #: steps, and at most a tenth of them


def factor(schedule: str, step: int, steps: int) -> float:
    """Learning-rate factor at ``step`` of ``steps``; ``schedule`` is a key of ``SCHEDULES``."""
    return SCHEDULES[schedule](step, steps)


def _cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def _onecycle(step: int, steps: int) -> float:
    """Linear rise over the first tenth, then a cosine to zero."""
    warm = max(1, round(WARM_UP * steps))
    return (step + 1) / warm if step < warm else _cosine((step - warm) / max(1, steps - warm))


def _multistep(step: int, steps: int) -> float:
    """Detectron2's, with which the released code detects.

    A linear rise from 0.001 over at most 1000 steps, x 0.1 after two thirds and after eight ninths (60,000 and 80,000
    of 90,000).
    """
    drops = (step >= round(steps * 2 / 3)) + (step >= round(steps * 8 / 9))
    rise = step / max(1, min(DETECTION_WARM_UP, steps // 10))
    return float(0.1**drops * min(1.0, 0.001 + 0.999 * rise))


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda _, __: 1.0,
    "step": lambda step, _: float(0.99 ** (step // 1000)),  # paper section 4
    "poly": lambda step, steps: float(max(0.0, 1 - step / steps) ** 0.9),  # paper, fine-tuning
    "cosine": lambda step, steps: _cosine(step / steps),  # MoCo v2
    "onecycle": _onecycle,
    "multistep": _multistep,
}
