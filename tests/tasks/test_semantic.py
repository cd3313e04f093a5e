"""mIoU against torchmetrics and loops; ignored pixels and absent classes."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from pri3d.tasks.semantic import IGNORED, Confusion, semantic_loss

NAMES = ["wall", "floor", "chair", "lamp"]


def labels(seed: int, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (3, 8, 9), generator=generator)
    predicted = torch.where(torch.rand(label.shape, generator=generator) < 0.6, label, (label + 1) % classes)
    label[torch.rand(label.shape, generator=generator) < 0.1] = IGNORED
    return predicted, label


@pytest.mark.parametrize("seed", range(5))
def test_miou_equals_torchmetrics_and_a_loop(seed: int) -> None:
    predicted, label = labels(seed)
    confusion = Confusion(4)
    for one, two in zip(predicted, label, strict=True):
        confusion.update(one, two)
    score = confusion.score(NAMES)
    reference = MulticlassJaccardIndex(4, ignore_index=IGNORED, average="macro")(predicted, label)
    assert score.miou == pytest.approx(float(reference), abs=1e-6)
    for k, name in enumerate(NAMES):
        keep = label != IGNORED
        both = ((predicted == k) & (label == k) & keep).sum().item()
        either = (((predicted == k) | (label == k)) & keep).sum().item()
        assert score.iou[name] == pytest.approx(both / either)


def test_absent_class_does_not_count_but_a_false_one_does() -> None:
    label = torch.tensor([0, 0, 1, 1])
    confusion = Confusion(4)
    confusion.update(torch.tensor([0, 0, 1, 2]), label)
    score = confusion.score(NAMES)
    assert score.iou["floor"] == pytest.approx(0.5)
    assert score.iou["chair"] == 0.0
    assert math.isnan(score.iou["lamp"])
    assert score.miou == pytest.approx(0.75)


def test_everything_ignored_is_nan_and_trains_nothing() -> None:
    label = torch.full((1, 4, 4), IGNORED)
    confusion = Confusion(4)
    confusion.update(torch.zeros(1, 4, 4), label)
    assert math.isnan(confusion.score(NAMES).miou)
    scores = torch.randn(1, 4, 4, 4, requires_grad=True)
    semantic_loss(scores, label).backward()
    assert scores.grad is not None
    assert (scores.grad == 0).all()
