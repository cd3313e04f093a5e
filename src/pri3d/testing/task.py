"""The contract of tasks.

A new one inherits all checks in three lines::

    class TestMine(TaskContract):
        name = "mine"
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from pri3d.api.finetune import FinetuneSettings, resolve_finetuning
from pri3d.data.sampler import Draw
from pri3d.labelled import LabelledImages, Split
from pri3d.networks.encoders import Encoder
from pri3d.registry import TASKS, names
from pri3d.tasks import Recipe, Task, batches, evaluating, find_task, load_task

WIDTH, HEIGHT = 96, 72  #: of the images, pixels
BATCH = 2


class SquaresImages(LabelledImages):
    """Six images in memory: coloured squares, which are objects of two classes, on a background."""

    looks_for = "nothing: it is made in memory"
    has_objects = True
    class_names: Sequence[str] = ("background", "red square", "blue square")
    things: Sequence[int] = (1, 2)

    def __init__(self, path: Path = Path("squares"), split: Split = "all", labels: str | None = None) -> None:
        self.path, self.names = path, [f"image {k}" for k in range(6)]
        self._images = []
        for k in range(len(self.names)):
            rng = np.random.default_rng(k)
            color = rng.integers(90, 150, (HEIGHT, WIDTH, 3)).astype(np.uint8)
            label, instance = np.zeros((HEIGHT, WIDTH), np.uint8), np.zeros((HEIGHT, WIDTH), np.int32)
            for number, left in enumerate((2, 50), 1):
                edge, top, kind = int(rng.integers(34, 44)), int(rng.integers(2, 26)), 1 + (k + number) % 2
                where = np.s_[top : top + edge, left : left + edge]
                color[where] = (200, 40, 40) if kind == 1 else (40, 40, 200)
                label[where], instance[where] = kind, number
            self._images.append((color, label, instance))

    @classmethod
    def detect(cls, path: Path) -> bool:
        """Never."""
        return False

    def color(self, k: int) -> NDArray[np.uint8]:
        """RGB (H, W, 3) of image k."""
        return self._images[k][0]

    def label(self, k: int) -> NDArray[np.uint8]:
        """Class ids (H, W) of image k."""
        return self._images[k][1]

    def instance(self, k: int) -> NDArray[np.int32]:
        """Object ids (H, W) of image k, 0 = none."""
        return self._images[k][2]


class TaskContract:
    """Checks of one task; ``name`` is what it is registered as."""

    name: ClassVar[str]
    preset: ClassVar[str] = "quick"
    given: ClassVar[dict[str, Any]] = {}  #: settings beside the preset's, as in a YAML file

    @pytest.fixture(scope="class")
    def images(self) -> LabelledImages:
        """A small labelled set that the task can be trained on."""
        return SquaresImages()

    @pytest.fixture(scope="class")
    def settings(self) -> FinetuneSettings:
        """The preset's, with :attr:`given`."""
        return resolve_finetuning(self.name, self.preset, self.given)

    @pytest.fixture(scope="class")
    def recipe(self, settings: FinetuneSettings) -> Recipe[Any]:
        """What the settings mean."""
        return find_task(self.name).recipe(settings, settings.own[self.name])

    @pytest.fixture(scope="class")
    def task(self, recipe: Recipe[Any], images: LabelledImages) -> Task:
        """The task over the classes of the set."""
        return recipe.task(images, range(len(images.names)))

    @pytest.fixture(scope="class")
    def model(self, recipe: Recipe[Any], task: Task) -> nn.Module:
        """An untrained network."""
        torch.manual_seed(0)
        return recipe.build(task.class_names)

    def dataset(self, recipe: Recipe[Any], images: LabelledImages, training: bool) -> Dataset[Any]:
        """All images."""
        return recipe.dataset(images, range(len(images.names)), training)

    def test_its_name_is_known(self) -> None:
        """By the registry; the class states the same."""
        assert self.name in names("tasks", TASKS)
        assert issubclass(find_task(self.name), Task)

    def test_its_network_has_an_encoder(self, model: nn.Module, task: Task, images: LabelledImages) -> None:
        """Which gets the weights; and its classes are those of the set."""
        assert isinstance(model.encoder, Encoder)
        assert task.class_names == find_task(self.name).names_of(images)

    def test_good_images_pass_its_check(self, recipe: Recipe[Any], images: LabelledImages) -> None:
        """What it looks through before a run."""
        recipe.check(images, range(len(images.names)))

    def test_an_item_derives_from_its_draw(self, recipe: Recipe[Any], images: LabelledImages) -> None:
        """A resumed run sees the same ones."""
        for training in (True, False):
            first, again = (self.dataset(recipe, images, training)[Draw(3, 1)] for _ in "ab")
            same(first, again)

    def test_the_loss_trains_the_encoder(
        self, task: Task, recipe: Recipe[Any], images: LabelledImages, model: nn.Module
    ) -> None:
        """A finite scalar with finite gradients; what is logged are scalars."""
        dataset = self.dataset(recipe, images, training=True)
        batch = recipe.collate([dataset[Draw(0, k)] for k in range(BATCH)])
        model.train()
        loss, log = task.loss(model, batch)
        assert loss.shape == ()
        assert loss.isfinite()
        assert all(isinstance(value, Tensor) and value.shape == () for value in log.values())
        model.zero_grad()
        torch.autograd.backward(loss)
        encoder = model.encoder
        assert isinstance(encoder, Encoder)
        found = [p.grad for p in encoder.parameters() if p.grad is not None]
        assert any(bool((grad != 0).any()) for grad in found)
        assert all(bool(grad.isfinite().all()) for grad in found)

    def test_it_measures(self, task: Task, recipe: Recipe[Any], images: LabelledImages, model: nn.Module) -> None:
        """Numbers, the key among them; the network's mode stays."""
        model.train()
        scores = task.measure(model, self.dataset(recipe, images, training=False), BATCH)
        assert model.training
        assert task.key in scores
        for name in {task.key, *recipe.shown}:
            assert math.isnan(scores[name]) or 0 <= scores[name] <= 1, name
        for value in scores.values():
            assert all(
                isinstance(each, float | int) for each in (value.values() if isinstance(value, dict) else [value])
            )

    def test_two_processes_measure_the_same(
        self, task: Task, recipe: Recipe[Any], images: LabelledImages, model: nn.Module
    ) -> None:
        """Each a share of the images, their parts put together."""
        dataset = self.dataset(recipe, images, training=False)
        meters = [task.meter(dataset) for _ in range(2)]
        with evaluating(model):
            for rank, meter in enumerate(meters):
                for batch in batches(dataset, 1, recipe.collate, rank=rank, world=2):
                    meter.update(model, batch)
        whole = task.meter(dataset)
        whole.merge([meter.state() for meter in meters])
        alone = task.measure(model, dataset, 1)
        result = whole.result()
        assert result.keys() == alone.keys()
        assert result[task.key] == pytest.approx(alone[task.key], abs=1e-5, nan_ok=True)

    def test_a_saved_network_predicts_the_same(
        self, task: Task, images: LabelledImages, model: nn.Module, tmp_path: Path
    ) -> None:
        """Saved, loaded by its file alone, and asked for one image."""
        path = tmp_path / "weights.safetensors"
        task.save(model, path, {"data": "squares"})
        trained = load_task(path)
        assert type(trained.task) is type(task)
        assert trained.task.class_names == task.class_names
        assert trained.record["data"] == "squares"
        assert not trained.model.training
        model.eval()
        alone = task.predict(model, images.color(0))
        same(trained.task.predict(trained.model, images.color(0)), alone)
        same(task.predict_many(model, [images.color(0)] * 2), [alone, alone])


def same(first: Any, second: Any) -> None:
    """Compare items, batches or predictions: tensors, arrays, numbers, texts, and what is made of these."""
    if isinstance(first, Tensor | np.ndarray):
        np.testing.assert_allclose(np.asarray(first), np.asarray(second), rtol=1e-4, atol=1e-5)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            same(first[key], second[key])
    elif isinstance(first, tuple | list):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            same(one, other)
    else:
        assert first == pytest.approx(second, rel=1e-4) if isinstance(first, float) else first == second
