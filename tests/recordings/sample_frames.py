"""What every sample recording holds: three frames of a rendered room."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pri3d.testing.reader import FRAMES, HEIGHT, SEED, WIDTH, rendered

__all__ = ["FRAMES", "HEIGHT", "SEED", "WIDTH", "Sample", "rendered"]


class Sample(NamedTuple):
    """A recording and the files of its first scene's first frame."""

    root: Path
    color: Path
    depth: Path
    pose: Path
