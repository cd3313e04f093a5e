from __future__ import annotations

import base64
import hashlib
import io
import re

import numpy as np
import pytest
from PIL import Image

from pri3d.files.atomic import write_atomic
from pri3d.reporting.html import Page, picture_address


def tiny_png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((2, 3, 3), 7, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


NASTY = "<script>alert('x')</script> & \"quoted\""


def nasty_page() -> Page:
    page = Page(NASTY, NASTY)
    page.heading(NASTY, 3)
    page.heading(NASTY)
    page.heading(NASTY)
    page.paragraph(NASTY)
    page.note(NASTY)
    page.tiles({NASTY: NASTY})
    page.table([NASTY, "n"], [(NASTY, 1.5)], NASTY)
    page.figure(tiny_png(), NASTY, NASTY)
    page.facts(NASTY, {NASTY: NASTY})
    return page


def test_every_text_is_escaped(read_page):
    found = read_page(nasty_page().render())
    assert "script" not in {tag for tag, _ in found.tags}
    assert found.texts.count(NASTY) == 19
    assert next(attrs["alt"] for tag, attrs in found.tags if tag == "img") == NASTY


def test_nothing_is_requested_and_the_picture_is_inside(read_page):
    found = read_page(nasty_page().render())
    assert all(load.startswith("data:image/png;base64,") for load in found.loads)
    data = base64.b64decode(found.loads[0].split(",", 1)[1])
    assert data == tiny_png()
    assert "url(" not in nasty_page().render()
    assert "@import" not in nasty_page().render()


def test_numbers_are_flush_right_and_names_are_not(read_page):
    page = Page("t")
    page.table(["class", "IoU", "note"], [("wall", "51.2", "a"), ("lamp", "–", "3")])
    page.table(["7", "x"], [("1", "−0.5"), ("2", "1,200 %")])
    cells = [(tag, attrs.get("class")) for tag, attrs in read_page(page.render()).tags if tag in {"th", "td"}]
    assert cells[:3] == [("th", None), ("th", "n"), ("th", None)]
    assert cells[3:6] == [("th", None), ("td", "n"), ("td", None)]
    assert cells[9:] == [("th", None), ("th", "n"), ("th", None), ("td", "n"), ("th", None), ("td", "n")]


def test_nested_settings_become_dotted_keys():
    page = Page("t")
    page.facts("facts", {"a": {"b": 1, "c": {"d": [2]}}, "e": None})
    rows = re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', page.render())
    assert rows == [("a.b", "1"), ("a.c.d", "[2]"), ("e", "None")]


def test_writing_replaces_whole_files(tmp_path):
    path = tmp_path / "deep" / "page.html"
    assert Page("one").write(path) == path
    Page("two").write(path)
    assert "<title>two</title>" in path.read_text()
    assert [item.name for item in path.parent.iterdir()] == ["page.html"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch: pytest.MonkeyPatch):
    path = write_atomic(tmp_path / "a", b"old")

    def broken(self, target):
        raise OSError("disk full")

    monkeypatch.setattr(type(path), "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_only_scripts_of_widgets_may_run(read_page):
    page = nasty_page()
    assert "script-src 'none'" in page.render()
    page.widget("<p>a widget</p><script>let x = 1;</script>")
    digest = base64.b64encode(hashlib.sha256(b"let x = 1;").digest()).decode()
    policy = next(a["content"] for tag, a in read_page(page.render()).tags if a.get("http-equiv"))
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_sections_are_listed_where_there_are_several(read_page):
    page = Page("t")
    page.heading("One")
    assert "<nav>" not in page.render()
    page.heading("Two")
    tags = read_page(page.render()).tags
    targets = [attrs["href"] for tag, attrs in tags if tag == "a"]
    assert targets == [f"#{attrs['id']}" for tag, attrs in tags if tag == "h2"]
    assert len(targets) == 2


def test_pictures_say_what_they_are():
    assert picture_address(tiny_png()).startswith("data:image/png;")
    assert picture_address(b"\xff\xd8\xff").startswith("data:image/jpeg;")
