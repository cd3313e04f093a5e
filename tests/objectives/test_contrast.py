"""PointInfoNCE against the paper's formula written as loops, closed forms, symmetry and numerical gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pri3d.api.pretrain import MIN_TEMPERATURE
from pri3d.errors import ConfigError
from pri3d.objectives import contrast
from pri3d.objectives.contrast import Contrast, Near, info_nce


def formula(
    first: torch.Tensor, second: torch.Tensor, valid: torch.Tensor, temperature: float, near: Any = ()
) -> Contrast:
    """Eq. 1 as slow loops over normalised features; mean over points, mean of both directions."""
    results = []
    for s in range(len(first)):
        points = valid[s].nonzero()[:, 0].tolist()
        a, b = first[s] / first[s].norm(dim=1, keepdim=True), second[s] / second[s].norm(dim=1, keepdim=True)
        cosines = (a @ b.T).tolist()
        loss, hits, chance = (first.sum() + second.sum()) * 0, 0, 0.0
        for i in points:
            others = [
                j for j in points if j == i or all(math.dist(p[s][i].tolist(), p[s][j].tolist()) >= r for p, r in near)
            ]
            forward = torch.exp(b[others] @ a[i] / temperature).sum()
            backward = torch.exp(a[others] @ b[i] / temperature).sum()
            positive = a[i] @ b[i] / temperature
            loss = loss + 0.5 * (torch.log(forward) - positive) + 0.5 * (torch.log(backward) - positive)
            hits += all(cosines[i][i] >= cosines[i][k] for k in others)
            chance += math.log(len(others))
        count = max(len(points), 1)
        results.append((loss / count, torch.tensor(hits / count), torch.tensor(chance / count), valid[s].sum()))
    return Contrast(*(torch.stack(field) for field in zip(*results, strict=True)))


def pooled(tensor: torch.Tensor) -> torch.Tensor:
    """All samples as one."""
    return tensor.flatten(0, 1)[None]


@pytest.mark.thorough
@settings(max_examples=30)
@given(
    st.integers(0, 10_000),
    st.integers(1, 8),
    st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    st.sampled_from([0.0, 1.0, 2.5, 100.0]),
    st.sampled_from(["sample", "batch", "world"]),
    st.sampled_from([1, 7, 1 << 20]),
)
def test_every_variant_equals_the_formula(
    seed: int, n: int, share: float, radius: float, negatives: Any, block: int
) -> None:
    """Points on a grid of whole numbers, so that distances equal to the radius occur."""
    generator = torch.Generator().manual_seed(seed)
    exact = [torch.randn(4, n, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    valid = torch.rand(4, n, generator=generator) < share
    places = [torch.randint(0, 5, (4, n, d), generator=generator).double() for d in (2, 3)]
    near = [Near(places[0], radius), Near(places[1], 1.5, shared=2)]
    fast = [t.detach().clone().requires_grad_() for t in exact]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrast, "BLOCK_CPU", block)
        got = info_nce(fast[0], fast[1], valid, 0.2, negatives, near)
    if negatives == "sample":
        wanted = formula(exact[0], exact[1], valid, 0.2, [(part.places, part.radius) for part in near])
    else:
        sample = torch.arange(4.0).double()[:, None, None].expand(4, n, 1)
        apart = [(torch.cat((part.places, (sample // part.shared) * 1e6), -1), part.radius) for part in near]
        slow = [pooled(p) for p in exact]
        wanted = formula(*slow, pooled(valid), 0.2, [(pooled(p), r) for p, r in apart])  # type: ignore[misc]
    for name, slow_value, value in zip(Contrast._fields, wanted, got, strict=True):
        torch.testing.assert_close(value, slow_value.to(value.dtype), atol=1e-6, rtol=1e-6, msg=name)
    weights = torch.randn(len(got.loss), generator=generator, dtype=torch.float64)
    (wanted.loss * weights).sum().backward()
    (got.loss * weights).sum().backward()
    for slow_input, input_ in zip(exact, fast, strict=True):
        torch.testing.assert_close(input_.grad, slow_input.grad, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("negatives", ["sample", "batch"])
@pytest.mark.parametrize("block", [1 << 20, 30])
def test_gradient_equals_finite_differences(negatives: Any, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast, "BLOCK_CPU", block)
    a, b = (torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    valid, near = torch.rand(2, 6) < 0.8, [Near(torch.rand(2, 6, 2), 0.3)]
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, valid, 0.3, negatives, near).loss, (a, b))


@pytest.mark.parametrize("negatives", ["sample", "batch"])
def test_blocks_equal_one_pass(negatives: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(2, 3, 130, 16)
    valid, near = torch.rand(3, 130) < 0.7, [Near(torch.rand(3, 130, 2), 0.1)]
    results = []
    for block in (1 << 20, 130 * 17, 1):
        monkeypatch.setattr(contrast, "BLOCK_CPU", block)
        inputs = rows.clone().requires_grad_()
        got = info_nce(inputs[0], inputs[1], valid, 0.1, negatives, near)
        got.loss.sum().backward()
        results.append((*got, inputs.grad))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], atol=1e-6, rtol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Notes the numbers in the largest storage that any operator returns."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("negatives", ["sample", "batch"])
def test_memory_does_not_grow_with_the_square_of_the_points(negatives: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrast, "BLOCK_CPU", 1 << 15)
    rows, valid = torch.randn(2, 2, 1500, 8, requires_grad=True), torch.ones(2, 1500, dtype=torch.bool)
    with LargestTensor() as seen:
        near = [Near(torch.rand(2, 1500, 2), 0.1)]
        info_nce(rows[0], rows[1], valid, 0.4, negatives, near).loss.sum().backward()
    assert rows.numel() <= seen.numbers <= 2 * rows.numel() < 1500**2 / 10


def test_at_the_lowest_temperature_everything_stays_finite() -> None:
    a = torch.randn(1, 50, 4)
    opposite = torch.cat((a[:, :25], -a[:, 25:]), dim=1).requires_grad_()
    result = info_nce(a, opposite, torch.ones(1, 50, dtype=torch.bool), MIN_TEMPERATURE)
    result.loss.sum().backward()
    wanted = formula(a.double(), opposite.detach().double(), torch.ones(1, 50, dtype=torch.bool), MIN_TEMPERATURE)
    torch.testing.assert_close(result.loss.double(), wanted.loss, rtol=1e-5, atol=1e-5)
    assert opposite.grad is not None
    assert torch.isfinite(opposite.grad).all()


def test_where_all_negatives_are_near_there_is_nothing_to_learn() -> None:
    a, b = torch.randn(1, 9, 4, requires_grad=True), torch.randn(1, 9, 4)
    result = info_nce(a, b, torch.ones(1, 9, dtype=torch.bool), near=[Near(torch.zeros(1, 9, 2), 1.0)])
    result.loss.sum().backward()
    assert result.recall.item() == 1
    assert result.chance.item() == 0
    assert a.grad is not None
    assert abs(result.loss.item()) < 1e-6 > a.grad.abs().max()


def test_random_features_score_about_chance() -> None:
    rows = torch.randn(2, 3, 200, 64)
    valid, near = torch.rand(3, 200) < 0.6, [Near(torch.rand(3, 200, 2), 0.2)]
    for negatives in ("sample", "batch"):
        result = info_nce(rows[0], rows[1], valid, 1.0, negatives, near)  # type: ignore[arg-type]
        torch.testing.assert_close(result.loss, result.chance, atol=0.1, rtol=0)
        assert (result.chance < result.points.log()).all()
        plain = info_nce(rows[0], rows[1], valid, 1.0, negatives)  # type: ignore[arg-type]
        torch.testing.assert_close(plain.chance, result.points.log())


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from([0.05, 0.1, 0.4, 1.0]))
def test_loss_and_gradient_equal_the_formula(seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    exact = [torch.randn(3, 9, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    valid = torch.rand(3, 9, generator=generator) < 0.8
    valid[2] = False
    weights = torch.randn(3, generator=generator, dtype=torch.float64)
    fast = [t.detach().float().requires_grad_() for t in exact]
    wanted = formula(exact[0], exact[1], valid, temperature).loss
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
    assert (got - formula(a, b, valid, 0.4).loss).abs().max() < 1e-6


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


def test_unknown_negatives_are_refused() -> None:
    with pytest.raises(ConfigError, match="sample, batch, world"):
        info_nce(torch.randn(1, 2, 2), torch.randn(1, 2, 2), torch.ones(1, 2, dtype=torch.bool), 0.4, "all")  # type: ignore[arg-type]
