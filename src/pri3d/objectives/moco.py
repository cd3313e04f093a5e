"""MoCo v2: a crop must find the other crop of its image among tens of thousands (baseline of the paper, Table 1).

MoCo: He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020 (section 3, Algorithm
1); v2: Chen et al., "Improved Baselines with Momentum Contrastive Learning", 2020 (MLP head, temperature 0.2).
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from pri3d.api.options import AnyPath, Options, option
from pri3d.api.pretrain import MIN_TEMPERATURE
from pri3d.errors import ConfigError
from pri3d.objectives import Features, Objective, Setup, Terms
from pri3d.types import CropBatch, PairBatch

if TYPE_CHECKING:
    from pri3d.networks.encoders import Encoder


class MocoOptions(Options):
    """Momentum contrast between crops of single images (MoCo v2)."""

    group = "moco"

    queue: int = option("number of keys in the queue that serve as negatives, K", default=65536, least=1)
    momentum: float = option(
        "m of key = m * key + (1 - m) * query, once per optimizer step", default=0.999, least=0, below=1
    )
    temperature: float = option("temperature: divides the cosine similarities", default=0.2, least=MIN_TEMPERATURE)
    group_size: int = option(
        "crops that share batch statistics; 0 uses all of a process. The paper has 8 GPUs x 32",
        default=32,
        least=0,
    )
    dim: int = option("dimensions of queries and keys", default=128, least=1)
    crop: int = option("edge of the random crops, pixels", default=224, least=32)
    images: AnyPath | None = option("folder of further RGB images, see mix", default=None)
    mix: Literal["frames", "combine", "half", "alternate"] = option(
        "frames: only frames; combine: frames and images shuffled together; half of each batch; alternate: whole "
        "batches in turn",
        default="frames",
    )

    def conflicts(self, settings: Any) -> list[str]:
        """The queue must hold the keys of a step."""
        few = self.queue < settings.batch
        return [f"--moco.queue {self.queue}: a step makes {settings.batch} keys, give at least as many"] if few else []


class MocoObjective(Objective):
    """Momentum contrast between two crops of each image.

    A step is Algorithm 1 of MoCo: queries and keys are encoded and contrasted, the optimizer steps, the key encoder
    follows by momentum, and only then the new keys enter the queue (:meth:`after_step`). So the first step's keys come
    from the very weights of its queries, and gradient accumulation sees one queue and one key encoder throughout.

    Shuffled batch norm (MoCo section 3.3): with statistics of its own batch a network could tell the key that was
    normalised beside its query. Queries are normalised in groups of about ``group_size`` neighbours; keys in groups of
    the same size, but of images shuffled over all groups of all processes. One group in all (one process, a small
    batch) has nothing to shuffle, and neither have networks without batch norm or with synchronised one.

    All processes hold the same queue; each must bring as many crops as the others.

    The query encoder belongs to the network that is trained: it is held here without being registered, and copied, as
    it is now, into the key encoder. Raises ConfigError without an encoder and for numbers that cannot be.
    """

    options = MocoOptions
    views: tuple[str, ...] = ()  #: it wants crops, no image of a pair
    decodes = False
    queue: Tensor  #: (dim, K) float32, unit columns
    pointer: Tensor  #: () int64, the oldest column, which goes next

    def __init__(self, setup: Setup, options: MocoOptions = MocoOptions()) -> None:  # noqa: B008 (frozen)
        super().__init__(setup)
        encoder = setup.encoder_for("moco", options)
        self.momentum, self.temperature, self.group = options.momentum, options.temperature, options.group_size
        self._encoder = (encoder,)  # in a tuple PyTorch does not see it
        width = encoder.channels[-1]
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, options.dim))
        self.key_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.key_head = copy.deepcopy(self.head).requires_grad_(False)
        # Noise until keys have come, the same in every process and run.
        noise = torch.randn(options.dim, options.queue, generator=torch.Generator().manual_seed(0))
        self.register_buffer("queue", F.normalize(noise, dim=0))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self._waiting: list[Tensor] = []  # keys of this step, each (N, dim)

    def forward(self, features: Features | None, batch: CropBatch | PairBatch) -> Terms:
        """Contrast the crops of a batch, (B, 2, 3, S, S) RGB 0..1: the first is the query, the second the key.

        ``features`` is not used. Logged: recall (share of queries whose key is retrieved first), chance (the loss of
        a network that cannot tell keys apart, ln(1 + K)) and cosine (mean, of query and key).

        Raises ConfigError where the batch has no crops, or the queue is smaller than the keys of one optimizer step.
        """
        if batch.crops is None or batch.crops.shape[1] != 2:
            raise ConfigError("objective 'moco': the batch has not two crops of each image; give its dataset a recipe.")
        first, second = (view.contiguous(memory_format=torch.channels_last) for view in batch.crops.unbind(1))
        groups = self._groups(len(first))
        query = _encode(self._encoder[0], self.head, first, groups)
        key, every = self._keys(second, groups)
        if self.training:
            self._keep(every)
        with torch.autocast(query.device.type, enabled=False):
            positive = (query * key).sum(dim=1, keepdim=True)
            negatives = query @ self.queue
            logits = torch.cat((positive, negatives), dim=1) / self.temperature
            loss = F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))
        log = {
            "recall": (positive[:, 0] > negatives.amax(dim=1)).float().mean(),
            "chance": loss.new_full((), math.log(1 + self.queue.shape[1])),
            "cosine": positive.detach().mean(),
        }
        return Terms(loss, log)

    @torch.no_grad()
    def after_step(self) -> None:
        """After an optimizer step: the key side follows the query side, and the step's keys replace the oldest."""
        pairs = ((self.key_encoder, self._encoder[0]), (self.key_head, self.head))
        for key_side, query_side in pairs:
            for key, query in zip(key_side.parameters(), query_side.parameters(), strict=True):
                key.lerp_(query, 1 - self.momentum)
        for keys in self._waiting:
            size = self.queue.shape[1]
            columns = (self.pointer + torch.arange(len(keys), device=keys.device)) % size
            self.queue.index_copy_(1, columns, keys.T)
            self.pointer.add_(len(keys)).remainder_(size)
        self._waiting = []

    def _keep(self, keys: Tensor) -> None:
        """Let keys (N, dim) wait for the end of the step."""
        waiting = sum(map(len, self._waiting)) + len(keys)
        if waiting > self.queue.shape[1]:
            raise ConfigError(
                f"--moco.queue {self.queue.shape[1]}: one optimizer step makes {waiting} keys. Give at least the "
                "batch (the paper has 65536), and call after_step() after every optimizer step."
            )
        self._waiting.append(keys)

    @torch.no_grad()
    def _keys(self, images: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        """Keys (B, dim) of this process's images, and (N, dim) of those of all processes, in the order of the ranks."""
        for mine, theirs in zip(self.key_encoder.modules(), self._encoder[0].modules(), strict=True):
            mine.training = theirs.training  # a layer that is frozen normalises the same way on both sides
        rank, world = _place()
        if groups and world * groups > 1:
            every = _gather(images)
            order = torch.randperm(len(every), device=every.device)
            if world > 1:
                distributed.broadcast(order, src=0)  # ranks may have drawn differently
            share = every[order.view(world, -1)[rank]].contiguous(memory_format=torch.channels_last)
            keys = _gather(_encode(self.key_encoder, self.key_head, share, groups))[order.argsort()]
        else:
            keys = _gather(_encode(self.key_encoder, self.key_head, images, groups))
        return keys[rank * len(images) : (rank + 1) * len(images)], keys

    def _groups(self, images: int) -> int:
        """Groups that a process's images are normalised in; 0 where no layer has statistics of the batch alone."""
        # Synchronised batch norm is no subclass of these.
        local = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        if not any(isinstance(module, local) and module.training for module in self._encoder[0].modules()):
            return 0
        return max(1, images // self.group) if self.group else 1


def _encode(encoder: Encoder, head: nn.Module, images: Tensor, groups: int) -> Tensor:
    """RGB 0..1 (B, 3, H, W) -> unit vectors (B, dim) float32; the mean over the last map goes through the head."""
    parts = images.tensor_split(max(1, groups))
    pooled = torch.cat([encoder(encoder.normalise(part))[-1].mean(dim=(2, 3)) for part in parts])
    return F.normalize(head(pooled).float(), dim=1)


def _place() -> tuple[int, int]:
    """Rank and number of processes; 0 of 1 without a process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _gather(rows: Tensor) -> Tensor:
    """Rows of all processes in the order of the ranks; every process brings as many."""
    world = _place()[1]
    if world == 1:
        return rows
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world)]
    distributed.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
