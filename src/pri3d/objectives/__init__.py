"""Features + batch -> loss terms. One file per objective; compose them by weights.

An objective is an ``nn.Module`` built with keyword settings and called with what the network made of the batch. Add
one by writing such a class and one line in ``OBJECTIVES`` (or an entry point ``pri3d.objectives``). It may define

- ``views``: the images of a pair it wants, of "first", "second" and "copy" (frame a, recoloured); else both frames;
- ``after_step()``: called after every optimizer step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pri3d import registry
from pri3d.errors import ConfigError

OBJECTIVES = {
    "view": "pri3d.objectives.view:ViewObjective",
    "geometry": "pri3d.objectives.geometry:GeometryObjective",
    "trivial": "pri3d.objectives.trivial:TrivialObjective",
    "depth": "pri3d.objectives.depth:DepthObjective",
    "moco": "pri3d.objectives.moco:MocoObjective",
    "keep": "pri3d.objectives.keep:KeepObjective",
}

#: Every image a pair can bring, in the order a batch holds them.
VIEWS = ("first", "second", "copy")


class Features(NamedTuple):
    """What the network makes of the B x K images of a batch."""

    dense: Tensor  #: (B, K, C, h, w) feature maps of the decoder, channels last in memory
    maps: list[Tensor]  #: encoder maps (B * K, c, h', w'), finest first
    views: tuple[str, ...] = VIEWS[:2]  #: names of the K images

    def of(self, view: str) -> Tensor:
        """Feature maps (B, C, h, w) of one of the images."""
        return self.dense[:, self.views.index(view)]


class Terms(NamedTuple):
    """What an objective returns: a scalar loss and named scalars to log, all still on the device."""

    loss: Tensor  #: () float32
    log: dict[str, Tensor]  #: name -> () tensor, detached


class WeightedSum(nn.Module):
    """The objectives of a run and their weights: loss = sum of weight * term (paper section 3.3 has both weights 1)."""

    def __init__(self, weights: Mapping[str, float], settings: Mapping[str, Any]) -> None:
        super().__init__()
        if not weights or any(weight < 0 for weight in weights.values()) or not any(weights.values()):
            raise ConfigError(
                f"objectives = {dict(weights)}: give at least one with a positive weight, as in {{view: 1}}."
            )
        self.weights = {name: float(weight) for name, weight in weights.items() if weight > 0}
        self.terms = nn.ModuleDict(
            {name: registry.load("objectives", OBJECTIVES, name)(**settings) for name in self.weights}
        )

    @property
    def views(self) -> tuple[str, ...]:
        """Images of a pair that any of the objectives wants."""
        wanted = {view for term in self.terms.values() for view in getattr(term, "views", VIEWS[:2])}
        return tuple(view for view in VIEWS if view in wanted)

    def forward(self, features: Features, batch: Any) -> Terms:
        """Sum the weighted terms; logged names get the objective's name in front."""
        total: Tensor | float = 0.0
        log: dict[str, Tensor] = {}
        for name, objective in self.terms.items():
            terms = objective(features, batch)
            total = total + self.weights[name] * terms.loss
            log[f"{name}/loss"] = terms.loss.detach()
            log.update({f"{name}/{key}": value for key, value in terms.log.items()})
        return Terms(torch.as_tensor(total), log)

    def after_step(self) -> None:
        """Tell the objectives that the optimizer has made a step."""
        for objective in self.terms.values():
            tell = getattr(objective, "after_step", None)
            if callable(tell):
                tell()
