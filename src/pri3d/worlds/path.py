"""A camera that walks through a room: smooth, with overlapping views, never inside or against furniture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pri3d.worlds.rays import Caster, distance
from pri3d.worlds.scene import PATH, Room, generator

_STEP = 0.3  # radians of the round walk between frames: neighbours share about two thirds of what they see
_CLEARANCE = 0.3  # metres to any solid
_NEAR = 0.6  # metres; a surface closer than this counts as near
_MAX_NEAR = 0.04  # share of near pixels
_MAX_SINGLE = 0.4  # share of the view that one instance may fill
_DRAWS = 60


def camera_path(room: Room, frames: int, cast: Caster) -> NDArray[np.float64]:
    """Return ``world_from_camera`` (frames, 4, 4); a longer walk begins with the shorter one."""
    rng = generator(room.seed, room.index, PATH)
    waves = rng.uniform(0, 2 * np.pi, 6)
    speed = rng.uniform(0.21, 0.47, 6)  # waves do not repeat with the walk: each lap sees other things
    return np.stack([_pose(room, k, waves + speed * k, cast) for k in range(frames)])


def _pose(room: Room, frame: int, phase: NDArray[np.float64], cast: Caster) -> NDArray[np.float64]:
    """Nominal pose of the walk, moved by the smallest of a few random shifts that gives a good view."""
    rng = generator(room.seed, room.index, PATH, frame)
    wave = np.sin(phase)
    start = generator(room.seed, room.index, PATH).uniform(0, 2 * np.pi)
    angle = start + _STEP * frame
    way = np.array((np.cos(angle), np.sin(angle)))
    middle = room.size[:2] / 2
    eye = np.array((*(middle + way * room.size[:2] * (0.25 + 0.07 * wave[0])), 1.4 + 0.3 * wave[1]))
    side = np.array((-way[1], way[0]))
    target = np.array((*(middle - way * room.size[:2] * (0.2 + 0.12 * wave[2]) + 0.6 * wave[3] * side), 0.0))
    target[2] = 0.85 + 0.6 * wave[4]
    best, least = look_at(eye, target, 0.06 * wave[5]), np.inf
    for draw in range(_DRAWS):
        shift = rng.uniform(-1, 1, 3) * (0.03, 0.03, 0.015) * draw
        pose = look_at(np.clip(eye + shift, 0.35, room.size - 0.35), target, 0.06 * wave[5])
        bad = _badness(room, pose, cast)
        if bad < least:
            best, least = pose, bad
        if bad == 0:
            break
    return best


def look_at(eye: NDArray[np.float64], target: NDArray[np.float64], roll: float = 0.0) -> NDArray[np.float64]:
    """``world_from_camera`` (4, 4) of a camera at ``eye`` (3,) that looks at ``target`` (3,), rolled by radians."""
    forward = target - eye
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    c, s = np.cos(roll), np.sin(roll)
    pose = np.eye(4)
    pose[:3, :3] = np.stack((c * right + s * down, c * down - s * right, forward), axis=1)
    pose[:3, 3] = eye
    return pose


def _badness(room: Room, pose: NDArray[np.float64], cast: Caster) -> float:
    """0 for a good view; inf inside or against a solid; else how far a view is from being allowed."""
    eye = pose[:3, 3]
    outside = np.maximum(room.boxes[:, 0] - eye, eye - room.boxes[:, 1]).clip(min=0)
    if (np.linalg.norm(outside, axis=1) < _CLEARANCE).any():
        return float("inf")
    x, y = np.meshgrid(np.linspace(-0.46, 0.46, 16), np.linspace(-0.34, 0.34, 12))
    rays = np.stack((x / room.focal, y / room.focal, np.ones_like(x)), axis=-1).reshape(-1, 3) @ pose[:3, :3].T
    origins = np.broadcast_to(eye, rays.shape)
    triangle = cast(origins, rays)
    near = float((distance(room.planes[triangle], origins, rays) < _NEAR).mean())
    single = np.bincount(room.instance[triangle])[1:].max(initial=0) / len(rays)
    return max(near - _MAX_NEAR, 0.0) + max(float(single) - _MAX_SINGLE, 0.0)
