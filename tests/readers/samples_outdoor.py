"""Small recordings in the layouts of reconstructions from images, and outdoors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sample_frames import Sample

OUTDOOR: dict[str, Callable[[Path], Sample]] = {}
