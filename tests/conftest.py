"""Shared fixtures: real data where it is, one thread so that figures and order do not depend on the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("pri3d", deadline=None)  # a busy machine is no failure
settings.load_profile("pri3d")


@pytest.fixture
def real_data() -> Path:
    """Folder of real recordings; a test that wants it is skipped without it."""
    folder = os.environ.get("PRI3D_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("PRI3D_REAL_DATA names no folder of real recordings")
    return Path(folder)
