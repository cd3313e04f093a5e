"""Scores during training: measured at intervals, the best weights kept, the history in ``scores.json``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import Dataset

from pri3d.data.loading import make_loader
from pri3d.data.sampler import Draw
from pri3d.runs import RunPaths, read_json, write_json
from pri3d.tasks import Meter, evaluating
from pri3d.training.recorder import has_finite_weights


class Watched(Protocol):
    """What is trained, as far as its scores go."""

    @property
    def measured(self) -> nn.Module:
        """The network that is measured and saved."""

    @property
    def key(self) -> str:
        """Which of the scores says which network is best; the larger the better."""

    def meter(self, dataset: Dataset[Any]) -> Meter:
        """Return an empty meter for a data set."""

    def save(self, path: Path, record: Mapping[str, Any]) -> None:
        """Write the network, with its provenance."""


def measure(
    fabric: Fabric,
    model: nn.Module,
    meter: Meter,
    dataset: Dataset[Any],
    collate: Callable[[list[Any]], Any],
    batch: int,
    workers: int = 0,
) -> dict[str, Any]:
    """Scores of a network on a whole data set, which the processes of the run share batch by batch.

    Every process gets the scores of all, and they are those of one process alone: the batches are the same, and their
    parts come into the meter in the order of the data. Leaves the mode of the network as it was.
    """
    rank, world = fabric.global_rank, fabric.world_size
    if world > 1:  # each process has running statistics of its own; those of the first one are measured and saved
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)
    draws = [Draw(0, k) for k in range(len(dataset)) if k // batch % world == rank]  # type: ignore[arg-type]
    ends = [0]
    with evaluating(model), fabric.autocast():
        for items in make_loader(dataset, collate, draws, batch, workers):
            meter.update(model, items)
            ends.append(len(meter.parts))
        if world > 1:
            state = meter.state()
            shares: list[list[list[Any]]] = [[] for _ in range(world)]
            torch.distributed.all_gather_object(shares, [state[start:end] for start, end in pairwise(ends)])
            meter.merge(parts for row in zip_longest(*shares, fillvalue=[]) for parts in row)
        return meter.result()


class Watch:
    """Measures every ``every`` steps and at the last.

    Args:
        run: folder of the run.
        done: steps that a continued run has behind it.
        every: steps between measurements.
        dataset: held-out pairs or validation images, asked with a Draw.
        collate: items of it -> batch.
        record: provenance that is saved with the best network.
        workers: processes that load data, for each process that measures.
    """

    from_start = False  #: whether the network is measured before the first step, too

    def __init__(
        self,
        run: RunPaths,
        done: int,
        every: int,
        dataset: Dataset[Any],
        collate: Callable[[list[Any]], Any],
        record: Mapping[str, Any],
        workers: int,
    ) -> None:
        self.run, self.every, self.record = run, every, record
        self.dataset, self.collate, self.workers = dataset, collate, workers
        history = read_json(run.scores)["history"] if run.scores.exists() and done else []
        self.history: list[dict[str, Any]] = [entry for entry in history if entry["step"] <= done]

    @property
    def stopped(self) -> str | None:
        """Why the run is to stop after what was measured last; None where it goes on."""
        return None

    def best(self, key: str) -> dict[str, Any]:
        """What was measured of the best network: the first of the highest score."""
        return max(self.history, key=lambda entry: -math.inf if entry.get(key) is None else float(entry[key]))

    def summary(self, key: str) -> dict[str, Any]:
        """What scores.json holds."""
        return {"last": self.history[-1], "best": self.best(key), "history": self.history}

    def measure(self, fabric: Fabric, module: Watched, batch: int) -> dict[str, Any]:
        """Name -> number, None where it cannot be measured, or further detail."""
        meter = module.meter(self.dataset)
        scores = measure(fabric, module.measured, meter, self.dataset, self.collate, batch, self.workers)
        return {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in scores.items()}

    def look(self, fabric: Fabric, module: Watched, step: int, batch: int) -> dict[str, float]:
        """Measure after ``step``, keep the network where it is the best so far, and return the numbers to log."""
        values = self.measure(fabric, module, batch)
        self.history.append({"step": step, **values})
        if fabric.is_global_zero:
            # The recorder stops a broken run, but only after this.
            if self.best(module.key) is self.history[-1] and has_finite_weights(module.measured):
                module.save(self.run.best, {**self.record, "steps": step})
            write_json(self.run.scores, self.summary(module.key))
        return {f"heldout/{name}": float(value) for name, value in values.items() if isinstance(value, int | float)}
