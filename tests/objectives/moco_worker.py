"""One process of the tests with several: ``python moco_worker.py RANK WORLD FOLDER`` (and what both sides share).

Imports little, so that processes start quickly.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from pri3d.objectives import Setup
from pri3d.objectives.moco import MocoObjective, MocoOptions
from pri3d.types import CropBatch


class TinyEncoder(nn.Module):
    """Two convolutions; ``norm``: batch (in use), idle (there, but without effect on the maps) or none."""

    def __init__(self, norm: str = "batch") -> None:
        super().__init__()
        self.channels, self.strides = (4, 6), (2, 4)
        self.conv1 = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm1 = nn.Identity() if norm == "none" else nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.idle = norm == "idle"

    def normalise(self, images: Tensor) -> Tensor:
        return images - 0.5

    def forward(self, images: Tensor) -> list[Tensor]:
        first = torch.relu(self.conv1(images) if self.idle else self.norm1(self.conv1(images)))
        return [first, self.conv2(first)]


def build(norm: str = "batch", seed: int = 0, **options: Any) -> tuple[TinyEncoder, MocoObjective]:
    """Encoder and objective whose two sides differ, as after many steps."""
    torch.manual_seed(seed)
    encoder = TinyEncoder(norm)
    options = {"queue": 20, "dim": 8, "momentum": 0.9, **options}
    objective = MocoObjective(Setup(encoder=encoder), MocoOptions(**options))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in [*objective.key_encoder.parameters(), *objective.key_head.parameters()]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder, objective


def crops(count: int, seed: int = 0) -> CropBatch:
    images = torch.rand(count, 2, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    return CropBatch(images, [str(k) for k in range(count)])


def two_steps(encoder: nn.Module, objective: MocoObjective, batches: list[CropBatch], world: int = 1) -> dict[str, Any]:
    """Two steps of plain descent; gradients are averaged over the processes, as DistributedDataParallel does it."""
    parameters = [*encoder.parameters(), *objective.head.parameters()]
    losses, grads = [], []
    for step, batch in enumerate(batches):
        torch.manual_seed(100 * step + (distributed.get_rank() if world > 1 else 0))
        loss = objective(None, batch).loss
        used = list(torch.autograd.grad(loss, parameters))
        total = loss.detach().clone()
        if world > 1:
            for value in (total, *used):
                distributed.all_reduce(value)
                value.div_(world)
        losses.append(total)
        grads.append(torch.cat([g.flatten() for g in used]))
        with torch.no_grad():  # no torch.optim: it takes seconds to import
            for parameter, grad in zip(parameters, used, strict=True):
                parameter.sub_(0.1 * grad)
        objective.after_step()
    return {
        "losses": torch.stack(losses),
        "grads": torch.cat(grads),
        "queue": objective.queue,
        "pointer": objective.pointer,
        "key": torch.cat([p.flatten() for p in objective.key_encoder.parameters()]),
    }


def main(rank: int, world: int, folder: Path) -> None:
    """Cases of test_moco, this process's share of the batch; results go to FOLDER/RANK.pt."""
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=world)
    batches = [crops(8, seed) for seed in (1, 2)]
    mine = [CropBatch(b.crops.chunk(world)[rank], b.names) for b in batches]
    results: dict[str, Any] = {}
    for name, frozen in (("frozen", True), ("shuffled", False)):
        encoder, objective = build()
        encoder.train(not frozen)
        results[name] = two_steps(encoder, objective, mine, world)
    for norm, group in (("idle", 32), ("batch", 2)):
        _, objective = build(norm, group_size=group)
        torch.manual_seed(10 + rank)
        images = mine[0].crops[:, 1]
        results[f"keys-{norm}"] = objective._keys(images, objective._groups(len(images)))
    torch.save(results, folder / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
