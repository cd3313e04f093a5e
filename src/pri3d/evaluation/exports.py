"""Predictions of a network on a labelled set as files, and the scores of these files."""

from __future__ import annotations

import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from pri3d.data.instances import InstanceDataset, collate_instances
from pri3d.errors import DataError
from pri3d.evaluation.networks import Network, hash_file
from pri3d.files.archive import ImageArchive, encode
from pri3d.files.atomic import remove_leftovers, replacing, write_atomic
from pri3d.geometry.resize import resize_color, resize_nearest
from pri3d.labelled import LabelledImages
from pri3d.labelled.convert import to_coco
from pri3d.runs import read_json, write_json
from pri3d.tasks import batches, evaluating
from pri3d.tasks.ap import average_precision
from pri3d.tasks.instance import InstanceTask
from pri3d.tasks.semantic import Confusion

FORMAT = 1
RECORD = "record.json"
TRUTH = "truth.json"
_AGAIN = "Delete it and evaluate again."


@dataclass(frozen=True)
class Subject:
    """What is predicted, and against what it is scored."""

    images: LabelledImages
    size: tuple[int, int] | None = None  #: (width, height) to which class maps are resized; None keeps their own
    min_area: int = 0  #: pixels under which an object does not count
    min_score: float = 0.0  #: score under which a predicted object does not count

    @cached_property
    def objects(self) -> dict[str, Any]:
        """COCO's ground truth of all images, as the set states it now."""
        rows = range(len(self.images.names))
        return to_coco(self.images, track(rows, "objects", console=Console(stderr=True), transient=True), self.min_area)


class Export(ABC):
    """Predictions of one network as files of a folder. A subclass writes them and reads them back."""

    files: ClassVar[Sequence[str]]

    def __init__(self, folder: Path, network: Network, subject: Subject) -> None:
        self.folder, self.network, self.subject = folder, network, subject

    def record(self) -> dict[str, Any]:
        """Everything the predictions depend on."""
        images = self.subject.images
        return {
            "format": FORMAT,
            "task": self.network.task.name,
            "weights": self.network.hash,
            "data": images.hash,
            "classes": list(self.network.task.class_names),
            "images": len(images.names),
            "size": None if self.subject.size is None else list(self.subject.size),
        }

    def make(self, console: Console) -> None:
        """Predict what is not there yet. The record is written last: without it, the files are not finished."""
        what = f"{self.network.which}: predictions of {len(self.subject.images.names)} images"
        where = escape(str(self.folder))
        if self._is_there():
            console.print(f"{what} reused from {where}")
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.folder)
        (self.folder / RECORD).unlink(missing_ok=True)
        self.write(console)
        hashes = {name: hash_file(self.folder / name) for name in self.files}
        write_json(self.folder / RECORD, {**self.record(), "files": hashes})
        console.print(f"{what} written to {where}")

    def _is_there(self) -> bool:
        """Whether the folder holds these very predictions, undamaged."""
        try:
            record = read_json(self.folder / RECORD)
            hashes = record.pop("files")
            whole = all(hash_file(self.folder / name) == hashes[name] for name in self.files)
        except (DataError, OSError, LookupError, TypeError, AttributeError):
            return False
        return whole and record == self.record()

    def rows(self, console: Console) -> Iterable[int]:
        """Rows of all images, with a bar that shows how many are done."""
        rows = range(len(self.subject.images.names))
        return track(rows, f"predicting ({self.network.which})", console=console, transient=True)

    @abstractmethod
    def write(self, console: Console) -> None:
        """Predict every image and write the files."""

    @abstractmethod
    def score(self) -> dict[str, Any]:
        """Scores of the files as they lie there, against the truth of now. Raises DataError naming a damaged one."""


class SemanticExport(Export):
    """One PNG of class ids per image, in a stored zip; the truth is read from the data set."""

    files = ("predictions.zip",)

    def write(self, console: Console) -> None:
        """Write the class maps."""
        images, size, task = self.subject.images, self.subject.size, self.network.task
        with replacing(self.folder / self.files[0]) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            for row in self.rows(console):
                color = images.color(row) if size is None else resize_color(images.color(row), size)
                label = task.predict(self.network.model, color)
                archive.writestr(zipfile.ZipInfo(f"{images.names[row]}.png"), encode(label, "PNG"))

    def score(self) -> dict[str, Any]:
        """MIoU, accuracy and IoU per class, one confusion matrix for all images."""
        archive = ImageArchive(self.folder / self.files[0], _AGAIN)
        confusion = Confusion(self.network.task.class_names)
        for row, name in enumerate(self.subject.images.names):
            truth = self._truth(row)
            predicted = archive.read([f"{name}.png"], (truth.shape[1], truth.shape[0]))[0]
            confusion.add(torch.from_numpy(predicted), torch.from_numpy(truth))
        return confusion.result()

    def _truth(self, row: int) -> NDArray[np.uint8]:
        label = self.subject.images.label(row)
        return label if self.subject.size is None else resize_nearest(label, self.subject.size)


class InstanceExport(Export):
    """COCO's result list; scoring writes COCO's ground truth beside it."""

    files = ("predictions.json",)

    def write(self, console: Console) -> None:
        """Write what the task detects in each image, as validation does in training."""
        task, images = self.network.task, self.subject.images
        if not isinstance(task, InstanceTask):
            raise TypeError(f"objects are detected by an InstanceTask, not a {type(task).__name__}.")
        meter = task.meter(InstanceDataset(images, objects=False))
        with evaluating(self.network.model):
            items = batches(meter.dataset, 1, collate_instances)
            for batch in track(
                items, f"predicting ({self.network.which})", len(images.names), console=console, transient=True
            ):
                meter.update(self.network.model, batch)
        write_atomic(self.folder / self.files[0], json.dumps(meter.results()).encode())

    def score(self) -> dict[str, Any]:
        """Average precision of masks and boxes. The ground truth is written anew: labels may have been corrected."""
        write_atomic(self.folder / TRUTH, json.dumps(self.subject.objects).encode())
        return average_precision(self.subject.objects, read_json(self.folder / self.files[0]), self.subject.min_score)


#: task -> how its predictions are exported
EXPORTS: dict[str, type[Export]] = {"semantic": SemanticExport, "instance": InstanceExport}
