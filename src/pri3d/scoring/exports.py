"""Predictions of a network on a labelled set as files, and the scores of these files."""

from __future__ import annotations

import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from pri3d.archive import ImageArchive, encode
from pri3d.datasets import LabelledImages
from pri3d.datasets.convert import to_coco
from pri3d.errors import DataError
from pri3d.files import remove_leftovers, replacing, write_atomic
from pri3d.geometry.images import resize_color, resize_nearest
from pri3d.runfiles import read_json, write_json
from pri3d.scoring.networks import Network, hash_file
from pri3d.tasks.ap import average_precision, detections_to_results
from pri3d.tasks.semantic import Confusion

FORMAT = 1
RECORD = "record.json"
_AGAIN = "Delete it and evaluate again."


class Subject(NamedTuple):
    """What is predicted."""

    images: LabelledImages
    size: tuple[int, int] | None  #: (width, height) to which images and class maps are resized; None keeps their own
    min_area: int  #: pixels under which an object does not count


class Export(ABC):
    """Predictions of one network as files of a folder. A subclass writes them and reads them back."""

    files: ClassVar[Sequence[str]]

    def __init__(self, folder: Path, network: Network, subject: Subject) -> None:
        self.folder, self.network, self.subject = folder, network, subject

    def record(self) -> dict[str, Any]:
        """Everything the files depend on."""
        images, size, min_area = self.subject
        return {
            "format": FORMAT,
            "task": self.network.task.name,
            "weights": self.network.hash,
            "data": images.hash,
            "classes": list(self.network.task.class_names),
            "images": len(images.names),
            "size": None if size is None else list(size),
            "min_area": min_area,
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

    def predicted(self, console: Console) -> Iterator[tuple[int, Any]]:
        """Row and prediction of every image."""
        images, size, _ = self.subject
        rows = range(len(images.names))
        for row in track(rows, f"predicting ({self.network.which})", console=console, transient=True):
            color = images.color(row) if size is None else resize_color(images.color(row), size)
            yield row, self.network.task.predict(self.network.model, color)

    @abstractmethod
    def write(self, console: Console) -> None:
        """Predict every image and write the files."""

    @abstractmethod
    def score(self, threshold: float) -> dict[str, Any]:
        """Scores of the files as they lie there. Raises DataError naming one that is damaged."""


class SemanticExport(Export):
    """One PNG of class ids per image, in a stored zip; the truth is read from the data set."""

    files = ("predictions.zip",)

    def write(self, console: Console) -> None:
        """Write the class maps."""
        names = self.subject.images.names
        with replacing(self.folder / self.files[0]) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            for row, label in self.predicted(console):
                archive.writestr(zipfile.ZipInfo(f"{names[row]}.png"), encode(label, "PNG"))

    def score(self, threshold: float) -> dict[str, Any]:
        """MIoU, accuracy and IoU per class, one confusion matrix for all images."""
        names = self.network.task.class_names
        archive, confusion = ImageArchive(self.folder / self.files[0], _AGAIN), Confusion(len(names))
        for row, name in enumerate(self.subject.images.names):
            truth = self._truth(row)
            predicted = archive.read([f"{name}.png"], (truth.shape[1], truth.shape[0]))[0]
            confusion.update(torch.from_numpy(predicted), torch.from_numpy(truth))
        return confusion.score(names)._asdict()

    def _truth(self, row: int) -> NDArray[np.uint8]:
        label = self.subject.images.label(row)
        return label if self.subject.size is None else resize_nearest(label, self.subject.size)


class InstanceExport(Export):
    """COCO's ground truth and result list."""

    files = ("truth.json", "predictions.json")

    def write(self, console: Console) -> None:
        """Write both lists."""
        images = self.subject.images
        rows = track(range(len(images.names)), "objects", console=console, transient=True)
        truth = to_coco(images, rows, self.subject.min_area)
        numbers = [entry["id"] for entry in truth["categories"]]
        results = []
        for row, found in self.predicted(console):
            results += detections_to_results(found, truth["images"][row]["id"], numbers)
        for name, content in zip(self.files, (truth, results), strict=True):
            write_atomic(self.folder / name, json.dumps(content).encode())

    def score(self, threshold: float) -> dict[str, Any]:
        """Average precision of masks and boxes."""
        truth, results = (read_json(self.folder / name) for name in self.files)
        return average_precision(truth, results, threshold)


#: task -> how its predictions are exported
EXPORTS: dict[str, type[Export]] = {"semantic": SemanticExport, "instance": InstanceExport}
