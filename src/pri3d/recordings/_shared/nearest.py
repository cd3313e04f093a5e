"""For a folder that no reader recognises: the closest formats, and the missing files of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

Parts = Sequence[Sequence[str]]  #: of a scene, as patterns of names; each is one of several, the usual one first
_OTHER = 0.9  # of a part that is there under another name
_LEAST = 0.6  # fraction of the parts that a folder has of what it may be meant for
_CLOSE = 0.05  # of the best fraction, within which another format is named too
_SIGN = 0.1  # for each file that is of one format alone
_TRIED = 20  # folders that are looked into
#: names under which the parts are found, of a part by its usual name
_ALIASES: Mapping[str, Sequence[str]] = {
    "color": ("rgb", "image", "images", "colour", "RGB", "Color"),
    "rgb": ("color", "colour", "image", "images", "RGB"),
    "depth": ("depths", "depth_images", "Depth", "aligned_depth"),
    "pose": ("poses", "Pose", "extrinsics"),
    "groundtruth.txt": ("CameraTrajectory.txt", "KeyFrameTrajectory.txt", "traj*.txt", "*groundtruth*.txt"),
    "trajectory.log": ("*/trajectory.log", "*/trajectory.json"),
    "transforms.json": ("transforms_*.json",),
}


class NearMiss(NamedTuple):
    """A folder and a format that it nearly has."""

    format: str
    folder: Path
    lacks: tuple[str, ...]  #: in words
    score: float


def find_near_misses(path: Path, formats: Mapping[str, tuple[Parts, Sequence[str]]]) -> list[NearMiss]:
    """Formats that a folder, or one in it, nearly has, nearest first; ``formats``: name -> its parts and signs."""
    inside = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))[:_TRIED]
    found = []
    for folder in (path, *inside):
        for name, (parts, signs) in formats.items():
            lacks, score = [], 0.0
            for part in parts:
                if any(next(folder.glob(pattern), None) for pattern in part):
                    score += 1
                    continue
                other = next((p for alias in _ALIASES.get(part[0], ()) for p in sorted(folder.glob(alias))), None)
                score += 0.0 if other is None else _OTHER
                place = "" if other is None else f" ({other.relative_to(folder)} is there: rename it)"
                lacks.append(f"{part[0]}{place}")
            signed = sum(next(folder.glob(sign), None) is not None for sign in signs)
            fraction = score / len(parts)
            if lacks and fraction >= _LEAST and (len(lacks) < len(parts) or fraction >= _OTHER):
                found.append(NearMiss(name, folder, tuple(lacks), fraction + _SIGN * signed))
    found.sort(key=lambda miss: -miss.score)
    return [miss for miss in found if miss.score >= found[0].score - _CLOSE][:3]
