"""Detection and instance segmentation (paper sections 5.2 and 5.3): loss, predictions, scores, files."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from pri3d.api.finetune import FinetuneSettings
from pri3d.api.options import Options, option
from pri3d.data.augment import recipe, to_tensor
from pri3d.data.labelled import InstanceDataset, InstanceItem
from pri3d.data.reading import read_ahead
from pri3d.drawing import draw_detections
from pri3d.errors import DataError
from pri3d.files.atomic import write_atomic
from pri3d.labelled import LabelledImages
from pri3d.labelled._shared.checks import check_images
from pri3d.labelled.convert import encode_mask, to_coco
from pri3d.networks.detector import SIZES, Detector, Sizes
from pri3d.runs import read_json
from pri3d.tasks.base import Meter, Predictions, Recipe, Task, Words, in_groups, prediction_batch
from pri3d.terminal import track
from pri3d.types import Detections, InstanceBatch

TRUTH = "truth.json"  #: beside predictions
LARGEST = 20_000  #: of pixels and proposals that a file may ask for
PAPER_THRESHOLD = 0.5  #: score under which the paper's protocol leaves objects out
#: prefix of the scores -> what faster-coco-eval calls it
KINDS = {"": "segm", "box_": "bbox"}


class InstanceOptions(Options):
    """Detection and instance segmentation by Mask R-CNN."""

    group = "instance"

    detector: Literal["full", "coco", "lite"] = option(
        "size of the Mask R-CNN: full, coco (box head of four convolutions), lite (for small machines)", default="full"
    )
    short_side: int | str = option(
        "short side of the images in pixels; in training a range is sampled", default="640-800"
    )
    long_side: int = option("maximum long side of the images in pixels", default=1333)
    rois: int = option("regions per image that train the heads", default=32, least=1)
    min_area: int = option(
        "minimum object area in pixels; smaller objects are ignored in training and scores", default=1000, least=0
    )

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
        """List the items' parts, whose sizes differ; colour becomes float 0..1."""
        return InstanceBatch(
            [item.image.float() / 255 for item in items],
            [item.boxes for item in items],
            [item.classes for item in items],
            [item.masks for item in items],
            [item.name for item in items],
        )

    def build(self, class_names: Sequence[str]) -> Detector:
        """Mask R-CNN."""
        o = self.options
        sizes = SIZES[o.detector]._replace(rois=o.rois, short_sides=o.short_sides, long_side=o.long_side)
        return Detector(self.build_encoder(), len(class_names), sizes)

    def task(self, images: LabelledImages, rows: Sequence[int]) -> InstanceTask:
        """Mask R-CNN's losses."""
        return InstanceTask(InstanceTask.names_of(images), self.settings)

    def dataset(self, images: LabelledImages, rows: Sequence[int] | None, training: bool) -> InstanceDataset:
        """Images and their objects."""
        s, area = self.settings, self.options.min_area
        if not training:
            return InstanceDataset(images, rows, min_area=area, objects=False)  # scored against to_coco's
        return InstanceDataset(images, rows, s.seed, recipe(s.augment), s.mirror, area)

    def check(self, images: LabelledImages, rows: Sequence[int]) -> list[str]:
        """Images and their objects. Raises DataError."""
        return check_images(images, rows, objects=True, min_area=self.options.min_area)


class InstanceTask(Task):
    """Boxes, masks and classes of countable objects. ``AP`` of the masks says which network is best."""

    name: ClassVar[str] = "instance"
    key: ClassVar[str] = "AP"
    recipe = InstanceRecipe
    options = InstanceOptions
    words = Words(
        "Detection and instance segmentation",
        "Detections",
        "Objects with a score of 50% or more; colours are classes.",
        scores={
            "AP": "mask AP",
            "AP50": "mask AP50",
            "AP75": "mask AP75",
            "classes": "mask AP",
            "box_AP": "box AP",
            "box_AP50": "box AP50",
            "box_AP75": "box AP75",
            "box_classes": "box AP",
            **{
                f"paper_{prefix}{name}": f"{what} {name}, score 0.5"
                for prefix, what in (("", "mask"), ("box_", "box"))
                for name in ("AP", "AP50", "AP75")
            },
        },
        by_class="classes",
    )
    enclosing = ("net.", "backbone.")
    resolutions = ("native",)
    protocols = ("coco", "paper")
    threshold = 0.5
    first_id = 1

    def __init__(self, class_names: Sequence[str], settings: FinetuneSettings | None = None) -> None:
        super().__init__(class_names, settings)
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
        return self._predict_together(model, [color])[0]

    def predict_many(self, model: nn.Module, colors: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """:meth:`predict` of several images, which go through the detector together."""
        if type(self).predict is not InstanceTask.predict:  # a task of another package, which may ask this class's
            return super().predict_many(model, colors)
        return self._predict_together(model, colors)

    @torch.no_grad()
    def _predict_together(self, model: nn.Module, colors: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        return list(_find(model, [to_tensor(color).float() / 255 for color in colors]))

    def predictions(
        self, images: LabelledImages, settings: Mapping[str, Any], resolution: str, protocol: str
    ) -> CocoResults:
        """COCO's result list, scored in pixels of the images themselves; the paper's protocol drops weak objects."""
        min_score = PAPER_THRESHOLD if protocol == "paper" else 0.0
        return CocoResults(images, int(settings.get(self.name, {}).get("min_area") or 0), min_score)

    def truth(self, images: LabelledImages, row: int) -> Detections:
        """The objects of an image without crowds, with scores of 1."""
        true = images.instances(row)
        every = Detections(true.masks, true.boxes, true.classes, np.ones(len(true.classes), np.float32))
        return _choose(every, ~true.crowd)

    def keep(self, found: Detections, threshold: float) -> Detections:
        """Objects of at least this score."""
        return _choose(found, found.scores >= threshold)

    def record(self, found: Detections) -> dict[str, Any]:
        """Objects in COCO's form, best first: category ids from 1, boxes x, y, width, height in pixels."""
        objects = []
        for mask, box, kind, score in zip(*found, strict=True):
            x0, y0, x1, y1 = (round(float(v), 2) for v in box)
            objects.append(
                {
                    "category_id": int(kind) + self.first_id,
                    "class": self.class_names[kind],
                    "score": round(float(score), 4),
                    "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
                    "area": int(mask.sum()),
                    "segmentation": encode_mask(mask),
                }
            )
        return {"objects": objects}

    def draw(self, color: NDArray[np.uint8], found: Detections) -> NDArray[np.uint8]:
        """Objects over the image with their scores."""
        return draw_detections(color, found, self.class_names)

    def panels(
        self, color: NDArray[np.uint8], truth: Detections | None, found: Mapping[str, Any]
    ) -> dict[str, NDArray[np.uint8]]:
        """Objects over the image: the true ones, and of those that are found the likely ones with their scores."""
        true = {} if truth is None else {"ground truth": truth}
        drawn = {name: draw_detections(color, one, self.class_names, with_scores=False) for name, one in true.items()}
        return drawn | {name: self.draw(color, self.keep(one, self.threshold)) for name, one in found.items()}

    @classmethod
    def stated_settings(cls, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a file states. One of version 0.1 states the detector's sizes, and no settings."""
        if "settings" in record:
            stated = super().stated_settings(record)
            own = stated[cls.name]
            if not max(own["rois"], own["long_side"]) <= LARGEST:  # a damaged header may claim any number
                raise ValueError(f"rois {own['rois']}, long_side {own['long_side']}")
            return stated
        sides = tuple(record["sizes"]["short_sides"])
        sizes = Sizes(**{**record["sizes"], "short_sides": sides})
        built = {
            name: known._replace(rois=sizes.rois, short_sides=sides, long_side=sizes.long_side)
            for name, known in SIZES.items()
        }
        named = [name for name, other in built.items() if other == sizes]
        if not named:
            raise ValueError(f"sizes {record['sizes']} are of none of {', '.join(SIZES)}")
        own = {"detector": named[0], "rois": sizes.rois, "long_side": sizes.long_side}
        own["short_side"] = f"{min(sides)}-{max(sides)}"
        return {"network": "maskrcnn", "encoder": record["encoder"], cls.name: own}


class CocoResults(Predictions):
    """COCO's result list; scoring writes COCO's ground truth beside it."""

    files = ("predictions.json",)

    def __init__(self, images: LabelledImages, min_area: int, min_score: float) -> None:
        """Objects of less than ``min_area`` pixels, and predicted ones of a lower score, do not count."""
        self.images, self.min_area, self.min_score = images, min_area, min_score

    @property
    def made_with(self) -> dict[str, Any]:
        """Images keep their size."""
        return {"size": None}

    @cached_property
    def truth(self) -> dict[str, Any]:
        """COCO's ground truth of all images, as the set states it now."""
        rows = range(len(self.images.names))
        return to_coco(self.images, track(rows, "objects"), self.min_area)

    def write(
        self, task: Task, model: nn.Module, folder: Path, counted: Callable[[Iterable[Any]], Iterable[Any]]
    ) -> None:
        """Write what a network finds in each image, as validation does in training."""
        meter = DetectionMeter(InstanceDataset(self.images, objects=False), lambda: self.truth)
        colors = counted(read_ahead(range(len(self.images.names)), self.images.color))
        for group in in_groups(colors, prediction_batch(model), lambda color: color[..., 0].size):
            for found in task.predict_many(model, group):
                meter.parts.append(detections_to_results(found, len(meter.parts) + 1, meter.numbers))
        write_atomic(folder / self.files[0], json.dumps(meter.results()).encode())

    def score(self, folder: Path) -> dict[str, Any]:
        """Average precision of masks and boxes. The ground truth is written anew: labels may have been corrected."""
        write_atomic(folder / TRUTH, json.dumps(self.truth).encode())
        return average_precision(self.truth, read_json(folder / self.files[0]), self.min_score)


class DetectionMeter(Meter):
    """Average precision of masks and boxes, see :func:`average_precision`; a part is an image's results.

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
        """``AP``, ``AP50``, ... of masks, ``box_AP``, ... of boxes, ``classes`` and ``box_classes``.

        With ``paper_`` before them the first three of either kind by the paper's protocol, which leaves out objects of
        a score under 0.5.
        """
        truth, results = self.truth(), self.results()
        strict = average_precision(truth, results, PAPER_THRESHOLD)
        named = [f"{prefix}{score}" for prefix in KINDS for score in ("AP", "AP50", "AP75")]
        return {**average_precision(truth, results), **{f"paper_{name}": strict[name] for name in named}}


def _choose(found: Detections, which: NDArray[np.bool_]) -> Detections:
    return Detections(found.masks[which], found.boxes[which], found.classes[which], found.scores[which])


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


def average_precision(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], min_score: float = 0.0
) -> dict[str, Any]:
    """COCO's average precision of masks and boxes, each in 0..1.

    ``truth`` is COCO's ground truth (images, annotations, categories), ``results`` its result list (image_id,
    category_id, bbox, segmentation, score); neither is changed. Results below ``min_score`` are left out: the released
    code's protocol has 0.5. Scores of masks: ``AP`` (mean over the IoU thresholds .50 to .95, then over the classes
    that occur in the ground truth), ``AP50``, ``AP75``, and ``AP_small``, ``AP_medium``, ``AP_large`` for objects under
    32 x 32, under 96 x 96 and larger pixels; of boxes the same with ``box_`` before them; ``classes`` and
    ``box_classes``, the AP by class name.

    At most the 100 best results of an image count; what meets a crowd object counts neither way. Without results the
    scores are 0; NaN where there is no object to be found: of a class, of a size, or at all. Raises DataError for
    results of an image or class that the ground truth does not have, or of another image size.
    """
    kept = [dict(result) for result in results if result["score"] >= min_score]
    for key, part in (("image_id", "images"), ("category_id", "categories")):
        strange = {result[key] for result in kept} - {entry["id"] for entry in truth[part]}
        if strange:
            raise DataError(
                f"results name {key} {sorted(strange)[:5]}, which the ground truth's {part} do not have: they belong "
                f"to another dataset. Predict this one."
            )
    sizes = {entry["id"]: (entry["height"], entry["width"]) for entry in truth["images"]}
    for result in kept:
        image, size = result["image_id"], tuple(result["segmentation"]["size"])
        if size != sizes[image]:
            raise DataError(
                f"image {image}: its masks are {size} (height, width) in the results, {sizes[image]} in the ground "
                "truth. Predict images of the size that the labels have."
            )
    scores: dict[str, Any] = {}
    for prefix, kind in KINDS.items():
        scores |= {f"{prefix}{name}": value for name, value in _score_kind(truth, kept, kind).items()}
    return scores


def detections_to_results(detections: Detections, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    """Detections of one image -> entries of a COCO result list; ``category_ids`` are those of the classes 0..K-1."""
    rows = zip(detections.boxes, detections.classes, detections.scores, detections.masks, strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[int(kind)],
            "bbox": [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])],
            "score": float(score),
            "segmentation": encode_mask(mask),
        }
        for box, kind, score, mask in rows
    ]


def _score_kind(truth: Mapping[str, Any], results: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """Scores of one kind of overlap. The library writes into what it is given, hence the copies."""
    known = COCO(copy.deepcopy(dict(truth)))
    # Where entries have a box, the library takes its area for that of the object: of masks it must find it itself.
    unwanted = "bbox" if kind == "segm" else "segmentation"
    found = known.loadRes([{key: v for key, v in result.items() if key != unwanted} for result in results])
    judge = COCOeval_faster(known, found, kind)
    judge.evaluate()
    judge.accumulate()
    # (IoU thresholds, recalls, classes, areas, limits of results): the last limit is 100
    precision: NDArray[np.float64] = np.asarray(judge.eval["precision"])[..., -1]
    thresholds = np.asarray(judge.params.iouThrs)
    everything = precision[..., 0]
    areas = {f"AP_{name}": _mean(precision[..., k]) for k, name in enumerate(judge.params.areaRngLbl) if k}
    names = {entry["id"]: entry["name"] for entry in truth["categories"]}
    return {
        "AP": _mean(everything),
        "AP50": _mean(everything[np.isclose(thresholds, 0.5)]),
        "AP75": _mean(everything[np.isclose(thresholds, 0.75)]),
        **areas,
        "classes": {names[number]: _mean(everything[:, :, k]) for k, number in enumerate(judge.params.catIds)},
    }


def _mean(precision: NDArray[np.float64]) -> float:
    """Mean over what is defined: -1 stands for a class without objects."""
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else float("nan")
