from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pri3d.errors import ConfigError, DataError
from pri3d.networks.sparse import Down, Geometry, SubmConv, Up

EXACT = {"atol": 1e-10, "rtol": 1e-10}


def full_grid(batch, size):
    """Every cell of a grid (B, D, D, D), rows shuffled."""
    coords = torch.tensor(list(itertools.product(range(batch), *[range(size)] * 3)))
    return coords[torch.randperm(len(coords), generator=torch.Generator().manual_seed(0))]


def random_coords(seed=0, count=120, batch=3, span=7, low=-3):
    g = torch.Generator().manual_seed(seed)
    cells = torch.randint(low, low + span, (count, 3), generator=g)
    coords = torch.cat((torch.randint(0, batch, (count, 1), generator=g), cells), 1)
    coords = torch.unique(coords, dim=0)
    return coords[torch.randperm(len(coords), generator=g)]


def read(dense, coords):
    b, x, y, z = coords.T
    return dense[b, :, x, y, z]


def dense_weight(weight, kernel, dims=(4, 3, 0, 1, 2)):
    return weight.view(kernel, kernel, kernel, *weight.shape[1:]).permute(*dims)


def compare_with_dense(out, expected, x, w):
    """Outputs and both gradients against the dense layer's, float64."""
    torch.testing.assert_close(out, expected, **EXACT)
    seed = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ours = torch.autograd.grad((out * seed).sum(), (x, w))
    dense = torch.autograd.grad((expected * seed).sum(), (x, w))
    for a, b in zip(ours, dense, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_full_grid_equals_conv3d(kernel):
    torch.manual_seed(0)
    coords = full_grid(2, 5)
    x = torch.randn(2, 3, 5, 5, 5, dtype=torch.float64, requires_grad=True)
    conv, geometry = SubmConv(3, 4, kernel).double(), Geometry(coords, 1)
    out = conv(read(x, coords)[geometry.order], geometry, 0)[geometry.inverse]
    expected = read(F.conv3d(x, dense_weight(conv.weight, kernel), padding=kernel // 2), coords)
    compare_with_dense(out, expected, x, conv.weight)


def test_full_grid_down_equals_strided_conv3d():
    torch.manual_seed(0)
    coords = full_grid(2, 6)
    x = torch.randn(2, 3, 6, 6, 6, dtype=torch.float64, requires_grad=True)
    conv, geometry = Down(3, 4).double(), Geometry(coords, 2)
    out = conv(read(x, coords)[geometry.order], geometry, 0)
    dense = F.conv3d(x, dense_weight(conv.weight, 2), stride=2)
    parents = torch.tensor(list(itertools.product(range(2), *[range(3)] * 3)))  # key order
    compare_with_dense(out, read(dense, parents), x, conv.weight)


def test_full_grid_up_equals_conv_transpose3d():
    torch.manual_seed(0)
    coords = full_grid(2, 6)
    x = torch.randn(2, 3, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    conv, geometry = Up(3, 4).double(), Geometry(coords, 2)
    parents = torch.tensor(list(itertools.product(range(2), *[range(3)] * 3)))
    out = conv(read(x, parents), geometry, 1)[geometry.inverse]
    dense = F.conv_transpose3d(x, dense_weight(conv.weight, 2, (3, 4, 0, 1, 2)), stride=2)
    compare_with_dense(out, read(dense, coords), x, conv.weight)


def slow_conv(coords, x, weight, kernel):
    """The definition: a dictionary of voxels and a loop over them and their neighbours."""
    rows = {tuple(c): i for i, c in enumerate(coords.tolist())}
    r, out = kernel // 2, torch.zeros(len(coords), weight.shape[2], dtype=x.dtype)
    for (b, cx, cy, cz), i in rows.items():
        for k, (dx, dy, dz) in enumerate(itertools.product(range(-r, r + 1), repeat=3)):
            j = rows.get((b, cx + dx, cy + dy, cz + dz))
            if j is not None:
                out[i] += x[j] @ weight[k]
    return out


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6), count=st.integers(1, 60), span=st.integers(1, 6), low=st.integers(-40, 40),
    kernel=st.sampled_from([1, 3, 5]), levels=st.integers(1, 5),
)  # fmt: skip
def test_random_voxels_equal_the_dictionary(seed, count, span, low, kernel, levels):
    coords = random_coords(seed, count, 3, span, low)
    torch.manual_seed(seed)
    x, conv = torch.randn(len(coords), 2, dtype=torch.float64), SubmConv(2, 3, kernel).double()
    geometry = Geometry(coords, levels)
    out = conv(x[geometry.order], geometry, 0)[geometry.inverse]
    torch.testing.assert_close(out, slow_conv(coords, x, conv.weight.detach(), kernel), **EXACT)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 60), low=st.integers(-40, 40))
def test_every_level_is_the_floor_of_the_finest(seed, count, low):
    """Down sums a voxel's children by place: with one-hot weights each channel of a parent is one child's value."""
    coords = random_coords(seed, count, 2, 9, low)
    geometry = Geometry(coords, 3)
    parents = {}
    for row, (b, *cell) in enumerate(coords.tolist()):
        place = sum((c % 2) << (2 - axis) for axis, c in enumerate(cell))
        parents.setdefault((b, *(c // 2 for c in cell)), torch.zeros(8))[place] = row + 1
    down = Down(1, 8)
    with torch.no_grad():
        down.weight.copy_(torch.eye(8)[:, None, :])
        out = down((torch.arange(len(coords)) + 1.0)[geometry.order, None], geometry, 0)
    torch.testing.assert_close(out, torch.stack([parents[key] for key in sorted(parents)]))
    assert len(geometry.levels[2].keys) == len({(b, *(c // 4 for c in cell)) for b, *cell in coords.tolist()})


@pytest.mark.thorough
def test_gradients_are_the_functions_own():
    coords = random_coords(count=16, span=3)
    geometry = Geometry(coords, 2)
    for conv, rows, level in (
        (SubmConv(2, 3, 3), len(coords), 0),
        (SubmConv(1, 1, 5), len(coords), 0),
        (Down(2, 3), len(coords), 0),
        (Up(2, 3), len(geometry.levels[1].keys), 1),
    ):
        weight = conv.weight.detach().double().requires_grad_()
        x = torch.randn(rows, weight.shape[1], dtype=torch.float64, requires_grad=True)

        def f(x, w, conv=conv, level=level):
            return torch.func.functional_call(conv, {"weight": w}, (x, geometry, level))

        assert torch.autograd.gradcheck(f, (x, weight))


def test_long_lists_are_tiled_without_a_difference(monkeypatch):
    coords = random_coords(count=400, span=8)
    x = torch.randn(len(coords), 3, dtype=torch.float64)
    conv, results = SubmConv(3, 4, 3).double(), []
    for tile in (7, 10**6):
        monkeypatch.setattr("pri3d.networks.sparse.TILE", tile)
        geometry = Geometry(coords, 1)
        results.append(conv(x[geometry.order], geometry, 0)[geometry.inverse])
    torch.testing.assert_close(*results, **EXACT)
    assert max(len(out) for _, out, _ in Geometry(coords, 1).same(0, 3).each()) > 7


def test_maps_are_made_once():
    geometry = Geometry(random_coords(), 2)
    assert geometry.same(0, 3) is geometry.same(0, 3)
    assert geometry.same(0, 3) is not geometry.same(1, 3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_runs_in_its_type_and_sums_in_float32(dtype):
    coords = random_coords(count=200)
    geometry = Geometry(coords, 1)
    conv, x = SubmConv(16, 16, 3), torch.randn(len(coords), 16, requires_grad=True)
    exact = conv(x, geometry, 0)
    with torch.autocast("cpu", dtype=dtype):
        out = conv(x, geometry, 0)
        loss = out.float().square().mean()
        loss.backward()  # inside autocast too
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), exact, atol=0.05, rtol=0.05)
    assert x.grad.dtype == conv.weight.grad.dtype == torch.float32
    reference = torch.autograd.grad(exact.square().mean(), (x, conv.weight))
    for a, b in zip((x.grad, conv.weight.grad), reference, strict=True):
        assert float((a - b).norm() / b.norm()) < 0.02


def test_second_derivatives_are_refused():
    coords = random_coords(count=20)
    geometry = Geometry(coords, 1)
    x = torch.randn(len(coords), 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(SubmConv(2, 2, 3)(x, geometry, 0).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        (torch.zeros(0, 4, dtype=torch.long), "no voxel"),
        (torch.zeros(3, 3, dtype=torch.long), "integers"),
        (torch.zeros(3, 4), "integers"),
        (torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3]]), "twice"),
        (torch.tensor([[-1, 0, 0, 0]]), "batch indices"),
        (torch.tensor([[2**15, 0, 0, 0]]), "batch indices"),
        (torch.tensor([[0, 0, 0, 0], [0, 0, 65520, 0]]), "span 65520 cells"),
        (torch.tensor([[0, -5, 0, 0], [0, 65520, 0, 0]]), "larger voxels"),
    ],
)
def test_bad_coordinates_say_why(coords, message):
    with pytest.raises(DataError, match=message):
        Geometry(coords, 5)


def test_the_range_is_per_batch_item():
    """Items far apart in the world are fine, each is moved to its own origin."""
    coords = torch.tensor([[0, -(10**6), 0, 7], [0, -(10**6), 0, 8], [1, 10**6, -3, 0], [1, 10**6 + 65503, -3, 0]])
    pairs = Geometry(coords, 5).same(0, 3)
    assert sum(len(out) for _, out, _ in pairs.each()) == 2


def test_neighbours_do_not_wrap_around_the_fields():
    """Cells at both ends of a field are no neighbours of the next row, plane or batch item."""
    coords = torch.tensor(
        [[0, 0, 0, 0], [0, 0, 0, 65519], [0, 0, 1, 0], [0, 0, 65519, 0], [1, 0, 0, 0], [0, 65519, 0, 0]]
    )
    pairs = Geometry(coords, 1).same(0, 5)
    found = {(out.item(), inp.item()) for _, outs, inps in pairs.each() for out, inp in zip(outs, inps, strict=True)}
    assert found == {(0, 2), (2, 0)}  # (y = 0, z = 0) and (y = 1, z = 0), sorted rows


def test_kernels_and_levels_that_do_not_exist():
    with pytest.raises(ConfigError, match="odd"):
        SubmConv(1, 1, 2)
    with pytest.raises(ConfigError, match="build more levels"):
        Geometry(random_coords(), 1).down(0)
