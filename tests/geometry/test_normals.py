"""Normals of measured surfaces: exact on planes, none at holes and edges."""

from __future__ import annotations

import math

import pytest
import torch

from pri3d.geometry.camera import pixel_centres
from pri3d.geometry.normals import surface_normals

CAMERA = torch.tensor([[50.0, 55.0, 31.0, 25.0]])


def plane(normal: tuple[float, float, float], distance: float) -> torch.Tensor:
    """Depth (1, 48, 64) of the plane n . X = distance."""
    u, v = pixel_centres(48, 64, like=CAMERA).unbind(-1)
    fx, fy, cx, cy = CAMERA[0]
    ray = torch.stack(((u - cx) / fx, (v - cy) / fy, torch.ones_like(u)))
    return distance / torch.einsum("i,ihw->hw", torch.tensor(normal), ray)[None]


@pytest.mark.parametrize("normal", [(0.0, 0.0, 1.0), (0.6, 0.0, 0.8), (-0.2, 0.7, math.sqrt(1 - 0.53))])
def test_normals_of_a_plane_are_exact(normal: tuple[float, float, float]) -> None:
    found = surface_normals(plane(normal, 2.0), CAMERA)[0]
    assert (found[:, :2] == 0).all()  # the window reaches over the border
    assert (found[:, :, -2:] == 0).all()
    inside = found[:, 2:-2, 2:-2]
    wanted = -torch.tensor(normal)[:, None, None].expand_as(inside)  # towards the camera
    assert torch.allclose(inside, wanted, atol=1e-4)


def test_holes_and_edges_have_no_normal() -> None:
    depth = plane((0.0, 0.0, 1.0), 2.0)
    depth[0, 20, 30] = 0
    depth[0, :, 45:] = 3.0
    has = surface_normals(depth, CAMERA)[0].norm(dim=0) > 0.5
    assert not has[18:23, 28:33].any()
    assert has[20, 27]
    assert has[20, 33]
    assert not has[:, 43:47].any()
    assert has[20, 42]
    assert has[20, 47]


def test_chosen_pixels_have_the_normals_of_all() -> None:
    torch.manual_seed(0)
    depth = torch.cat((plane((0.3, 0.2, 0.93), 2.0), plane((0.0, -0.4, 0.92), 1.0)))
    depth[torch.rand_like(depth) < 0.02] = 0
    cameras = CAMERA.expand(2, -1) * torch.tensor([[1.0], [1.3]])
    pixels = torch.randint(0, depth[0].numel(), (2, 200))
    every = surface_normals(depth, cameras).flatten(2).gather(2, pixels[:, None].expand(-1, 3, -1))
    torch.testing.assert_close(surface_normals(depth, cameras, pixels=pixels), every)
    assert 0 < (every.norm(dim=1) > 0.5).float().mean() < 1
