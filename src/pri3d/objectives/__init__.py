"""Features + batch -> loss terms. One file per objective; compose them by weights.

An objective is an ``nn.Module`` built with keyword settings and called with the backbone's feature maps and the
batch. Add one by writing such a class and one line in ``OBJECTIVES`` (or an entry point ``pri3d.objectives``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from pri3d import registry
from pri3d.errors import ConfigError
from pri3d.types import PairBatch

OBJECTIVES = {
    "view": "pri3d.objectives.view:ViewObjective",
    "geometry": "pri3d.objectives.geometry:GeometryObjective",
}


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

    def forward(self, features: Tensor, batch: PairBatch) -> Terms:
        """Sum the weighted terms of feature maps (B, 2, C, h, w); logged names get the objective's name in front."""
        total = features.new_zeros((), dtype=features.float().dtype)
        log: dict[str, Tensor] = {}
        for name, objective in self.terms.items():
            terms = objective(features, batch)
            total = total + self.weights[name] * terms.loss
            log[f"{name}/loss"] = terms.loss.detach()
            log.update({f"{name}/{key}": value for key, value in terms.log.items()})
        return Terms(total, log)
