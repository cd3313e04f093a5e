"""Negatives of all processes, with real ones: averaged gradients are those of the joint batch in one process."""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import start_processes

from pri3d.api.pretrain import ContrastOptions
from pri3d.objectives import Features, Setup, contrast
from pri3d.objectives.contrast import Near, info_nce
from pri3d.objectives.geometry import GeometryObjective, GeometryOptions
from pri3d.types import PairBatch

SIZES = (2, 3)
SAMPLES, POINTS = 3, 20
#: Whether negatives are excluded, and how many similarities are held at once.
CASES = ((False, 1 << 20), (True, 1 << 20), (True, 90))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(6, 4, bias=False).double()


def share(rank: int) -> tuple[Tensor, Tensor, list[Near]]:
    """What one process holds: inputs (2, B, n, 6), fewer valid points the higher its rank, and places."""
    generator = torch.Generator().manual_seed(rank)
    inputs = torch.randn(2, SAMPLES, POINTS, 6, generator=generator, dtype=torch.float64)
    valid = torch.rand(SAMPLES, POINTS, generator=generator) < (0.9, 0.4, 0.0)[rank]
    places = torch.rand(SAMPLES, POINTS, 2, generator=generator, dtype=torch.float64)
    return inputs, valid, [Near(places, 0.2)]


def averaged(model: nn.Module) -> list[Tensor]:
    """The parameters' gradients as DistributedDataParallel makes them (whose import costs a test 5 s a process)."""
    gradients = []
    for parameter in model.parameters():
        assert parameter.grad is not None  # it would wait for ever
        if distributed.is_initialized():
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()
        gradients.append(parameter.grad)
    return gradients


def learn(model: nn.Module, given: tuple[Tensor, Tensor, list[Near]], case: tuple[bool, int]) -> list[Tensor]:
    """Loss, recall, chance, number of points and the parameters' gradient."""
    inputs, valid, near = given
    contrast.BLOCK_CPU = case[1]
    model.zero_grad()
    result = info_nce(*model(inputs).unbind(0), valid, 0.2, "world", near if case[0] else ())
    result.loss.sum().backward()
    return [field.detach().clone() for field in (*result, *averaged(model))]


def plane(voxels: bool) -> PairBatch:
    """A pair that sees a wall 1 m away twice, with the wall's 10 cm voxels or with none."""
    rows = [(chunk, x, y, 9) for chunk in (0, 1) for x in range(-6, 6) for y in range(-6, 6)]
    cells = torch.tensor(rows if voxels else rows[:0]).view(-1, 4)
    return PairBatch(
        color=torch.zeros(1, 2, 3, 8, 8), depth=torch.ones(1, 2, 8, 8),
        intrinsics=torch.tensor((8.0, 8.0, 4.0, 4.0)).expand(1, 2, 4),
        world_from_camera=torch.eye(4).expand(1, 2, 4, 4),
        voxel_cells=cells, voxel_color=torch.zeros(len(cells), 3), voxel_size=torch.tensor(0.1),
        seeds=torch.arange(1), names=["wall"],
    )  # fmt: skip


def geometry(rank: int) -> list[Tensor]:
    """Loss and gradients where only process 0 has a surface."""
    torch.manual_seed(0)
    contrasted = ContrastOptions(points=16, negatives="world", exclude_cm=5.0)
    objective = GeometryObjective(Setup(channels=4, contrast=contrasted), GeometryOptions(net3d="tiny"))
    terms = objective(Features(torch.randn(1, 2, 4, 8, 8), []), plane(voxels=rank == 0))
    terms.loss.backward()
    return [terms.loss.detach(), *averaged(objective)]


def process(rank: int, folder: Path) -> None:
    """What each process does: the cases in worlds of each size, then the geometry objective."""
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    results: dict[str, Any] = {}
    for size in SIZES:
        if rank < size:
            distributed.init_process_group("gloo", f"file://{folder}/meet{size}", rank=rank, world_size=size)
            results[f"cases{size}"] = [learn(network(), share(rank), case) for case in CASES]
            results["geometry"] = geometry(rank)
            distributed.destroy_process_group()
    torch.save(results, folder / f"rank{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("world")
    multiprocessing.set_forkserver_preload([GeometryObjective.__module__])  # one import for all processes
    start_processes(process, (folder,), nprocs=max(SIZES), start_method="forkserver")
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(max(SIZES))]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", range(len(CASES)))
def test_world_equals_one_process_with_the_joint_batch(
    ranks: list[dict[str, Any]], size: int, case: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contrast, "BLOCK_CPU", contrast.BLOCK_CPU)  # learn sets it
    shares = [share(rank) for rank in range(size)]
    inputs, valid = torch.cat([s[0] for s in shares], dim=1), torch.cat([s[1] for s in shares])
    assert len({int(s[1].sum()) for s in shares}) == size
    near = [Near(torch.cat([s[2][0].places for s in shares]), 0.2)]
    wanted = learn(network(), (inputs, valid, near), CASES[case])
    for rank in range(size):
        torch.testing.assert_close(ranks[rank][f"cases{size}"][case], wanted, atol=1e-6, rtol=1e-6)


def test_a_process_without_surface_takes_part(ranks: list[dict[str, Any]]) -> None:
    """It neither keeps the others waiting nor gets other gradients than they."""
    mine = ranks[0]["geometry"]
    assert len(mine) > 10
    assert float(mine[0]) > 0
    assert any(float(gradient.abs().max()) > 0 for gradient in mine[1:])
    for other in ranks[1:]:
        torch.testing.assert_close(other["geometry"], mine)
