"""Average precision of COCO-format results against COCO-format ground truth: faster-coco-eval, quiet, for any input."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from pri3d.errors import DataError
from pri3d.labelled.convert import encode_mask
from pri3d.types import Detections

#: prefix of the scores -> what faster-coco-eval calls it
KINDS = {"": "segm", "box_": "bbox"}


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
    _check(truth, kept)
    scores: dict[str, Any] = {}
    for prefix, kind in KINDS.items():
        scores |= {f"{prefix}{name}": value for name, value in _score(truth, kept, kind).items()}
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


def _check(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
    for key, part in (("image_id", "images"), ("category_id", "categories")):
        strange = {result[key] for result in results} - {entry["id"] for entry in truth[part]}
        if strange:
            raise DataError(
                f"results name {key} {sorted(strange)[:5]}, which the ground truth's {part} do not have: they were "
                "made for another data set. Predict this one."
            )
    sizes = {entry["id"]: (entry["height"], entry["width"]) for entry in truth["images"]}
    for result in results:
        image, size = result["image_id"], tuple(result["segmentation"]["size"])
        if size != sizes[image]:
            raise DataError(
                f"image {image}: its masks are {size} (height, width) in the results, {sizes[image]} in the ground "
                "truth. Predict images of the size that the labels have."
            )


def _score(truth: Mapping[str, Any], results: list[dict[str, Any]], kind: str) -> dict[str, Any]:
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
