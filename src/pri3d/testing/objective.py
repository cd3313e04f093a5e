"""The contract of objectives.

A new one inherits all checks in three lines::

    class TestMine(ObjectiveContract):
        name = "mine"
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

import pri3d
from pri3d.api.pretrain import ContrastOptions, MatchingOptions
from pri3d.data.crops import CropRecipe
from pri3d.data.pairs import PairDataset, collate
from pri3d.data.sampler import Draw
from pri3d.errors import ConfigError
from pri3d.networks.unet import UNet, build_unet
from pri3d.objectives import VIEWS, Features, Objective, Setup, Terms, WeightedSum
from pri3d.registry import OBJECTIVES, load
from pri3d.store import Store
from pri3d.types import PairBatch

SIZE = (64, 48)  #: width and height of the images, pixels
CHANNELS = 8  #: of the feature maps
PAIRS = 3  #: of a batch

_stores: dict[Path, Path] = {}  # one for each run of pytest


def small_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset of two rendered rooms with labels, pairs and surface, made once for a run of pytest.

    A pixel of so small an image is centimetres wide, hence the 10 cm.
    """
    base = tmp_path_factory.getbasetemp()
    if base not in _stores:
        folder = tmp_path_factory.mktemp("rooms")
        size = f"{SIZE[0]}x{SIZE[1]}"
        pri3d.rooms(folder / "raw", rooms=2, frames=8, size=size, processes=1)
        pri3d.prepare(
            [folder / "raw"], folder / "store", size=size, voxel=0.08, distance=0.1, min_overlap=0.2, processes=1
        )
        _stores[base] = folder / "store"
    return _stores[base]


class ObjectiveContract:
    """Checks of one objective; ``name`` is what it is registered as."""

    name: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}  #: of its own, where the defaults are too large for a test
    #: of the loss with bfloat16 networks, against that with float32 ones
    rtol: ClassVar[float] = 0.05

    @pytest.fixture(scope="class")
    def items(self, tmp_path_factory: pytest.TempPathFactory) -> PairDataset:
        """Pairs of rendered rooms, with all images and crops that an objective may ask for."""
        store = small_store(tmp_path_factory)
        rows = np.arange(len(Store(store).pairs().i))
        return PairDataset(store, rows, SIZE, 0, voxel=0.08, views=VIEWS, crop=CropRecipe(size=32))

    @pytest.fixture(scope="class")
    def batch(self, items: PairDataset) -> PairBatch:
        """A batch of pairs that overlap."""
        return self.collated(items, range(PAIRS))

    @staticmethod
    def collated(items: PairDataset, order: Sequence[int]) -> PairBatch:
        """A batch of these pairs."""
        return collate([items[Draw(0, k)] for k in order])

    def build(self) -> tuple[UNet, WeightedSum]:
        """A network, always the same, and the objective that is built with it, as a run does."""
        torch.manual_seed(0)
        unet = build_unet("resnet18", "slim", CHANNELS)
        setup = Setup(CHANNELS, unet.encoder, ContrastOptions(points=50), MatchingOptions(distance=0.1))
        kind: type[Objective] = load("objectives", OBJECTIVES, self.name)
        own = {} if kind.options is None else {self.name: kind.options(**self.options)}
        return unet, WeightedSum({self.name: 1.0}, setup, own)

    @staticmethod
    def features(unet: UNet, batch: PairBatch) -> Features:
        """What a network makes of a batch."""
        dense, maps = unet.forward_maps(batch.color.flatten(0, 1))
        return Features(dense.view(*batch.color.shape[:2], *dense.shape[1:]), maps, batch.views)

    def run(self, batch: PairBatch) -> tuple[UNet, WeightedSum, Terms]:
        """Network, objective and terms of a batch in a fresh network."""
        unet, objective = self.build()
        return unet, objective, objective(self.features(unet, batch), batch)

    def test_its_name_is_known(self) -> None:
        """By the registry, as a subclass of the base class, with images that a batch can hold."""
        kind = load("objectives", OBJECTIVES, self.name)
        assert issubclass(kind, Objective)
        _, objective = self.build()
        assert set(objective.views) <= set(VIEWS)

    def test_the_loss_is_a_finite_scalar(self, batch: PairBatch) -> None:
        """In float32, and what is logged are scalars without a graph."""
        _, _, terms = self.run(batch)
        assert terms.loss.shape == ()
        assert terms.loss.dtype == torch.float32
        assert terms.loss.isfinite()
        for name, value in terms.log.items():
            assert isinstance(value, Tensor), name
            assert value.shape == (), name
            assert not value.requires_grad, f"{name}: detach it, or the graph of every step stays in memory"
            assert value.isfinite(), name

    def test_the_gradient_reaches_the_encoder(self, batch: PairBatch) -> None:
        """Finite, and every trained parameter of its own gets one: without, distributed training would stop."""
        unet, objective, terms = self.run(batch)
        torch.autograd.backward(terms.loss)
        found = [p.grad for p in unet.encoder.parameters() if p.grad is not None]
        assert any(bool((grad != 0).any()) for grad in found)
        for name, parameter in objective.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
        assert all(bool(grad.isfinite().all()) for grad in found)

    def test_a_batch_without_any_match(self, batch: PairBatch) -> None:
        """Neither depth nor surface: the loss and its gradients are finite, not NaN."""
        empty = batch._replace(
            depth=torch.zeros_like(batch.depth),
            voxel_cells=batch.voxel_cells[:0],
            voxel_color=batch.voxel_color[:0],
        )
        unet, objective, terms = self.run(empty)
        assert terms.loss.isfinite()
        torch.autograd.backward(terms.loss)
        for parameter in (*unet.parameters(), *objective.parameters()):
            assert parameter.grad is None or parameter.grad.isfinite().all()

    def test_mixed_precision_gives_nearly_the_same(self, batch: PairBatch) -> None:
        """A network in bfloat16 and a loss in float32."""
        _, _, exact = self.run(batch)
        with torch.autocast("cpu", torch.bfloat16):
            unet, _, mixed = self.run(batch)
        assert mixed.loss.dtype == torch.float32
        torch.testing.assert_close(mixed.loss, exact.loss, rtol=self.rtol, atol=self.rtol)
        torch.autograd.backward(mixed.loss)
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in unet.parameters())

    def test_the_order_of_the_pairs_does_not_matter(self, items: PairDataset, batch: PairBatch) -> None:
        """A mean over the pairs: each brings its own random numbers."""
        _, _, terms = self.run(batch)
        _, _, other = self.run(self.collated(items, range(PAIRS)[::-1]))
        torch.testing.assert_close(other.loss, terms.loss, rtol=1e-3, atol=1e-5)

    def test_it_repeats(self, batch: PairBatch) -> None:
        """Every random choice derives from the batch's seeds, so that a resumed run takes the same ones."""
        _, _, first = self.run(batch)
        unet, objective = self.build()
        torch.manual_seed(1)
        second = objective(self.features(unet, batch), batch)
        torch.testing.assert_close(second.loss, first.loss, rtol=0, atol=0)

    def test_a_checkpoint_holds_its_state(self, batch: PairBatch) -> None:
        """Parameters and buffers after a step load into a new one."""
        unet, objective, terms = self.run(batch)
        torch.autograd.backward(terms.loss)
        with torch.no_grad():
            for parameter in objective.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.1 * parameter.grad)
        objective.after_step()
        again, other = self.build()
        again.load_state_dict(unet.state_dict())
        other.load_state_dict(objective.state_dict())
        for module in (unet, objective, again, other):
            module.eval()
        with torch.no_grad():
            expected = objective(self.features(unet, batch), batch).loss
            torch.testing.assert_close(other(self.features(again, batch), batch).loss, expected)

    def test_an_unknown_option_is_refused(self) -> None:
        """A setting that nothing uses is never swallowed."""
        kind: type[Objective] = load("objectives", OBJECTIVES, self.name)
        if kind.options is None:
            with pytest.raises(TypeError):
                kind(Setup(CHANNELS), unheard_of=1)  # type: ignore[call-arg]
        else:
            with pytest.raises(ConfigError, match="unheard"):
                kind.options(**{"unheard_of": 1})  # noqa: PIE804
