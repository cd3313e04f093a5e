"""Base classes of downstream tasks: the training recipe, the meter of scores, and the task."""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from pri3d import __version__
from pri3d.api.finetune import FinetuneSettings, stated_finetuning
from pri3d.api.options import Options
from pri3d.data.sampler import Draw
from pri3d.drawing import draw_lines
from pri3d.errors import ConfigError, WeightsError
from pri3d.labelled import LabelledImages
from pri3d.labelled._shared.checks import check_images
from pri3d.networks.encoders import Encoder, build_encoder, encoder_of
from pri3d.networks.lora import merged_state
from pri3d.networks.state_files import read_state
from pri3d.networks.unet import UNet
from pri3d.networks.weights import save_state, stated_of

Own = TypeVar("Own", bound=Options)
T = TypeVar("T")
_TOGETHER = 8  # images that a GPU predicts at once
PIXELS = 8_000_000  #: that images in one batch have together at most; one alone may have more
_LINES = 8  # of a prediction in words that are drawn


class Recipe(ABC, Generic[Own]):
    """What the settings of a fine-tuning run mean: its network, its loss, its batches."""

    shown: ClassVar[tuple[str, ...]]  #: the scores, numbers of 0..1, that a comparison of runs shows

    def __init__(self, settings: FinetuneSettings, options: Own) -> None:
        self.settings, self.options = settings, options

    @abstractmethod
    def build(self, class_names: Sequence[str]) -> nn.Module:
        """Untrained network. Its attribute ``encoder`` is the :class:`pri3d.networks.encoders.Encoder` inside.

        It is that of :meth:`build_encoder`.
        """

    def build_encoder(self) -> Encoder:
        """Untrained encoder of the settings, with its own options."""
        return build_encoder(self.settings.encoder, options=self.settings.of_encoder)

    @abstractmethod
    def task(self, images: LabelledImages, rows: Sequence[int]) -> Task:
        """The task over the classes of the training images; ``rows`` are those that are trained on."""

    @abstractmethod
    def dataset(self, images: LabelledImages, rows: Sequence[int] | None, training: bool) -> Dataset[Any]:
        """Items of the images in ``rows`` (all for None), by :class:`pri3d.data.sampler.Draw`; augmented for training.

        A random choice in an item must derive from the draw, so that a continued run repeats it.
        """

    @staticmethod
    def collate(items: list[Any]) -> Any:
        """Items of the dataset -> batch. Stacks tensors unless a recipe has another way."""
        return default_collate(items)

    def unet(self, model: nn.Module) -> UNet | None:
        """Return the U-Net inside the network, which takes decoder and encoder of a pre-trained one; None without."""
        return None

    def check(self, images: LabelledImages, rows: Sequence[int]) -> list[str]:
        """Look through the images before hours are spent on them; here at class maps. Raises DataError.

        Returns lines that a reader of the scores must know, which are shown before the training begins.
        """
        return check_images(images, rows, objects=False)


class Meter(ABC):
    """Scores of a network on a data set, gathered batch by batch, perhaps by several processes.

    ``parts`` are what :meth:`result` is made of, on the CPU or on the network's device. Each process updates a meter of
    its own; of all processes together the parts are those of each, one after the other.
    """

    def __init__(self) -> None:
        self.parts: list[Any] = []

    @abstractmethod
    def update(self, model: nn.Module, batch: Any) -> None:
        """Add a batch of the recipe's ``dataset(..., training=False)``, with a model in eval mode and no gradients."""

    @abstractmethod
    def result(self) -> dict[str, Any]:
        """Scores of the parts: name -> number, or name -> class name -> number; NaN where there is nothing to score."""

    def state(self) -> list[Any]:
        """Return the parts on the CPU, to be sent to other processes."""
        return [part.cpu() if isinstance(part, Tensor) else part for part in self.parts]

    def merge(self, states: Iterable[list[Any]]) -> None:
        """Take the parts of all processes, this one's :meth:`state` among them, in the place of its own."""
        self.parts = [part for state in states for part in state]


class Predictions(ABC):
    """How a task keeps what it predicts of a labelled set in the files of a folder, and scores these files."""

    files: ClassVar[Sequence[str]]  #: names of those that depend on the network

    @property
    @abstractmethod
    def made_with(self) -> dict[str, Any]:
        """What the files depend on beside network, images and classes, as JSON keeps it."""

    @abstractmethod
    def write(
        self, task: Task, model: nn.Module, folder: Path, counted: Callable[[Iterable[Any]], Iterable[Any]]
    ) -> None:
        """Predict every image with a model in eval mode and write the files; ``counted`` shows how many are done."""

    @abstractmethod
    def score(self, folder: Path) -> dict[str, Any]:
        """Scores of the files as they lie there, against the truth of now. Raises DataError naming a damaged one."""


class Words(NamedTuple):
    """What a page calls a task, what it predicts, and its scores."""

    title: str = ""  #: a heading; the task's name where it is empty
    predicted: str = "Predictions"  #: what is seen in pictures
    remark: str = ""  #: what must be known of these pictures
    scores: Mapping[str, str] = {}  #: score -> its name, where that is another
    by_class: str = ""  #: which of the scores is class name -> number and is shown; empty: none


class Task(ABC):
    """One downstream task over given classes; networks are passed in, the task holds none.

    ``class_names`` are those that are predicted: of instance segmentation the countable ones alone. ``settings`` are
    those of the run; :meth:`save` needs them.
    """

    name: ClassVar[str]
    key: ClassVar[str]  #: which of the scores says which network is best; the larger the better
    recipe: ClassVar[type[Recipe[Any]]]  #: how it is trained
    options: ClassVar[type[Options]]  #: what of it can be set; from its fields come the flags --NAME.FIELD
    words: ClassVar[Words] = Words()
    enclosing: ClassVar[Sequence[str]] = ()  #: beginnings of the network's parameters that its file does without
    resolutions: ClassVar[Sequence[str]] = ("training",)  #: at which it can be evaluated, training or native
    protocols: ClassVar[Sequence[str]] = ()  #: by which it can be evaluated
    threshold: ClassVar[float | None] = None  #: usual least score 0..1 of a prediction; None: they have no scores
    first_id: ClassVar[int] = 0  #: of the first class in files of predictions
    colors_classes: ClassVar[bool] = (
        False  #: whether pictures are made of the classes' colours, which a legend explains
    )

    def __init__(self, class_names: Sequence[str], settings: FinetuneSettings | None = None) -> None:
        self.class_names, self.settings = list(class_names), settings

    @staticmethod
    @abstractmethod
    def names_of(images: LabelledImages) -> list[str]:
        """Class names of a labelled set for this task. Raises DataError where it has none."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss of a model in train mode on a batch, and named scalars to log."""

    @abstractmethod
    def meter(self, dataset: Dataset[Any]) -> Meter:
        """Return an empty meter for the images of a data set, as the recipe makes it for scoring."""

    @abstractmethod
    def predict(self, model: nn.Module, color: NDArray[np.uint8]) -> Any:
        """Predict one RGB image (H, W, 3) with a model in eval mode, in pixels of that image."""

    def predict_many(self, model: nn.Module, colors: Sequence[NDArray[np.uint8]]) -> list[Any]:
        """Predict several images as :meth:`predict` does, up to rounding; together where the task can."""
        return [self.predict(model, color) for color in colors]

    def measure(self, model: nn.Module, dataset: Dataset[Any], batch: int, workers: int = 0) -> dict[str, Any]:
        """Scores of a model on a whole data set, by :meth:`meter` in this process alone. Leaves the mode as it was."""
        meter = self.meter(dataset)
        with evaluating(model):
            for items in batches(dataset, batch, self.recipe.collate, workers):
                meter.update(model, items)
        return meter.result()

    def predictions(
        self, images: LabelledImages, settings: Mapping[str, Any], resolution: str, protocol: str
    ) -> Predictions | None:
        """How ``pri3d evaluate`` keeps predictions of a labelled set; None where it scores by :meth:`meter` instead.

        ``settings`` are those of the run, ``resolution`` and ``protocol`` of those that the class names.
        """
        return None

    def truth(self, images: LabelledImages, row: int) -> Any:
        """Return what is true of an image, in the form of a prediction; None where it has no such form."""
        return None

    def keep(self, found: Any, threshold: float) -> Any:
        """Return what of a prediction has a score of at least ``threshold``; asked where the class states one."""
        return found

    def record(self, found: Any) -> dict[str, Any]:
        """Return what the JSON file of an image says of a prediction. Raises ConfigError for what JSON cannot say."""
        value = found.tolist() if isinstance(found, Tensor | np.ndarray | np.generic) else found
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"predictions of task {self.name} cannot be written ({error}). Its class needs record() and draw()."
            ) from error
        return {"prediction": value}

    def extras(self, found: Any) -> dict[str, bytes]:
        """Further files of an image's prediction: what ends their names, such as .png, -> content."""
        return {}

    def draw(self, color: NDArray[np.uint8], found: Any) -> NDArray[np.uint8]:
        """Prediction of an image (H, W, 3) -> RGB picture of any size to look at; here its record under the image."""
        value = self.record(found)["prediction"]
        items = value.items() if isinstance(value, Mapping) else [("", value)]
        numbers = [(name, x) for name, x in items if isinstance(x, int | float)]
        lines = [f"{name} {x:.3g}" for name, x in sorted(numbers, key=lambda pair: -pair[1])] or [str(value)]
        return draw_lines(color, lines[:_LINES])

    def panels(self, color: NDArray[np.uint8], truth: Any, found: Mapping[str, Any]) -> dict[str, NDArray[np.uint8]]:
        """Pictures of an image side by side: ``image`` where it is shown, ``ground truth``, and each prediction."""
        shown = found if truth is None else {"ground truth": truth, **found}
        return {"image": color, **{name: self.draw(color, one) for name, one in shown.items()}}

    def save(self, model: nn.Module, path: Path, record: dict[str, Any]) -> None:
        """Write the network as safetensors so that :meth:`load` rebuilds it; ``record`` is its provenance.

        Adapters are merged. The file states the settings, from which the network is built again.
        """
        if self.settings is None:
            raise TypeError(f"{type(self).__name__} was created without settings: pass them to its constructor.")
        stated = {
            "settings": self.settings.stated(),
            "task": self.name,
            "network": self.settings.network,
            **stated_of(encoder_of(model)),
            "class_names": self.class_names,
        }
        state = {self._in_file(key): value for key, value in merged_state(model).items()}
        save_state(state, path, {"version": __version__, **record, **stated})

    @classmethod
    def load(cls, path: Path, record: dict[str, Any]) -> tuple[Task, nn.Module]:
        """Rebuild what :meth:`save` wrote, on the CPU in eval mode. Raises WeightsError where it does not fit."""
        try:
            settings = stated_finetuning(cls.name, cls.stated_settings(record))
            task = cls([str(name) for name in record["class_names"]], settings)
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise WeightsError(f"{path} does not state how its network is built ({error}): fine-tune again") from error
        recipe, state = cls.recipe(settings, settings.own[cls.name]), read_state(path)
        try:
            # Before anything of that size is made: a damaged header may claim any number.
            try:
                with torch.device("meta"):
                    own = recipe.build(task.class_names).state_dict()
            except RuntimeError as error:  # NotImplementedError is one
                if "meta" not in str(error):
                    raise
                own = recipe.build(task.class_names).state_dict()  # it asks for numbers while it is built
            names = {cls._in_file(key): key for key in own}
            wrong = [key for key in {**names, **state} if key not in names or key not in state]
            wrong += [key for key, value in state.items() if key in names and value.shape != own[names[key]].shape]
            if wrong:
                raise WeightsError(
                    f"{path} does not fit the network its header names: {len(wrong)} tensors are missing, too many or "
                    f"of another shape ({', '.join(wrong[:5])})"
                )
            model = recipe.build(task.class_names)
            model.load_state_dict({names[key]: value for key, value in state.items()})
        except (RuntimeError, TypeError, ConfigError) as error:
            raise WeightsError(f"{path} does not fit the network its header names: {error}") from error
        return task, model.eval()

    @classmethod
    def stated_settings(cls, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings that a file's record states. Raises KeyError where it does not."""
        return dict(record["settings"])

    @classmethod
    def _in_file(cls, key: str) -> str:
        for prefix in cls.enclosing:
            key = key.removeprefix(prefix)
        return key


def prediction_batch(model: nn.Module) -> int:
    """How many images are predicted together: one on a CPU, which gains nothing by more."""
    return 1 if next(model.parameters()).device.type == "cpu" else _TOGETHER


def in_groups(items: Iterable[T], most: int, pixels: Callable[[T], int] = lambda _item: 0) -> Iterator[list[T]]:
    """Items in lists of ``most``, or of fewer where they have more than ``PIXELS`` together or none is left."""
    group: list[T] = []
    total = 0
    for item in items:
        size = pixels(item)
        if group and (len(group) == most or total + size > PIXELS):
            yield group
            group, total = [], 0
        group.append(item)
        total += size
    if group:
        yield group


def batches(
    dataset: Dataset[Any],
    batch: int,
    collate: Callable[[list[Any]], Any],
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Any]:
    """Every item of a data set once and in order, ``batch`` at a time; of several processes each gets its share.

    ``workers`` processes read ahead. No item comes twice: the shares may differ by one.
    """
    draws = [Draw(0, k) for k in range(rank, len(dataset), world)]  # type: ignore[arg-type]
    fork = "fork" if workers and sys.platform == "linux" else None  # elsewhere each imports everything again
    return iter(
        DataLoader(dataset, batch, sampler=draws, collate_fn=collate, num_workers=workers, multiprocessing_context=fork)
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[torch.device]:
    """A model in eval mode without gradients, and the device it is on. Leaves the mode as it was."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield next(model.parameters()).device
    finally:
        model.train(training)
