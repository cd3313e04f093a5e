"""A furnished room from two seeds. World: metres, z up, the floor's corner at the origin.

Class is shape: colours and textures are drawn per instance from one distribution for all classes, so a network can
only tell a table from a bed by its form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pri3d.worlds.furniture import BUILDERS, Piece, Shape, Support, box, clutter

#: names of the class ids 0..n-1 in labels
CLASS_NAMES = ("wall", "floor", "ceiling", *BUILDERS, "clutter")

#: random streams of one room: changing how many numbers one draws leaves the others as they were
LAYOUT, MATERIALS, PATH, SENSOR = range(4)

_GAP = 0.06  # metres between two footprints
_TEXTURES = 5  # kinds of texture that render.py knows


class Materials(NamedTuple):
    """Colours and procedural textures of M materials."""

    kind: NDArray[np.int64]  #: (M,) 0 plain, 1 stripes, 2 checker, 3 blobs, 4 tiles
    color: NDArray[np.float32]  #: (M, 2, 3) linear RGB 0..1 of the two colours that a texture mixes
    frame: NDArray[np.float32]  #: (M, 3, 3) world metres -> texture units
    phase: NDArray[np.float32]  #: (M, 3) texture units
    noise: NDArray[np.float32]  #: (32, 32, 32) values 0..1 of the value noise, periodic


@dataclass(frozen=True, eq=False)
class Room:
    """Geometry, looks and lights of one room; everything follows from ``seed`` and ``index``."""

    seed: int
    index: int
    size: NDArray[np.float64]  #: (3,) metres
    vertices: NDArray[np.float64]  #: (V, 3) world metres
    faces: NDArray[np.int64]  #: (F, 3) rows of ``vertices``
    planes: NDArray[np.float64]  #: (F, 4) unit normal and offset of each triangle
    label: NDArray[np.uint8]  #: (F,) class id of each triangle
    instance: NDArray[np.uint16]  #: (F,) instance id of each triangle, 0 for wall, floor and ceiling
    material: NDArray[np.int64]  #: (F,) row of ``materials``
    boxes: NDArray[np.float64]  #: (P, 2, 3) lower and upper corner of every solid of the furniture
    materials: Materials
    lights: NDArray[np.float64]  #: (2, 3) positions, metres
    light_color: NDArray[np.float32]  #: (2, 3) linear RGB power
    focal: float  #: focal length in image widths


class _Solid(NamedTuple):
    part: Shape
    label: int
    instance: int
    material: int


def generator(seed: int, index: int, stream: int, *more: int) -> np.random.Generator:
    """Return the generator of one random stream of room ``index``, the same in every process."""
    return np.random.default_rng((seed, index, stream, *more))


def build_room(seed: int, index: int) -> Room:
    """Return room ``index`` of ``seed``: the same whatever else is built, on every machine with the same numpy."""
    rng = generator(seed, index, LAYOUT)
    size = np.array((rng.uniform(3.6, 5.6), rng.uniform(3.6, 5.6), rng.uniform(2.4, 2.9)))
    solids = _shell(rng, size)
    furniture = _furnish(rng, size, material=1 + max(s.material for s in solids))
    solids += furniture
    parts = [s.part for s in solids]
    counts = [len(p.faces) for p in parts]
    first = np.concatenate(([0], np.cumsum([len(p.vertices) for p in parts])[:-1]))
    vertices = np.concatenate([p.vertices for p in parts])
    faces = np.concatenate([p.faces + start for p, start in zip(parts, first, strict=True)])
    corners = vertices[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    look = generator(seed, index, MATERIALS)
    middle = size[:2] / 2
    lights = [(*(middle + look.uniform(-0.35, 0.35, 2) * size[:2]), size[2] - look.uniform(0.15, 0.4)) for _ in "ab"]
    return Room(
        seed=seed,
        index=index,
        size=size,
        vertices=vertices,
        faces=faces,
        planes=np.concatenate((normal, np.einsum("ij,ij->i", normal, corners[:, 0])[:, None]), axis=1),
        label=np.repeat([s.label for s in solids], counts).astype(np.uint8),
        instance=np.repeat([s.instance for s in solids], counts).astype(np.uint16),
        material=np.repeat([s.material for s in solids], counts),
        boxes=np.array([(s.part.vertices.min(0), s.part.vertices.max(0)) for s in furniture]),
        materials=_materials(look, 1 + max(s.material for s in solids)),
        lights=np.array(lights),
        light_color=(look.uniform(0.9, 1.1, (2, 3)) * look.uniform(0.35, 0.75, (2, 1))).astype(np.float32),
        focal=float(rng.uniform(0.8, 0.95)),
    )


def _shell(rng: np.random.Generator, size: NDArray[np.float64]) -> list[_Solid]:
    """Walls with skirting boards and boards hung on them, floor and ceiling; all of instance 0."""
    (x, y, z), thick = size, 0.1
    solids = [
        _Solid(box((x / 2, y / 2, -thick / 2), (x, y, thick)), 1, 0, 1),
        _Solid(box((x / 2, y / 2, z + thick / 2), (x, y, thick)), 2, 0, 2),
    ]
    material, accent = 4, int(rng.integers(4)) if rng.random() < 0.6 else -1
    for side in range(4):
        along, across = (x, y) if side % 2 == 0 else (y, x)
        wall = [box((0, -thick / 2, z / 2), (along, thick, z)), box((0, 0.008, 0.04), (along, 0.016, 0.08))]
        paint = 0
        if side == accent:
            paint, material = material, material + 1
        looks = [paint, 3]
        for _ in range(int(rng.integers(1, 4))):  # pictures, windows, doors: all part of the wall
            w, h = rng.uniform(0.3, 1.1), rng.uniform(0.3, 0.9)
            centre = (rng.uniform(-0.5, 0.5) * (along - w), 0.012, rng.uniform(1.1 + h / 2, z - h / 2 - 0.1))
            wall += [box(centre, (w, 0.024, h)), box(np.add(centre, (0, 0.004, 0)), (w - 0.08, 0.024, h - 0.08))]
            looks += [material, material + 1]
            material += 2
        place = _quarter_turn(side, np.array((x / 2, y / 2)), across / 2)
        solids += [_Solid(_moved(p, *place), 0, 0, look) for p, look in zip(wall, looks, strict=True)]
    return solids


def _quarter_turn(side: int, middle: NDArray[np.float64], distance: float) -> tuple[NDArray[np.float64], float]:
    """Where a thing turns its back (-y) to wall ``side`` at ``distance`` from the middle: position (2,), yaw."""
    yaw = side * np.pi / 2
    return middle + distance * np.array((np.sin(yaw), -np.cos(yaw))), yaw


def _moved(part: Shape, position: NDArray[np.float64], yaw: float, lift: float = 0.0) -> Shape:
    c, s = np.cos(yaw), np.sin(yaw)
    turn = np.array(((c, s, 0), (-s, c, 0), (0, 0, 1)))  # row vectors
    return part._replace(vertices=part.vertices @ turn + (*position, lift))


def _furnish(rng: np.random.Generator, size: NDArray[np.float64], material: int) -> list[_Solid]:
    """Furniture with footprints that do not overlap, then small things on it and on the floor.

    ``material``: the first free material; every instance takes two.
    """
    names = list(BUILDERS)
    wanted = [names[k] for k in rng.permutation(len(names))]
    more = [name for name in names if name not in {"bed", "sofa"}] * 2
    wanted += [more[k] for k in rng.permutation(len(more))[: int(size[0] * size[1] / 2)]]
    pieces = [(name, BUILDERS[name](rng)) for name in wanted]
    pieces.sort(key=lambda named: not named[1].at_wall)  # what needs a wall comes first, else it finds none free
    taken: list[NDArray[np.float64]] = []
    solids: list[_Solid] = []
    instance = 0

    def add(piece: Piece, label: int, position: NDArray[np.float64], yaw: float, lift: float = 0.0) -> None:
        nonlocal instance
        instance += 1
        look = material + 2 * (instance - 1)
        solids.extend(_Solid(_moved(p, position, yaw, lift), label, instance, look + p.tone) for p in piece.parts)

    for name, piece in pieces:
        place = _free_place(rng, piece, size, taken)
        if place is None:
            continue
        add(piece, CLASS_NAMES.index(name), *place)
        for support in piece.supports:
            for small, position, yaw in _on_top(rng, support, *place):
                add(small, CLASS_NAMES.index("clutter"), position, yaw, support.height)
    for _ in range(int(rng.integers(2, 6))):
        piece = clutter(rng)
        place = _free_place(rng, piece, size, taken)
        if place is not None:
            add(piece, CLASS_NAMES.index("clutter"), *place)
    return solids


def _free_place(
    rng: np.random.Generator, piece: Piece, size: NDArray[np.float64], taken: list[NDArray[np.float64]]
) -> tuple[NDArray[np.float64], float] | None:
    """Position (2,) and yaw where the footprint is free (appended to ``taken``), None where 40 draws find none."""
    for _ in range(40):
        side = int(rng.integers(4))
        if piece.at_wall:
            along, across = (size[0], size[1]) if side % 2 == 0 else (size[1], size[0])
            position, yaw = _quarter_turn(side, size[:2] / 2, across / 2 - piece.depth / 2 - 0.04)
            slide = rng.uniform(-0.5, 0.5) * (along - piece.width - 0.1)
            position = position + slide * np.array((np.cos(yaw), np.sin(yaw)))
        else:
            position, yaw = rng.uniform(0.1, size[:2] - 0.1), float(rng.uniform(-np.pi, np.pi))
        c, s = abs(np.cos(yaw)), abs(np.sin(yaw))
        half = np.array((c * piece.width + s * piece.depth, s * piece.width + c * piece.depth)) / 2
        low, high = position - half, position + half
        inside = bool((low > 0.02).all() and (high < size[:2] - 0.02).all())
        if inside and not any((low < t[1] + _GAP).all() and (high > t[0] - _GAP).all() for t in taken):
            taken.append(np.stack((low, high)))
            return position, yaw
    return None


def _on_top(
    rng: np.random.Generator, support: Support, position: NDArray[np.float64], yaw: float
) -> list[tuple[Piece, NDArray[np.float64], float]]:
    """Small things that stand side by side on a support: piece, world position (2,), yaw."""
    result: list[tuple[Piece, NDArray[np.float64], float]] = []
    discs: list[tuple[NDArray[np.float64], float]] = []
    c, s = np.cos(yaw), np.sin(yaw)
    for _ in range(int(rng.integers(0, 2 + int(6 * support.width * support.depth) + 1))):
        piece = clutter(rng, largest=support.headroom)
        radius = float(np.hypot(piece.width, piece.depth)) / 2
        free = np.array((support.width, support.depth)) / 2 - (piece.width / 2, piece.depth / 2)
        if (free < 0).any():
            continue
        spot = rng.uniform(-free, free)
        if any(np.linalg.norm(spot - other) < radius + r for other, r in discs):
            continue
        discs.append((spot, radius))
        turn = yaw if support.depth < 0.5 else yaw + float(rng.uniform(-0.3, 0.3))
        result.append((piece, position + np.array(((c, -s), (s, c))) @ spot, turn))
    return result


def _materials(rng: np.random.Generator, count: int) -> Materials:
    hue, saturation = rng.uniform(0, 1, (count, 2, 1)), rng.uniform(0, 0.75, (count, 2, 1))
    value = rng.uniform(0.12, 0.85, (count, 2, 1))
    near = rng.random(count) < 0.5  # half of the materials mix two shades of one hue
    hue[near, 1] = hue[near, 0] + 0.06
    ramp = np.abs((hue * 6 + np.array((0, 4, 2))) % 6 - 3) - 1
    color = value * (1 - saturation * (1 - np.clip(ramp, 0, 1)))
    yaw = rng.uniform(0, np.pi, count)
    c, s, zero, one = np.cos(yaw), np.sin(yaw), np.zeros(count), np.ones(count)
    turn = np.stack((c, -s, zero, s, c, zero, zero, zero, one), axis=1).reshape(count, 3, 3)
    turn = np.where(rng.random((count, 1, 1)) < 0.35, np.roll(turn, 1, axis=1), turn)  # some stripes run level
    frequency = np.exp(rng.uniform(np.log(2.5), np.log(14.0), (count, 1, 1)))
    return Materials(
        kind=np.maximum(rng.integers(-1, _TEXTURES, size=count), 0),
        color=color.astype(np.float32),
        frame=(turn * frequency).astype(np.float32),
        phase=rng.uniform(0, 32, (count, 3)).astype(np.float32),
        noise=rng.random((32, 32, 32), dtype=np.float32),
    )
