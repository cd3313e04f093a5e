"""Semantic segmentation with the pre-trained U-Net (paper section 5.1): head, loss, confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pri3d.errors import WeightsError
from pri3d.models.unet import UNet, build_unet
from pri3d.models.weights import read_provenance, read_state, save_state

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


def save_semantic(model: SemanticUNet, path: Path, class_names: Sequence[str], provenance: Mapping[str, Any]) -> None:
    """Write a fine-tuned network; its encoder and decoder keep the keys of a pre-trained model's file."""
    unet = model.unet
    built = {"encoder": unet.encoder.name, "decoder": unet.decoder_name, "channels": unet.channels}
    state = unet.state_dict() | {f"classifier.{key}": value for key, value in model.classifier.state_dict().items()}
    save_state(state, path, {**provenance, **built, "task": "semantic", "class_names": list(class_names)})


def load_semantic(path: Path) -> tuple[SemanticUNet, list[str]]:
    """Rebuild a fine-tuned network from its file or run folder: on the CPU in eval mode, and its class names.

    Raises WeightsError where the file holds something else.
    """
    record = read_provenance(path)
    if record.get("task") != "semantic":
        raise WeightsError(f"{path}: not a semantic model. Give the run folder of `pri3d finetune semantic`.")
    names = list(record["class_names"])
    model = SemanticUNet(build_unet(record["encoder"], record["decoder"], record["channels"]), len(names))
    state = {key if key.startswith("classifier.") else f"unet.{key}": value for key, value in read_state(path).items()}
    model.load_state_dict(state)
    return model.eval(), names
