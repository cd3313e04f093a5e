"""Images of a room: a camera path; one ray per pixel, two point lights with shadows, sensor noise."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy import ndimage

from pri3d.errors import ConfigError
from pri3d.types import Camera, Frame
from pri3d.worlds.room import PATH, SENSOR, Materials, Room, generator

#: origins (N, 3) and directions (N, 3) -> index of the first triangle hit (N,), -1 where there is none
Caster = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.int64]]

_SCALE = 16.0  # embree computes in float32 with absolute tolerances made for scenes about 100 units wide
_AMBIENT = 0.32
# The camera's walk: smooth, with overlapping views, never inside or against furniture.
_TURN = 0.3  # radians of the round walk between frames: neighbours share about two thirds of what they see
_CLEARANCE = 0.3  # metres to any solid
_CLOSE = 0.6  # metres; a surface nearer than this counts as close
_MOST_CLOSE = 0.04  # fraction of close pixels
_MOST_SINGLE = 0.4  # fraction of the view that one instance may fill
_DRAWS = 60
# The structured-light depth camera.
_DISPARITY = 585.0 * 0.075  # pixels times metres: focal length at 640 x 480 and baseline of the first Kinect
_SUBPIXEL = 8  # steps per pixel of disparity
_NEAREST, _FARTHEST = 0.4, 6.0  # metres


def render_room(room: Room, frames: int, width: int, height: int, noise: bool = True) -> list[Frame]:
    """Walk a camera through the room and return its frames, with labels and instances.

    Depth is registered to the colour camera, in metres, 0 = no surface or no measurement. ``noise`` adds a depth
    sensor's errors and holes and varies exposure and white balance; without it depth and colour are exact. Frame k
    does not depend on ``frames``.
    """
    cast = caster(room.vertices[room.faces])
    focal = room.focal * width
    camera = Camera(width, height, focal, focal, width / 2, height / 2)  # of colour and depth alike
    poses = camera_path(room, frames, cast)
    return [_frame(room, k, pose, camera, cast, noise) for k, pose in enumerate(poses)]


def caster(corners: NDArray[np.float64], embree: bool | None = None) -> Caster:
    """Return the function that casts rays at triangles ``corners`` (F, 3, 3), metres.

    ``embree`` None takes embree where it is installed; there is no wheel for Linux on Arm. Without it trimesh's own
    search gives the same pictures, hundreds of times slower. Raises ConfigError where rtree, which that needs, is
    missing too.
    """
    if find_spec("embreex") is not None if embree is None else embree:
        from embreex.mesh_construction import TriangleMesh  # noqa: PLC0415 - not on every platform
        from embreex.rtcore_scene import EmbreeScene  # noqa: PLC0415

        scene = EmbreeScene()
        vertices = (corners.reshape(-1, 3) * _SCALE).astype(np.float32)
        TriangleMesh(scene, vertices, np.arange(len(vertices), dtype=np.int32).reshape(-1, 3))

        def cast(origins: NDArray[np.float64], directions: NDArray[np.float64]) -> NDArray[np.int64]:
            hits: NDArray[np.int64] = scene.run((origins * _SCALE).astype(np.float32), directions.astype(np.float32))
            return hits

        return cast
    if find_spec("rtree") is None:
        raise ConfigError("rendering rooms needs embreex or, where that has no wheel, rtree: pip install rtree")
    mesh = trimesh.Trimesh(corners.reshape(-1, 3), np.arange(3 * len(corners)).reshape(-1, 3), process=False)
    search: Any = trimesh.ray.ray_triangle.RayMeshIntersector  # has no annotations
    first: Caster = search(mesh).intersects_first
    return first


def distance(
    planes: NDArray[np.float64], origins: NDArray[np.float64], directions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Ray parameter t (N,) where origin + t * direction meets its plane (N, 4); 0 for parallel rays.

    Exact to float64: the plane decides, not embree's float32. With camera rays whose z is 1, t is the depth.
    """
    along = np.einsum("ij,ij->i", planes[:, :3], directions)
    height = planes[:, 3] - np.einsum("ij,ij->i", planes[:, :3], origins)
    return np.asarray(np.divide(height, along, out=np.zeros_like(along), where=np.abs(along) > 1e-12))


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
    angle = start + _TURN * frame
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
        # How bad the view is: 0 for a good one, inf inside or against a solid, else how far it is from being allowed.
        at = pose[:3, 3]
        outside = np.maximum(room.boxes[:, 0] - at, at - room.boxes[:, 1]).clip(min=0)
        bad = np.inf
        if not (np.linalg.norm(outside, axis=1) < _CLEARANCE).any():
            x, y = np.meshgrid(np.linspace(-0.46, 0.46, 16), np.linspace(-0.34, 0.34, 12))
            rays = np.stack((x / room.focal, y / room.focal, np.ones_like(x)), axis=-1).reshape(-1, 3) @ pose[:3, :3].T
            origins = np.broadcast_to(at, rays.shape)
            triangle = cast(origins, rays)
            near = float((distance(room.planes[triangle], origins, rays) < _CLOSE).mean())
            single = np.bincount(room.instance[triangle])[1:].max(initial=0) / len(rays)
            bad = max(near - _MOST_CLOSE, 0.0) + max(float(single) - _MOST_SINGLE, 0.0)
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


def noisy_depth(depth: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Exact depth (H, W), metres, 0 = none -> measured depth in whole millimetres (as metres), 0 = invalid.

    Noise that grows with the square of the distance (Nguyen et al. 2012), disparity in steps of 1/8 pixel, holes
    along depth edges, nothing nearer than 0.4 m or farther than 6 m.
    """
    z = depth + rng.standard_normal(depth.shape) * (0.0012 + 0.0019 * (depth - 0.4) ** 2) * (depth > 0)
    steps = np.round(_DISPARITY / np.maximum(z, 0.05) * _SUBPIXEL)
    z = _DISPARITY * _SUBPIXEL / np.maximum(steps, 1)
    jump = ndimage.maximum_filter(depth, 3) - ndimage.minimum_filter(depth, 3)
    share = 0.6 * min(1.0, depth.shape[1] / 160)  # a hole is a few millimetres wide, not a share of a coarse pixel
    edge = (jump > 0.04 + 0.05 * depth) & (rng.random(depth.shape) < share)
    valid = (depth > 0) & ~edge & (z >= _NEAREST) & (z <= _FARTHEST)
    return np.array(np.round(z * 1000) / 1000 * valid, np.float32)


def noisy_color(color: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Linear RGB (H, W, 3) -> the same with this frame's exposure, white balance and read noise."""
    gain = rng.uniform(0.8, 1.25) * rng.uniform(0.94, 1.06, 3)
    shot = rng.standard_normal(color.shape, dtype=np.float32) * (0.004 + 0.01 * np.sqrt(color))
    return np.array(color * gain + shot, np.float32)
