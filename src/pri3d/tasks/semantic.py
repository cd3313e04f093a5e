"""Semantic segmentation (paper section 5.1): loss, class weights, confusion matrix, predictions, files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from pri3d.api.options import Options, option
from pri3d.data.augment import recipe, to_tensor
from pri3d.data.labelled import LabelledDataset, LabelledItem, collate
from pri3d.errors import ConfigError, DataError, WeightsError
from pri3d.geometry.resize import parse_size, resize_color
from pri3d.labelled import LabelledImages
from pri3d.labelled.spaces import IGNORED
from pri3d.networks.encoders import build_encoder
from pri3d.networks.lora import merged_state
from pri3d.networks.segmentation import SegmentationNet, build_segmentation
from pri3d.networks.unet import UNet
from pri3d.networks.weights import read_provenance, read_state, save_state
from pri3d.tasks import Meter, Recipe, Task, rebuild
from pri3d.types import LabelledBatch

AUXILIARY_WEIGHT = 0.4  #: of the auxiliary loss (PSPNet, arXiv 1612.01105, section 4.1)
_HEADS = ("classifier.", "auxiliary.")  #: parts of the network that are not in its body


class SemanticOptions(Options):
    """Semantic segmentation."""

    group = "semantic"
    networks: ClassVar[tuple[str, ...]] = ("unet", "pspnet", "deeplabv3", "deeplabv3plus")

    size: str = option("size of the images, WIDTHxHEIGHT in pixels", default="320x240")
    decoder: Literal["paper", "slim"] = option(
        "decoder of a unet, for weights that do not name theirs: paper or slim", default="paper"
    )
    channels: int = option(
        "channels of a unet's feature map, for weights that do not name theirs", default=128, least=1
    )
    class_weights: Literal["none", "balanced"] = option(
        "weights of the cross-entropy: none, or balanced by the classes' frequency", default="none"
    )

    def conflicts(self, settings: Any) -> list[str]:
        """A network of another task, and batches too small for a network's norms."""
        if settings.network not in self.networks:
            return [f"--network {settings.network}: choose one of {', '.join(self.networks)}"]
        least = 1 if settings.network == "unet" else 2
        few = settings.micro_batch < least
        text = f"--micro-batch {settings.micro_batch}: {settings.network} needs {least} images a pass for its norms"
        return [text] if few else []


class SemanticRecipe(Recipe[SemanticOptions]):
    """Semantic segmentation."""

    shown = ("miou", "accuracy")

    @staticmethod
    def collate(items: list[LabelledItem]) -> LabelledBatch:
        """Stacked images and class maps."""
        return collate(items)

    def build(self, class_names: Sequence[str]) -> SegmentationNet:
        """U-Net, PSPNet, DeepLabV3 or DeepLabV3+."""
        s, o = self.settings, self.options
        return build_segmentation(s.network, build_encoder(s.encoder), len(class_names), o.decoder, o.channels)

    def task(self, images: LabelledImages, rows: Sequence[int]) -> SemanticTask:
        """Cross-entropy, with weights by frequency where the settings ask for them."""
        names = SemanticTask.names_of(images)
        weights = None
        if self.options.class_weights == "balanced":
            weights = class_weights(count_classes(images, rows, len(names)))
        return SemanticTask(names, parse_size(self.options.size), weights)

    def dataset(self, images: LabelledImages, rows: Sequence[int] | None, training: bool) -> LabelledDataset:
        """Images and class maps of one size."""
        s = self.settings
        size = parse_size(self.options.size)
        if not training:
            return LabelledDataset(images, size, rows)
        return LabelledDataset(images, size, rows, s.seed, recipe(s.augment), s.mirror)


class SemanticTask(Task):
    """A class for every pixel.

    Args:
        class_names: of the ids 0.. in label maps.
        size: (width, height) of the images the network is trained on; predictions are made at this size. None for
            each image's own.
        weights: of the classes in the loss, see :func:`class_weights`; None for all alike.

    Raises ConfigError for weights that are not one per class, negative or not finite.
    """

    name: ClassVar[str] = "semantic"
    key: ClassVar[str] = "miou"
    recipe = SemanticRecipe
    options = SemanticOptions

    def __init__(
        self,
        class_names: Sequence[str],
        size: tuple[int, int] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(class_names)
        self.size = size
        if weights is not None and (
            len(weights) != len(self.class_names) or not all(0 <= weight < math.inf for weight in weights)
        ):
            raise ConfigError(
                f"class weights {list(weights)}: give one of 0 or more for each of the {len(self.class_names)} classes."
            )
        self.weights = None if weights is None else torch.tensor(weights, dtype=torch.float32)

    @staticmethod
    def names_of(images: LabelledImages) -> list[str]:
        """Names of all classes. Raises DataError for a set without class maps."""
        if type(images).label is LabelledImages.label or not images.class_names:
            raise DataError(f"{images.path}: has no class maps, which semantic segmentation needs.")
        return list(images.class_names)

    def loss(self, model: nn.Module, batch: LabelledBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of a :class:`SegmentationNet` over labelled pixels, plus 0.4 times each auxiliary one."""
        if self.weights is not None and self.weights.device != batch.label.device:
            self.weights = self.weights.to(batch.label.device)  # once: each copy would wait for the device
        main, *auxiliary = (
            semantic_loss(scores, batch.label, self.weights) for scores in _network(model).forward_all(batch.color)
        )
        if not auxiliary:
            return main, {}
        extra = torch.stack(auxiliary).sum()
        return main + AUXILIARY_WEIGHT * extra, {"main": main.detach(), "auxiliary": extra.detach()}

    def meter(self, dataset: Dataset[Any]) -> Confusion:
        """``miou``, ``accuracy`` and ``iou`` per class as :class:`SemanticScore`."""
        return Confusion(self.class_names)

    @torch.no_grad()
    def predict(self, model: nn.Module, color: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """RGB (H, W, 3) -> class ids (H, W); scores of the training size are enlarged before the best is taken."""
        height, width = color.shape[:2]
        device = next(model.parameters()).device
        image = to_tensor(resize_color(color, self.size or (width, height))).to(device).float() / 255
        scores = model(image[None])
        if scores.shape[-2:] != (height, width):
            scores = F.interpolate(scores, size=(height, width), mode="bilinear", align_corners=False)
        classes: NDArray[np.uint8] = scores[0].argmax(dim=0).to(torch.uint8).cpu().numpy()
        return classes

    def save(self, model: nn.Module, path: Path, record: dict[str, Any]) -> None:
        """Write a :class:`SegmentationNet`, see :func:`save_semantic`; the task's size goes into the record."""
        size = {} if self.size is None else {"size": f"{self.size[0]}x{self.size[1]}"}
        save_semantic(_network(model), path, self.class_names, {**record, **size})

    @classmethod
    def load(cls, path: Path, record: dict[str, Any]) -> tuple[SemanticTask, SegmentationNet]:
        """Rebuild task and network from a file or run folder and its record: on the CPU, in eval mode.

        Raises WeightsError where the file holds something else.
        """
        if record.get("task") != cls.name:
            raise WeightsError(f"{path}: not a semantic model. Give the run folder of `pri3d finetune semantic`.")
        network = str(record.get("network"))
        needed = ["network", "encoder", "class_names", *(("decoder", "channels") if network == "unet" else ())]
        if absent := [key for key in needed if key not in record]:
            raise WeightsError(f"{path} does not say its {', '.join(absent)}: it is damaged, copy it again")
        size = parse_size(str(record["size"])) if "size" in record else None
        task = cls([str(name) for name in record["class_names"]], size)
        decoder, channels = str(record.get("decoder", "paper")), int(record.get("channels", 32))  # the U-Net's
        name, classes = str(record["encoder"]), len(task.class_names)
        state = {k if k.startswith(_HEADS) else f"body.{k}": value for k, value in read_state(path).items()}
        if network == "unet" and channels not in {
            int(v.shape[1]) for k, v in state.items() if k == "classifier.weight"
        }:
            # Looked up before anything of that size is made: a damaged header may claim any number.
            raise WeightsError(
                f"{path} does not fit the network its header names: no classifier of {channels} channels"
            )
        build = partial(build_segmentation, network, classes=classes, decoder=decoder, channels=channels)
        return task, rebuild(lambda: build(encoder=build_encoder(name)), state, path)


def semantic_loss(scores: Tensor, label: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy over labelled pixels: scores (B, K, H, W), label (B, H, W), 255 = ignored.

    The mean, with ``weights`` (K,) that weighted by the weight of each pixel's class; 0 where no pixel counts.
    """
    total = F.cross_entropy(scores, label, weights, ignore_index=IGNORED, reduction="sum")
    kept = label != IGNORED
    if weights is None:
        return total / kept.sum().clamp(min=1)
    mass = (weights[label.where(kept, 0)] * kept).sum()
    return total / mass.clamp(min=torch.finfo(mass.dtype).tiny)


class ClassCounts(NamedTuple):
    """How often each of K classes occurs in a set."""

    pixels: NDArray[np.int64]  #: (K,) of the class
    around: NDArray[np.int64]  #: (K,) labelled pixels of all images in which the class occurs


def count_classes(images: LabelledImages, rows: Sequence[int] | None, classes: int) -> ClassCounts:
    """Count the classes in the label maps of ``rows`` (all for None), at their own size; 255 is left out."""
    pixels, around = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    for row in range(len(images.names)) if rows is None else rows:
        counts = np.bincount(images.label(row).ravel(), minlength=256)[:classes]
        pixels += counts
        around += np.where(counts > 0, counts.sum(), 0)
    return ClassCounts(pixels, around)


def class_weights(counts: ClassCounts) -> list[float]:
    """Weights (K,) by median frequency balancing: the median of the classes' frequencies over each one's own.

    A frequency is the share of the class in the images it occurs in (Eigen and Fergus 2015, section 6.3.2). A class
    that never occurs weighs 1. Raises DataError where none occurs.
    """
    present = counts.pixels > 0
    if not present.any():
        raise DataError("no class occurs in the training labels, so there is nothing to balance. Check the label maps.")
    weights = np.ones(len(counts.pixels))
    frequency = counts.pixels[present] / counts.around[present]
    weights[present] = np.median(frequency) / frequency
    return [float(weight) for weight in weights]


class SemanticScore(NamedTuple):
    """What one confusion matrix says; shares 0..1, NaN for a class that neither occurs nor is predicted."""

    miou: float  #: mean over the classes that occur in the ground truth
    accuracy: float  #: share of labelled pixels that are right
    classes: int  #: that occur in the ground truth
    iou: dict[str, float]  #: class name -> intersection over union


class Confusion(Meter):
    """Counts of (true, predicted) over any number of images, kept on the device."""

    def __init__(self, class_names: Sequence[str]) -> None:
        super().__init__()
        self.class_names = list(class_names)

    def update(self, model: nn.Module, batch: LabelledBatch) -> None:
        """Add what a network predicts of a batch."""
        device = next(model.parameters()).device
        self.add(model(batch.color.to(device)).argmax(dim=1), batch.label.to(device))

    def add(self, predicted: Tensor, label: Tensor) -> None:
        """Add predictions and labels of one shape; ignored pixels are left out."""
        label, predicted = label.flatten().long(), predicted.flatten().long()
        classes = len(self.class_names)
        spare = classes * classes
        code = torch.where(label == IGNORED, spare, label * classes + predicted)
        counts = torch.bincount(code, minlength=spare + 1)[:spare].view(classes, classes)
        self.parts = [counts + sum(self.parts)]

    def score(self) -> SemanticScore:
        """IoU per class and its mean over classes that occur in the ground truth."""
        classes = len(self.class_names)
        matrix = sum((part.double().cpu() for part in self.parts), torch.zeros(classes, classes, dtype=torch.float64))
        hit, true, said = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        iou = hit / (true + said - hit)  # 0/0 is NaN: the class plays no part
        occurs = true > 0
        mean = float(iou[occurs].mean()) if bool(occurs.any()) else float("nan")
        iou_by_name = dict(zip(self.class_names, iou.tolist(), strict=True))
        return SemanticScore(mean, float(hit.sum() / matrix.sum()), int(occurs.sum()), iou_by_name)

    def result(self) -> dict[str, Any]:
        """``miou``, ``accuracy``, and ``iou`` by class."""
        score = self.score()
        return {"miou": score.miou, "accuracy": score.accuracy, "iou": score.iou}


def save_semantic(
    model: SegmentationNet, path: Path, class_names: Sequence[str], provenance: Mapping[str, Any]
) -> None:
    """Write a fine-tuned network: keys ``encoder.*``, ``decoder.*``, ``classifier.*``, of PSPNet ``auxiliary.*`` too.

    Encoder and, of a U-Net, decoder keep the keys of a pre-trained model's file. Adapters are merged into the weights.
    """
    body = model.body
    built: dict[str, Any] = {"network": model.network, "encoder": body.encoder.name}
    if isinstance(body, UNet):
        built |= {"decoder": body.decoder_name, "channels": body.channels}
    state = {key.removeprefix("body."): value for key, value in merged_state(model).items()}
    save_state(state, path, {**provenance, **built, "task": SemanticTask.name, "class_names": list(class_names)})


def load_semantic(path: Path) -> tuple[SegmentationNet, list[str]]:
    """Rebuild a fine-tuned network from its file or run folder: on the CPU in eval mode, and its class names.

    Raises WeightsError where the file holds something else.
    """
    task, model = SemanticTask.load(path, read_provenance(path))
    return model, task.class_names


def _network(model: nn.Module) -> SegmentationNet:
    if not isinstance(model, SegmentationNet):
        raise TypeError(f"a semantic task needs a SegmentationNet, not a {type(model).__name__}.")
    return model
