"""Objectives on the encoder's own maps: the contrast against View's on the joined maps, the surface in slow loops."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_keep import Small, encoder  # noqa: F401 (a fixture)

from pri3d.api.pretrain import ContrastOptions, MatchingOptions
from pri3d.data.augment import STRONG
from pri3d.data.pairs import PairDataset, collate
from pri3d.data.sampler import Draw
from pri3d.errors import ConfigError
from pri3d.geometry.normals import surface_normals
from pri3d.networks.encoders import Encoder, join_maps
from pri3d.objectives import Features, Objective, Setup
from pri3d.objectives.pyramid import PyramidObjective, PyramidOptions
from pri3d.objectives.surface import SurfaceObjective, SurfaceOptions
from pri3d.objectives.view import ViewObjective
from pri3d.store import Store
from pri3d.types import PairBatch
from syncs import CountSyncs

MATCHING = MatchingOptions(distance=0.1)
EVERY = 24 * 32  #: cells of half an image


@pytest.fixture(scope="module")
def batch(rooms_store: Path) -> PairBatch:
    rows = np.arange(len(Store(rooms_store).pairs().i))
    dataset = PairDataset(rooms_store, rows, (64, 48), 0, STRONG, views=("first", "second", "copy"))
    return collate([dataset[Draw(0, k)] for k in range(3)])


def look(net: Encoder, batch: PairBatch) -> Features:
    maps = net(net.normalise(batch.color.flatten(0, 1)))
    dense = join_maps(maps, net.strides, (24, 32)).unflatten(0, (len(batch.color), -1))
    return Features(dense, maps, batch.views)


@pytest.mark.parametrize("exclude", [0.0, 6.0])
@pytest.mark.parametrize("points", [40, EVERY])
def test_the_contrast_is_views_on_the_joined_maps(encoder: Encoder, batch: PairBatch, points: int, exclude: float):  # noqa: F811
    """Places between the cells of coarse maps are read as enlarging the maps would give them, gradients as well."""
    values = {"points": points, "temperature": 0.2, "exclude_px": exclude}
    view = ViewObjective(Setup(contrast=ContrastOptions(**values), matching=MATCHING))
    ours = PyramidObjective(Setup(encoder=encoder, matching=MATCHING), PyramidOptions(**values))
    found = []
    for objective in (view, ours):
        encoder.zero_grad()
        terms = objective(look(encoder, batch), batch)
        terms.loss.backward()
        found.append((terms, [p.grad.clone() for p in encoder.parameters()]))
    assert found[0][0].log["matches"] > 20
    torch.testing.assert_close(found[1][0].loss, found[0][0].loss)
    for a, b in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    for name, value in found[0][0].log.items():
        torch.testing.assert_close(found[1][0].log[name], value)


def test_a_surface_in_loops(encoder: Encoder, batch: PairBatch) -> None:  # noqa: F811
    """Where the linear map is 0, 2 metres and the camera's axis are predicted."""
    objective = SurfaceObjective(Setup(encoder=encoder), SurfaceOptions(points=EVERY))
    torch.nn.init.zeros_(objective.head.weight)
    normals = surface_normals(batch.depth.flatten(0, 1), batch.intrinsics.flatten(0, 1))
    depth = batch.depth.flatten(0, 1)
    features = look(encoder, batch)
    gaps, angles = [], []
    for image in range(len(depth)):
        for row in range(1, 48, 2):
            for column in range(1, 64, 2):
                z, n = float(depth[image, row, column]), normals[image, :, row, column]
                if z > 0:
                    gaps.append(abs(math.log(2) - math.log(z)))
                    if float(n.norm()) > 0.5:
                        angles.append(math.acos(min(1.0, float(-n[2]))))
    assert len(angles) > 500
    terms = objective(features, batch)
    assert float(terms.log["depth"]) == pytest.approx(np.mean(gaps), rel=1e-4)
    assert float(terms.log["normals"]) == pytest.approx(np.degrees(angles).mean(), rel=1e-3)
    assert float(terms.loss.detach()) == pytest.approx(np.mean(gaps) + np.mean(1 - np.cos(angles)), rel=1e-4)


def test_a_linear_surface_is_found(batch: PairBatch) -> None:
    """Maps that hold the logarithm of the depth and the normal can be read exactly; frames of both views count."""
    depth = batch.depth.flatten(0, 1)
    normals = surface_normals(depth, batch.intrinsics.flatten(0, 1))
    planted = torch.cat((depth.clamp(min=0.1).log()[:, None], normals), dim=1)
    planted = planted[..., 1::2, 1::2]  # cells of half the image stand for these pixels
    planted = planted.unflatten(0, (3, 2))[:, [0, 1, 1]].flatten(0, 1)  # the third view has no say

    class Whole(Small):
        channels, strides = (4,), (2,)

    objective = SurfaceObjective(Setup(encoder=Whole()), SurfaceOptions(points=300))
    optimizer = torch.optim.Adam(objective.parameters(), 0.1)
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.97**step
        terms = objective(Features(torch.empty(0), [planted], batch.views), batch)
        optimizer.zero_grad()
        terms.loss.backward()
        optimizer.step()
    assert float(terms.log["depth"]) < 0.01
    assert float(terms.log["normals"]) < 2


def test_nothing_measured_gives_nothing(encoder: Encoder, batch: PairBatch) -> None:  # noqa: F811
    bare = batch._replace(depth=torch.zeros_like(batch.depth))
    terms = SurfaceObjective(Setup(encoder=encoder))(look(encoder, bare), bare)
    terms.loss.backward()
    assert float(terms.loss.detach()) == 0
    assert all(bool(p.grad.isfinite().all()) for p in encoder.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", [PyramidObjective, SurfaceObjective])
def test_no_wait_for_the_device(encoder: Encoder, batch: PairBatch, kind: type[Objective]) -> None:  # noqa: F811
    objective, features = kind(Setup(encoder=encoder, matching=MATCHING)), look(encoder, batch)
    with CountSyncs() as counted:
        objective(features, batch).loss.backward()
    assert counted.calls == []


def test_refusals(encoder: Encoder) -> None:  # noqa: F811
    setup = Setup(encoder=encoder)
    wrong = (PyramidObjective, PyramidOptions(temperature=0.001)), (SurfaceObjective, SurfaceOptions(points=1))
    for kind, options in wrong:
        with pytest.raises(ConfigError, match="encoder"):
            kind(Setup())
        with pytest.raises(ConfigError, match="at least"):
            kind(setup, options)
