"""Class colours: told apart by everybody, the same for a class wherever it is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pri3d.errors import ConfigError
from pri3d.palette import color_labels, palette

#: Machado, Oliveira, Fernandes 2009: linear RGB as seen without red and without green cones
PROTAN = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
DEUTAN = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]


#: as in prepared rooms and, without the ceiling, in ScanNet
NAMES = ["wall", "floor", "ceiling", *(f"object {k}" for k in range(252))]


def nearest_two(colors: NDArray[np.uint8], seen: NDArray[np.float64]) -> float:
    """Smallest CIELAB distance between two of the colours; ``seen`` (3, 3) acts on linear RGB."""
    share = colors / 255.0
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ seen.T, 0, 1)
    xyz = linear @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    f = xyz / [0.9505, 1, 1.089]
    f = np.where(f > 0.008856, np.cbrt(f), 7.787 * f + 16 / 116)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
    gap = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1000 * np.eye(len(lab))
    return float(gap.min())


@pytest.mark.parametrize("seen", [np.eye(3), np.array(PROTAN), np.array(DEUTAN)], ids=["normal", "protan", "deutan"])
def test_everybody_tells_the_first_colours_apart(seen: NDArray[np.float64]) -> None:
    """2 is the least difference one sees side by side."""
    assert nearest_two(palette(NAMES[:13]), seen) > 20
    assert nearest_two(palette(NAMES[:20]), seen) > 15
    assert nearest_two(palette(NAMES[:40]), seen) > 10


def test_colours_are_distinct_and_none_is_black() -> None:
    colors = palette(NAMES[:60]).astype(int)
    gap = np.linalg.norm(colors[:, None] - colors[None], axis=-1) + 1000 * np.eye(60)
    assert gap[:20, :20].min() > 60
    assert gap.min() > 0
    assert np.linalg.norm(colors, axis=1).min() > 60


def test_a_class_keeps_its_colour() -> None:
    assert np.array_equal(palette(NAMES[:13]), palette(NAMES)[:13])
    assert np.array_equal(palette(NAMES)[3:20], palette(NAMES[3:20]))  # among all classes, and as objects alone


@pytest.mark.parametrize("k", range(3))
def test_walls_are_calm_wherever_they_stand(k: int) -> None:
    calm, name = palette(NAMES)[k], NAMES[k]
    assert (palette(["bed", "books", name, "chair"])[2] == calm).all()
    assert (palette([name.capitalize()])[0] == calm).all()


@pytest.mark.parametrize("classes", [1, 2, 3, 13, 60])
def test_no_other_class_is_calm(classes: int) -> None:
    """As near to grey as the three is none of two or three classes of one's own; none at all is one of the three."""
    names = [f"part {k}" for k in range(classes)]
    calm = palette(NAMES[:3]).tolist()
    assert not any(color in calm for color in palette(names).tolist())
    first = palette(names)[:3].astype(int)
    assert (first.max(1) - first.min(1)).min() > 100 > np.ptp(np.array(calm), axis=1).max()


def test_two_of_a_name_are_told_apart() -> None:
    assert len(np.unique(palette(["wall", "Wall", "lamp"]), axis=0)) == 3


def test_no_class_has_no_colour() -> None:
    assert palette([]).shape == (0, 3)


def test_too_many_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match="256 classes"):
        palette([*NAMES, "one more"])


def test_labels_take_their_class_colour_and_ignored_is_black() -> None:
    label = np.array([[0, 2], [255, 7]], np.uint8)
    colors = color_labels(label, NAMES[:3])
    assert np.array_equal(colors[0], palette(NAMES[:3])[[0, 2]])
    assert (colors[1] == 0).all()
