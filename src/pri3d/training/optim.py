"""Optimizers with their learning rates and schedules, by step number alone so that a resumed run continues exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pri3d.api.training import TrainSettings
from pri3d.errors import ConfigError

WARM_UP = 0.1  #: fraction of a one-cycle run in which the rate rises
DETECTION_WARM_UP = 1000  #: steps, and at most a tenth of them


class ParameterGroup(NamedTuple):
    """Parameters and what their learning rate is multiplied with."""

    parameters: Iterable[nn.Parameter]  #: those that are fixed are left out
    factor: float = 1.0
    delay: int = 0  #: steps in which they stay as they are; over as many more their rate rises linearly to its share


def build(groups: Sequence[ParameterGroup], settings: TrainSettings) -> tuple[Optimizer, LambdaLR]:
    """Build optimizer and schedule; AdamW's weight decay spares biases and norms, as is usual."""
    trained = [([p for p in group.parameters if p.requires_grad], group) for group in groups]
    parts = [(parameters, settings.lr * group.factor) for parameters, group in trained if parameters]
    delays = [group.delay for parameters, group in trained if parameters]
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
        delays = [delay for delay in delays for _ in range(2)]
    return optimizer, LambdaLR(optimizer, [_rate_after(delay, settings) for delay in delays])


def _rate_after(delay: int, settings: TrainSettings) -> Callable[[int], float]:
    """Factor of the learning rate at a step. A function, whose state is no part of a checkpoint."""

    def rate(step: int) -> float:
        rise = min(1.0, max(0, step - delay + 1) / delay) if delay else 1.0
        return rise * schedule_factor(settings.optim.schedule, step, settings.steps)

    return rate


def schedule_factor(schedule: str, step: int, steps: int) -> float:
    """Learning-rate factor at ``step`` of ``steps``.

    step is that of the paper's section 4, poly of its fine-tuning, cosine of MoCo v2; onecycle rises linearly over the
    first tenth, then falls as a cosine. multistep is Detectron2's, with which the released code detects: a linear rise
    from 0.001 over at most 1000 steps, x 0.1 after two thirds and after eight ninths (60,000 and 80,000 of 90,000).

    Raises ConfigError for another name.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return float(0.99 ** (step // 1000))
    if schedule == "poly":
        return float(max(0.0, 1 - step / steps) ** 0.9)
    if schedule == "multistep":
        drops = (step >= round(steps * 2 / 3)) + (step >= round(steps * 8 / 9))
        rise = step / max(1, min(DETECTION_WARM_UP, steps // 10))
        return float(0.1**drops * min(1.0, 0.001 + 0.999 * rise))
    if schedule not in ("cosine", "onecycle"):
        raise ConfigError(f"schedule {schedule!r}: give constant, step, poly, cosine, onecycle or multistep.")
    warm = max(1, round(WARM_UP * steps)) if schedule == "onecycle" else 0
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))
