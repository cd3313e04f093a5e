from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure

from pri3d.errors import ConfigError
from pri3d.reporting import cutaway
from pri3d.reporting.cutaway import Chunk, draw_chunk, drawable, up_direction
from pri3d.reporting.figures import chunk_figure
from pri3d.types import Voxels

LEVEL = np.array(((1.0, 0, 0, 0), (0, 0, 1, 0), (0, -1, 0, 1), (0, 0, 0, 1)))  # looks along +y from 1 m height, z up

LEVEL_AT_ZERO = LEVEL - np.eye(4)[2][:, None] * np.eye(4)[3]


def floor_chunk(cells: np.ndarray, voxel: float = 0.1, depth: float = 2.0) -> Chunk:
    surface = Voxels(np.unique(cells, axis=0).astype(np.int32), 0.1)
    flat = np.full((12, 16), depth, np.float32)
    color = np.zeros((12, 16, 3), np.uint8)
    return Chunk(color, flat, np.array((16.0, 16, 8, 6)), LEVEL, surface, np.eye(3)[2], voxel, "room/0")


def painted(chunk: Chunk) -> list[PolyCollection]:
    axes = Figure().add_subplot()
    draw_chunk(axes, chunk)
    return [item for item in axes.collections if isinstance(item, PolyCollection)]


def test_up_is_the_axis_that_the_cameras_agree_on():
    turn = np.deg2rad(25)
    nod = np.eye(4)
    nod[1:3, 1:3] = ((np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn)))
    assert np.array_equal(up_direction(np.stack((LEVEL, LEVEL @ nod))), (0, 0, 1))
    assert np.array_equal(up_direction(np.eye(4)[None]), (0, -1, 0))


def test_up_of_a_tilted_world_is_the_mean():
    tilt = np.eye(4)
    tilt[:3, 1] = (0, -np.sqrt(0.5), -np.sqrt(0.5))
    assert up_direction(tilt[None]) == pytest.approx((0, np.sqrt(0.5), np.sqrt(0.5)))


def test_a_lone_cube_shows_three_sides():
    rest, chunk = painted(floor_chunk(np.array([[0, 20, 10]])))
    assert len(rest.get_paths()) == 0
    assert len(chunk.get_paths()) == 3


def test_sides_between_cubes_are_not_painted():
    _, chunk = painted(floor_chunk(np.array([[0, 20, 10], [1, 20, 10]])))
    assert len(chunk.get_paths()) == 5


def test_cells_outside_the_frustum_box_are_the_rest():
    rest, chunk = painted(floor_chunk(np.array([[0, 20, 10], [0, -5, 10]])))
    assert len(rest.get_paths()) == 3
    assert len(chunk.get_paths()) == 3


def test_the_ceiling_is_cut_away():
    rest, chunk = painted(floor_chunk(np.array([[0, 20, 10], [0, -5, 25]])))
    assert len(rest.get_paths()) == 0
    assert len(chunk.get_paths()) == 3


def test_colour_follows_height():
    _, chunk = painted(floor_chunk(np.array([[-5, 20, 5], [5, 20, 13]])))
    colors = np.unique(chunk.get_facecolors().round(6), axis=0)
    assert len(colors) == 6  # two heights, three brightnesses


@pytest.mark.parametrize("base", [-7, 9])
def test_colours_span_the_heights_of_the_chunk_wherever_zero_is(base: int):
    chunk = floor_chunk(np.array([[-5, 20, base], [0, 20, base + 2], [5, 20, base + 3]]))
    pose = LEVEL.copy()
    pose[2, 3] = 0.1 * base
    colors = painted(chunk._replace(world_from_camera=pose))[1].get_facecolors()
    centred = painted(floor_chunk(chunk.surface.cells - (0, 0, base))._replace(world_from_camera=LEVEL_AT_ZERO))[1]
    assert len(np.unique(colors.round(6), axis=0)) == 9  # three heights, three brightnesses
    assert colors == pytest.approx(centred.get_facecolors())


def test_the_far_cube_is_painted_first():
    chunk = floor_chunk(np.array([[0, 12, 10], [0, 28, 10]]))
    depth = chunk.depth.copy()
    depth[:, :8], depth[:, 8:] = 1, 3
    sides = painted(chunk._replace(depth=depth))[1].get_paths()
    heights = [side.vertices[:, 1].mean() for side in sides]  # seen from above, far is up
    assert len(heights) == 6
    assert min(heights[:3]) > max(heights[3:])


def test_without_depth_there_is_neither_chunk_nor_box():
    axes = Figure().add_subplot()
    draw_chunk(axes, floor_chunk(np.array([[0, 20, 10]]), depth=0.0))
    cubes = [len(item.get_paths()) for item in axes.collections if isinstance(item, PolyCollection)]
    assert cubes == [3, 0]
    assert sum(isinstance(item, LineCollection) for item in axes.collections) == 1  # the camera itself


def test_a_camera_that_looks_down_is_drawn():
    down = np.diag((1.0, -1, -1, 1))
    down[2, 3] = 2
    chunk = floor_chunk(np.array([[0, 0, 0]]))._replace(world_from_camera=down)
    assert len(painted(chunk)[1].get_paths()) == 3


def test_large_surfaces_are_coarsened_and_wrong_sizes_refused(monkeypatch: pytest.MonkeyPatch):
    grid = np.stack(np.meshgrid(np.arange(20), np.arange(20), [0]), axis=-1).reshape(-1, 3)
    assert drawable(floor_chunk(grid)).size == pytest.approx(0.1)
    assert drawable(floor_chunk(grid, voxel=0.2)).size == pytest.approx(0.2)
    monkeypatch.setattr(cutaway, "_MOST_CELLS", 100)
    assert drawable(floor_chunk(grid)).size == pytest.approx(0.2)
    with pytest.raises(ConfigError, match="multiple"):
        drawable(floor_chunk(grid, voxel=0.15))


def test_the_picture_is_a_png():
    assert chunk_figure(floor_chunk(np.array([[0, 20, 10]])))[:8] == b"\x89PNG\r\n\x1a\n"
