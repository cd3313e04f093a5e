"""Scores during training: measured at intervals, the best weights kept, the history in ``scores.json``.

In pre-training the encoder's maps are measured, too, which are what users take away, so that good weights never get
worse unnoticed: recall of points by viewing angle, depth and normals by read-outs in closed form, and the cosine
to the maps at the start, all on frames that training does not see.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from lightning.fabric import Fabric
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import Dataset

from pri3d.data.loading import make_loader
from pri3d.data.measured import MeasuredFrames
from pri3d.data.pairs import ANGLE_NAMES
from pri3d.data.sampler import Draw
from pri3d.networks.encoders import Encoder
from pri3d.networks.readout import DepthErrors, NormalErrors, ReadoutTargets, fit_readout
from pri3d.objectives.keep import drift
from pri3d.runs import RunPaths, read_json, write_json
from pri3d.tasks import Meter, evaluating
from pri3d.training.recorder import has_finite_weights

BATCH = 8  #: images at a time
CELLS = 6000  #: pixels that the read-outs are fitted to
RETAINED = 16  #: frames on which the cosine to the start is measured, at most
#: measures that say which network is best, and whether more of them is better
MEASURES = {"encoder_recall": True, "depth_rmse": False, "normal_error": False}


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


@dataclass(eq=False)
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

    from_start: ClassVar[bool] = False  #: whether the network is measured before the first step, too

    run: RunPaths
    done: int
    every: int
    dataset: Dataset[Any]
    collate: Callable[[list[Any]], Any]
    record: Mapping[str, Any]
    workers: int
    history: list[dict[str, Any]] = field(init=False)  #: what was measured so far, with its step

    def __post_init__(self) -> None:
        history = read_json(self.run.scores)["history"] if self.run.scores.exists() and self.done else []
        self.history = [entry for entry in history if entry["step"] <= self.done]

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


class FrameMeter:
    """Depth RMSE in metres, mean error of normals in degrees, and cosine to the start, of an encoder on fixed frames.

    Args:
        start: the encoder as it begins; a copy is kept.
        read: gives the frames that read-outs are fitted to, and the held-out ones; asked once.
    """

    def __init__(self, start: Encoder, read: Callable[[], tuple[MeasuredFrames, MeasuredFrames]]) -> None:
        self.start = copy.deepcopy(start).requires_grad_(False).eval()
        self._read = read

    @cached_property
    def frames(self) -> tuple[MeasuredFrames, MeasuredFrames]:
        """To fit to, and to score on."""
        return self._read()

    def measure(self, encoder: Encoder, fabric: Fabric) -> dict[str, float]:
        """Return ``depth_rmse``, ``normal_error`` and ``cosine``; NaN for what cannot be measured.

        The cosine is the mean over maps, images and cells; exactly 1 where nothing has moved.
        """
        train, test = self.frames
        found = dict.fromkeys(("depth_rmse", "normal_error", "cosine"), math.nan)
        with evaluating(encoder) as device, fabric.autocast():
            start = self.start.to(device)
            if not len(train.color) or not len(test.color):
                return found

            def batches(frames: MeasuredFrames) -> Iterator[tuple[list[Tensor], ReadoutTargets]]:
                columns = (torch.split(x, BATCH) for x in (frames.color, frames.depth, frames.normal))
                for color, depth, normal in zip(*columns, strict=True):
                    maps = encoder(encoder.normalise(color.to(device).float() / 255))
                    targets = ReadoutTargets(
                        depth.to(device) if of_depth else None, normal.to(device) if of_normals else None
                    )
                    yield [x.float() for x in maps], targets

            images = test.color[:: -(-len(test.color) // RETAINED)]
            gaps = []
            for part in torch.split(images, BATCH):
                pixels = encoder.normalise(part.to(device).float() / 255)
                pairs = zip(encoder(pixels), start(pixels), strict=True)
                gaps.append(torch.stack([drift(now, before) for now, before in pairs]).mean() * len(part))
            found["cosine"] = 1 - float(torch.stack(gaps).sum()) / len(images)
            of_depth, of_normals = (bool(a.any()) and bool(b.any()) for a, b in zip(train[1:3], test[1:3], strict=True))
            if math.isnan(found["cosine"]) or not (of_depth or of_normals):
                return found  # the maps are no numbers, or the frames show nothing
            readout = fit_readout(batches(train), encoder.strides, len(train.color), cells=CELLS)
            depths, normals = DepthErrors(), NormalErrors()
            for maps, targets in batches(test):
                size = (int(test.depth.shape[-2]), int(test.depth.shape[-1]))
                told = readout.predict(maps, size)
                if targets.depth is not None:
                    depths.update(told["depth"], targets.depth)
                if targets.normals is not None:
                    normals.update(told["normals"], targets.normals)
            if of_depth:
                found["depth_rmse"] = depths.result().rmse
            if of_normals:
                found["normal_error"] = normals.result().mean
        return found


@dataclass(eq=False)
class Guard(Watch):
    """Measures the encoder from the start on, keeps the best network, and stops a run that makes everything worse.

    The criterion is ``gain``: the mean over recall, depth and normals of the improvement over the start, relative to
    it, as far as they can be measured. The start is a candidate, with gain 0.

    Args:
        run, done, every, dataset, collate, record, workers: see :class:`Watch`.
        frames: what is measured on frames.
        margin: the run stops where every measure is worse than initially by more than this fraction, twice in a
            row; 0: it never does.
    """

    from_start = True

    frames: FrameMeter
    margin: float

    @property
    def start(self) -> Mapping[str, Any] | None:
        """What was measured at the start; None of a run that an earlier version has begun."""
        return self.history[0] if self.history and self.history[0]["step"] == 0 else None

    def look(self, fabric: Fabric, module: Watched, step: int, batch: int) -> dict[str, float]:
        """As :meth:`Watch.look`, of the encoder as it would be written."""
        with module.mixed():  # type: ignore[attr-defined]
            return super().look(fabric, module, step, batch)

    def measure(self, fabric: Fabric, module: Watched, batch: int) -> dict[str, Any]:
        """As :meth:`Watch.measure`, and what the frames show; every process gets the numbers of the first one."""
        values = super().measure(fabric, module, batch)
        if fabric.is_global_zero:
            found = self.frames.measure(module.measured.encoder, fabric)  # type: ignore[arg-type]
            values |= {name: None if math.isnan(value) else value for name, value in found.items()}
            changes = improvements(self.start or values, values)
            known = [change for change in changes.values() if math.isfinite(change)]
            values["gain"] = sum(known) / len(known) if known and len(known) == len(changes) else None
        shared: dict[str, Any] = fabric.broadcast(values)
        return shared

    @property
    def stopped(self) -> str | None:
        """Why the run is to stop: every measure was worse than at the start at the last two measurements."""
        last = [entry for entry in self.history if entry["step"] > 0][-2:]
        if self.start is None or not self.margin or len(last) < 2:
            return None
        changes = [improvements(self.start, entry) for entry in last]
        if not changes[0] or any(change >= -self.margin for each in changes for change in each.values()):
            return None
        return (
            f"every measure of the encoder is worse than initially by more than {self.margin:.0%}, at steps "
            f"{last[0]['step']} and {last[1]['step']}"
        )

    def summary(self, key: str) -> dict[str, Any]:
        """As :meth:`Watch.summary`, with the start and why the run stopped."""
        return {"start": self.start, "stopped": self.stopped, **super().summary(key)}


def improvements(start: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, float]:
    """Relative improvement over the start of each measure that it has: 0.1 is a tenth better.

    Minus infinity for what cannot be measured any more.
    """
    found = {}
    for name, more_is_better in MEASURES.items():
        before, after = start.get(name), entry.get(name)
        if before:
            change = -math.inf if after is None else after / before - 1
            found[name] = change if more_is_better or after is None else -change
    return found


def comparison(scores: Mapping[str, Any]) -> Table:
    """Table of 80 columns of scores.json of a run: what was measured at the start, of the best and of the last step."""
    rows: dict[str, Mapping[str, Any]] = {
        name: scores[name] for name in ("start", "best", "last") if scores.get(name) is not None
    }
    filled = [
        name
        for name in ANGLE_NAMES
        if any(entry.get("recall_by_angle", {}).get(name) is not None for entry in rows.values())
    ]
    table = Table(title="held-out frames, the encoder's maps", box=None, pad_edge=False, padding=(0, 1))
    table.add_column("")
    for name in ("step", *filled, "recall", "depth m", "normals", "cosine", "gain"):
        table.add_column(name, justify="right")

    def cell(value: float | None, form: str) -> str:
        return "-" if value is None or math.isnan(value) else f"{value:{form}}"

    for name, entry in rows.items():
        by_angle = entry.get("recall_by_angle", {})
        values: Sequence[tuple[float | None, str]] = [
            *((by_angle.get(each), ".3f") for each in filled),
            (entry.get("encoder_recall"), ".3f"),
            (entry.get("depth_rmse"), ".3f"),
            (entry.get("normal_error"), ".1f"),
            (entry.get("cosine"), ".3f"),
            (entry.get("gain"), "+.1%"),
        ]
        table.add_row(name, str(entry["step"]), *(cell(value, form) for value, form in values))
    return table
