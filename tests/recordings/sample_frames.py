"""What every sample recording holds: three frames of a rendered room."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

from pri3d.types import Frame
from pri3d.worlds.render import render_room
from pri3d.worlds.room import build_room

FRAMES, WIDTH, HEIGHT, SEED = 3, 48, 36, 7


class Sample(NamedTuple):
    """A recording and the files of its first scene's first frame."""

    root: Path
    color: Path
    depth: Path
    pose: Path


@cache
def rendered() -> list[Frame]:
    """The frames that every sample holds."""
    return render_room(build_room(SEED, 0), FRAMES, WIDTH, HEIGHT)
