"""Whether one network is better than another on the same pairs and frames: differences with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pri3d.data.pairs import ANGLE_NAMES, angle_bins
from pri3d.intervals import Measures, bootstrap_half, resample_blocks
from pri3d.networks.readout import DEGREES
from pri3d.probing.pairs import THRESHOLDS

Sums = NDArray[np.float64]
#: measures of which less is better; of all others more is
ERRORS = ("depth / rmse", "normals / mean")


class Sample(NamedTuple):
    """What a task found of one network, unit by unit: frames, or all pairs that begin with one."""

    sums: Sums  #: (U, S) in the order of time
    measure: Callable[[Sums], Measures]  #: (..., S) sums over units -> measures by their name in tables
    parts: Mapping[str, Sequence[str]] = MappingProxyType({})  #: measures that are made of others, each of few units


#: "matching", "depth", "guard / NAME", ... -> what was found
Samples = Mapping[str, Sample]


class Difference(NamedTuple):
    """A measure of a network minus that of another on the same pairs or frames."""

    difference: float
    low: float  #: end of the 95 % interval, NaN where it is not known
    high: float
    verdict: str  #: "better", "worse" or "no difference shown"


def sample_matching(counts: Sums, angles: NDArray[np.float32], unit: NDArray[np.int64]) -> Sample:
    """Points found and counted of pairs (P, 2), radians between their views (P,), and which unit each lies on (P,)."""
    bins = np.stack(list(angle_bins(np.degrees(angles)).values()))
    filled = (bins @ counts[:, 1]) > 0

    def measure(sums: Sums) -> Measures:
        found, counted = sums[..., : len(bins)], sums[..., len(bins) :]
        by_angle = found / counted
        balanced = by_angle[..., filled].mean(-1) if filled.any() else np.full(sums.shape[:-1], math.nan)
        named = {f"by_angle / {name}": by_angle[..., k] for k, name in enumerate(ANGLE_NAMES)}
        return {"mean": found.sum(-1) / counted.sum(-1), "balanced": balanced, **named}

    spread = [bins.T * counts[:, [k]] for k in (0, 1)]
    bins_of = [f"by_angle / {name}" for name, some in zip(ANGLE_NAMES, filled, strict=True) if some]
    return Sample(_gather(np.concatenate(spread, axis=1), unit), measure, {"balanced": bins_of})


def sample_correspondence(rights: Sums, angles: NDArray[np.float32], unit: NDArray[np.int64]) -> Sample:
    """Matches right within each threshold, and matches, of pairs (P, thresholds + 1); the rest as for matching."""
    some = rights[:, -1] > 0
    share = np.concatenate([rights[:, :-1] / np.maximum(rights[:, -1:], 1), np.ones((len(rights), 1))], axis=1)
    share[~some] = 0
    bins = np.stack(list(angle_bins(np.degrees(angles)).values()))
    width = share.shape[1]

    def measure(sums: Sums) -> Measures:
        parts = sums.reshape(*sums.shape[:-1], len(bins), width)
        recall, by_angle = parts.sum(-2), parts[..., :-1] / parts[..., -1:]
        found = {f"recall / {name}": recall[..., k] / recall[..., -1] for k, name in enumerate(THRESHOLDS)}
        for b, angle in enumerate(ANGLE_NAMES):
            found |= {f"by_angle / {angle} / {name}": by_angle[..., b, k] for k, name in enumerate(THRESHOLDS)}
        return found

    spread = (bins.T[:, :, None] * share[:, None]).reshape(len(share), -1)
    return Sample(_gather(spread, unit), measure)


def measure_depth(sums: Sums) -> Measures:
    """Sums of :meth:`pri3d.networks.readout.DepthErrors.frames` (..., 5) -> the scores."""
    shares = {f"delta{k}": sums[..., k] / sums[..., 4] for k in (1, 2, 3)}
    return {"rmse": np.sqrt(sums[..., 0] / sums[..., 4]), **shares}


def measure_normals(sums: Sums) -> Measures:
    """Sums of :meth:`pri3d.networks.readout.NormalErrors.frames` (..., 5) -> the scores but for the median."""
    shares = {f"below_{int(end)}": sums[..., k + 1] / sums[..., 4] for k, end in enumerate(DEGREES)}
    return {"mean": sums[..., 0] / sums[..., 4], **shares}


def measure_classes(sums: Sums) -> Measures:
    """Sums of :meth:`pri3d.networks.readout.ClassErrors.frames` (..., 3 x classes) -> the scores."""
    hit, true, said = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
    occurs = true > 0
    iou = np.where(occurs, hit / np.maximum(true + said - hit, 1), 0.0)
    return {"miou": iou.sum(-1) / occurs.sum(-1), "accuracy": hit.sum(-1) / true.sum(-1)}


def choose_comparisons(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Networks in their order -> (network, what it is compared with): after with before, and all with the first."""
    for name in names:
        before = f"{name.removesuffix(' after')} before" if name.endswith(" after") else ""
        against = [other for other in dict.fromkeys((before, names[0])) if other in names and other != name]
        yield from ((name, other) for other in against)


def compare(
    samples: Mapping[str, Samples], seed: int
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, dict[str, Difference]]]]:
    """Half widths of 95 % intervals of all networks, and the differences of those that are compared.

    Args:
        samples: of each network.
        seed: of the bootstrap, see :func:`pri3d.intervals.resample_blocks`.

    Returns:
        network -> "TASK / MEASURE" -> half width; network -> other -> "TASK / MEASURE" -> difference.
    """
    whole: dict[str, dict[str, float]] = {}  # network -> measure -> its value
    drawn: dict[str, dict[str, NDArray[np.float64]]] = {}  # the same, resampled
    units: dict[str, tuple[int, int]] = {}  # measure -> all, and those that have anything to measure
    for name, tasks in samples.items():
        whole[name], drawn[name] = {}, {}
        for task, sample in tasks.items():
            with np.errstate(invalid="ignore", divide="ignore"):
                found, single = sample.measure(sample.sums.sum(axis=0)), sample.measure(sample.sums)
            resampled = resample_blocks(sample.sums, sample.measure, seed)
            whole[name] |= {f"{task} / {key}": float(value) for key, value in found.items()}
            drawn[name] |= {f"{task} / {key}": value for key, value in resampled.items()}
            measured = {key: int(np.isfinite(of).sum()) for key, of in single.items()}
            measured |= {key: min((measured[part] for part in of), default=0) for key, of in sample.parts.items()}
            units |= {f"{task} / {key}": (len(sample.sums), count) for key, count in measured.items()}
    halves = {
        name: {key: bootstrap_half(values, *units[key]) for key, values in of.items()} for name, of in drawn.items()
    }
    differences: dict[str, dict[str, dict[str, Difference]]] = {}
    for name, other in choose_comparisons(list(samples)):
        found_of = differences.setdefault(name, {})[other] = {}
        for key in whole[name].keys() & whole[other].keys():
            gap = whole[name][key] - whole[other][key]
            if math.isnan(gap):
                continue
            half = bootstrap_half(drawn[name][key] - drawn[other][key], *units[key])
            low, high = gap - half, gap + half  # NaN where the interval is not known: nothing is shown then
            shown = "worse" if (low > 0) == (key in ERRORS) else "better"
            found_of[key] = Difference(gap, low, high, shown if low > 0 or high < 0 else "no difference shown")
        differences[name][other] = {key: found_of[key] for key in whole[name] if key in found_of}  # in their order
    return halves, differences


def _gather(rows: Sums, unit: NDArray[np.int64]) -> Sums:
    """Sum of the rows (P, S) of each unit (U, S)."""
    total = np.zeros((int(unit.max(initial=-1)) + 1, rows.shape[1]))
    np.add.at(total, unit, rows)
    return total
