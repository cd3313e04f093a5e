"""Downstream tasks: how a network on a backbone is trained, what it predicts and how that is scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from pri3d import registry
from pri3d.datasets import LabelledImages
from pri3d.errors import ConfigError, WeightsError
from pri3d.models.weights import read_provenance

TASKS = {
    "semantic": "pri3d.tasks.semantic:SemanticTask",
    "instance": "pri3d.tasks.instance:InstanceTask",
}
N = TypeVar("N", bound=nn.Module)
_LISTED = 5  # names that a message lists


class Task(ABC):
    """One downstream task over given classes; networks are passed in, the task holds none.

    ``class_names`` are those that are predicted: of instance segmentation the countable ones alone.
    """

    name: ClassVar[str]
    key: ClassVar[str]  #: which of the scores says which network is best

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)

    @staticmethod
    @abstractmethod
    def names_of(images: LabelledImages) -> list[str]:
        """Class names of a labelled set for this task. Raises DataError where it has none."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss of a model in train mode on a batch, and named scalars to log."""

    @abstractmethod
    def measure(self, model: nn.Module, dataset: Dataset[Any], batch: int) -> dict[str, Any]:
        """Scores of a model on a data set as it is trained on: name -> number or detail. Leaves the mode as it was."""

    @abstractmethod
    def predict(self, model: nn.Module, color: NDArray[np.uint8]) -> Any:
        """Predict one RGB image (H, W, 3) with a model in eval mode, in pixels of that image.

        Semantic: class ids (H, W) uint8. Instance: :class:`pri3d.types.Detections`.
        """

    @abstractmethod
    def save(self, model: nn.Module, path: Path, record: dict[str, Any]) -> None:
        """Write the network as safetensors so that :func:`load_task` rebuilds it; ``record`` is its provenance."""

    @classmethod
    @abstractmethod
    def load(cls, path: Path, record: dict[str, Any]) -> tuple[Task, nn.Module]:
        """Rebuild what :meth:`save` wrote, on the CPU in eval mode. Raises WeightsError where it does not fit."""


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

    Raises WeightsError where the file holds something else.
    """
    record = read_provenance(path)
    if "task" not in record:
        raise WeightsError(f"{path}: not a fine-tuned network. Give the run folder of `pri3d finetune`.")
    task, model = registry.load("tasks", TASKS, str(record["task"])).load(path, record)
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
