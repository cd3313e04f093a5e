"""Small recordings in the layouts of phones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sample_frames import Sample

PHONE: dict[str, Callable[[Path], Sample]] = {}
