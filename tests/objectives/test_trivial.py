"""Trivial correspondences: against the formula in slow loops, closed forms, and what must have no influence."""

from __future__ import annotations

import math

import pytest
import torch
from test_objectives import CountSyncs
from torch.nn import functional as F

from flat import objective as build
from flat import weighted
from pri3d.errors import ConfigError
from pri3d.objectives import Features
from pri3d.objectives.trivial import draw_cells
from pri3d.types import PairBatch

VIEWS = ("first", "copy")
GRID = (6, 8)


def batch(samples: int = 3) -> PairBatch:
    """Pairs whose geometry is NaN: nothing of it may matter."""
    nan = torch.full((samples, 2, 12, 16), torch.nan)
    return PairBatch(
        color=torch.zeros(samples, 2, 3, 12, 16),
        depth=nan,
        intrinsics=nan[..., 0, :4],
        world_from_camera=nan[..., :4, :4],
        voxel_cells=torch.empty(0, 4, dtype=torch.int64),
        voxel_color=torch.empty(0, 3),
        voxel_size=torch.tensor(1.0),
        seeds=torch.arange(samples) * 977 + 5,
        names=[""] * samples,
        views=VIEWS,
    )


def random_maps(images: int = 2, channels: int = 64) -> torch.Tensor:
    return torch.randn(3, images, channels, *GRID, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("points", [0, 20, 1000])
def test_equals_the_formula_in_loops(points: int) -> None:
    dense = random_maps(channels=5).detach()
    terms = build("trivial", points=points or "all", temperature=0.3)(Features(dense, [], VIEWS), batch())
    cells = draw_cells(GRID, points, batch().seeds)
    total, hits = 0.0, 0
    for b in range(3):
        a, c = (F.normalize(dense[b, k].double().flatten(1).T[cells[b]], dim=1) for k in range(2))
        cosine = a @ c.T / 0.3
        n = len(cells[b])
        for i in range(n):
            total -= float(cosine[i, i] - cosine[i].exp().sum().log()) / (2 * n)
            total -= float(cosine[i, i] - cosine[:, i].exp().sum().log()) / (2 * n)
            hits += int(cosine[i].argmax() == i)
    assert float(terms.loss) == pytest.approx(total / 3, rel=1e-5)
    assert float(terms.log["recall"]) == pytest.approx(hits / cells.numel())
    assert float(terms.log["matches"]) == cells.shape[1]
    assert float(terms.log["chance"]) == pytest.approx(math.log(cells.shape[1]))


def test_equal_copies_score_zero_and_unrelated_ones_chance() -> None:
    dense = random_maps().detach()
    objective = build("trivial", points="all", temperature=0.05)
    same = objective(Features(dense[:, :1].expand(-1, 2, -1, -1, -1), [], VIEWS), batch())
    assert float(same.loss) < 1e-2
    assert float(same.log["recall"]) == 1
    apart = build("trivial", points="all", temperature=1.0)(Features(dense, [], VIEWS), batch())
    assert float(apart.loss) == pytest.approx(float(apart.log["chance"]), abs=0.05)
    assert float(apart.log["recall"]) < 0.1


def test_second_frame_takes_no_part() -> None:
    dense = random_maps(images=3)
    views = ("first", "second", "copy")
    loss = build("trivial", points=20)(Features(dense, [], views), batch()).loss
    two = build("trivial", points=20)(Features(dense[:, ::2], [], VIEWS), batch()).loss
    assert torch.equal(loss, two)
    loss.backward()
    assert dense.grad is not None
    used = dense.grad.abs().sum(2).flatten(2) > 0
    assert used.sum(2).tolist() == [[20, 0, 20]] * 3
    assert torch.equal(used[:, 0], used[:, 2])


def test_cells_are_drawn_without_replacement_and_by_the_seed_alone() -> None:
    seeds = torch.tensor([3, 4, 3])
    cells = draw_cells(GRID, 20, seeds)
    assert all(len(set(row)) == 20 for row in cells.tolist())
    assert cells[0].tolist() == cells[2].tolist() != cells[1].tolist()
    assert draw_cells(GRID, 20, seeds[1:2]).tolist() == cells[1:2].tolist()
    assert draw_cells(GRID, 0, seeds).tolist() == [list(range(48))] * 3
    often = torch.bincount(draw_cells(GRID, 12, torch.arange(2000)).flatten(), minlength=48)
    assert ((often > 400) & (often < 600)).all()  # 500 each, standard deviation 19


def test_near_cells_are_no_negatives_where_asked() -> None:
    """A cell is 2 pixels wide; within 2.5 pixels lie the four neighbours, which leaves 48 - 5 negatives inside."""
    dense = random_maps()
    objective = build("trivial", points="all", temperature=0.3, exclude_px=2.5, exclude_cm=5.0)
    terms = objective(Features(dense, [], VIEWS), batch())
    row, column = torch.arange(48) // 8, torch.arange(48) % 8
    apart = (row[:, None] - row).abs() + (column[:, None] - column).abs()
    counted = (apart > 1) | (apart == 0)
    assert float(terms.log["chance"]) == pytest.approx(float(counted.sum(1).float().log().mean()))
    a, c = (F.normalize(dense[:, k].detach().double().flatten(2), dim=1) for k in range(2))
    logits = torch.where(counted, a.mT @ c / 0.3, -torch.inf)
    wanted = 0.5 * (logits.logsumexp(1) + logits.logsumexp(2)) - logits.diagonal(dim1=1, dim2=2)
    assert float(terms.loss.detach()) == pytest.approx(float(wanted.mean()), rel=1e-5)


def test_negatives_of_the_whole_batch() -> None:
    objective = build("trivial", points=20, temperature=0.3, negatives="batch")
    log = objective(Features(random_maps(), [], VIEWS), batch()).log
    assert float(log["chance"]) == pytest.approx(math.log(60))
    assert float(log["matches"]) == 20


def test_no_wait_for_the_device() -> None:
    with CountSyncs() as counter:
        terms = build("trivial", points=20)(Features(random_maps(), [], VIEWS), batch())
        terms.loss.backward()
    assert counter.calls == []
    assert counter.total > 30


def test_by_name_with_its_views() -> None:
    objective = weighted({"trivial": 1.0}, points=20, temperature=0.2, channels=64)
    assert objective.views == VIEWS
    assert "trivial/recall" in objective(Features(random_maps(), [], VIEWS), batch()).log


def test_one_point_has_no_negative() -> None:
    with pytest.raises(ConfigError, match="points 1: give at least 2, or all"):
        build("trivial", points=1)(Features(random_maps(), [], VIEWS), batch())
