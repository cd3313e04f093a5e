"""Optimizers with their learning rates, by step number alone so that a resumed run continues exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pri3d.api.training import TrainSettings
from pri3d.schedules import factor


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
    return optimizer, LambdaLR(optimizer, [_rate_of(settings, delay) for delay in delays])


def _rate_of(settings: TrainSettings, delay: int) -> Callable[[int], float]:
    """Factor of the learning rate at a step. A function, whose state is no part of a checkpoint."""

    def rate(step: int) -> float:
        rise = min(1.0, max(0, step - delay + 1) / delay) if delay else 1.0
        return rise * factor(settings.optim.schedule, step, settings.steps)

    return rate
