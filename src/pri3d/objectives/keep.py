"""Retention: keep the encoder's features close to the initial ones, to prevent forgetting."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from pri3d.errors import ConfigError
from pri3d.objectives import Features, Objective, Setup, Terms
from pri3d.types import PairBatch

#: Norm below which a feature counts as zero; bounds the gradient there.
SMALLEST = 1e-4


def drift(now: Tensor, before: Tensor) -> Tensor:
    """Mean cosine distance (1 - cosine, 0..2) of the cells of two maps (N, c, h, w) -> () float32.

    As half the squared distance of the normalised features: the same number, exactly 0 for equal ones, and defined for
    cells that a ReLU has emptied (both empty 0, one of them 1/2).
    """
    with torch.autocast(now.device.type, enabled=False):
        gap = F.normalize(now.float(), dim=1, eps=SMALLEST) - F.normalize(before.float(), dim=1, eps=SMALLEST)
        return 0.5 * gap.square().sum(dim=1).mean()


class KeepObjective(Objective):
    """Cosine distance between the encoder's maps and those of a frozen copy of its initial state, on the same images.

    The loss is the mean over the encoder's maps of the mean over images and cells, each map counting the same. The
    copy is taken when the objective is built and stays in evaluation mode; its state is part of the checkpoint, so a
    resumed run keeps to the same start. It looks at whatever images the other objectives ask for. With batch
    normalisation the trained encoder uses the batch's statistics and the copy its stored ones, so the loss does not
    begin at exactly 0.
    """

    views = ()  # whatever images are there
    decodes = False

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.initial = copy.deepcopy(setup.encoder_for("keep")).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> KeepObjective:
        """Set the mode of the objective; the copy stays in evaluation mode."""
        super().train(mode)
        self.initial.eval()
        return self

    def forward(self, features: Features, batch: PairBatch) -> Terms:
        """Compare the maps with the initial ones. Logs drift: the distance of the last (coarsest) map.

        Raises ConfigError where there are no maps or their number has changed.
        """
        if not features.maps:
            raise ConfigError(
                "--keep: there are no encoder maps to compare. Give it beside an objective that looks at pairs, as in "
                "--objectives '{view: 1}'."
            )
        images = batch.color.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            initial = self.initial(self.initial.normalise(images))
        if len(initial) != len(features.maps):
            raise ConfigError(
                f"--keep: {len(features.maps)} maps, but the initial encoder gives {len(initial)}. Build the "
                "objective with the encoder that is trained."
            )
        drifts = torch.stack([drift(now, before) for now, before in zip(features.maps, initial, strict=True)])
        return Terms(drifts.mean(), {"drift": drifts[-1].detach()})
