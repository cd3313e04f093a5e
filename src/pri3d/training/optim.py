"""Optimizers and learning-rate schedules, by step number alone so that a resumed run continues exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pri3d.api.training import TrainSettings

WARM_UP = 0.1  #: share of a one-cycle run in which the rate rises
DETECTION_WARM_UP = 1000  #: steps, and at most a tenth of them


class ParameterGroup(NamedTuple):
    """Parameters and what their learning rate is multiplied with."""

    parameters: Iterable[nn.Parameter]  #: those that are fixed are left out
    factor: float = 1.0


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


def build(groups: Sequence[ParameterGroup], settings: TrainSettings) -> tuple[Optimizer, LambdaLR]:
    """Build optimizer and schedule; AdamW's weight decay spares biases and norms, as is usual."""
    parts = [([p for p in group.parameters if p.requires_grad], settings.lr * group.factor) for group in groups]
    parts = [(parameters, lr) for parameters, lr in parts if parameters]
    if settings.optim.optimizer == "sgd":
        optimizer: Optimizer = SGD(
            [{"params": parameters, "lr": lr} for parameters, lr in parts],
            settings.lr,
            momentum=settings.optim.momentum,
            dampening=settings.optim.dampening,
            weight_decay=settings.optim.weight_decay,
        )
    else:
        kinds = [
            {"params": [p for p in parameters if (p.ndim > 1) == decays], "lr": lr, "weight_decay": decay}
            for parameters, lr in parts
            for decays, decay in ((True, settings.optim.weight_decay), (False, 0.0))
        ]
        # Fused takes half the time, on a CPU too, but takes fp16's gradients scaled: their norm could not be told.
        optimizer = AdamW(kinds, settings.lr, fused=settings.precision != "fp16")
    return optimizer, LambdaLR(optimizer, lambda step: factor(settings.optim.schedule, step, settings.steps))
