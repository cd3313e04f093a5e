"""Distillation: targets against slow loops, closed forms, what must have no influence, and the teacher's state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_keep import Small, change, encoder  # noqa: F401 (a fixture)
from torch import Tensor
from torch.nn import functional as F

from pri3d.data.augment import STRONG
from pri3d.data.pairs import PairDataset, collate
from pri3d.data.sampler import Draw
from pri3d.errors import ConfigError
from pri3d.geometry.matching import Matches, match_pixels
from pri3d.networks.encoders import Encoder
from pri3d.objectives import Features, Setup
from pri3d.objectives.distill import DistillObjective, DistillOptions, fused_distance, relation_distance
from pri3d.store import Store
from pri3d.types import PairBatch
from syncs import CountSyncs

DISTANCE = 0.1


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=2)


def some_matches(pairs: int = 2, cells: int = 6) -> Matches:
    generator = torch.Generator().manual_seed(5)
    second = torch.stack([torch.randperm(cells, generator=generator) for _ in range(pairs)])
    valid = torch.tensor([[True, False, True, True, False, True], [False, False, True, False, False, False]])
    return Matches(torch.arange(cells).expand(pairs, -1), second, valid)


@pytest.fixture(scope="module")
def batch(rooms_store: Path) -> PairBatch:
    rows = np.arange(len(Store(rooms_store).pairs().i))
    dataset = PairDataset(rooms_store, rows, (64, 48), 0, STRONG, views=("first", "second", "copy"), clean=True)
    return collate([dataset[Draw(0, k)] for k in range(3)])


def look(net: Encoder, batch: PairBatch) -> Features:
    return Features(torch.empty(0), net(net.normalise(batch.color.flatten(0, 1))), batch.views)


def build(net: Encoder, **options: object) -> DistillObjective:
    from pri3d.api.pretrain import MatchingOptions  # noqa: PLC0415

    return DistillObjective(Setup(encoder=net, matching=MatchingOptions(distance=DISTANCE)), DistillOptions(**options))


def slow_target(a: Tensor, b: Tensor) -> Tensor:
    return slow_unit(slow_unit(a) + slow_unit(b))


def slow_unit(a: Tensor) -> Tensor:
    return a / max(float(a.norm()), 1e-4)


def slow_gap(a: Tensor, b: Tensor) -> float:
    """1 - cosine of two unit vectors; where a ReLU has emptied one, half the squared length of the other."""
    return 0.5 * float((a - b).square().sum())


def test_fused_targets_equal_slow_loops() -> None:
    student, teacher, matches = unit(2, 2, 4, 6), unit(2, 2, 4, 6, seed=1), some_matches()
    gaps = []
    for b in range(2):
        for i in range(6):
            if matches.valid[b, i]:
                j = int(matches.second[b, i])
                target = slow_target(teacher[b, 0, :, i], teacher[b, 1, :, j])
                gaps += [1 - float(student[b, 0, :, i] @ target), 1 - float(student[b, 1, :, j] @ target)]
    assert float(fused_distance(student, teacher, matches)) == pytest.approx(sum(gaps) / len(gaps), rel=1e-12)


def test_relations_equal_slow_loops() -> None:
    student, teacher, matches = unit(2, 2, 4, 6), unit(2, 2, 4, 6, seed=1), some_matches()
    squares = []
    for b in range(2):
        points = [(i, int(matches.second[b, i])) for i in range(6) if matches.valid[b, i]]
        rows = [student[b, 0, :, i] for i, _ in points] + [student[b, 1, :, j] for _, j in points]
        targets = [slow_target(teacher[b, 0, :, i], teacher[b, 1, :, j]) for i, j in points] * 2
        both = list(zip(rows, targets, strict=True))
        squares += [float(x @ y - t @ u) ** 2 for x, t in both for y, u in both]
    assert float(relation_distance(student, teacher, matches)) == pytest.approx(sum(squares) / len(squares), rel=1e-12)


def test_closed_forms() -> None:
    """Right angles: the target lies between them, at 1 - cos 45 degrees from either."""
    teacher = torch.tensor([[[1.0], [0]], [[0], [1.0]]], dtype=torch.float64)[None]  # (1, 2, C 2, N 1)
    one = Matches(*(torch.zeros(1, 1, dtype=torch.int64),) * 2, torch.ones(1, 1, dtype=torch.bool))
    assert float(fused_distance(teacher, teacher, one)) == pytest.approx(1 - 0.5**0.5)
    fused = torch.full((1, 2, 2, 1), 0.5**0.5, dtype=torch.float64)
    assert float(fused_distance(fused, teacher, one)) == pytest.approx(0, abs=1e-15)
    assert float(fused_distance(-fused, teacher, one)) == pytest.approx(2)
    # Of the four cosines the two between the frames are 0 and should be 1.
    assert float(relation_distance(teacher, teacher, one)) == pytest.approx(0.5)
    assert float(relation_distance(-fused, teacher, one)) == pytest.approx(0)


def test_relations_do_not_see_a_rotation_of_all_features() -> None:
    student, teacher, matches = unit(2, 2, 4, 6), unit(2, 2, 4, 6, seed=1), some_matches()
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))
    turned = torch.einsum("cd,bvdn->bvcn", rotation, student)
    torch.testing.assert_close(
        relation_distance(turned, teacher, matches), relation_distance(student, teacher, matches)
    )
    assert abs(float(fused_distance(turned, teacher, matches) - fused_distance(student, teacher, matches))) > 1e-3


@pytest.mark.parametrize("distance", [fused_distance, relation_distance])
def test_gradients(distance) -> None:  # type: ignore[no-untyped-def]
    student, teacher, matches = unit(2, 2, 3, 6).requires_grad_(), unit(2, 2, 3, 6, seed=1), some_matches()
    assert torch.autograd.gradcheck(lambda x: distance(x, teacher, matches), (student,))
    empty = matches._replace(valid=torch.zeros_like(matches.valid))
    value = distance(student, teacher, empty)
    value.backward()
    assert float(value.detach()) == 0
    assert student.grad is not None
    assert not student.grad.any()


def test_the_loss_of_a_pair_in_loops(encoder: Encoder, batch: PairBatch) -> None:  # noqa: F811
    """Matching, both parts, the mean over the maps, and the teacher's clean images."""
    objective = build(encoder, own=0.7)
    with torch.no_grad():
        before = [x.unflatten(0, (3, 2)) for x in encoder(encoder.normalise(batch.clean.flatten(0, 1)))]
    change(encoder)
    features = look(encoder, batch)
    maps = []
    for now, teacher in zip(features.maps, before, strict=True):
        student = now.detach().unflatten(0, (3, 3))[:, :2].flatten(3).double()
        teacher = teacher.flatten(3).double()  # noqa: PLW2901
        grid = tuple(now.shape[-2:])
        matches = match_pixels(batch.depth, batch.intrinsics, batch.world_from_camera, grid, DISTANCE)
        gaps, own = [], 0.5 * (F.normalize(student, dim=2, eps=1e-4) - F.normalize(teacher, dim=2, eps=1e-4)).square()
        for b, i in matches.valid.nonzero().tolist():
            j = int(matches.second[b, i])
            target = slow_target(teacher[b, 0, :, i], teacher[b, 1, :, j])
            gaps += [slow_gap(slow_unit(x), target) for x in (student[b, 0, :, i], student[b, 1, :, j])]
        assert len(gaps) > 100
        maps.append((sum(gaps) / len(gaps), float(own.sum(2).mean())))
    terms = objective(features, batch)
    assert float(terms.loss.detach()) == pytest.approx(sum(a + 0.7 * b for a, b in maps) / 2, rel=1e-4)
    assert float(terms.log["target"]) == pytest.approx(sum(a for a, _ in maps) / 2, rel=1e-4)
    assert float(terms.log["drift"]) == pytest.approx(maps[-1][1], rel=1e-4)


@pytest.mark.parametrize("targets", ["features", "relations"])
def test_the_start_has_the_spread_and_no_drift(encoder: Encoder, batch: PairBatch, targets: str) -> None:  # noqa: F811
    same = batch._replace(clean=batch.color[:, :2])
    log = build(encoder, targets=targets)(look(encoder, same), same).log
    assert float(log["drift"]) == pytest.approx(0, abs=1e-10)
    assert float(log["spread"]) > 1e-3
    if targets == "features":
        assert float(log["target"]) == pytest.approx(float(log["spread"]), rel=1e-4)


def test_the_teacher_sees_clean_images_where_they_are(encoder: Encoder, batch: PairBatch) -> None:  # noqa: F811
    features = look(encoder, batch)
    clean, augmented = (build(encoder, clean=choice)(features, batch).log for choice in (True, False))
    without = build(encoder)(features, batch._replace(clean=None)).log
    assert float(clean["drift"]) > 1e-4 > float(augmented["drift"])
    assert float(without["drift"]) == float(augmented["drift"])


def test_free_channels_get_no_gradient(encoder: Encoder, batch: PairBatch) -> None:  # noqa: F811
    features = look(encoder, batch)
    maps = [x.detach().requires_grad_() for x in features.maps]
    build(encoder, free=0.5)(features._replace(maps=maps), batch).loss.backward()
    for x in maps:
        kept = x.shape[1] // 2
        assert x.grad is not None
        asked = x.grad.unflatten(0, (3, 3))
        assert not asked[:, :, kept:].any()
        assert all(asked[:, view, :kept].any() for view in range(2))
        assert not asked[:, 2].any()  # the recoloured copy


def test_the_teacher_is_not_trained(encoder: Encoder, batch: PairBatch) -> None:  # noqa: F811
    objective = build(encoder)
    objective(look(encoder, batch), batch).loss.backward()
    assert [p for p in objective.parameters() if p.requires_grad or p.grad is not None] == []
    assert all(p.requires_grad for p in encoder.parameters())


def test_a_teacher_that_follows(encoder: Encoder, batch: PairBatch) -> None:  # noqa: F811
    frozen, slow = build(encoder), build(encoder, momentum=0.75)
    first = {name: value.clone() for name, value in encoder.state_dict().items()}
    change(encoder)
    encoder.bn.running_mean.add_(1)
    for objective in (frozen, slow):
        objective.train()
        objective.after_step()
        assert not objective.teacher.training
    for name, value in encoder.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(frozen.teacher.state_dict()[name], first[name])
            torch.testing.assert_close(slow.teacher.state_dict()[name], 0.75 * first[name] + 0.25 * value)
    resumed = build(Small(), momentum=0.75)
    resumed.load_state_dict(slow.state_dict())
    features = look(encoder, batch)
    assert torch.equal(resumed(features, batch).loss, slow(features, batch).loss)


@pytest.mark.parametrize("targets", ["features", "relations"])
def test_no_wait_for_the_device(encoder: Encoder, batch: PairBatch, targets: str) -> None:  # noqa: F811
    objective, features = build(encoder, targets=targets, momentum=0.9), look(encoder, batch)
    with CountSyncs() as counter:
        objective(features, batch).loss.backward()
        objective.after_step()
    assert counter.calls == []
    assert counter.total > 40


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="needs the network's encoder"):
        DistillObjective(Setup())
    with pytest.raises(ConfigError, match=r"--distill\.free 1\.0: .*less than 1.*--distill\.momentum 2\.0"):
        DistillObjective(Setup(encoder=Small()), DistillOptions(free=1.0, momentum=2.0))
