from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from pri3d.drawing import palette
from pri3d.reporting import figures, style
from pri3d.reporting.figures import MatchedPair, PredictedFrame, draw_pair, pca_colors, spread
from pri3d.tasks.semantic import SemanticTask


def pixels(png: bytes) -> np.ndarray:
    """A PNG's RGB, (H, W, 3)."""
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def black_pair(points: list[tuple[float, ...]], size: tuple[int, int] = (64, 48)) -> MatchedPair:
    colors = np.zeros((2, size[1], size[0], 3), np.uint8)
    return MatchedPair(colors, np.array(points, float).reshape(-1, 4), 0.4, 0.5, "room/a+b")


class TestMatches:
    def test_a_match_ends_at_its_two_pixels(self):
        width, height, scale = 64, 48, 10
        total = 2 * width + width / 40
        figure = Figure(figsize=(total * scale / 100, height * scale / 100), dpi=100)
        draw_pair(figure.add_axes((0, 0, 1, 1)), black_pair([(10.5, 30.5, 50.5, 12.5)]))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        image = pixels(buffer.getvalue())
        red = np.array(mpl.colormaps["hsv"](0.0)[:3]) * 255
        shift = width + width / 40
        for u, v in ((10.5, 30.5), (50.5 + shift, 12.5)):
            assert np.abs(image[int(v * scale), int(u * scale)] - red).max() < 3
        middle = int((30.5 + 12.5) / 2 * scale), int((10.5 + 50.5 + shift) / 2 * scale)
        assert image[middle[0] - 1 : middle[0] + 2, middle[1], 0].max() > 180  # the line between them
        assert (image[5, 5] == 0).all()
        assert (image[int(12.5 * scale), int(50.5 * scale)] == 0).all()  # the second end lies in the second frame only

    def test_no_more_lines_than_asked_for(self):
        points = np.random.default_rng(0).uniform(0, 48, (200, 4))
        axes = Figure().add_subplot()
        draw_pair(axes, black_pair(points.tolist()), shown=12)
        assert [len(lines.get_segments()) for lines in axes.collections[:2]] == [12, 12]

    def test_a_pair_without_matches_is_still_drawn(self):
        assert pixels(figures.pair_figure(black_pair([]))).shape[1] == 1440

    def test_the_title_states_the_numbers(self, monkeypatch: pytest.MonkeyPatch):
        titles: list[str] = []
        grid = figures.image_grid
        monkeypatch.setattr(figures, "image_grid", lambda *given: titles.extend(given[1]) or grid(*given))
        figures.pair_figure(black_pair([(0, 0, 0, 0)]))
        assert titles == ["overlap 40%   ·   1 matches   ·   29° between the views"]

    @given(st.integers(0, 30), st.integers(1, 40), st.integers(0, 9))
    def test_spread_picks_distinct_rows(self, count, wanted, seed):
        points = np.random.default_rng(seed).uniform(0, 10, (count, 2))
        rows = spread(points, wanted)
        assert len(rows) == len(set(rows.tolist())) == min(count, wanted)

    def test_spread_takes_the_corners(self):
        grid = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0)), axis=-1).reshape(-1, 2)
        chosen = grid[spread(grid, 5)].tolist()
        assert [2, 2] in chosen
        assert all(corner in chosen for corner in ([0, 0], [0, 4], [4, 0], [4, 4]))


class TestPca:
    def test_equal_features_have_equal_colours(self):
        maps = torch.randn(1, 8, 6, 7, generator=torch.Generator().manual_seed(0))
        both = pca_colors(maps.expand(2, -1, -1, -1))
        assert both.shape == (2, 6, 7, 3)
        assert np.array_equal(both[0], both[1])
        assert both.min() == 0
        assert both.max() == 1

    def test_length_of_a_feature_does_not_matter(self):
        maps = torch.randn(2, 8, 6, 7, generator=torch.Generator().manual_seed(0))
        scale = torch.rand(2, 1, 6, 7, generator=torch.Generator().manual_seed(1)) + 0.1
        assert np.allclose(pca_colors(maps), pca_colors(maps * scale), atol=1e-4)

    def test_components_are_those_of_the_singular_value_decomposition(self):
        maps = torch.randn(2, 8, 6, 7, generator=torch.Generator().manual_seed(2)) * torch.arange(1, 9).view(1, 8, 1, 1)
        colors = pca_colors(maps).reshape(-1, 3)
        rows = torch.nn.functional.normalize(maps, dim=1).permute(0, 2, 3, 1).reshape(-1, 8).double()
        u, s, _ = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
        scores = (u * s)[:, :3].numpy()
        for k in range(3):
            inside = (colors[:, k] > 0) & (colors[:, k] < 1)  # what the scale does not cut off
            assert abs(np.corrcoef(colors[inside, k], scores[inside, k])[0, 1]) > 0.99999

    def test_features_without_variation_are_grey(self):
        assert (pca_colors(torch.ones(2, 8, 3, 4)) == 0.5).all()

    def test_two_channels_are_enough(self):
        assert (pca_colors(torch.randn(2, 2, 3, 4))[..., 2] == 0.5).all()

    @pytest.mark.thorough
    def test_the_figure_has_a_row_a_network(self):
        pair = black_pair([])
        maps = torch.randn(2, 8, 24, 32)
        one = pixels(figures.features_figure([pair], {"before": maps}))
        two = pixels(figures.features_figure([pair], {"before": maps, "after": maps}))
        assert two.shape[0] - one.shape[0] == pytest.approx(one.shape[0] / 2, rel=0.05)


class TestMethodColours:
    def test_known_methods_keep_their_colours(self):
        alone, beside = style.series_colors(["pri3d"]), style.series_colors(["scratch", "other", "pri3d"])
        assert alone["pri3d"] == beside["pri3d"]
        assert len(set(beside.values())) == 3


class TestSegmentation:
    def frame(self, names: list[str]) -> PredictedFrame:
        label = np.zeros((48, 64), np.uint8)
        label[:, 32:] = 255
        color, found = np.full((48, 64, 3), 255, np.uint8), np.full((48, 64), 1)
        return PredictedFrame("room/0", SemanticTask(names).panels(color, label, {"pri3d": found}))

    def test_unlabelled_pixels_are_black_in_label_and_prediction_only(self):
        color, label, predicted = self.frame(["lamp", "wall"]).panels.values()
        assert (color == 255).all()
        assert (label[:, 32:] == 0).all()
        assert (predicted[:, 32:] == 0).all()
        assert (label[0, 0] == palette(["lamp", "wall"])[0]).all()
        assert (predicted[0, 0] == palette(["lamp", "wall"])[1]).all()

    def test_the_figure_shows_every_class_colour(self):
        names = ["bed", "books", "wall", "floor", "lamp"]
        image = pixels(figures.predictions_figure([self.frame(names)], names)).reshape(-1, 3)
        for color in palette(names):
            assert (image == color).all(axis=1).sum() > 50

    def test_the_legend_fits_many_classes(self):
        patches = figures.class_patches([f"class {k}" for k in range(40)])
        assert len(patches) == 41
        assert patches[-1].get_label() == "not labelled"


def test_making_a_picture_leaves_the_global_style_alone():
    before = dict(mpl.rcParams)
    figures.pair_figure(black_pair([]))
    assert dict(mpl.rcParams) == before


def test_long_titles_of_columns_do_not_meet() -> None:
    names = ["image", "runs/pretraining/a-long-name-of-a-run/view-seed0", "runs/pretraining/a-long-name/geo-seed0"]
    _, axes = style.image_grid(["", ""], names, 4 / 3, width=6.0)
    shown = [cell.get_title(loc="left") for cell in axes[0]]
    assert shown[0] == "image"
    assert [text[0] for text in shown[1:]] == ["…", "…"]
    assert [text[-9:] for text in shown] == ["image", "iew-seed0", "geo-seed0"]
    for cell in axes[0]:
        assert cell._left_title.get_window_extent().x1 <= cell.get_window_extent().x1 + 1
