"""Detection and instance segmentation (paper sections 5.2 and 5.3): loss, predictions, scores, files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from pri3d import __version__
from pri3d.data.augment import to_tensor
from pri3d.data.instances import InstanceDataset
from pri3d.datasets import LabelledImages
from pri3d.datasets.convert import to_coco
from pri3d.errors import WeightsError
from pri3d.models.detector import Detector, Sizes, build_detector
from pri3d.models.lora import merged_state
from pri3d.models.weights import read_state, save_state
from pri3d.tasks import Task, rebuild
from pri3d.tasks.ap import average_precision, detections_to_results
from pri3d.types import Detections, InstanceBatch

NETWORK = "maskrcnn"
LARGEST = 20_000  #: of a Mask R-CNN's numbers: channels, pixels, proposals
ENCLOSING = "backbone."  #: what torchvision has before the names of encoder and pyramid; files do without


class InstanceTask(Task):
    """Boxes, masks and classes of countable objects. ``AP`` of the masks says which network is best."""

    name: ClassVar[str] = "instance"
    key: ClassVar[str] = "AP"

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__(class_names)
        self._truth: tuple[InstanceDataset, dict[str, Any]] | None = None  # of the data set measured last

    @staticmethod
    def names_of(images: LabelledImages) -> list[str]:
        """Names of the countable classes. Raises DataError where there are none, or no instance maps."""
        images.require_objects()
        return images.thing_names

    def loss(self, model: nn.Module, batch: InstanceBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of torchvision's five losses of a batch, and each of them."""
        targets = [
            {"boxes": boxes, "labels": classes + 1, "masks": masks}  # 0 is the background
            for boxes, classes, masks in zip(batch.boxes, batch.classes, batch.masks, strict=True)
        ]
        losses: dict[str, Tensor] = model(batch.images, targets)
        log = {name.removeprefix("loss_"): value.detach() for name, value in losses.items()}
        return torch.stack([value.float() for value in losses.values()]).sum(), log

    def measure(self, model: nn.Module, dataset: Dataset[Any], batch: int) -> dict[str, Any]:
        """Average precision of masks and boxes, see :func:`pri3d.tasks.ap.average_precision`.

        At the images' own size, without augmentation. Objects smaller than the data set's ``min_area`` are not in the
        ground truth, as in the paper's protocol: finding one counts as a mistake.
        """
        images = _dataset(dataset)
        if self._truth is None or self._truth[0] is not images:  # reading every mask takes as long as an epoch may
            self._truth = images, to_coco(images.images, images.rows, images.min_area)
        return average_precision(self._truth[1], self.detect(model, images, batch))

    def detect(self, model: nn.Module, dataset: InstanceDataset, batch: int) -> list[dict[str, Any]]:
        """COCO's result list of a model on the images of a data set, ``batch`` at a time, for ``to_coco``'s ids.

        Leaves the mode as it was.
        """
        training = model.training
        model.eval()
        numbers = range(1, len(self.class_names) + 1)
        results = []
        for start in range(0, len(dataset.rows), batch):
            rows = dataset.rows[start : start + batch]
            found = _find(model, [dataset.images.color(row) for row in rows])
            for row, detections in zip(rows, found, strict=True):
                results += detections_to_results(detections, row + 1, numbers)
        model.train(training)
        return results

    def predict(self, model: nn.Module, color: NDArray[np.uint8]) -> Detections:
        """Objects of one RGB image (H, W, 3) with a model in eval mode, best first, in pixels of that image."""
        return next(_find(model, [color]))

    def save(self, model: nn.Module, path: Path, record: dict[str, Any]) -> None:
        """Write the network as safetensors, adapters merged; its encoder's names are those of a pre-trained model."""
        if not isinstance(model, Detector):
            raise TypeError(f"a {type(model).__name__} is no Detector: build one with build_detector().")
        state = {key.removeprefix(ENCLOSING): value for key, value in merged_state(model.net).items()}
        built = {"task": self.name, "network": NETWORK, "encoder": model.encoder.name, "sizes": model.sizes._asdict()}
        save_state(state, path, {"version": __version__, **record, **built, "class_names": self.class_names})

    @classmethod
    def load(cls, path: Path, record: dict[str, Any]) -> tuple[InstanceTask, Detector]:
        """Rebuild what :meth:`save` wrote, on the CPU in eval mode. Raises WeightsError where it does not fit."""
        try:
            task = cls(record["class_names"])
            sizes = Sizes(**{**record["sizes"], "short_sides": tuple(record["sizes"]["short_sides"])})
            encoder = str(record["encoder"])
            if not max(number for number in sizes if isinstance(number, int | float)) <= LARGEST:
                raise ValueError(f"sizes {sizes}")  # a damaged header may claim any number
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"{path} does not say how its Mask R-CNN is built ({error}): fine-tune again") from error
        inside = ("encoder.", "project.", "fpn.")
        state = {f"net.{ENCLOSING}{k}" if k.startswith(inside) else f"net.{k}": v for k, v in read_state(path).items()}
        return task, rebuild(lambda: build_detector(encoder, len(task.class_names), sizes), state, path)


def _dataset(dataset: Dataset[Any]) -> InstanceDataset:
    if not isinstance(dataset, InstanceDataset):
        raise TypeError(f"instance segmentation is scored on an InstanceDataset, not a {type(dataset).__name__}.")
    return dataset


@torch.no_grad()
def _find(model: nn.Module, colors: Sequence[NDArray[np.uint8]]) -> Iterator[Detections]:
    """Objects of each image (H, W, 3) with a model in eval mode."""
    device = next(model.parameters()).device
    for found in model([to_tensor(color).to(device).float() / 255 for color in colors]):
        order = found["scores"].argsort(descending=True, stable=True)
        yield Detections(
            (found["masks"][order, 0] > 0.5).cpu().numpy(),
            found["boxes"][order].float().cpu().numpy(),
            (found["labels"][order] - 1).cpu().numpy(),
            found["scores"][order].float().cpu().numpy(),
        )
