"""Retention: nothing moves where nothing changed, and the numbers are those of the formulas."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from pri3d.errors import ConfigError
from pri3d.networks.encoders import build_encoder
from pri3d.networks.load import FeatureNet
from pri3d.probing.retention import LinearCKA, retention, weight_change

COLOR = torch.randint(0, 256, (5, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def net() -> FeatureNet:
    torch.manual_seed(0)
    return FeatureNet(build_encoder("resnet18"), {}).eval()


def test_identical_networks_retain_everything(net: FeatureNet) -> None:
    score = retention(net, copy.deepcopy(net), COLOR)
    assert list(score.cosine) == [f"map {k}, stride {2 ** (k + 1)}" for k in range(5)]
    assert list(score.cosine.values()) == pytest.approx([1] * 5, abs=1e-5)
    assert list(score.cka.values()) == pytest.approx([1] * 5, abs=1e-9)
    assert score.weight_change == 0


def test_a_network_that_moved_retains_less(net: FeatureNet) -> None:
    other = copy.deepcopy(net)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in other.encoder.layer4.parameters():  # type: ignore[union-attr]
            parameter.add_(0.05 * torch.randn_like(parameter))
    score = retention(other, net, COLOR)
    *early, late = score.cosine.values()
    assert early == pytest.approx([1] * 4, abs=1e-5)
    assert late < 0.95
    assert list(score.cka.values())[-1] < 0.99
    assert score.weight_change > 0


def test_weight_change_is_relative_to_the_reference(net: FeatureNet) -> None:
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in other.encoder.parameters():
            parameter.mul_(1.5)
    assert weight_change(other.encoder, net.encoder) == pytest.approx(0.5)
    assert weight_change(net.encoder, other.encoder) == pytest.approx(1 / 3)


def test_cka_is_the_formula_of_kernels() -> None:
    """As the normalised Hilbert-Schmidt criterion of centred Gram matrices, which are n x n."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)) + 3
    y = np.concatenate([x[:, :2] @ rng.normal(size=(2, 3)), rng.normal(size=(40, 2))], axis=1) - 7
    centre = np.eye(40) - 1 / 40
    k, l = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre  # noqa: E741
    wanted = (k * l).sum() / math.sqrt((k * k).sum() * (l * l).sum())
    assert 0.1 < wanted < 0.95
    found = LinearCKA()
    for rows in (slice(0, 13), slice(13, 40)):
        found.update(torch.from_numpy(x[rows]), torch.from_numpy(y[rows]))
    assert found.result() == pytest.approx(wanted, abs=1e-12)


def test_cka_does_not_see_rotation_and_scale() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 5))
    turned = 3 * x @ np.linalg.qr(rng.normal(size=(5, 5)))[0] + 1
    found, still = LinearCKA(), LinearCKA()
    found.update(torch.from_numpy(x), torch.from_numpy(turned))
    assert found.result() == pytest.approx(1)
    still.update(torch.from_numpy(x), torch.ones(50, 2))
    assert math.isnan(still.result())


def test_another_encoder_is_refused(net: FeatureNet) -> None:
    with pytest.raises(ConfigError, match=r"run: its encoder is resnet18, that of the reference resnet34"):
        retention(net, FeatureNet(build_encoder("resnet34"), {}).eval(), COLOR, "run")
