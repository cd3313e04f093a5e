"""Optimizers and learning-rate schedules, by step number alone so that a resumed run continues exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pri3d.train.settings import TrainSettings

WARM_UP = 0.1  #: share of a one-cycle run in which the rate rises


def factor(schedule: str, step: int, steps: int) -> float:
    """Learning-rate factor at ``step`` of ``steps``.

    ``step``: x 0.99 every 1000 steps (paper section 4); ``poly``: (1 - step/steps)^0.9 (paper, fine-tuning);
    ``cosine``: to zero (MoCo v2); ``onecycle``: linear rise over the first tenth, then a cosine to zero; ``constant``.
    """
    if schedule == "step":
        return float(0.99 ** (step // 1000))
    if schedule == "poly":
        return float(max(0.0, 1 - step / steps) ** 0.9)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    if schedule == "onecycle":
        warm = max(1, round(WARM_UP * steps))
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))
    return 1.0


def build(parameters: Iterable[nn.Parameter], settings: TrainSettings) -> tuple[Optimizer, LambdaLR]:
    """Build optimizer and schedule; weight decay spares biases and norms, as is usual with AdamW."""
    parameters = [p for p in parameters if p.requires_grad]
    if settings.optimizer == "sgd":
        optimizer: Optimizer = SGD(
            parameters,
            settings.lr,
            momentum=settings.momentum,
            dampening=settings.dampening,
            weight_decay=settings.weight_decay,
        )
    else:
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        # Fused takes half the time, on a CPU too, but takes fp16's gradients scaled: their norm could not be told.
        optimizer = AdamW(groups, settings.lr, fused=settings.precision != "fp16")
    return optimizer, LambdaLR(optimizer, lambda step: factor(settings.schedule, step, settings.steps))
