"""Seconds of a training step of the 3D network, and how much faster it is than a plain implementation in the same run.

    python -m benchmarks.sparse [voxels ...]

The plain implementation finds neighbours with a Python dictionary and lets autograd keep every gathered tensor. Both
run interleaved on the same voxels, weights and device; the best of a few runs counts. On a CPU the seconds are
processor seconds at one thread, with an accelerator wall-clock seconds between synchronisations.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pri3d.networks.resunet3d import ResUNet3d, build_resunet3d
from pri3d.networks.sparse import Geometry, Pairs, SparseConv

RUNS = 3
STEM = 5


class Row(NamedTuple):
    """One line of the table; a bar is the smallest ratio that passes, None where there is none."""

    name: str
    measured: float
    bar: float | None


def room(voxels: int, seed: int = 0) -> Tensor:
    """Surface of a synthetic room: floor, two rough walls and four balls; about ``voxels`` rows (N, 4) int64."""
    generator = torch.Generator().manual_seed(seed)
    size = round((voxels / 4.6) ** 0.5)
    parts = []
    for axis in range(3):
        plane = torch.rand(16 * size**2, 3, generator=generator) * size
        plane[:, axis] = 0.5 + 0.18 * torch.randn(len(plane), generator=generator)
        parts.append(plane)
    for _ in range(4):
        centre = (0.2 + 0.6 * torch.rand(3, generator=generator)) * size
        ball = torch.randn(6 * size**2, 3, generator=generator)
        parts.append(centre + ball / ball.norm(dim=1, keepdim=True) * size * 0.15)
    cells = torch.unique(torch.cat(parts).floor().long(), dim=0)
    return torch.cat((torch.zeros_like(cells[:, :1]), cells), dim=1)


def plain_maps(coords: Tensor, depth: int) -> list[dict[int, tuple[list[int], list[int]]]]:
    """Every kernel map of the network with a Python dictionary and a loop over voxels and offsets."""
    maps = []
    rows = {tuple(c): i for i, c in enumerate(coords.tolist())}
    for level in range(depth + 1):
        maps += [neighbours(rows, kernel) for kernel in ((3, STEM) if level == 0 else (3,))]
        parents: dict[tuple[int, ...], int] = {}
        down: dict[int, tuple[list[int], list[int]]] = {slot: ([], []) for slot in range(8)}
        for (b, x, y, z), i in rows.items():
            out, inp = down[4 * (x & 1) + 2 * (y & 1) + (z & 1)]
            out.append(parents.setdefault((b, x >> 1, y >> 1, z >> 1), len(parents)))
            inp.append(i)
        maps.append(down)
        rows = parents
    return maps


def neighbours(rows: dict[tuple[int, ...], int], kernel: int) -> dict[int, tuple[list[int], list[int]]]:
    """Offset -> (output rows, input rows)."""
    found = {}
    r = kernel // 2
    for offset, (dx, dy, dz) in enumerate(itertools.product(range(-r, r + 1), repeat=3)):
        hits = [(i, rows.get((b, x + dx, y + dy, z + dz))) for (b, x, y, z), i in rows.items()]
        found[offset] = ([i for i, j in hits if j is not None], [j for _, j in hits if j is not None])
    return found


class Plain:
    """The same convolutions by autograd: gather, multiply, add per offset, on whole lists."""

    def __init__(self, net: ResUNet3d) -> None:
        self.convs = [m for m in net.modules() if isinstance(m, SparseConv)]
        self.whole: dict[int, list[tuple[int, Tensor, Tensor]]] = {}

    def lists(self, pairs: Pairs) -> list[tuple[int, Tensor, Tensor]]:
        """One (offset, output rows, input rows) per offset, tiles joined; made once per map."""
        if id(pairs) not in self.whole:
            tiles = sorted(pairs.each(), key=lambda entry: entry[0])
            groups = itertools.groupby(tiles, key=lambda entry: entry[0])
            joined = [(offset, *map(torch.cat, zip(*(t[1:] for t in tiles), strict=True))) for offset, tiles in groups]
            self.whole[id(pairs)] = joined  # type: ignore[assignment]
        return self.whole[id(pairs)]

    def convolve(self, weight: Tensor, x: Tensor, pairs: Pairs) -> Tensor:
        """Features (N, inputs) -> (pairs.rows_out, outputs)."""
        y = x.new_zeros(pairs.rows_out, weight.shape[2])
        if pairs.centre is not None:
            y = y + x @ weight[pairs.centre]
        for offset, out, inp in self.lists(pairs):
            y = y.index_add(0, out, x[inp] @ weight[offset])
        return y

    def __enter__(self) -> None:
        for conv in self.convs:
            conv.convolve = lambda x, pairs, conv=conv: self.convolve(conv.weight, x, pairs)

    def __exit__(self, *_: object) -> None:
        for conv in self.convs:
            del conv.convolve


def seconds(work: Callable[[], object], device: torch.device) -> tuple[float, object]:
    """Time of one call and its result."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    synchronise(device)
    begin = clock()
    result = work()
    synchronise(device)
    return clock() - begin, result


def synchronise(device: torch.device) -> None:
    """Wait for the device, where it runs ahead."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def own_maps(coords: Tensor, depth: int) -> Geometry:
    """Geometry with every kernel map the network asks for."""
    geometry = Geometry(coords, depth + 1)
    geometry.same(0, STEM)
    for level in range(depth + 1):
        geometry.same(level, 3)
    for level in range(depth):
        geometry.down(level)
        geometry.up(level + 1)
    return geometry


def step(net: ResUNet3d, geometry: Geometry, feats: Tensor) -> tuple[float, float, Tensor]:
    """Seconds of forward and backward, and the features (N, C)."""
    net.zero_grad(set_to_none=True)
    ahead, out = seconds(lambda: net.features(geometry, feats), feats.device)
    assert isinstance(out, Tensor)
    back, _ = seconds(lambda: out.square().mean().backward(), feats.device)
    return ahead, back, out.detach()


def measure(size: str, channels: int, voxels: int, device: torch.device) -> list[Row]:
    """Rows of one network on one surface."""
    torch.manual_seed(0)
    coords = room(voxels)
    net = build_resunet3d(size, channels).to(device)
    feats = torch.rand(len(coords), channels).to(device)
    there = coords.to(device)
    dictionary, _ = seconds(lambda: plain_maps(coords, net.depth), torch.device("cpu"))
    best: dict[str, float] = {}
    for run in range(RUNS + 1):  # the first warms up
        took, geometry = seconds(lambda: own_maps(there, net.depth), device)
        assert isinstance(geometry, Geometry)
        ahead, back, ours = step(net, geometry, feats)
        plain = Plain(net)
        with plain:
            net.features(geometry, feats)  # makes the joined lists
            plain_ahead, plain_back, theirs = step(net, geometry, feats)
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-2)
        figures = (took, ahead, back, plain_ahead, plain_back)
        for key, value in zip(("maps", "fwd", "bwd", "plain fwd", "plain bwd"), figures, strict=True):
            best[key] = min(value, best.get(key, value)) if run else float("inf")
    total = best["maps"] + best["fwd"] + best["bwd"]
    plain_total = dictionary + best["plain fwd"] + best["plain bwd"]
    name = f"{size}, {channels} in, {len(coords):,} voxels, {device.type}"
    return [
        Row(f"{name}: kernel maps, s", best["maps"], None),
        Row(f"{name}: forward, s", best["fwd"], None),
        Row(f"{name}: backward, s", best["bwd"], None),
        Row(f"{name}: kernel maps, times faster than plain", dictionary / best["maps"], 10.0),
        Row(f"{name}: forward + backward, times faster than plain",
            (best["plain fwd"] + best["plain bwd"]) / (best["fwd"] + best["bwd"]), 1.2),
        Row(f"{name}: step, times faster than plain", plain_total / total, 1.5),
    ]  # fmt: skip


def run(voxels: tuple[int, ...] = (33_000,)) -> list[Row]:
    """Measure 14A (occupancy) and 34C (colour), on the CPU at one thread and on the accelerator where there is one."""
    torch.set_num_threads(1)
    devices = [torch.device("cpu")]
    if torch.accelerator.is_available():
        devices.append(torch.accelerator.current_accelerator() or devices[0])
    sizes = (("14A", 1), ("34C", 3))
    return [row for d in devices for n in voxels for size, channels in sizes for row in measure(size, channels, n, d)]


def main() -> None:
    """Print the table; arguments are numbers of voxels."""
    for name, measured, bar in run(tuple(int(v) for v in sys.argv[1:]) or (33_000,)):
        print(f"{name:78s} {measured:9.4f}" + (f"   bar: at least {bar:g}" if bar is not None else ""))


if __name__ == "__main__":
    main()
