"""Correspondences of a pair: pixel to pixel and pixel to voxel, batched, on the tensors' device.

Feature maps are coarser than images, so matches are stated in feature cells: cell (r, c) of an h x w grid, flat index
r * w + c. A cell stands for the image pixel its centre falls into; the point is that pixel's own back-projection, so
every distance is between measured points. All shapes are fixed by the inputs and validity is a mask: nothing here
waits for the device, and nothing loops over samples.
"""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
from torch import Tensor

from pri3d.api.pretrain import Mode
from pri3d.errors import ConfigError
from pri3d.geometry.camera import back_project, pixel_centres, project
from pri3d.geometry.pose import compose, invert, transform

#: Voxel coordinates must lie in [-KEY_RANGE, KEY_RANGE): four fields share one sorted 64-bit key.
KEY_RANGE = 1 << 15


class Matches(NamedTuple):
    """N candidate correspondences for each of B samples; only those with ``valid`` count."""

    first: Tensor  #: (B, N) int64 flat feature cell of the first view
    second: Tensor  #: (B, N) int64 flat feature cell of the second view, or row of the voxel list
    valid: Tensor  #: (B, N) bool


def cell_pixels(grid: tuple[int, int], image: Tensor) -> Tensor:
    """Centres of the cells of a grid (h, w) in pixels of an image (..., H, W): (h*w, 2) of u, v, in its dtype."""
    height, width = image.shape[-2:]
    u, v = pixel_centres(*grid, like=image).flatten(0, 1).unbind(-1)
    return torch.stack((u * (width / grid[1]), v * (height / grid[0])), dim=-1)


def cell_points(depth: Tensor, intrinsics: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Camera point of each feature cell.

    depth (B, H, W) m, intrinsics (B, 4) of (H, W), grid (h, w) -> points (B, h*w, 3) in the camera, depth (B, h*w)
    with 0 where the cell's pixel has none.
    """
    height, width = depth.shape[-2:]
    column, row = cell_pixels(grid, depth).floor().unbind(-1)
    column, row = column.clamp(max=width - 1), row.clamp(max=height - 1)
    z = depth.flatten(1)[:, (row * width + column).long()]
    return back_project(z, torch.stack((column, row), dim=-1) + 0.5, intrinsics), z


def match_pixels(
    depth: Tensor,
    intrinsics: Tensor,
    world_from_camera: Tensor,
    grid: tuple[int, int],
    distance: float,
    mode: Mode = "point",
) -> Matches:
    """Pixel-pixel correspondences of B pairs (paper section 3.1): points closer than ``distance`` metres.

    A cell of view 0 is moved into view 1 and compared with the point measured at the pixel it lands on. Of several
    cells landing in one cell of view 1 the closest stays, so each cell occurs once on both sides.

    Args:
        depth: (B, 2, H, W) metres, 0 = invalid.
        intrinsics: (B, 2, 4) in pixels of (H, W).
        world_from_camera: (B, 2, 4, 4).
        grid: (h, w) of the feature map.
        distance: bound of the gap between moved and measured point, its unit set by ``mode``.
        mode: ``point``: their 3D distance in metres (the paper). ``depth``: the difference of their z in view 1, in
            metres (the released code; passes mismatches where the line of sight grazes a surface). ``relative``: their
            3D distance as a share of the point's z in view 0, for sources without metric scale or outdoors.

    Returns:
        Matches with N = h * w and ``first`` = 0..N-1. Raises ConfigError for another mode.
    """
    if mode not in get_args(Mode):
        raise ConfigError(f"match = {mode!r}: choose one of {', '.join(get_args(Mode))}.")
    batch, _, height, width = depth.shape
    points, z = cell_points(depth[:, 0], intrinsics[:, 0], grid)
    second_from_first = compose(invert(world_from_camera[:, 1]), world_from_camera[:, 0])
    points = transform(second_from_first, points)
    pixels, z_there = project(points, intrinsics[:, 1])
    u, v = pixels.floor().unbind(-1)
    inside = (z > 0) & (z_there > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    u, v = torch.where(inside, u, 0.0), torch.where(inside, v, 0.0)
    z_seen = depth[:, 1].flatten(1).gather(1, (v * width + u).long())
    if mode == "depth":
        gap = (z_seen - z_there).abs()
    else:
        seen = back_project(z_seen, torch.stack((u, v), dim=-1) + 0.5, intrinsics[:, 1])
        gap = torch.linalg.vector_norm(seen - points, dim=-1)
    valid = inside & (z_seen > 0) & (gap < (distance * z if mode == "relative" else distance))
    column, row = ((u + 0.5) * (grid[1] / width)).long(), ((v + 0.5) * (grid[0] / height)).long()
    target = row * grid[1] + column
    first = torch.arange(grid[0] * grid[1], device=depth.device).expand(batch, -1)
    return Matches(first, target, _closest_per_target(target, gap, valid, grid[0] * grid[1]))


def voxel_keys(cells: Tensor) -> Tensor:
    """One sortable int64 a voxel. cells (..., 4): chunk 0..32767 and x, y, z in [-32768, 32767) -> (...,)."""
    chunk, x, y, z = cells.long().unbind(-1)
    return (((chunk << 16 | x + KEY_RANGE) << 16) | y + KEY_RANGE) << 16 | z + KEY_RANGE


def match_voxels(
    depth: Tensor,
    intrinsics: Tensor,
    world_from_camera: Tensor,
    voxel_cells: Tensor,
    voxel_size: Tensor,
    grid: tuple[int, int],
) -> Matches:
    """Pixel-voxel correspondences of B views with their own chunks (paper section 3.2).

    A cell's world point takes the occupied voxel whose centre is nearest and closer than one voxel edge (the paper's
    2 cm at its 2 cm voxels). Only the point's own voxel and the seven on its near side can be that close. Of several
    cells that choose one voxel the closest stays.

    Args:
        depth: (B, H, W) metres, 0 = invalid.
        intrinsics: (B, 4).
        world_from_camera: (B, 4, 4).
        voxel_cells: (V, 4) int64 chunk 0..B-1, x, y, z, rows sorted; V >= 1.
        voxel_size: () edge in metres.
        grid: (h, w) of the feature map.

    Returns:
        Matches with N = h * w; ``second`` is a row of ``voxel_cells``.
    """
    batch = depth.shape[0]
    points, z = cell_points(depth, intrinsics, grid)
    scaled = transform(world_from_camera, points) / voxel_size
    own = scaled.floor()
    step = torch.where(scaled - own < 0.5, -1.0, 1.0)
    corners = torch.cartesian_prod(*(torch.arange(2, device=depth.device, dtype=depth.dtype),) * 3)
    candidates = own[:, :, None] + step[:, :, None] * corners  # (B, N, 8, 3)
    gap = torch.linalg.vector_norm(candidates + 0.5 - scaled[:, :, None], dim=-1)
    reachable = (z > 0)[..., None] & (gap < 1) & (candidates.abs() < KEY_RANGE - 1).all(-1)
    chunk = torch.arange(batch, device=depth.device).view(batch, 1, 1, 1).expand(*candidates.shape[:3], 1)
    bounded = candidates.clamp(-KEY_RANGE, KEY_RANGE - 1).long()
    wanted = voxel_keys(torch.cat((chunk, bounded), dim=-1))
    keys = voxel_keys(voxel_cells)
    row = torch.searchsorted(keys, wanted).clamp(max=keys.shape[0] - 1)
    gap = torch.where(reachable & (keys[row] == wanted), gap, torch.inf)
    gap, choice = gap.min(dim=-1)
    row = row.gather(-1, choice[..., None])[..., 0]
    valid = torch.isfinite(gap)
    # A voxel row belongs to one chunk, so one table over all rows keeps the closest cell of each voxel.
    valid = _closest_per_target(row.view(1, -1), gap.view(1, -1), valid.view(1, -1), keys.shape[0]).view(valid.shape)
    first = torch.arange(grid[0] * grid[1], device=depth.device).expand(batch, -1)
    return Matches(first, row, valid)


def _closest_per_target(target: Tensor, gap: Tensor, valid: Tensor, targets: int) -> Tensor:
    """Keep, of all valid rows (B, N) that share a target in 0..targets-1, the one with the smallest gap."""
    count = target.shape[1]
    order = torch.arange(count, device=target.device)
    # A non-negative float32 sorts like its bits, so gap and row fit one integer and ties go to the lower row.
    rank = gap.float().contiguous().view(torch.int32).long() * count + order
    rank = torch.where(valid, rank, torch.iinfo(torch.int64).max)
    best = torch.full((target.shape[0], targets), torch.iinfo(torch.int64).max, device=target.device)
    best = best.scatter_reduce(1, target, rank, "amin")
    return valid & (best.gather(1, target) == rank)


def choose(matches: Matches, count: int, seeds: Tensor) -> Matches:
    """Draw up to ``count`` valid matches of each sample without replacement: (B, N) -> (B, min(count, N)); 0: all.

    The draw depends only on ``seeds`` (B,) int64 and the cell, so it is the same on every device and after a resume.
    Samples with fewer valid matches keep all of them; ``valid`` marks the rest.
    Raises ConfigError for a count of 1 or below 0: a contrast needs a negative.
    """
    if count == 0:
        return matches
    if count < 2:
        raise ConfigError(f"points = {count}: the contrast needs at least 2 points a pair; 0 takes all matches.")
    keys = _scramble(matches.first + (_scramble(seeds)[:, None]))
    keys = torch.where(matches.valid, keys & torch.iinfo(torch.int64).max, -1)
    _, picked = keys.topk(min(count, keys.shape[1]), dim=1)
    return Matches(*(field.gather(1, picked) for field in matches))


def _scramble(values: Tensor) -> Tensor:
    """Mix 64 bits in a fixed way (xor-shift-multiply, after Steele et al., "Fast splittable PRNGs", 2014), wrapping."""
    values = (values ^ ((values >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    values = (values ^ ((values >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return values ^ ((values >> 31) & 0x1FFFFFFFF)
