"""PointInfoNCE against the paper's formula written as loops, closed forms, symmetry and numerical gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pri3d.errors import ConfigError
from pri3d.objectives.contrast import info_nce


def formula(first: torch.Tensor, second: torch.Tensor, valid: torch.Tensor, temperature: float) -> torch.Tensor:
    """Eq. 1 as slow loops in float64 over normalised features; mean over points, mean of both directions."""
    losses = []
    for rows_a, rows_b, keep in zip(first, second, valid, strict=True):
        a = [row / row.norm() for row in rows_a[keep]]
        b = [row / row.norm() for row in rows_b[keep]]
        total = first.new_zeros(())
        for i in range(len(a)):
            forward = sum(torch.exp(a[i] @ b[k] / temperature) for k in range(len(a)))
            backward = sum(torch.exp(a[k] @ b[i] / temperature) for k in range(len(a)))
            positive = a[i] @ b[i] / temperature
            total = total + 0.5 * (torch.log(forward) - positive) + 0.5 * (torch.log(backward) - positive)
        losses.append(total / max(len(a), 1))
    return torch.stack(losses)


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from([0.05, 0.1, 0.4, 1.0]))
def test_loss_and_gradient_equal_the_formula(seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    exact = [torch.randn(3, 9, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    valid = torch.rand(3, 9, generator=generator) < 0.8
    valid[2] = False
    weights = torch.randn(3, generator=generator, dtype=torch.float64)
    fast = [t.detach().float().requires_grad_() for t in exact]
    wanted = formula(exact[0], exact[1], valid, temperature)
    got = info_nce(fast[0], fast[1], valid, temperature)
    torch.testing.assert_close(got.loss.double(), wanted, atol=2e-6, rtol=2e-6)
    (wanted * weights).sum().backward()
    (got.loss * weights.float()).sum().backward()
    for slow, quick in zip(exact, fast, strict=True):
        torch.testing.assert_close(quick.grad.double(), slow.grad, atol=1e-6, rtol=1e-5)


def test_equals_formula_to_1e_6_at_the_default_temperature() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 40, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    valid = torch.ones(2, 40, dtype=torch.bool)
    got = info_nce(a.float(), b.float(), valid).loss.double()
    assert (got - formula(a, b, valid, 0.4)).abs().max() < 1e-6


def test_closed_forms() -> None:
    valid = torch.ones(1, 8, dtype=torch.bool)
    same = torch.ones(1, 8, 4)
    assert info_nce(same, same, valid).loss.item() == pytest.approx(math.log(8), abs=1e-6)
    one_hot = torch.eye(8)[None]
    wanted = math.log(math.exp(1 / 0.4) + 7) - 1 / 0.4
    result = info_nce(one_hot, one_hot, valid)
    assert result.loss.item() == pytest.approx(wanted, abs=1e-6)
    assert result.recall.item() == 1.0
    assert info_nce(one_hot, one_hot.roll(1, 1), valid).recall.item() == 0.0


def test_symmetric_in_its_arguments_and_blind_to_order_and_scale() -> None:
    a, b = torch.randn(2, 12, 6), torch.randn(2, 12, 6)
    valid = torch.rand(2, 12) < 0.7
    order = torch.randperm(12)
    wanted = info_nce(a, b, valid).loss
    torch.testing.assert_close(info_nce(b, a, valid).loss, wanted)
    torch.testing.assert_close(info_nce(a[:, order] * 3, b[:, order] * 0.1, valid[:, order]).loss, wanted)


def test_invalid_rows_change_nothing_and_get_no_gradient() -> None:
    a, b = torch.randn(1, 10, 4, requires_grad=True), torch.randn(1, 10, 4)
    valid = torch.arange(10)[None] < 6
    loss = info_nce(a, b, valid).loss
    torch.testing.assert_close(loss, info_nce(a[:, :6], b[:, :6], valid[:, :6]).loss)
    loss.sum().backward()
    assert a.grad is not None
    assert (a.grad[:, 6:] == 0).all()
    assert (a.grad[:, :6] != 0).any()


def test_no_valid_point_gives_zero_loss_and_gradient() -> None:
    a = torch.randn(2, 5, 4, requires_grad=True)
    result = info_nce(a, torch.randn(2, 5, 4), torch.zeros(2, 5, dtype=torch.bool))
    result.loss.sum().backward()
    assert result.loss.tolist() == [0, 0]
    assert a.grad is not None
    assert (a.grad == 0).all()


def test_half_precision_features_are_contrasted_in_float32() -> None:
    a, b = torch.randn(1, 30, 8), torch.randn(1, 30, 8)
    valid = torch.ones(1, 30, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = info_nce(a.bfloat16(), b.bfloat16(), valid).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, info_nce(a.bfloat16().float(), b.bfloat16().float(), valid).loss)


def test_too_low_temperature_is_refused() -> None:
    with pytest.raises(ConfigError, match="temperature"):
        info_nce(torch.randn(1, 2, 2), torch.randn(1, 2, 2), torch.ones(1, 2, dtype=torch.bool), 0.001)
