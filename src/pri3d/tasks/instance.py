"""Detection and instance segmentation (paper sections 5.2 and 5.3): loss, predictions, scores, files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from pri3d import __version__
from pri3d.api.options import Options, option
from pri3d.data.augment import recipe, to_tensor
from pri3d.data.instances import InstanceDataset, InstanceItem, collate_instances
from pri3d.errors import WeightsError
from pri3d.labelled import LabelledImages
from pri3d.labelled._shared.checks import check_images
from pri3d.labelled.convert import to_coco
from pri3d.networks.detector import SIZES, Detector, Sizes, build_detector
from pri3d.networks.encoders import build_encoder
from pri3d.networks.lora import merged_state
from pri3d.networks.weights import read_state, save_state
from pri3d.tasks import Meter, Recipe, Task, rebuild
from pri3d.tasks.ap import average_precision, detections_to_results
from pri3d.types import Detections, InstanceBatch

NETWORK = "maskrcnn"
LARGEST = 20_000  #: of a Mask R-CNN's numbers: channels, pixels, proposals
ENCLOSING = "backbone."  #: what torchvision has before the names of encoder and pyramid; files do without


class InstanceOptions(Options):
    """Detection and instance segmentation by Mask R-CNN."""

    group = "instance"

    detector: Literal["full", "coco", "lite"] = option(
        "size of the Mask R-CNN: full, coco (box head of four convolutions), lite (for small machines)", default="full"
    )
    short_side: int | str = option(
        "short side of the images, pixels; a range is drawn from in training", default="640-800"
    )
    long_side: int = option("long side of the images, at most", default=1333)
    rois: int = option("regions an image that train the heads", default=32, least=1)
    min_area: int = option("pixels under which an object neither trains nor counts", default=1000, least=0)

    @property
    def short_sides(self) -> tuple[int, ...]:
        """Short sides of the training images, one of which is drawn for each; in steps of 32 as Detectron2 has them."""
        low, _, high = str(self.short_side).partition("-")
        return tuple(range(int(low), int(high or low) + 1, 32))

    def problems(self) -> list[str]:
        """Everything wrong with the numbers, each with its flag."""
        found = super().problems()
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", str(self.short_side))
        if match is None or not 32 <= int(match[1]) <= int(match[2] or match[1]):
            found.append(
                f"--instance.short-side {self.short_side}: give pixels of 32 or more, or a range as in 640-800"
            )
        elif self.long_side < int(match[2] or match[1]):
            found.append(f"--instance.long-side {self.long_side}: shorter than the short side {self.short_side}")
        return found

    def conflicts(self, settings: Any) -> list[str]:
        """A network of another task, and compilation."""
        found = []
        if settings.network != "maskrcnn":
            found.append(f"--network {settings.network}: choose maskrcnn")
        if settings.compute.compile:
            found.append("--compute.compile: the images of a Mask R-CNN differ in size; leave it out")
        return found


class InstanceRecipe(Recipe[InstanceOptions]):
    """Detection and instance segmentation."""

    shown = ("box_AP50", "box_AP75", "box_AP", "AP50", "AP75", "AP")

    @staticmethod
    def collate(items: list[InstanceItem]) -> InstanceBatch:
        """Lists of images and objects."""
        return collate_instances(items)

    def build(self, class_names: Sequence[str]) -> Detector:
        """Mask R-CNN."""
        s, o = self.settings, self.options
        sizes = SIZES[o.detector]._replace(rois=o.rois, short_sides=o.short_sides, long_side=o.long_side)
        return Detector(build_encoder(s.encoder), len(class_names), sizes)

    def task(self, images: LabelledImages, rows: Sequence[int]) -> InstanceTask:
        """Mask R-CNN's losses."""
        return InstanceTask(InstanceTask.names_of(images))

    def dataset(self, images: LabelledImages, rows: Sequence[int] | None, training: bool) -> InstanceDataset:
        """Images and their objects."""
        s, area = self.settings, self.options.min_area
        if not training:
            return InstanceDataset(images, rows, min_area=area, objects=False)  # scored against to_coco's
        return InstanceDataset(images, rows, s.seed, recipe(s.augment), s.mirror, area)

    def check(self, images: LabelledImages, rows: Sequence[int]) -> None:
        """Images and their objects. Raises DataError."""
        check_images(images, rows, objects=True, min_area=self.options.min_area)


class InstanceTask(Task):
    """Boxes, masks and classes of countable objects. ``AP`` of the masks says which network is best."""

    name: ClassVar[str] = "instance"
    key: ClassVar[str] = "AP"
    recipe = InstanceRecipe
    options = InstanceOptions

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__(class_names)
        self._truth: tuple[InstanceDataset, Callable[[], dict[str, Any]]] | None = None  # of the data set measured last

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

    def meter(self, dataset: Dataset[Any]) -> DetectionMeter:
        """Average precision on an :class:`InstanceDataset`; its objects are read once however often it is scored."""
        if not isinstance(dataset, InstanceDataset):
            raise TypeError(f"instance segmentation is scored on an InstanceDataset, not a {type(dataset).__name__}.")
        if self._truth is None or self._truth[0] is not dataset:
            # Read when it is asked for: every mask takes as long as an epoch may, and one process of several scores.
            self._truth = dataset, cache(lambda: to_coco(dataset.images, dataset.rows, dataset.min_area))
        return DetectionMeter(dataset, self._truth[1])

    def predict(self, model: nn.Module, color: NDArray[np.uint8]) -> Detections:
        """Objects of one RGB image (H, W, 3) with a model in eval mode, best first, in pixels of that image."""
        return next(_find(model, [to_tensor(color).float() / 255]))

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


class DetectionMeter(Meter):
    """Average precision of masks and boxes, see :func:`pri3d.tasks.ap.average_precision`; a part is an image's results.

    At the images' own size, without augmentation. Objects smaller than the data set's ``min_area`` are not in the
    ground truth, as in the paper's protocol: finding one counts as a mistake.
    """

    def __init__(self, dataset: InstanceDataset, truth: Callable[[], dict[str, Any]]) -> None:
        """``truth``: COCO's ground truth of the data set, which :meth:`result` asks for."""
        super().__init__()
        self.dataset, self.truth = dataset, truth
        self.rows = {dataset.images.names[row]: row for row in dataset.rows}
        self.numbers = range(1, len(dataset.images.thing_names) + 1)

    def update(self, model: nn.Module, batch: InstanceBatch) -> None:
        """Add what a network finds in a batch."""
        for name, found in zip(batch.names, _find(model, batch.images), strict=True):
            self.parts.append(detections_to_results(found, self.rows[name] + 1, self.numbers))

    def results(self) -> list[dict[str, Any]]:
        """COCO's result list in the order of the images, for ``to_coco``'s ids."""
        images = sorted((part for part in self.parts if part), key=lambda part: int(part[0]["image_id"]))
        return [result for part in images for result in part]

    def result(self) -> dict[str, Any]:
        """``AP``, ``AP50``, ... of masks, ``box_AP``, ... of boxes, ``classes`` and ``box_classes``."""
        return average_precision(self.truth(), self.results())


@torch.no_grad()
def _find(model: nn.Module, images: Sequence[Tensor]) -> Iterator[Detections]:
    """Objects of each image (3, H, W), RGB 0..1, with a model in eval mode."""
    device = next(model.parameters()).device
    for found in model([image.to(device) for image in images]):
        order = found["scores"].argsort(descending=True, stable=True)
        yield Detections(
            (found["masks"][order, 0] > 0.5).cpu().numpy(),
            found["boxes"][order].float().cpu().numpy(),
            (found["labels"][order] - 1).cpu().numpy(),
            found["scores"][order].float().cpu().numpy(),
        )
