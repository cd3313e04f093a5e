"""Class colours that everybody tells apart; predictions drawn over images: pixels, names, small and large images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pri3d.drawing import color_labels, draw_classes, draw_detections, draw_legend, palette
from pri3d.errors import ConfigError
from pri3d.types import Detections

#: Machado, Oliveira, Fernandes 2009: linear RGB as seen without red and without green cones
PROTAN = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
DEUTAN = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]


#: as in prepared rooms and, without the ceiling, in ScanNet
MANY = ["wall", "floor", "ceiling", *(f"object {k}" for k in range(252))]
NAMES = ["wall", "floor", "chair"]


def to_lab(colors: NDArray[np.uint8], seen: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colours (K, 3) in CIELAB; ``seen`` (3, 3) acts on linear RGB."""
    share = colors / 255.0
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ seen.T, 0, 1)
    xyz = linear @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    f = xyz / [0.9505, 1, 1.089]
    f = np.where(f > 0.008856, np.cbrt(f), 7.787 * f + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def ciede2000(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colour differences (...) of CIELAB colours (..., 3), as Sharma, Wu and Dalal 2005 write them down."""
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(first, -1, 0), np.moveaxis(second, -1, 0)
    mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * np.sqrt(mean**7 / (mean**7 + 25.0**7))
    c1, c2 = np.hypot(stretch * a1, b1), np.hypot(stretch * a2, b2)
    h1, h2 = np.degrees(np.arctan2(b1, stretch * a1)) % 360, np.degrees(np.arctan2(b2, stretch * a2)) % 360
    turn = np.where(c1 * c2 == 0, 0, (h2 - h1 + 180) % 360 - 180)
    hue = np.where(c1 * c2 == 0, h1 + h2, (h1 + turn / 2) % 360)
    lightness, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    parts = ((1, 0), (-0.17, -30), (0.24, 0), (0.32, 6), (-0.20, -63))
    t = sum(w * np.cos(np.radians(hue * max(k, 1) * (k > 0) + s)) for k, (w, s) in enumerate(parts))
    bend = np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2))))
    light = (l2 - l1) / (1 + 0.015 * (lightness - 50) ** 2 / np.sqrt(20 + (lightness - 50) ** 2))
    colour = (c2 - c1) / (1 + 0.045 * chroma)
    tint = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * chroma * t)
    rotation = -2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7)) * bend
    return np.sqrt(light**2 + colour**2 + tint**2 + rotation * colour * tint)


def nearest_two(colors: NDArray[np.uint8], seen: NDArray[np.float64]) -> float:
    """Smallest CIELAB distance between two of the colours."""
    lab = to_lab(colors, seen)
    gap = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1000 * np.eye(len(lab))
    return float(gap.min())


@pytest.mark.parametrize("seen", [np.eye(3), np.array(PROTAN), np.array(DEUTAN)], ids=["normal", "protan", "deutan"])
def test_everybody_tells_the_first_colours_apart(seen: NDArray[np.float64]) -> None:
    """2 is the least difference one sees side by side."""
    assert nearest_two(palette(MANY[:13]), seen) > 20
    assert nearest_two(palette(MANY[:20]), seen) > 15
    assert nearest_two(palette(MANY[:40]), seen) > 10


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((2.0776, 0.0795, -1.135), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_the_colour_difference_is_the_published_one(
    first: tuple[float, ...], second: tuple[float, ...], expected: float
) -> None:
    """Pairs 1, 17, 25 and 34 of the test data of Sharma, Wu and Dalal."""
    assert ciede2000(np.array(first, float), np.array(second, float)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("classes", "solid", "overlay"), [(13, 15, 12), (20, 12, 10), (40, 7, 5.5)])
def test_classes_differ_in_maps_and_overlays(classes: int, solid: float, overlay: float) -> None:
    """By CIEDE2000, where 2 is just visible; an overlay mixes half of a class's colour with the image, here grey."""
    colors = palette(MANY[:classes])
    for seen, least in ((colors, solid), (colors // 2 + 64, overlay)):
        lab = to_lab(seen, np.eye(3))
        gap = ciede2000(lab[:, None], lab[None]) + 1000 * np.eye(classes)
        assert gap.min() > least


def test_colours_are_distinct_and_none_is_black() -> None:
    colors = palette(MANY[:60]).astype(int)
    gap = np.linalg.norm(colors[:, None] - colors[None], axis=-1) + 1000 * np.eye(60)
    assert gap[:20, :20].min() > 60
    assert gap.min() > 0
    assert np.linalg.norm(colors, axis=1).min() > 60


def test_a_class_keeps_its_colour() -> None:
    assert np.array_equal(palette(MANY[:13]), palette(MANY)[:13])
    assert np.array_equal(palette(MANY)[3:20], palette(MANY[3:20]))  # among all classes, and as objects alone


@pytest.mark.parametrize("k", range(3))
def test_walls_are_calm_wherever_they_stand(k: int) -> None:
    calm, name = palette(MANY)[k], MANY[k]
    assert (palette(["bed", "books", name, "chair"])[2] == calm).all()
    assert (palette([name.capitalize()])[0] == calm).all()


@pytest.mark.parametrize("classes", [1, 2, 3, 13, 60])
def test_no_other_class_is_calm(classes: int) -> None:
    """As near to grey as the three is none of two or three classes of one's own; none at all is one of the three."""
    names = [f"part {k}" for k in range(classes)]
    calm = palette(MANY[:3]).tolist()
    assert not any(color in calm for color in palette(names).tolist())
    first = palette(names)[:3].astype(int)
    assert (first.max(1) - first.min(1)).min() > 100 > np.ptp(np.array(calm), axis=1).max()


def test_two_of_a_name_are_told_apart() -> None:
    assert len(np.unique(palette(["wall", "Wall", "lamp"]), axis=0)) == 3


def test_no_class_has_no_colour() -> None:
    assert palette([]).shape == (0, 3)


def test_too_many_classes_are_refused() -> None:
    with pytest.raises(ConfigError, match="256 classes"):
        palette([*MANY, "one more"])


def test_labels_take_their_class_colour_and_ignored_is_black() -> None:
    label = np.array([[0, 2], [255, 7]], np.uint8)
    colors = color_labels(label, MANY[:3])
    assert np.array_equal(colors[0], palette(MANY[:3])[[0, 2]])
    assert (colors[1] == 0).all()


def grey(width: int, height: int, value: int = 128) -> NDArray[np.uint8]:
    return np.full((height, width, 3), value, np.uint8)


def detections(boxes: list[tuple[int, int, int, int]], size: tuple[int, int], classes: list[int]) -> Detections:
    masks = np.zeros((len(boxes), size[1], size[0]), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    scores = np.linspace(0.9, 0.5, len(boxes)).astype(np.float32)
    return Detections(masks, np.array(boxes, np.float32).reshape(-1, 4), np.array(classes, np.int64), scores)


class TestClasses:
    def test_pixels_are_mixed_with_their_class_colour(self) -> None:
        label = np.zeros((480, 640), np.uint8)
        label[:, 320:] = 2
        drawn = draw_classes(grey(640, 480), label, NAMES, alpha=0.5)
        for column, k in ((100, 0), (500, 2)):
            assert np.abs(drawn[240, column].astype(int) - (128 + palette(NAMES)[k].astype(int)) / 2).max() <= 1
        assert drawn[240, 319:321].max(1).tolist() != drawn[240, [100, 500]].max(1).tolist()  # the border
        assert drawn.shape[1] == 640
        assert drawn.shape[0] > 480

    def test_ignored_pixels_stay(self) -> None:
        label = np.full((480, 640), 255, np.uint8)
        drawn = draw_classes(grey(640, 480), label, NAMES)
        assert drawn.shape == (480, 640, 3)  # nothing to explain, no legend
        assert (drawn == 128).all()

    def test_the_legend_names_what_occurs_alone(self) -> None:
        label = np.zeros((480, 640), np.uint8)
        legend = draw_classes(grey(640, 480), label, NAMES)[480:].reshape(-1, 3)
        assert (legend == palette(NAMES)[0]).all(1).sum() > 50
        assert not (legend == palette(NAMES)[2]).all(1).any()

    @pytest.mark.parametrize("size", [(64, 48), (1, 1), (320, 240), (37, 100), (2000, 30)])
    def test_small_images_are_enlarged(self, size: tuple[int, int]) -> None:
        label = np.zeros(size[::-1], np.uint8)
        drawn = draw_classes(grey(*size), label, NAMES)
        scale = drawn.shape[1] // size[0]
        assert drawn.shape[1] == scale * size[0]
        assert drawn.shape[1] >= 430
        assert drawn.shape[0] > scale * size[1]

    def test_many_classes_take_several_lines(self) -> None:
        entries = [(f"class number {k}", (k, k, k)) for k in range(150)]
        one, many = draw_legend(entries[:2], 640), draw_legend(entries, 640)
        assert many.shape[0] > 10 * one.shape[0] / 2
        assert many.shape[1] == 640
        assert (many[:, -1] == 255).all()  # nothing is cut off


class TestDetections:
    def test_masks_have_their_class_colour(self) -> None:
        found = detections([(100, 100, 300, 300), (400, 100, 600, 300)], (640, 480), [0, 2])
        drawn = draw_detections(grey(640, 480), found, NAMES, alpha=0.5)
        for column, k in ((200, 0), (500, 2)):
            assert np.abs(drawn[200, column].astype(int) - (128 + palette(NAMES)[k].astype(int)) / 2).max() <= 1
        assert (drawn[470, 10] == 128).all()

    def test_a_class_has_the_colour_that_maps_give_it(self) -> None:
        """Also where walls and floors are no objects: chair is class 2 of maps and 0 of objects."""
        found = detections([(0, 0, 640, 480)], (640, 480), [0])
        drawn = draw_detections(grey(640, 480), found, ["chair"], alpha=1.0)
        mapped = draw_classes(grey(640, 480), np.full((480, 640), 2, np.uint8), NAMES, alpha=1.0)
        assert drawn[300, 300].tolist() == mapped[300, 300].tolist()

    def test_better_objects_lie_on_top(self) -> None:
        found = detections([(100, 100, 300, 300), (100, 100, 300, 300)], (640, 480), [0, 1])
        pixel = draw_detections(grey(640, 480), found, NAMES, alpha=1.0)[200, 200]
        assert (pixel == palette(NAMES)[0]).all()

    def test_names_keep_clear_of_each_other(self) -> None:
        """Two objects in one place: both names are to be read, so both colours fill a plate."""
        found = detections([(100, 100, 300, 300), (100, 100, 300, 300)], (640, 480), [0, 1])
        drawn = draw_detections(grey(640, 480), found, NAMES, alpha=0.0).reshape(-1, 3)
        for k in (0, 1):
            assert (drawn == palette(NAMES)[k]).all(1).sum() > 400

    def test_names_without_room_are_left_out(self) -> None:
        """Ten objects in one place: three names fit above, in and below it, those of the best."""
        found = detections([(300, 200, 340, 300)] * 10, (640, 480), list(range(10)))
        names = [f"class {k}" for k in range(10)]
        drawn = draw_detections(grey(640, 480), found, names, alpha=0.0).reshape(-1, 3)
        plates = [(drawn == color).all(1).sum() for color in palette(names)]
        assert min(plates[:3]) > 400
        assert max(plates[3:]) == 0

    def test_what_is_true_has_no_score(self) -> None:
        found = detections([(100, 200, 300, 400)], (640, 480), [2])
        named, scored = (draw_detections(grey(640, 480), found, NAMES, with_scores=s) for s in (False, True))
        label = (named != scored).any(2)
        assert label.any()
        assert not label[200:].any()  # the name above the box alone differs

    def test_nothing_found_changes_nothing(self) -> None:
        assert (draw_detections(grey(640, 480), detections([], (640, 480), []), NAMES) == 128).all()

    @settings(max_examples=15)
    @given(st.data())
    def test_boxes_anywhere(self, data: st.DataObject) -> None:
        width, height = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 200))
        corner = st.floats(-20, 220, width=32)
        drawn = data.draw(st.lists(st.tuples(corner, corner, corner, corner), max_size=4))
        boxes = np.array(drawn, np.float32).reshape(-1, 4)
        boxes[:, 2:] = boxes[:, :2] + np.abs(boxes[:, 2:])
        count = len(boxes)
        masks = np.zeros((count, height, width), bool)
        found = Detections(masks, boxes, np.zeros(count, np.int64), np.full(count, 0.5, np.float32))
        drawn = draw_detections(grey(width, height), found, ["a very long name of a class, longer than the image"])
        assert drawn.shape[1] % width == 0
        assert drawn.dtype == np.uint8
