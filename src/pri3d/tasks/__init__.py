"""Downstream tasks: how a network on a backbone is trained, what it predicts and how that is scored.

A task is one file: its options, a class of fields, a :class:`Recipe` that says what they mean, and a :class:`Task`. Its
presets lie beside it in ``presets/NAME``. To add one, write such a file and one line in ``registry.TASKS`` (or an entry
point ``pri3d.tasks``).
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from pri3d import __version__, registry
from pri3d.api.finetune import FinetuneSettings, stated_finetuning
from pri3d.api.options import Options
from pri3d.data.sampler import Draw
from pri3d.errors import ConfigError, WeightsError
from pri3d.labelled import LabelledImages
from pri3d.labelled._shared.checks import check_images
from pri3d.networks.encoders import encoder_of
from pri3d.networks.lora import merged_state
from pri3d.networks.weights import read_provenance, read_state, save_state

N = TypeVar("N", bound=nn.Module)
Own = TypeVar("Own", bound=Options)
_LISTED = 5  # names that a message lists


class Recipe(ABC, Generic[Own]):
    """What the settings of a fine-tuning run mean: its network, its loss, its batches."""

    shown: ClassVar[tuple[str, ...]]  #: the scores, numbers of 0..1, that a comparison of runs shows

    def __init__(self, settings: FinetuneSettings, options: Own) -> None:
        self.settings, self.options = settings, options

    @abstractmethod
    def build(self, class_names: Sequence[str]) -> nn.Module:
        """Untrained network. Its attribute ``encoder`` is the :class:`pri3d.networks.encoders.Encoder` inside."""

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

    def check(self, images: LabelledImages, rows: Sequence[int]) -> None:
        """Look through the images before hours are spent on them; here at class maps. Raises DataError."""
        check_images(images, rows, objects=False)


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


class Task(ABC):
    """One downstream task over given classes; networks are passed in, the task holds none.

    ``class_names`` are those that are predicted: of instance segmentation the countable ones alone. ``settings`` are
    needed by the :meth:`save` that stands here.
    """

    name: ClassVar[str]
    key: ClassVar[str]  #: which of the scores says which network is best; the larger the better
    recipe: ClassVar[type[Recipe[Any]]]  #: how it is trained
    options: ClassVar[type[Options]]  #: what of it can be set; from its fields come the flags --NAME.FIELD

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

    def measure(self, model: nn.Module, dataset: Dataset[Any], batch: int, workers: int = 0) -> dict[str, Any]:
        """Scores of a model on a whole data set, by :meth:`meter` in this process alone. Leaves the mode as it was."""
        meter = self.meter(dataset)
        with evaluating(model):
            for items in batches(dataset, batch, self.recipe.collate, workers):
                meter.update(model, items)
        return meter.result()

    @abstractmethod
    def predict(self, model: nn.Module, color: NDArray[np.uint8]) -> Any:
        """Predict one RGB image (H, W, 3) with a model in eval mode, in pixels of that image.

        Semantic: class ids (H, W) uint8. Instance: :class:`pri3d.types.Detections`. Another task may return anything;
        ``pri3d predict`` draws class ids.
        """

    def save(self, model: nn.Module, path: Path, record: dict[str, Any]) -> None:
        """Write the network as safetensors so that :func:`load_task` rebuilds it; ``record`` is its provenance.

        Adapters are merged. Here the file states the settings, from which :meth:`load` builds the network again.
        """
        if self.settings is None:
            raise TypeError(f"{type(self).__name__} was made without settings: hand them to Task.__init__().")
        built = {"task": self.name, "encoder": encoder_of(model).name, "class_names": self.class_names}
        stated = {"settings": self.settings.stated(), **built}
        save_state(merged_state(model), path, {"version": __version__, **record, **stated})

    @classmethod
    def load(cls, path: Path, record: dict[str, Any]) -> tuple[Task, nn.Module]:
        """Rebuild what :meth:`save` wrote, on the CPU in eval mode. Raises WeightsError where it does not fit."""
        try:
            settings = stated_finetuning(cls.name, record["settings"])
            task = cls([str(name) for name in record["class_names"]], settings)
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise WeightsError(f"{path} does not say how its network is built ({error}): fine-tune again") from error
        return task, rebuild(
            lambda: cls.recipe(settings, settings.own[cls.name]).build(task.class_names), read_state(path), path
        )


def find_task(name: str) -> type[Task]:
    """Task of a name: a built-in one or that of an installed package. Raises ConfigError, listing the choices."""
    found: type[Task] = registry.load("tasks", registry.TASKS, name)
    if found.name != name:
        raise ConfigError(f"task {name!r}: its class {found.__name__} has the name {found.name!r}. Make them one.")
    return found


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


def rebuild(build: Callable[[], N], state: Mapping[str, Tensor], path: Path) -> N:
    """Build a network, fill it with ``state`` and put it in eval mode. Raises WeightsError where it does not fit."""
    try:
        model = build()
        model.load_state_dict(state)
    except (RuntimeError, ConfigError) as error:
        raise WeightsError(f"{path} does not fit the network its header names: {error}") from error
    return model.eval()


class Trained(NamedTuple):
    """A network that was fine-tuned."""

    task: Task
    model: nn.Module  #: on the CPU, in eval mode
    record: dict[str, Any]  #: what the file says of itself


def load_task(path: Path) -> Trained:
    """Read the network of a fine-tuning run's folder, or of one of its weights files.

    Raises WeightsError where the file holds something else, ConfigError where its task is not installed.
    """
    record = read_provenance(path)
    if "task" not in record:
        raise WeightsError(f"{path}: not a fine-tuned network. Give the run folder of `pri3d finetune`.")
    task, model = find_task(str(record["task"])).load(path, record)
    return Trained(task, model, record)


def differing(first: Sequence[str], second: Sequence[str]) -> str:
    """What is different between two lists of class names, for a message; empty where nothing is.

    Such as "the first alone has lamp, rug; the second alone has wall, bed, desk, door, sofa and 8 more", or where one
    is the other in another order, the first class that is not the same.
    """
    parts = [
        f"the {which} alone has {_some(list((Counter(own) - Counter(other)).elements()))}"
        for which, own, other in (("first", first, second), ("second", second, first))
        if Counter(own) - Counter(other)
    ]
    if not parts:  # one list is the other in another order
        parts = [f"class {k} is {a} in the first and {b} in the second" for k, (a, b) in _moved(first, second)][:1]
    return "; ".join(parts)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _moved(first: Sequence[str], second: Sequence[str]) -> list[tuple[int, tuple[str, str]]]:
    """Positions at which two lists of the same names differ."""
    return [(k, two) for k, two in enumerate(zip(first, second, strict=True)) if two[0] != two[1]]
