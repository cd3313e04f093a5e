"""Shared fixtures: real data where it is, one thread so that figures and order do not depend on the machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import setuptools  # noqa: F401  # before anything imports distutils: PyTorch's compiler wants the one in here
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # flat.py

from pri3d.api.prepare import prepare
from pri3d.api.rooms import rooms
from pri3d.machine import limit_spinning

torch.set_num_threads(1)
limit_spinning()  # of processes that tests start
settings.register_profile("pri3d", deadline=None)  # a busy machine is no failure
settings.load_profile("pri3d")


@pytest.fixture(scope="session")
def rooms_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared store of two small rendered rooms with labels, pairs and surface. Do not write to it.

    A pixel of so small an image is centimetres wide, hence the 10 cm.
    """
    folder = tmp_path_factory.mktemp("rooms")
    rooms(folder / "raw", rooms=2, frames=8, size="64x48", processes=1)
    prepare([folder / "raw"], folder / "store", size="64x48", voxel=0.08, distance=0.1, min_overlap=0.2, processes=1)
    return folder / "store"


@pytest.fixture
def real_data() -> Path:
    """Folder of real recordings; a test that wants it is skipped without it."""
    folder = os.environ.get("PRI3D_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("PRI3D_REAL_DATA names no folder of real recordings")
    return Path(folder)
