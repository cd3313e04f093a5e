"""Semantic segmentation with the pre-trained U-Net (paper section 5.1): head, loss, confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pri3d.models.unet import UNet

IGNORED = 255  #: label of pixels that neither train nor count


class SemanticUNet(nn.Module):
    """The U-Net of pre-training with a 1x1 classifier on its half-resolution features."""

    def __init__(self, unet: UNet, classes: int) -> None:
        super().__init__()
        self.unet = unet
        self.classifier = nn.Conv2d(unet.channels, classes, kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in 0..1 -> class scores (B, classes, H, W)."""
        scores = self.classifier(self.unet(images))
        return F.interpolate(scores.float(), size=images.shape[-2:], mode="bilinear", align_corners=False)


def semantic_loss(scores: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy over labelled pixels: scores (B, K, H, W), label (B, H, W); 0 where every pixel is ignored."""
    total = F.cross_entropy(scores, label, ignore_index=IGNORED, reduction="sum")
    return total / (label != IGNORED).sum().clamp(min=1)


class SemanticScore(NamedTuple):
    """What one confusion matrix says; shares 0..1, NaN for a class that neither occurs nor is predicted."""

    miou: float  #: mean over the classes that occur in the ground truth
    accuracy: float  #: share of labelled pixels that are right
    iou: dict[str, float]  #: class name -> intersection over union


class Confusion:
    """Counts of (true, predicted) over any number of images, kept on the device."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.matrix: Tensor | None = None

    def update(self, predicted: Tensor, label: Tensor) -> None:
        """Add predictions and labels of one shape; ignored pixels are left out."""
        label, predicted = label.flatten().long(), predicted.flatten().long()
        spare = self.classes * self.classes
        code = torch.where(label == IGNORED, spare, label * self.classes + predicted)
        counts = torch.bincount(code, minlength=spare + 1)[:spare].view(self.classes, self.classes)
        self.matrix = counts if self.matrix is None else self.matrix + counts

    def score(self, names: Sequence[str]) -> SemanticScore:
        """IoU per class and its mean over classes that occur in the ground truth."""
        matrix = torch.zeros(self.classes, self.classes) if self.matrix is None else self.matrix
        matrix = matrix.double().cpu()
        hit, true, said = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        iou = hit / (true + said - hit)  # 0/0 is NaN: the class plays no part
        occurs = true > 0
        mean = float(iou[occurs].mean()) if bool(occurs.any()) else float("nan")
        return SemanticScore(mean, float(hit.sum() / matrix.sum()), dict(zip(names, iou.tolist(), strict=True)))
