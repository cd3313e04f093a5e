from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from PIL import Image

from pri3d.reporting import charts
from pri3d.reporting.style import series_colors

ROWS = [
    {"step": k, "loss": 10 - k / 5, "lr": 1e-3, "view/loss": 5.0, "view/recall": k / 30, "view/chance": 6.0}
    | {"geometry/loss": 5 - k / 5, "geometry/recall": k / 40, "geometry/chance": 6.0}
    for k in range(1, 21)
]

COLORS = series_colors(["view", "geometry"]) | series_colors(["scratch", "pri3d"])


def count_color(png: bytes, color: str) -> int:
    with Image.open(io.BytesIO(png)) as image:
        rows = np.asarray(image.convert("RGB")).reshape(-1, 3).astype(int)
    return int((np.abs(rows - np.round(np.array(to_rgb(color)) * 255)).max(axis=1) <= 1).sum())


def has_color(png: bytes, color: str) -> bool:
    return count_color(png, color) > 30


@pytest.mark.thorough
def test_training_curves_show_every_objective():
    picture = charts.training_figure(ROWS, {"view": 1.0, "geometry": 0.5})
    assert has_color(picture, COLORS["view"])
    assert has_color(picture, COLORS["geometry"])
    alone = [{k: v for k, v in row.items() if not k.startswith("geometry")} for row in ROWS]
    assert not has_color(charts.training_figure(alone, {}), COLORS["geometry"])


@pytest.mark.thorough
def test_columns_that_join_later_are_drawn():
    late = [{"step": 1.0, "loss": 6.0, "lr": 1e-3}, *ROWS]
    assert has_color(charts.training_figure(late, {}), COLORS["view"])


@pytest.mark.thorough
def test_fine_tuning_curves_show_every_method():
    history = [{"step": 10, "miou": 0.1}, {"step": 20, "miou": 0.2}]
    losses = [{"step": k, "loss": 1 / k} for k in range(1, 9)]
    picture = charts.validation_figure(
        {"scratch": [history, history[:1]], "pri3d": [history]}, {"scratch": [losses], "pri3d": []}
    )
    assert has_color(picture, COLORS["scratch"])
    assert has_color(picture, COLORS["pri3d"])


def test_scores_show_every_method():
    for picture in (
        charts.bars_figure({"mIoU": {"scratch": [0.2, 0.22], "pri3d": [0.3]}}, "%"),
        charts.classes_figure({"scratch": {"wall": 0.5, "lamp": float("nan")}, "pri3d": {"wall": 0.7, "lamp": 0.1}}),
    ):
        assert has_color(picture, COLORS["scratch"])
        assert has_color(picture, COLORS["pri3d"])


@pytest.mark.thorough
def test_a_class_without_a_score_leaves_no_dot():
    color = COLORS["pri3d"]
    none, one, two = (
        count_color(charts.classes_figure({"pri3d": dict(zip(("wall", "lamp"), values, strict=True))}), color)
        for values in ((np.nan, np.nan), (0.2, np.nan), (0.2, 0.4))
    )
    assert one - none == pytest.approx(two - one, rel=0.1)
    assert one > none


@given(st.lists(st.floats(-5, 5) | st.just(float("nan")), min_size=1, max_size=12), st.integers(0, 4))
def test_running_mean_is_the_mean_of_the_neighbours(values, reach):
    smooth = charts.running_mean(np.array(values), reach)
    for k in range(len(values)):
        near = [v for v in values[max(0, k - reach) : k + reach + 1] if np.isfinite(v)]
        assert smooth[k] == pytest.approx(np.mean(near) if near else float("nan"), nan_ok=True, abs=1e-9)


def test_methods_have_colours_of_their_own():
    names = ["paper", "scratch", "pri3d", "imagenet", "a", "b", "c", "d", "e", "f"]
    colors = series_colors(names)
    assert list(colors) == names
    assert len(set(colors.values())) == 10
    assert series_colors(["x", "scratch"])["scratch"] == colors["scratch"]
    assert len(series_colors([*names, "g", "h"])) == 12


@pytest.mark.thorough
def test_bars_show_every_series_and_the_reference():
    rows = {"ScanNet": {"scratch": [0.2, 0.25], "pri3d": [0.4]}, "NYUv2": {"pri3d": [0.3, 0.35, float("nan")]}}
    picture = charts.bars_figure(rows, "mIoU, %")
    assert has_color(picture, COLORS["scratch"])
    assert has_color(picture, COLORS["pri3d"])
    alone = {group: {"pri3d": row["pri3d"]} for group, row in rows.items()}
    assert not has_color(charts.bars_figure(alone, "mIoU, %"), COLORS["scratch"])
    assert charts.bars_figure(alone, "mIoU, %", {"NYUv2": {"pri3d": 0.54}}) != charts.bars_figure(alone, "mIoU, %")
    assert charts.bars_figure({"gain": {"pri3d": [-0.1, 0.1]}}, "points")
    assert charts.bars_figure({"none": {"pri3d": []}}, "points")


@pytest.mark.thorough
def test_label_efficiency_shows_every_method_and_the_reference():
    curves = {"scratch": {0.2: [0.1, 0.2], 1.0: [0.3, 0.35]}, "pri3d": {1.0: [0.5], 0.2: [0.4, float("nan")]}}
    picture = charts.efficiency_figure(curves, "mIoU, %")
    assert has_color(picture, COLORS["scratch"])
    assert has_color(picture, COLORS["pri3d"])
    assert not has_color(charts.efficiency_figure({"pri3d": curves["pri3d"]}, "mIoU, %"), COLORS["scratch"])
    both = charts.efficiency_figure({"pri3d": curves["pri3d"]}, "mIoU, %", {"scratch": {0.2: 0.4, 1.0: 0.5}})
    assert has_color(both, COLORS["scratch"])
    assert charts.efficiency_figure({"pri3d": {0.2: [float("nan")]}}, "mIoU, %")


@pytest.mark.thorough
def test_several_pre_trainings_share_one_picture():
    curves = {"pri3d": ROWS, "scratch": [{k: v for k, v in row.items() if "geometry" not in k} for row in ROWS]}
    picture = charts.compared_training_figure(curves)
    assert has_color(picture, COLORS["pri3d"])
    assert has_color(picture, COLORS["scratch"])
    assert charts.compared_training_figure({"pri3d": [{"step": 1.0}]})


@pytest.mark.thorough
def test_measures_on_held_out_pairs_are_drawn_where_they_are_known():
    history = [{"step": k, "recall": k / 9, "rank": 3.0 + k} for k in range(3)]
    assert charts.heldout_figure(history) != charts.heldout_figure([{**row, "alignment": 0.1} for row in history])
    assert charts.heldout_figure([{"step": 1.0}])
