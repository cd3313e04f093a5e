"""Small recordings in the layouts of depth cameras and SLAM sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sample_frames import Sample

DESK: dict[str, Callable[[Path], Sample]] = {}
