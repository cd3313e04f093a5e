"""Pair mining against plain ways of computing the same definition, and its accuracy against brute force.

    PRI3D_REAL_DATA=FOLDER python -m benchmarks.mining

Takes ``7scenes_redkitchen`` of PRI3D_REAL_DATA (640 x 480), else rooms rendered at 320 x 240. CPU seconds of one
thread, without reading images, our way and the others' interleaved, the median of three rounds.

Plain loop: for each pair, back-project both frames, build both k-d trees, query every pixel of each in the other.
Strong trees: back-project and build each frame's tree once, query every 4th pixel in both axes. Both are timed on a
sample of pairs (and of frames, for the trees) and scaled to all of them, which is fair: they do the same for each.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from pri3d.preparation.overlap import HOPELESS, DepthStack, estimate_overlaps, measure_overlaps, mine_pairs
from pri3d.recordings import open_recording
from pri3d.store import millimetres
from pri3d.worlds.render import render_room
from pri3d.worlds.room import build_room

DISTANCE, MIN_OVERLAP, MAX_DEPTH = 0.02, 0.3, 6.0
ROUNDS = 3


def load_stack(count: int) -> tuple[str, DepthStack]:
    """Return what the data are called, and ``count`` frames spread over them."""
    folder = os.environ.get("PRI3D_REAL_DATA")
    if folder:
        scene = open_recording(Path(folder) / "7scenes_redkitchen", "sevenscenes").scenes()[0]
        indices = np.linspace(0, len(scene.names) - 1, count).astype(int)
        frames = [scene.frame(int(k)) for k in indices]
        name = "7-Scenes kitchen, 640 x 480"
    else:
        frames = render_room(build_room(0, 0), count, 320, 240)
        name = "rendered room, 320 x 240"
    depth = np.stack([millimetres(np.where(f.depth <= MAX_DEPTH, f.depth, 0)) for f in frames])
    intrinsics = np.array([f.depth_camera[2:] for f in frames])
    return name, DepthStack(depth, intrinsics, np.stack([f.world_from_camera for f in frames]))


def world_points(stack: DepthStack, n: int, step: int = 1) -> NDArray[np.float64]:
    """Valid pixels of frame n, every ``step``-th in both axes, in the world (P, 3)."""
    depth = stack.depth[n, step // 2 :: step, step // 2 :: step]
    fx, fy, cx, cy = stack.intrinsics[n]
    v, u = np.nonzero(depth)
    z = depth[v, u] * 1e-3
    x, y = (u * step + step // 2 + 0.5 - cx) / fx * z, (v * step + step // 2 + 0.5 - cy) / fy * z
    pose = stack.world_from_camera[n]
    return np.stack((x, y, z), axis=1) @ pose[:3, :3].T + pose[:3, 3]


def hits(tree: cKDTree, points: NDArray[np.float64]) -> int:
    """How many points have a neighbour in the tree within the match distance."""
    return int(np.isfinite(tree.query(points, distance_upper_bound=DISTANCE)[0]).sum())


def brute_force(stack: DepthStack, i: int, j: int) -> float:
    """Overlap of one pair by the paper's definition, nothing shared between pairs."""
    a, b = world_points(stack, i), world_points(stack, j)
    return (hits(cKDTree(b), a) + hits(cKDTree(a), b)) / max(len(a) + len(b), 1)


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of the process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def all_pairs(n: int) -> NDArray[np.int32]:
    """All i < j of n frames (P, 2)."""
    return np.stack(np.triu_indices(n, 1), axis=1).astype(np.int32)


def against_plain_loop(frames: int, sampled: int) -> tuple[float, float, float]:
    """Our seconds, the plain loop's, and the median ratio, for all pairs of ``frames`` frames."""
    _, stack = load_stack(frames)
    pairs = all_pairs(frames)
    rng = np.random.default_rng(0)
    rounds = []
    for _ in range(ROUNDS):
        chosen = pairs[rng.choice(len(pairs), sampled, replace=False)]
        ours = seconds(lambda: mine_pairs(stack))
        plain = seconds(lambda chosen=chosen: [brute_force(stack, i, j) for i, j in chosen])
        rounds.append((ours, plain * len(pairs) / sampled))
    return print_summary(rounds)


def against_trees(frames: int, sampled: int) -> tuple[float, float, float]:
    """Our seconds, those of shared trees with thinned queries, and the median ratio."""
    _, stack = load_stack(frames)
    pairs = all_pairs(frames)
    rng = np.random.default_rng(1)
    rounds = []
    for _ in range(ROUNDS):
        chosen = pairs[rng.choice(len(pairs), sampled, replace=False)]
        used = np.unique(chosen)
        trees: dict[int, cKDTree] = {}
        thinned: dict[int, NDArray[np.float64]] = {}

        def build(used: NDArray[np.int32] = used, trees: dict = trees, thinned: dict = thinned) -> None:
            trees.update({n: cKDTree(world_points(stack, n)) for n in used})
            thinned.update({n: world_points(stack, n, 4) for n in used})

        def query(chosen: NDArray[np.int32] = chosen, trees: dict = trees, thinned: dict = thinned) -> None:
            for i, j in chosen:
                hits(trees[j], thinned[i])
                hits(trees[i], thinned[j])

        ours = seconds(lambda: mine_pairs(stack))
        built = seconds(build) * frames / len(used)
        rounds.append((ours, built + seconds(query) * len(pairs) / sampled))
    return print_summary(rounds)


def print_summary(rounds: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Medians of ours, of theirs, and of theirs over ours."""
    return median(o for o, _ in rounds), median(t for _, t in rounds), median(t / o for o, t in rounds)


def accuracy(frames: int, sampled: int) -> tuple[float, float, float]:
    """Mean and largest error, and the share of equal decisions, on random pairs against full resolution.

    Pairs that mining passes over count with their estimate and as left out.
    """
    _, stack = load_stack(frames)
    pairs = all_pairs(frames)
    pairs = pairs[np.random.default_rng(2).choice(len(pairs), sampled, replace=False)]
    truth = np.array([brute_force(stack, i, j) for i, j in pairs])
    values = estimate_overlaps(stack, cell=2 * DISTANCE)[pairs[:, 0], pairs[:, 1]]
    worth = values >= HOPELESS
    values[worth] = measure_overlaps(stack, pairs[worth], distance=DISTANCE, min_overlap=MIN_OVERLAP)
    kept = worth & (values >= MIN_OVERLAP)
    errors = np.abs(values - truth)
    return float(errors.mean()), float(errors.max()), float((kept == (truth >= MIN_OVERLAP)).mean())


def run(sampled: int = 200) -> list[tuple[str, str, str]]:
    """Name, measured value and bar of every figure; ``sampled`` pairs for the accuracy."""
    name, warm = load_stack(3)
    mine_pairs(warm, min_overlap=0.01)  # compiles
    ours, plain, ratio = against_plain_loop(20, 8)
    rows = [(f"mining 20 frames, times faster than the plain loop ({name})", f"{ratio:.0f}", ">= 30")]
    rows += [("  ours / plain loop (from 8 of 190 pairs), s", f"{ours:.2f} / {plain:.1f}", "")]
    ours, trees, ratio = against_trees(100, 60)
    rows += [("mining 100 frames, times faster than shared trees, every 4th pixel", f"{ratio:.1f}", ">= 2.5")]
    rows += [("  ours / shared trees (from 60 of 4950 pairs), s", f"{ours:.2f} / {trees:.1f}", "")]
    mean, largest, equal = accuracy(100, sampled)
    rows += [(f"overlap error against full resolution, mean of {sampled} pairs", f"{mean:.4f}", "<= 0.003")]
    rows += [("  largest", f"{largest:.4f}", "")]
    rows += [("decisions at 0.30 equal to full resolution, %", f"{100 * equal:.1f}", ">= 99.5")]
    return rows


def main() -> None:
    """Print the table."""
    for name, measured, bar in run():
        print(f"{name:92s} {measured:>14s}  {bar}")


if __name__ == "__main__":
    main()
