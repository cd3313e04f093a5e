"""Pictures of a room: one ray a pixel, two point lights with shadows, textures in world space."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pri3d.types import Camera, Frame
from pri3d.worlds.path import camera_path
from pri3d.worlds.rays import Caster, caster, distance
from pri3d.worlds.scene import SENSOR, Materials, Room, generator
from pri3d.worlds.sensor import noisy_color, noisy_depth

_AMBIENT = 0.32


def room_camera(room: Room, width: int, height: int) -> Camera:
    """Return the intrinsics of every frame of the room, colour and depth alike."""
    focal = room.focal * width
    return Camera(width, height, focal, focal, width / 2, height / 2)


def render_room(room: Room, frames: int, width: int, height: int, noise: bool = True) -> list[Frame]:
    """Walk a camera through the room and return its frames, with labels and instances.

    Depth is registered to the colour camera, in metres, 0 = no surface or no measurement. ``noise`` adds a depth
    sensor's errors and holes and varies exposure and white balance; without it depth and colour are exact. Frame k
    does not depend on ``frames``.
    """
    cast = caster(room.vertices[room.faces])
    camera = room_camera(room, width, height)
    poses = camera_path(room, frames, cast)
    return [_frame(room, k, pose, camera, cast, noise) for k, pose in enumerate(poses)]


def _frame(room: Room, index: int, pose: NDArray[np.float64], camera: Camera, cast: Caster, noise: bool) -> Frame:
    shape = (camera.height, camera.width)
    u, v = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    rays = np.stack(((u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones(shape)), axis=-1)
    rays = rays.reshape(-1, 3) @ pose[:3, :3].T
    origins = np.broadcast_to(pose[:3, 3], rays.shape)
    triangle = cast(origins, rays)
    hit = triangle >= 0
    z = distance(room.planes[triangle], origins, rays) * hit
    color = _shade(room, triangle, origins + z[:, None] * rays, rays, cast) * hit[:, None]
    color, depth = color.reshape(*shape, 3), z.reshape(shape).astype(np.float32)
    if noise:
        rng = generator(room.seed, room.index, SENSOR, index)
        color, depth = noisy_color(color, rng), noisy_depth(depth, rng)
    return Frame(
        name=f"{index:06d}",
        color=(np.clip(color, 0, 1) ** (1 / 2.2) * 255 + 0.5).astype(np.uint8),
        depth=depth,
        color_camera=camera,
        depth_camera=camera,
        color_from_depth=np.eye(4),
        world_from_camera=pose,
        label=np.where(hit, room.label[triangle], 255).astype(np.uint8).reshape(shape),
        instance=np.where(hit, room.instance[triangle], 0).astype(np.uint16).reshape(shape),
    )


def _shade(
    room: Room,
    triangle: NDArray[np.int64],
    points: NDArray[np.float64],
    rays: NDArray[np.float64],
    cast: Caster,
) -> NDArray[np.float32]:
    """Linear RGB (N, 3) of surface points (N, 3) on ``triangle`` (N,) seen along ``rays`` (N, 3)."""
    normal = room.planes[triangle, :3]
    normal = normal * -np.sign(np.einsum("ij,ij->i", normal, rays))[:, None]
    light = np.full(points.shape, _AMBIENT) * (0.85 + 0.15 * normal[:, 2:])
    for position, power in zip(room.lights, room.light_color, strict=True):
        ray = points - position
        squared = np.einsum("ij,ij->i", ray, ray)
        facing = np.einsum("ij,ij->i", normal, -ray) / np.sqrt(squared)
        origins = np.broadcast_to(position, ray.shape)
        first = cast(origins, ray)
        seen = (first == triangle) | (first < 0) | (distance(room.planes[first], origins, ray) > 1 - 1e-3)
        light += (np.maximum(facing, 0) * seen * 2.2 / (1 + 0.35 * squared))[:, None] * power
    color: NDArray[np.float32] = (light * albedo(room.materials, room.material[triangle], points)).astype(np.float32)
    return color


def albedo(materials: Materials, material: NDArray[np.int64], points: NDArray[np.float64]) -> NDArray[np.float32]:
    """Linear RGB (N, 3) of the materials (N,) at world points (N, 3), metres."""
    place = points.astype(np.float32)
    q = np.einsum("nij,nj->ni", materials.frame[material], place) + materials.phase[material]
    rough, fine = _noise(materials, q), _noise(materials, place * 23.0)
    cell = np.floor(q)
    inside = np.minimum(q - cell, cell + 1 - q)
    mixes = (
        0.5 * rough,
        _step(np.abs(inside[:, 0] + 0.25 * (rough - 0.5)), 0.25, 0.06),
        (cell.sum(axis=1) % 2) * 0.9,
        _step(rough, 0.5, 0.06),
        1 - _step(inside[:, :2].min(axis=1), 0.06, 0.02),
    )
    mix = np.choose(materials.kind[material], mixes)[:, None]
    color = materials.color[material]
    shade = 0.8 + 0.4 * fine[:, None]
    mixed: NDArray[np.float32] = ((color[:, 0] * (1 - mix) + color[:, 1] * mix) * shade).astype(np.float32)
    return mixed


def _noise(materials: Materials, q: NDArray[np.float32]) -> NDArray[np.float32]:
    """Value noise 0..1 (N,): random numbers on the integer grid, linear in between."""
    values: NDArray[np.float32] = ndimage.map_coordinates(materials.noise, q.T, order=1, mode="grid-wrap")
    return values


def _step(x: NDArray[np.float32], edge: float, width: float) -> NDArray[np.float32]:
    """0 below ``edge``, 1 above, a ramp of ``width`` on both sides in between."""
    ramp: NDArray[np.float32] = np.clip((x - edge) / (2 * width) + 0.5, 0, 1)
    return ramp
