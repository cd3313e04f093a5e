from __future__ import annotations

import pytest
import torch

from pri3d.errors import ConfigError, DataError
from pri3d.networks.resunet3d import SIZES, ResUNet3d, build_resunet3d


def cloud(seed=0, count=400, batch=3, span=20):
    g = torch.Generator().manual_seed(seed)
    coords = torch.cat((torch.randint(0, batch, (count, 1), generator=g),
                        torch.randint(-5, span - 5, (count, 3), generator=g)), 1)  # fmt: skip
    return torch.unique(coords, dim=0)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return build_resunet3d("tiny", 2, 5).double().eval()


def features(coords):
    return torch.sin(coords[:, 1:3].double() * 1.7 + coords[:, :1])


def test_34c_has_the_authors_parameters():
    with torch.device("meta"):
        assert sum(p.numel() for p in build_resunet3d("34C", 3).parameters()) == 37_863_424
        occupancy = build_resunet3d("34C")
    assert occupancy.stem.weight.shape == (125, 1, 32)
    assert occupancy.head.out_features == 96


@pytest.mark.thorough
@pytest.mark.parametrize("size", SIZES)
def test_every_size_trains(size):
    coords = cloud(count=60, span=12)
    net = build_resunet3d(size, in_channels=1, out_channels=7)
    out = net(coords, torch.ones(len(coords), 1))
    assert out.shape == (len(coords), 7)
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_rows_follow_the_caller(net):
    coords = cloud()
    order = torch.randperm(len(coords), generator=torch.Generator().manual_seed(1))
    out = net(coords, features(coords))
    torch.testing.assert_close(net(coords[order], features(coords)[order]), out[order], atol=1e-10, rtol=1e-10)


def test_batch_items_do_not_see_each_other(net):
    coords = cloud()
    out = net(coords, features(coords))
    for b in range(3):
        mine = coords[:, 0] == b
        alone = net(coords[mine], features(coords)[mine])
        torch.testing.assert_close(alone, out[mine], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("shift", [(8, -16, 24), (-80, -8, 0)])
def test_a_shift_by_whole_coarsest_cells_changes_nothing(net, shift):
    coords = cloud()
    moved = coords + torch.tensor([0, *shift])
    torch.testing.assert_close(net(moved, features(coords)), net(coords, features(coords)), atol=1e-10, rtol=1e-10)


def test_int32_coordinates_are_taken(net):
    coords = cloud()
    assert torch.equal(net(coords.int(), features(coords)), net(coords, features(coords)))


@pytest.mark.thorough
def test_bf16_autocast_trains():
    coords = cloud()
    net = build_resunet3d("tiny")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = net(coords, torch.ones(len(coords), 1))
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in net.parameters())


def test_a_single_voxel_trains():
    net = build_resunet3d("tiny")
    out = net(torch.tensor([[0, -7, 3, 2]]), torch.ones(1, 1))
    out.sum().backward()
    assert out.isfinite().all()


def test_it_learns_to_tell_corners_from_planes():
    """A few steps on two kinds of surface lower the loss far below its start."""
    torch.manual_seed(0)
    plane = torch.tensor([[0, x, y, 0] for x in range(10) for y in range(10)])
    wall = torch.tensor([[1, x, 0, z] for x in range(10) for z in range(10)])
    coords, target = torch.cat((plane, wall)), torch.arange(2).repeat_interleave(100)
    net = build_resunet3d("tiny", 1, 2)
    optimiser, losses = torch.optim.Adam(net.parameters(), 1e-2), []
    for _ in range(6):
        loss = torch.nn.functional.cross_entropy(net(coords, torch.ones(200, 1)), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_errors_name_the_cause():
    net = build_resunet3d("tiny")
    with pytest.raises(DataError, match="no voxel"):
        net(torch.zeros(0, 4, dtype=torch.long), torch.zeros(0, 1))
    with pytest.raises(DataError, match=r"feats must be \(2, 1\)"):
        net(torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1]]), torch.ones(2, 3))
    with pytest.raises(ConfigError, match=r"'50'.*34C, 18A, 14A, tiny"):
        build_resunet3d("50")
    with pytest.raises(ConfigError, match="even number"):
        ResUNet3d(blocks=(1, 1, 1), planes=(8, 8, 8))


def test_recomputed_features_have_the_same_gradients_in_less_memory() -> None:
    rng = torch.Generator().manual_seed(0)
    cells = torch.unique(torch.randint(0, 12, (600, 3), generator=rng), dim=0)
    coords = torch.nn.functional.pad(cells, (1, 0))
    kept, gradients = [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        net = build_resunet3d("14A", recompute=recompute)
        saved: list[int] = []

        def keep(x: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
            saved.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            result = net(coords, torch.ones(len(coords), 1))
        kept.append(sum(saved))
        result.square().mean().backward()
        gradients.append([p.grad for p in net.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again)
    assert kept[1] < kept[0] / 2
