"""Ridge regression: explicit solutions, planted maps, folds by brute force, scale, constant channels, memory."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from pri3d.networks.readout import PENALTIES, UNCHOSEN, fit_ridge


def planted(rows: int, channels: int, values: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, channels)) @ rng.normal(size=(channels, channels)) + 3
    y = x @ rng.normal(size=(channels, values)) + rng.normal(size=values) + noise * rng.normal(size=(rows, values))
    return torch.from_numpy(x), torch.from_numpy(y)


def explicit(x: np.ndarray, y: np.ndarray, penalty: float, mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Predicts with a column of ones whose weight has no penalty: least squares of the stacked system."""
    z = np.concatenate([(x - mean) / deviation, np.ones((len(x), 1))], axis=1)
    rows = np.eye(z.shape[1])[:-1] * math.sqrt(penalty * len(x))
    system = np.concatenate([z, rows]), np.concatenate([y, np.zeros((len(rows), y.shape[1]))])
    return np.linalg.lstsq(*system, rcond=None)[0]


@pytest.mark.parametrize(("noise", "rows"), [(0.1, 60), (30.0, 60), (3.0, 9)])
def test_penalty_and_map_are_those_of_brute_force(noise: float, rows: int) -> None:
    x, y = planted(rows, 7, 2, noise)
    folds = torch.arange(rows) * 3 // rows
    mean, deviation = x.numpy().mean(axis=0), x.numpy().std(axis=0)
    errors = []
    for penalty in PENALTIES:
        total = 0.0
        for fold in range(3):
            out, held = (
                (x[folds != fold].numpy(), y[folds != fold].numpy()),
                (x[folds == fold].numpy(), y[folds == fold]),
            )
            weight = explicit(*out, penalty, mean, deviation)
            z = np.concatenate([(held[0] - mean) / deviation, np.ones((len(held[0]), 1))], axis=1)
            total += float(((z @ weight - held[1].numpy()) ** 2).sum())
        errors.append(total)
    best = PENALTIES[int(np.argmin(errors))]
    found = fit_ridge(x, y, folds)
    assert found.penalty == best
    weight = explicit(x.numpy(), y.numpy(), best, mean, deviation)
    wanted = np.concatenate([(x.numpy() - mean) / deviation, np.ones((rows, 1))], axis=1) @ weight
    assert np.allclose(found(x).numpy(), wanted, atol=1e-8 * np.abs(wanted).max())


def test_other_noise_has_another_penalty() -> None:
    chosen = [fit_ridge(*planted(60, 7, 2, noise), torch.arange(60) // 20).penalty for noise in (0.0, 100.0)]
    assert chosen == sorted(chosen)
    assert chosen[0] == PENALTIES[0] < chosen[1]


def test_a_planted_map_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 12, generator=generator) + 3
    y = x.double() @ torch.randn(12, 3, generator=generator).double() + 1
    found = fit_ridge(x.float(), y, torch.arange(400) // 100)
    assert found.penalty == PENALTIES[0]
    assert float((found(x) - y).abs().max()) < 1e-4
    ordinary = np.linalg.lstsq(np.concatenate([x.numpy(), np.ones((400, 1))], axis=1), y.numpy(), rcond=None)[0]
    assert np.allclose(found.weight.numpy(), ordinary[:-1], atol=1e-5)


def test_scale_and_offset_of_channels_do_not_matter() -> None:
    x, y = planted(80, 5, 2, 1.0)
    folds = torch.arange(80) // 20
    scaled = x * torch.tensor([1e-6, 1.0, 1e5, -3.0, 7.0]) + torch.tensor([0.0, 1e3, -4.0, 0.0, 1e4])
    one, other = fit_ridge(x, y, folds), fit_ridge(scaled, y, folds)
    assert one.penalty == other.penalty
    assert torch.allclose(one(x), other(scaled), atol=1e-6)
    assert torch.allclose(fit_ridge(x, y + 1e6, folds)(x), one(x) + 1e6, atol=1e-6)


def test_constant_channels_have_no_weight() -> None:
    x, y = planted(80, 5, 2, 1.0)
    folds = torch.arange(80) // 20
    more = torch.cat((x, torch.full((80, 1), 0.1), torch.zeros(80, 1)), dim=1).float()
    found = fit_ridge(more, y, folds)
    assert (found.weight[5:] == 0).all()
    assert torch.allclose(found(more), fit_ridge(x.float(), y, folds)(x.float()))


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_few_rows_give_a_map(rows: int) -> None:
    x, y = planted(rows, 12, 3, 1.0)
    assert bool(torch.isfinite(fit_ridge(x, y, torch.arange(rows))(x)).all())
    alone = fit_ridge(x, y, torch.zeros(rows, dtype=torch.long))
    assert alone.penalty == UNCHOSEN
    assert torch.allclose(alone(x).mean(dim=0), y.mean(dim=0))


def test_no_row_gives_no_number() -> None:
    nothing = fit_ridge(torch.zeros(0, 4), torch.zeros(0, 2), torch.zeros(0, dtype=torch.long))
    assert nothing.weight.shape == (4, 2)
    assert bool(nothing.weight.isnan().all() and nothing.bias.isnan().all())


def test_memory_is_that_of_matrices_and_a_part_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """No float64 copy of all rows: each conversion is of one part."""
    largest = 0
    double = torch.Tensor.double

    def noted(self: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        if self.dim() == 2 and self.shape[1] == 3:
            largest = max(largest, len(self))
        return double(self)

    monkeypatch.setattr(torch.Tensor, "double", noted)
    x = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))
    found = fit_ridge(x, x[:, :1], torch.arange(20_000) // 4000)
    assert largest == 4096
    assert found.penalty == PENALTIES[0]
    assert list(itertools.chain(*found.weight.round(decimals=3).tolist())) == [1, 0, 0]
