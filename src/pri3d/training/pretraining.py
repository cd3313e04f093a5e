"""What pre-training trains and how it is watched: the U-Net under its objectives, measured on held-out pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from pri3d.api.pretrain import PretrainSettings
from pri3d.data.pairs import MixedPairs, PairDataset, collate
from pri3d.data.sampler import Draw
from pri3d.networks.tuning import limit
from pri3d.networks.unet import UNet
from pri3d.networks.weights import save_model
from pri3d.objectives import VIEWS, Features, Setup, WeightedSum
from pri3d.objectives.quality import PairQuality
from pri3d.runs import RunPaths
from pri3d.training.loop import StepModule
from pri3d.training.watch import Watch
from pri3d.types import CropBatch, PairBatch


class PretrainModule(StepModule):
    """The U-Net under the weighted sum of the objectives."""

    settings: PretrainSettings

    def __init__(self, settings: PretrainSettings, unet: UNet) -> None:
        super().__init__(settings)
        self.unet = unet
        self._maps = _Maps(unet)
        self.fixed = limit(unet.encoder, settings.tune)  # before objectives copy the encoder, adapters included
        setup = Setup(settings.unet.channels, unet.encoder, settings.contrast, settings.matching)
        self.objective = WeightedSum(settings.active, setup, settings.own)
        #: images of a pair that are shown to the network; one at least, for objectives that take whatever is there
        self.views = () if settings.crops_alone else self.objective.views or VIEWS[:1]
        if settings.crops_alone:
            unet.decoder.requires_grad_(False)  # nothing looks at its output

    @property
    def network(self) -> nn.Module:
        """The U-Net; the 3D network's shapes change at every step."""
        return self._maps

    def loss(self, batch: PairBatch | CropBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """All images of all pairs in one pass, or one pass for each view; then the objectives (paper section 3.3)."""
        for module in self.fixed:
            module.eval()
        if self.settings.unet.bn_schedule == "decay":
            self._set_momentum(decayed_momentum(self.step))
        terms = self.objective(self.features(batch), batch)
        return terms.loss, terms.log

    def features(self, batch: PairBatch | CropBatch) -> Features:
        """What the U-Net makes of the images; empty where no objective looks at it."""
        if isinstance(batch, CropBatch):
            return Features(batch.crops.new_empty(0), [], ())
        count = batch.color.shape[1]
        parts = (
            [batch.color] if self.settings.unet.passes == "joint" else [batch.color[:, k : k + 1] for k in range(count)]
        )
        layout = torch.channels_last if self.settings.compute.channels_last else torch.contiguous_format
        passes = [self._maps(part.flatten(0, 1).contiguous(memory_format=layout)) for part in parts]
        if len(passes) == 1:
            dense, maps = passes[0]
            return Features(dense.view(-1, count, *dense.shape[1:]), maps, batch.views)
        dense = torch.stack([dense for dense, _ in passes], dim=1)
        maps = [torch.stack(level, dim=1).flatten(0, 1) for level in zip(*(maps for _, maps in passes), strict=True)]
        return Features(dense, maps, batch.views)

    def after_step(self) -> None:
        """Tell the objectives."""
        self.objective.after_step()

    def _set_momentum(self, momentum: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = momentum


class _Maps(nn.Module):
    """The U-Net's :meth:`UNet.forward_maps` as a call, which is what can be compiled."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self._unet = (unet,)  # in a tuple PyTorch does not see it: its parameters are the module's already

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps: tuple[Tensor, list[Tensor]] = self._unet[0].forward_maps(images)
        return maps


def decayed_momentum(step: int) -> float:
    """Batch-norm momentum of the released code: one half, halved every 20 steps, at least 0.001."""
    return max(0.5 ** (1 + step // 20), 0.001)


class HeldOut(Watch):
    """Measures the features on held-out pairs; the best network is the one of highest recall."""

    def __init__(
        self, dataset: PairDataset | MixedPairs, run: RunPaths, done: int, every: int, facts: Mapping[str, Any]
    ) -> None:
        super().__init__(run, done, every, "recall")
        self.dataset, self.facts = dataset, facts

    @torch.no_grad()
    def measure(self, module: PretrainModule, fabric: Fabric) -> dict[str, float | None]:
        """Recall, alignment, uniformity and rank of the network in evaluation mode, see PairQuality."""
        training, settings = module.unet.training, module.settings
        module.unet.eval()
        quality = PairQuality()
        for start in range(0, len(self.dataset), settings.micro_batch):
            end = min(start + settings.micro_batch, len(self.dataset))
            batch = collate([self.dataset[Draw(0, k)] for k in range(start, end)])
            batch = fabric.to_device(batch)
            quality.update(
                module.features(batch), batch, distance=settings.matching.distance, match=settings.matching.match
            )
        module.unet.train(training)
        return {name: None if math.isnan(value) else value for name, value in quality.result().items()}

    def save(self, module: PretrainModule, path: Path, step: int) -> None:
        """Write the U-Net."""
        save_model(module.unet, path, {**self.facts, "steps": step})
