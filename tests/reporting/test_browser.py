"""Pages in a real browser: nothing is asked for, nothing goes wrong, pictures are there, a click does something."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, find_chromium

from pri3d.api.report import report
from pri3d.reporting import style

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(
        CHROMIUM is None or sys.platform == "win32", reason="no chromium is installed: apt-get install chromium"
    ),
]
ON = ".pri3d-similarity.pri3d-on"
#: every canvas as text, to be compared
SHOWN = f"[...document.querySelectorAll('{ON} canvas')].map(c => c.toDataURL())"


@pytest.fixture(scope="module")
def pages(runs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 40)
        run = report([runs.pretrain], out=root / "run.html").path
        every = [runs.pretrain, *runs.finetune["scratch"], *runs.finetune["pri3d"]]
        return {"run": run, "comparison": report(every, out=root / "comparison.html").path}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(str(CHROMIUM), tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("name", ["run", "comparison"])
def test_a_page_is_whole_and_asks_for_nothing(browser: Browser, pages: dict[str, Path], name: str):
    browser.open(pages[name])
    browser.wait_for(f"document.querySelector('{ON}')")
    assert browser.requests() == [pages[name].as_uri()]
    assert browser.complaints() == []
    assert browser.run("Promise.all([...document.images].map(i => i.decode())).then(() => true)")
    assert browser.run("[...document.images].filter(i => !(i.naturalWidth > 0)).length") == 0
    assert browser.run("document.images.length") >= 8
    assert browser.run("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_the_page_cannot_fetch_or_evaluate(browser: Browser, pages: dict[str, Path]):
    browser.open(pages["run"])
    assert browser.run("fetch('data:,x').then(() => 'fetched', () => 'refused')") == "refused"
    added = "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)"
    browser.run(added)
    assert browser.run("window.ran") is None
    assert any("Content Security Policy" in text for text in browser.complaints())  # so that [] above says something


def test_a_click_chooses_another_point(browser: Browser, pages: dict[str, Path]):
    browser.open(pages["run"])
    browser.wait_for(f"document.querySelector('{ON}')")
    first = browser.run(SHOWN)
    assert len(first) == 6
    for number, (across, down) in ((0, (0.2, 0.3)), (3, (0.7, 0.8))):
        before = browser.run(SHOWN)
        box = browser.run(
            f"(() => {{ const c = document.querySelectorAll('{ON} canvas')[{number}]; c.scrollIntoView();"
            "const b = c.getBoundingClientRect(); return [b.left, b.top, b.width, b.height] })()"
        )
        browser.click(box[0] + across * box[2], box[1] + down * box[3])
        after = browser.run(SHOWN)
        assert all(one != other for one, other in zip(before, after, strict=True))
    assert browser.complaints() == []


def test_keys_move_the_point_and_bring_it_back(browser: Browser, pages: dict[str, Path]):
    browser.open(pages["run"])
    browser.wait_for(f"document.querySelector('{ON}')")
    first = browser.run(SHOWN)
    browser.run(f"document.querySelector('{ON} canvas').focus()")
    browser.press("ArrowLeft")
    moved = browser.run(SHOWN)
    assert moved[0] != first[0]
    assert moved[2:] != first[2:]
    browser.press("ArrowUp")
    assert browser.run(SHOWN)[2:] != moved[2:]
    browser.press("0")
    assert browser.run(SHOWN) == first
    browser.run(f"document.querySelector('{ON} input').click()")
    assert browser.run(SHOWN)[2:] != first[2:]
    assert browser.run(SHOWN)[:2] == first[:2]


def test_without_scripts_the_maps_of_one_point_are_there(browser: Browser, pages: dict[str, Path]):
    browser.open(pages["run"], scripts=False)
    shown = browser.run(
        "[...document.querySelectorAll('.pri3d-similarity img')].map(i => i.getBoundingClientRect().width)"
    )
    assert len(shown) == 6
    assert min(shown) > 100
    assert (
        browser.run("document.querySelectorAll('canvas').length - document.querySelectorAll('.pri3d-scene').length")
        == 0
    )


def test_the_script_and_the_package_draw_the_same_map(browser: Browser, pages: dict[str, Path]):
    """The static picture of the first point, a JPEG, and the canvas in its place, away from the marks."""
    browser.open(pages["run"])
    browser.wait_for(f"document.querySelector('{ON}')")
    compare = f"""(() => {{
        const bytes = (picture) => {{
            const c = document.createElement("canvas"); c.width = 64; c.height = 48;
            const p = c.getContext("2d"); p.imageSmoothingEnabled = false; p.drawImage(picture, 0, 0, 64, 48);
            return p.getImageData(0, 0, 64, 48).data;
        }};
        const [img, canvas] = ["img", "canvas"].map(n => bytes(document.querySelectorAll("{ON} " + n)[4]));
        return [...img].map((v, k) => Math.abs(v - canvas[k])).sort((a, b) => a - b)[Math.floor(img.length * 0.9)];
    }})()"""
    assert browser.run(compare) <= 16
