"""Retention: zero at the start, positive after a change, and a copy that nothing can train."""

from __future__ import annotations

import pytest
import torch
from test_objectives import CountSyncs
from torch import Tensor, nn
from torch.nn import functional as F

from pri3d.errors import ConfigError
from pri3d.networks.encoders import Encoder
from pri3d.objectives import Features, Setup
from pri3d.objectives.keep import KeepObjective, drift
from pri3d.types import PairBatch


class Small(Encoder):
    """Two maps, with batch normalisation."""

    channels = (4, 6)
    strides = (2, 4)

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.two = nn.Conv2d(4, 6, 3, stride=2, padding=1)

    def forward(self, images: Tensor) -> list[Tensor]:
        one = F.relu(self.bn(self.one(images)))
        return [one, self.two(one)]


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture
def batch() -> PairBatch:
    images = torch.rand(2, 3, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    empty = torch.empty(0)
    return PairBatch(images, empty, empty, empty, empty, empty, empty, empty, ["a", "b"], ("first", "second", "copy"))


def look(encoder: Encoder, batch: PairBatch) -> Features:
    return Features(torch.empty(0), encoder(encoder.normalise(batch.color.flatten(0, 1))), batch.views)


def change(encoder: Encoder) -> None:
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(0.1 * torch.randn_like(weight))


def test_zero_at_the_start_and_positive_after_a_change(encoder: Encoder, batch: PairBatch) -> None:
    objective = KeepObjective(Setup(channels=8, encoder=encoder))
    start = objective(look(encoder, batch), batch)
    # Not to the last bit: without gradients a convolution may take another path.
    assert float(start.loss.detach()) == pytest.approx(0, abs=1e-12)
    assert float(start.log["drift"]) == pytest.approx(0, abs=1e-12)
    change(encoder)
    later = objective(look(encoder, batch), batch)
    assert 1e-3 < float(later.loss.detach()) < 2
    assert 1e-3 < float(later.log["drift"]) < 2


def test_equals_the_cosine_cell_by_cell(encoder: Encoder, batch: PairBatch) -> None:
    objective = KeepObjective(Setup(encoder=encoder))
    with torch.no_grad():
        before = look(encoder, batch).maps
        change(encoder)
        now = look(encoder, batch).maps
    means = []
    for a, b in zip(now, before, strict=True):
        cells = []
        for image in range(a.shape[0]):
            for row in range(a.shape[2]):
                for column in range(a.shape[3]):
                    x, y = a[image, :, row, column], b[image, :, row, column]
                    if x.any() and y.any():
                        cells.append(1 - float(x @ y / (x.norm() * y.norm())))
                    else:
                        cells.append(0.5 if x.any() or y.any() else 0.0)
        means.append(sum(cells) / len(cells))
    terms = objective(look(encoder, batch), batch)
    assert float(terms.loss.detach()) == pytest.approx(sum(means) / 2, rel=1e-5)
    assert float(terms.log["drift"]) == pytest.approx(means[-1], rel=1e-5)


def test_distance_of_turned_opposite_and_empty_features() -> None:
    east = torch.tensor([1.0, 0]).view(1, 2, 1, 1)
    north = torch.tensor([0, 5.0]).view(1, 2, 1, 1)
    none = torch.zeros(1, 2, 1, 1, requires_grad=True)
    values = [drift(*pair) for pair in ((east, 3 * east), (east, north), (east, -east), (none, none), (none, east))]
    assert [float(value.detach()) for value in values] == pytest.approx([0, 1, 2, 0, 0.5])
    values[-1].backward()
    assert none.grad is not None
    assert torch.isfinite(none.grad).all()


def test_gradient_reaches_the_encoder_and_not_the_copy(encoder: Encoder, batch: PairBatch) -> None:
    objective = KeepObjective(Setup(encoder=encoder))
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    objective.train()
    encoder.train()
    optimizer = torch.optim.SGD([*encoder.parameters(), *objective.parameters()], lr=0.1, weight_decay=0.1)
    objective(look(encoder, batch), batch).loss.backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in encoder.two.parameters())
    assert all(weight.grad is None and not weight.requires_grad for weight in objective.parameters())
    optimizer.step()
    objective(look(encoder, batch), batch)
    assert len(before) > 6
    for name, value in objective.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not objective.initial.training


def test_a_checkpoint_brings_the_first_start_back(encoder: Encoder, batch: PairBatch) -> None:
    objective = KeepObjective(Setup(encoder=encoder))
    change(encoder)
    wanted = objective(look(encoder, batch), batch).loss
    resumed = KeepObjective(Setup(encoder=Small()))
    resumed.load_state_dict(objective.state_dict())
    assert torch.equal(resumed(look(encoder, batch), batch).loss, wanted)


def test_no_wait_for_the_device(encoder: Encoder, batch: PairBatch) -> None:
    objective, features = KeepObjective(Setup(encoder=encoder)), look(encoder, batch)
    with CountSyncs() as counter:
        objective(features, batch).loss.backward()
    assert counter.calls == []
    assert counter.total > 20


def test_refuses_what_it_cannot_compare(encoder: Encoder, batch: PairBatch) -> None:
    objective, features = KeepObjective(Setup(encoder=encoder)), look(encoder, batch)
    with pytest.raises(ConfigError, match="beside an objective"):
        objective(features._replace(maps=[]), batch)
    with pytest.raises(ConfigError, match="1 maps, but the initial encoder gives 2"):
        objective(features._replace(maps=features.maps[:1]), batch)
