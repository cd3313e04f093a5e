from __future__ import annotations

import contextlib
import copy
import io
import json
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pri3d.errors import DataError
from pri3d.labelled.convert import encode_mask
from pri3d.tasks.instance import average_precision, detections_to_results
from pri3d.types import Detections

SIZE = 160  # so that objects of all three standard areas fit
STATS = {"AP": 0, "AP50": 1, "AP75": 2, "AP_small": 3, "AP_medium": 4, "AP_large": 5}


def ellipse(box):
    """Mask of the ellipse in a box x0, y0, x1, y1."""
    y, x = np.mgrid[:SIZE, :SIZE] + 0.5
    x0, y0, x1, y1 = box
    return ((2 * x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * y - y0 - y1) / (y1 - y0)) ** 2 <= 1


def random_box(rng):
    w, h = rng.uniform(8, 130, 2)
    x, y = rng.uniform(0, SIZE - w), rng.uniform(0, SIZE - h)
    return np.array([x, y, x + w, y + h])


def entry(box, image, category, **more):
    x0, y0, x1, y1 = map(float, box)
    mask = ellipse(box)
    named = {"image_id": image, "category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0]}
    return {**named, "area": int(mask.sum()), "segmentation": encode_mask(mask), **more}


def make_truth(images=3, classes=4, boxes=()):
    """Ground truth of given (box, image, category, crowd)."""
    rows = [entry(box, image, kind, id=k, iscrowd=crowd) for k, (box, image, kind, crowd) in enumerate(boxes, 1)]
    return {
        "images": [{"id": k + 1, "file_name": f"{k}.jpg", "width": SIZE, "height": SIZE} for k in range(images)],
        "annotations": rows,
        "categories": [{"id": k + 1, "name": f"class {k + 1}"} for k in range(classes)],
    }


def make_result(box, image, category, score):
    return {key: v for key, v in entry(box, image, category, score=score).items() if key != "area"}


def random_case(seed):
    """Crowds, images without objects, a class without objects, a class never found, detections near and far."""
    rng = np.random.default_rng(seed)
    truth, results = [], []
    for image in range(1, 6):
        for _ in range(rng.integers(0, 7) if image < 5 else 0):
            box, kind = random_box(rng), int(rng.integers(1, 4))
            truth.append((box, image, kind, int(rng.random() < 0.2)))
            for _ in range(rng.integers(0, 3)):
                moved = np.clip(box + rng.normal(0, 0.05 * (box[2] - box[0]), 4), 0, SIZE)
                if kind != 3 and (moved[2:] - moved[:2] > 3).all():
                    results.append(make_result(moved, image, kind, round(rng.random(), 2)))
        for _ in range(rng.integers(0, 4)):
            results.append(make_result(random_box(rng), image, int(rng.choice([1, 2, 4])), round(rng.random(), 2)))
    return make_truth(5, 4, truth), results


def reference(truth, results, kind):
    """pycocotools' twelve figures and its AP of each class."""
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = copy.deepcopy(truth)
        known.createIndex()
        results = copy.deepcopy(results)
        for result in results:
            result.pop("bbox" if kind == "segm" else "segmentation")
        judge = COCOeval(known, known.loadRes(results), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    each = judge.eval["precision"][:, :, :, 0, -1]
    classes = [x[x > -1].mean() if (x > -1).any() else -1 for x in np.moveaxis(each, 2, 0)]
    return judge.stats, classes


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("kind", "prefix"), [("segm", ""), ("bbox", "box_")])
def test_equals_pycocotools(seed, kind, prefix):
    truth, results = random_case(seed)
    before = copy.deepcopy((truth, results))
    scores = average_precision(truth, results)
    assert (truth, results) == before
    stats, classes = reference(truth, results, kind)
    ours = [scores[f"{prefix}{name}"] for name in STATS] + list(scores[f"{prefix}classes"].values())
    theirs = [*stats[:6], *classes]
    assert 0 < scores[f"{prefix}AP"] < 1
    np.testing.assert_allclose(np.nan_to_num(ours, nan=-1), theirs, atol=1e-4)
    assert math.isnan(scores[f"{prefix}classes"]["class 4"])  # detected, but never there


def test_the_cases_hold_what_they_are_for():
    truths = [random_case(seed)[0] for seed in range(8)]
    assert any(a["iscrowd"] for truth in truths for a in truth["annotations"])
    assert all({a["category_id"] for a in truth["annotations"]} <= {1, 2, 3} for truth in truths)
    assert all(5 not in {a["image_id"] for a in truth["annotations"]} for truth in truths)


BOXES = [([10, 10, 60, 50], 1, 1, 0), ([70, 20, 120, 150], 1, 2, 0), ([5, 5, 155, 155], 2, 1, 0)]


def test_a_perfect_prediction_is_one():
    results = [make_result(box, image, kind, 0.5) for box, image, kind, _ in BOXES]
    scores = average_precision(make_truth(3, 2, BOXES), results)
    for name in ("AP", "AP50", "AP75", "box_AP", "box_AP50", "box_AP75"):
        assert scores[name] == pytest.approx(1.0)
    assert scores["classes"] == pytest.approx({"class 1": 1.0, "class 2": 1.0})
    json.dumps(scores)


def test_masks_and_boxes_are_told_apart():
    results = [make_result(box, image, kind, 0.5) for box, image, kind, _ in BOXES]
    for result in results:
        result["segmentation"] = encode_mask(np.zeros((SIZE, SIZE), bool))
    scores = average_precision(make_truth(3, 2, BOXES), results)
    assert scores["box_AP"] == pytest.approx(1.0) and scores["AP"] == 0


def test_nothing_found_is_zero():
    scores = average_precision(make_truth(3, 2, BOXES), [])
    assert scores["AP"] == scores["box_AP50"] == scores["classes"]["class 1"] == 0


@pytest.mark.parametrize("results", [[], [make_result([3, 3, 40, 40], 1, 1, 0.9)]])
def test_nothing_to_be_found_is_nan(results):
    only_crowd = make_truth(2, 2, [([0, 0, 150, 150], 2, 1, 1)])
    for truth in (make_truth(2, 2), only_crowd):
        scores = average_precision(truth, results)
        assert all(math.isnan(scores[name]) for name in ("AP", "AP50", "AP75", "AP_small", "box_AP"))
        assert all(map(math.isnan, scores["classes"].values()))


def test_what_meets_a_crowd_does_not_count():
    # A better-scored detection in the crowd would halve the precision if it counted.
    truth = make_truth(1, 1, [([10, 10, 50, 50], 1, 1, 0), ([60, 60, 150, 150], 1, 1, 1)])
    right, within = make_result([10, 10, 50, 50], 1, 1, 0.5), make_result([70, 70, 120, 120], 1, 1, 0.9)
    assert average_precision(truth, [right, within])["AP"] == pytest.approx(1.0)
    stray = make_result([10, 100, 50, 150], 1, 1, 0.9)
    assert average_precision(truth, [right, stray])["AP"] == pytest.approx(0.5)


def test_a_least_score_leaves_results_out():
    truth = make_truth(1, 1, [([10, 10, 50, 50], 1, 1, 0), ([60, 60, 150, 150], 1, 1, 0)])
    results = [make_result([10, 10, 50, 50], 1, 1, 0.5), make_result([60, 60, 150, 150], 1, 1, 0.4)]
    assert average_precision(truth, results)["AP"] == pytest.approx(1.0)
    # One of two found: precision 1 up to recall 0.5, which is 51 of the 101 recalls.
    assert average_precision(truth, results, min_score=0.5)["AP"] == pytest.approx(51 / 101)


@pytest.mark.parametrize(("image", "kind", "key"), [(9, 1, "image_id"), (1, 9, "category_id")])
def test_results_of_another_set_are_refused(image, kind, key):
    with pytest.raises(DataError, match=rf"{key} \[9\]"):
        average_precision(make_truth(2, 2, BOXES), [make_result([3, 3, 40, 40], image, kind, 0.9)])


def test_results_of_another_size_are_refused():
    truth = make_truth(2, 2, BOXES)
    truth["images"][0]["width"] = 99
    with pytest.raises(DataError, match=r"image 1: its masks are \(160, 160\) .*, \(160, 99\) in the ground"):
        average_precision(truth, [make_result([3, 3, 40, 40], 1, 1, 0.9)])


def test_detections_survive_as_results(capfd):
    boxes = np.array([box for box, *_ in BOXES[:2]], np.float32)
    masks = np.array([ellipse(box) for box in boxes])
    found = Detections(masks, boxes, np.array([0, 1]), np.array([0.9, 0.8], np.float32))
    results = json.loads(json.dumps(detections_to_results(found, 1, [1, 2])))
    assert [result["category_id"] for result in results] == [1, 2]
    assert results[0]["bbox"] == [10, 10, 50, 40]
    truth = make_truth(1, 2, BOXES[:2])
    assert average_precision(truth, results)["AP"] == pytest.approx(1.0)
    nothing = Detections(masks[:0], boxes[:0], np.zeros(0, np.int64), np.zeros(0, np.float32))
    assert detections_to_results(nothing, 1, [1, 2]) == []
    assert capfd.readouterr() == ("", "")
