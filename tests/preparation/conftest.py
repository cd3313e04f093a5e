"""Small rooms as a recording, written once, and a copy for each test to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pri3d.api.rooms import rooms


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording") / "rooms"
    rooms(folder, rooms=2, frames=6, size="80x60", processes=1)
    return folder


@pytest.fixture
def recording(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine, tmp_path / "rooms")
    return tmp_path / "rooms"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"
