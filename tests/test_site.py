"""The documentation as a site: it builds strictly, has every page in its navigation, and loads nothing from outside."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "mkdocs.yml"
#: attributes by which a page loads something
LOADED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("video", "src"), ("link", "href")}


def build(config: Path, out: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config), "--site-dir", str(out)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(words, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(CONFIG, out)
    assert done.returncode == 0, done.stderr
    return out


class Page(HTMLParser):
    """What a page loads, where it leads, and the places that can be led to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: set[str] = set()
        self.links: set[str] = set()
        self.places = {""}
        self.classes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if (tag, name) in LOADED:
                self.loaded.add(value or "")
            elif tag == "a" and name == "href":
                self.links.add(value or "")
            elif name in ("id", "name"):
                self.places.add(value or "")
            elif name == "class":
                self.classes |= set((value or "").split())


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text()) for path in site.rglob("*.html")}


def in_nav(entry: Any) -> Iterator[str]:
    """Pages that the navigation names."""
    if isinstance(entry, str):
        yield entry
    for part in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
        yield from in_nav(part)


def is_outside(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.netloc) or parts.scheme not in ("", "data", "mailto")


def test_every_page_is_in_the_navigation_once() -> None:
    listed = list(in_nav(yaml.safe_load(CONFIG.read_text())["nav"]))
    there = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(listed) == sorted(there)


def test_every_page_is_built(pages: dict[Path, Page], site: Path) -> None:
    for source in (ROOT / "docs").rglob("*.md"):
        page = site / source.relative_to(ROOT / "docs").with_suffix(".html")
        assert page in pages
        title = re.search(r"^# (.+)$", source.read_text(), flags=re.MULTILINE)
        assert title and "<h1" in page.read_text()


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Page], site: Path) -> None:
    found = [(path.name, each) for path, page in pages.items() for each in page.loaded if is_outside(each)]
    assert found == []
    for style in site.rglob("*.css"):
        addresses = re.findall(r"url\(['\"]?([^)'\"]+)|@import\s+['\"]([^'\"]+)", style.read_text())
        assert [each for pair in addresses for each in pair if is_outside(each)] == []
    # Diagrams of this kind are what the theme's script would fetch a program for.
    assert not any("mermaid" in page.classes for page in pages.values())


def test_links_and_files_are_there(pages: dict[Path, Page]) -> None:
    checked = 0
    for path, page in pages.items():
        if path.name == "404.html":  # its addresses start at the server's root
            continue
        for address in page.loaded | page.links:
            parts = urlsplit(address)
            if is_outside(address) or parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.exists(), f"{path.name}: {address}"
            if target in pages:
                assert unquote(parts.fragment) in pages[target].places, f"{path.name}: {address}"
            checked += 1
    assert checked > 1000


@pytest.mark.thorough
@pytest.mark.parametrize("link", ["gone.md", "other.md#gone", "/index.md"])
def test_a_broken_link_stops_the_build(tmp_path: Path, link: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# One\n\n[x]({link})\n")
    (tmp_path / "docs" / "other.md").write_text("# Other\n")
    config = {"INHERIT": str(CONFIG), "nav": ["index.md", "other.md"], "docs_dir": "docs", "theme": {"name": "mkdocs"}}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(config))
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1
    assert link in done.stderr
