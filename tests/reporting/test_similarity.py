from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pri3d.reporting import widgets
from pri3d.reporting.figures import MatchedPair
from pri3d.reporting.widgets import pack, similarity_widget


def exact(features: torch.Tensor, frame: int, row: int, column: int) -> np.ndarray:
    unit = F.normalize(features.double(), dim=1)
    return torch.einsum("kchw,c->khw", unit, unit[frame, :, row, column]).numpy()


def pair(points: int = 20) -> MatchedPair:
    generator = np.random.default_rng(0)
    colors = generator.integers(0, 256, (2, 12, 16, 3)).astype(np.uint8)
    places = np.concatenate([generator.uniform(0, (16, 12), (points, 2)) for _ in range(2)], axis=1)
    return MatchedPair(colors, places, 0.5, 0.1, "room/<a>+b")


class Data(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.pictures = 0
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.pictures += tag == "img"
        stated = dict(attrs).get("data-similarity")
        if stated:
            self.stated = json.loads(stated)


@pytest.mark.parametrize("channels", [3, 32, 48])
def test_small_features_have_the_cosines_of_the_large(channels: int):
    torch.manual_seed(0)
    basis = torch.randn(20, channels)  # 48 channels of which 20 directions are used
    features = torch.einsum("khwd,dc->kchw", torch.randn(2, 6, 8, 20), basis)
    packed = pack(features, (6, 8))
    assert packed.values.dtype == np.int8
    assert packed.values.shape[-1] == min(channels, 32)
    assert packed.kept == pytest.approx(1)
    for place in ((0, 2, 3), (1, 5, 0)):
        assert packed.cosines(*place) == pytest.approx(exact(features, *place), abs=0.03)


def test_what_the_page_does_not_hold_is_said():
    torch.manual_seed(0)
    features = torch.randn(2, 64, 6, 8)
    assert 0.5 < pack(features, (6, 8)).kept < 0.95
    assert "% of the features&#x27; variance" in similarity_widget(pair(), {"after": features}, "Caption.")
    assert "variance" not in similarity_widget(pair(), {"after": features[:, :8]}, "Caption.")


def test_large_maps_are_averaged(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(widgets, "MOST_CELLS", 12)
    found = Data(similarity_widget(pair(), {"after": torch.randn(2, 4, 6, 8)}, "")).stated
    assert found["grid"] == [3, 4]
    assert found["size"] == [16, 12]
    assert 0 <= found["start"] < 12


def test_every_network_has_two_pictures_and_texts_are_escaped():
    maps = {"<b>": torch.randn(2, 4, 6, 8), "after": torch.randn(2, 4, 6, 8)}
    html = similarity_widget(pair(), maps, "A <caption>")
    found = Data(html)
    assert found.pictures == 6
    assert [network["name"] for network in found.stated["networks"]] == ["<b>", "after"]
    assert "<b>" not in html
    assert "A &lt;caption&gt;" in html


def test_wide_frames_shrink_and_matches_with_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(widgets, "_MOST_WIDTH", 8)
    before = pair()
    found = Data(similarity_widget(before, {"after": torch.randn(2, 4, 6, 8)}, "")).stated
    assert found["size"] == [8, 6]
    places = np.array(found["matches"])
    assert sorted(places[:, 0]) == pytest.approx(sorted(before.points[:, 0] / 2), abs=0.06)


def test_a_pair_without_matches_starts_in_the_middle():
    found = Data(similarity_widget(pair(0), {"after": torch.randn(2, 4, 6, 8)}, "")).stated
    assert found["start"] == 3 * 8 + 4
    assert found["matches"] == []


def test_the_page_opens_on_a_point_of_median_improvement():
    """Errors by loops over places; the better network's features are the place in the world, the other's are random."""
    torch.manual_seed(0)
    grid, size = (6, 8), (16, 12)
    shown, first = pair(21), torch.randn(2, 5, *grid)
    second = first[:1].expand(2, -1, -1, -1).clone()
    networks = {"before": first, "after": second}
    errors = {}
    for name, features in networks.items():
        packed, errors[name] = pack(features, grid), []
        for x, y, u, v in shown.points:
            similar = packed.cosines(0, int(y / 2), int(x / 2))[1]
            row, column = np.unravel_index(similar.argmax(), grid)
            errors[name].append(np.hypot(2 * column + 1 - u, 2 * row + 1 - v))
        assert packed.errors(shown.points / (*size, *size)) * size[0] == pytest.approx(errors[name])
    found = Data(html := similarity_widget(shown, networks, "Caption."))
    gains = np.subtract(errors["before"], errors["after"])
    x, y = shown.points[np.argsort(gains)[10], :2]
    assert found.stated["start"] == int(y / 2) * 8 + int(x / 2)
    assert f"before {np.median(errors['before']):.1f}, after {np.median(errors['after']):.1f}" in html
