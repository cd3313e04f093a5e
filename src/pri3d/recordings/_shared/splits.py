"""The scenes of an official list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pri3d.errors import DataError
from pri3d.recordings._shared.scenes import LazyScene


def of_split(path: Path, scenes: Sequence[LazyScene], split: str) -> list[LazyScene]:
    """Scenes of the recording ``path`` that belong to ``split``; those in no official list count as train.

    Raises DataError, which says what there is instead, where there are scenes but none of this split.
    """
    wanted = [scene for scene in scenes if split in ("all", scene.split or "train")]
    if scenes and not wanted:
        there = sorted({scene.split or "train" for scene in scenes})
        raise DataError(
            f"{path}: none of its {len(scenes)} scenes is in the official {split} list. Choose "
            f"{' or '.join(f'--split {other}' for other in there)} to take them."
        )
    return wanted
