"""Images that are read ahead: in order, and never more of them than memory is for."""

from __future__ import annotations

from threading import Lock

import pytest

from pri3d.data import reading as module
from pri3d.data.reading import PIXELS_AHEAD, read_ahead, reading


class Loads:
    """What is loaded and not yet taken."""

    def __init__(self) -> None:
        self.lock, self.ahead, self.most = Lock(), 0, 0

    def load(self, item: int) -> int:
        with self.lock:
            self.ahead += 1
            self.most = max(self.most, self.ahead)
        return item * 10

    def run(self, count: int, pixels: int) -> int:
        for item, future in reading(range(count), self.load, 8, lambda _: pixels):
            assert future.result() == item * 10
            with self.lock:
                self.ahead -= 1
        return self.most


@pytest.mark.parametrize(
    ("pixels", "most"), [(0, 17), (1000, 17), (PIXELS_AHEAD // 4, 5), (PIXELS_AHEAD, 2), (PIXELS_AHEAD * 9, 2)]
)
def test_the_pixels_that_wait_are_bounded(pixels: int, most: int) -> None:
    """Beside those that wait there is the one that is taken."""
    assert Loads().run(60, pixels) <= most


def test_every_item_comes_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIXELS_AHEAD", 10)
    sizes = [3, 20, 1, 1, 9, 11, 0, 0, 5]
    found = [future.result() for _, future in reading(range(9), lambda k: k, 3, lambda k: sizes[k])]
    assert found == list(range(9))
    assert list(read_ahead(range(5), lambda k: -k)) == [0, -1, -2, -3, -4]
    assert list(reading([], lambda k: k)) == []
