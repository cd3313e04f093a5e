"""Semantic segmentation (paper section 5.1): loss, class weights, confusion matrix, predictions, files."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from pri3d.api.finetune import FinetuneSettings
from pri3d.api.options import Options, option
from pri3d.data.augment import recipe, to_tensor
from pri3d.data.labelled import LabelledDataset, LabelledItem, collate
from pri3d.data.reading import read_ahead
from pri3d.drawing import color_labels, draw_classes, palette
from pri3d.errors import ConfigError, DataError
from pri3d.files.archive import ImageArchive, encode
from pri3d.files.atomic import replacing
from pri3d.geometry.resize import parse_size, resize_color, resize_nearest
from pri3d.labelled import LabelledImages
from pri3d.labelled.spaces import IGNORED
from pri3d.networks.segmentation import SegmentationNet, build_segmentation
from pri3d.networks.unet import UNet
from pri3d.tasks.base import Meter, Predictions, Recipe, Task, Words, in_groups, prediction_batch
from pri3d.types import LabelledBatch

AUXILIARY_WEIGHT = 0.4  #: of the auxiliary loss (PSPNet, arXiv 1612.01105, section 4.1)


class SemanticOptions(Options):
    """Semantic segmentation."""

    group = "semantic"
    networks: ClassVar[tuple[str, ...]] = ("unet", "pspnet", "deeplabv3", "deeplabv3plus")

    size: str = option("size of the images, WIDTHxHEIGHT in pixels", default="320x240")
    decoder: Literal["paper", "slim"] = option(
        "decoder of a unet, for weights that do not state theirs: paper or slim", default="paper"
    )
    channels: int | Literal["auto"] = option(
        "channels of a unet's feature map, for weights that do not state theirs; auto: 128 if the encoder's last "
        "map has 2048 (ResNet-50), else 32",
        default="auto",
    )
    class_weights: Literal["none", "balanced"] = option(
        "class weights of the cross-entropy: none, or balanced by class frequency", default="none"
    )

    def problems(self) -> list[str]:
        """Everything wrong with the numbers, each with its flag."""
        few = isinstance(self.channels, int) and self.channels < 1
        return [
            *super().problems(),
            *([f"--semantic.channels {self.channels}: give at least 1, or auto"] if few else []),
        ]

    def conflicts(self, settings: Any) -> list[str]:
        """A network of another task, and batches too small for a network's norms."""
        if settings.network not in self.networks:
            return [f"--network {settings.network}: choose one of {', '.join(self.networks)}"]
        least = 1 if settings.network == "unet" else 2
        few = settings.micro_batch < least
        needed = f"{settings.network} needs {least} images per pass for its batch norms"
        text = f"--micro-batch {settings.micro_batch}: {needed}"
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
        return build_segmentation(s.network, self.build_encoder(), len(class_names), o.decoder, o.channels)

    def unet(self, model: nn.Module) -> UNet | None:
        """Everything but the classifier of a U-Net."""
        body = _network(model).body
        return body if isinstance(body, UNet) else None

    def task(self, images: LabelledImages, rows: Sequence[int]) -> SemanticTask:
        """Cross-entropy, with weights by frequency where the settings ask for them."""
        names = SemanticTask.names_of(images)
        weights = None
        if self.options.class_weights == "balanced":
            weights = class_weights(count_classes(images, rows, len(names)))
        return SemanticTask(names, self.settings, weights)

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
        settings: of the run. Predictions are made at its size; without settings at each image's own.
        weights: of the classes in the loss, see :func:`class_weights`; None for all alike.

    Raises ConfigError for weights that are not one per class, negative or not finite.
    """

    name: ClassVar[str] = "semantic"
    key: ClassVar[str] = "miou"
    recipe = SemanticRecipe
    options = SemanticOptions
    words = Words(
        "Semantic segmentation",
        "Segmentations",
        scores={"miou": "mIoU", "accuracy": "pixel accuracy", "iou": "IoU"},
        by_class="iou",
    )
    enclosing = ("body.",)
    resolutions = ("training", "native")
    colors_classes = True

    def __init__(
        self,
        class_names: Sequence[str],
        settings: FinetuneSettings | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(class_names, settings)
        self.size = None if settings is None else parse_size(settings.own[self.name].size)
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
        maps = _network(model)(batch.color, every=True)  # the call is what torch.compile replaces
        main, *auxiliary = (semantic_loss(scores, batch.label, self.weights) for scores in maps)
        if not auxiliary:
            return main, {}
        extra = torch.stack(auxiliary).sum()
        return main + AUXILIARY_WEIGHT * extra, {"main": main.detach(), "auxiliary": extra.detach()}

    def meter(self, dataset: Dataset[Any]) -> Confusion:
        """``miou``, ``accuracy`` and ``iou`` per class as :class:`SemanticScore`."""
        return Confusion(self.class_names)

    def predict(self, model: nn.Module, color: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """RGB (H, W, 3) -> class ids (H, W); scores of the training size are enlarged before the best is taken."""
        return self._predict_together(model, [color])[0]

    def predict_many(self, model: nn.Module, colors: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        """:meth:`predict` of several images; those of one size go through the network together."""
        if type(self).predict is not SemanticTask.predict:  # a task of another package, which may ask this class's
            return super().predict_many(model, colors)
        return self._predict_together(model, colors)

    @torch.no_grad()
    def _predict_together(self, model: nn.Module, colors: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        device = next(model.parameters()).device
        images = [to_tensor(resize_color(color, self.size or (color.shape[1], color.shape[0]))) for color in colors]
        found: dict[int, NDArray[np.uint8]] = {}
        for shape in dict.fromkeys(image.shape for image in images):
            places = [k for k, image in enumerate(images) if image.shape == shape]
            every = model(torch.stack([images[k] for k in places]).to(device).float() / 255)
            for k, scores in zip(places, every.split(1), strict=True):
                size = colors[k].shape[:2]
                if scores.shape[-2:] != size:
                    scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)  # noqa: PLW2901
                found[k] = scores[0].argmax(dim=0).to(torch.uint8).cpu().numpy()
        return [found[k] for k in range(len(colors))]

    def predictions(
        self, images: LabelledImages, settings: Mapping[str, Any], resolution: str, protocol: str
    ) -> ClassMaps:
        """Class maps, compared with the labels at the training's size or at each image's own."""
        return ClassMaps(images, self.class_names, self.size if resolution == "training" else None)

    def truth(self, images: LabelledImages, row: int) -> NDArray[np.uint8]:
        """Class map of an image."""
        return images.label(row)

    def record(self, found: NDArray[np.uint8]) -> dict[str, Any]:
        """Share of each class."""
        shares = np.bincount(found.ravel(), minlength=len(self.class_names)) / found.size
        named = zip(self.class_names, shares, strict=False)
        return {"classes": {name: round(float(share), 6) for name, share in named}}

    def extras(self, found: NDArray[np.uint8]) -> dict[str, bytes]:
        """Class ids as a PNG that viewers show in the classes' colours and programs read as ids."""
        image = Image.fromarray(found)
        image.putpalette(palette(self.class_names).tobytes())
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return {".png": buffer.getvalue()}

    def draw(self, color: NDArray[np.uint8], found: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Classes over the image, and a legend."""
        return draw_classes(color, found, self.class_names)

    def panels(
        self, color: NDArray[np.uint8], truth: NDArray[np.uint8] | None, found: Mapping[str, Any]
    ) -> dict[str, NDArray[np.uint8]]:
        """Maps in the classes' colours; without ground truth, where right and wrong are not defined, all are black."""
        shown: dict[str, NDArray[np.integer]] = dict(found)
        if truth is not None:
            masked = {name: np.where(truth == IGNORED, IGNORED, one) for name, one in found.items()}
            shown = {"ground truth": truth, **masked}
        return {"image": color, **{name: color_labels(one, self.class_names) for name, one in shown.items()}}

    def save(self, model: nn.Module, path: Path, record: dict[str, Any]) -> None:
        """Write a :class:`SegmentationNet`; of a U-Net the file is that of a pre-trained one with a classifier."""
        body = _network(model).body
        built = {"decoder": body.decoder_name, "channels": body.channels} if isinstance(body, UNet) else {}
        super().save(model, path, {**record, **built})

    @classmethod
    def stated_settings(cls, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a file states. One of version 0.1 states what its network is built of, and no settings."""
        if "settings" in record:
            return super().stated_settings(record)
        stated = {name: record[name] for name in ("network", "encoder")}
        stated |= {name: record[name] for name in ("decoder", "channels", "size") if name in record}
        return stated


class ClassMaps(Predictions):
    """One PNG of class ids per image, in a stored zip; the truth is read from the data set."""

    files = ("predictions.zip",)

    def __init__(self, images: LabelledImages, class_names: Sequence[str], size: tuple[int, int] | None) -> None:
        """``size``: (width, height) at which maps are predicted and compared; None for each image's own."""
        self.images, self.class_names, self.size = images, class_names, size

    @property
    def made_with(self) -> dict[str, Any]:
        """The size."""
        return {"size": None if self.size is None else list(self.size)}

    def write(
        self, task: Task, model: nn.Module, folder: Path, counted: Callable[[Iterable[Any]], Iterable[Any]]
    ) -> None:
        """Write the class maps."""
        with replacing(folder / self.files[0]) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            colors = read_ahead(range(len(self.images.names)), self._color)
            named = zip(self.images.names, counted(colors), strict=True)
            for group in in_groups(named, prediction_batch(model), lambda item: item[1][..., 0].size):
                found = task.predict_many(model, [color for _, color in group])
                for (name, _), classes in zip(group, found, strict=True):
                    archive.writestr(zipfile.ZipInfo(f"{name}.png"), encode(classes, "PNG"))

    def score(self, folder: Path) -> dict[str, Any]:
        """MIoU, accuracy and IoU per class, one confusion matrix for all images."""
        archive = ImageArchive(folder / self.files[0], "Delete it and evaluate again.")
        confusion = Confusion(self.class_names)
        for row, name in enumerate(self.images.names):
            label = self.images.label(row)
            truth = label if self.size is None else resize_nearest(label, self.size)
            predicted = archive.read([f"{name}.png"], (truth.shape[1], truth.shape[0]))[0]
            confusion.add(torch.from_numpy(predicted), torch.from_numpy(truth))
        return confusion.result()

    def _color(self, row: int) -> NDArray[np.uint8]:
        color = self.images.color(row)
        return color if self.size is None else resize_color(color, self.size)


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
        raise DataError(
            "no class occurs in the training labels, so class weights cannot be balanced. Check the label maps."
        )
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


def _network(model: nn.Module) -> SegmentationNet:
    if not isinstance(model, SegmentationNet):
        raise TypeError(f"a semantic task needs a SegmentationNet, not a {type(model).__name__}.")
    return model
