"""Between loader and optimizer the host runs ahead of the device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flat import pretraining
from pri3d.data.mixture import Mixture, parse_mixture
from pri3d.data.sampler import Draw
from pri3d.networks.encoders import build_encoder
from pri3d.networks.unet import UNet
from pri3d.training.pretraining import PretrainData, PretrainModule
from syncs import CountSyncs


@pytest.mark.parametrize(
    ("preset", "options", "most"),
    [
        ("view,small", {}, 0),
        ("view,small", {"exclude_px": 4.0, "exclude_cm": 10.0, "negatives": "batch", "match": "relative"}, 0),
        ("trivial,small", {}, 0),
        ("depth,small", {"keep": 0.1}, 0),
        ("moco,small", {"crop": 32}, 0),
        # Sizes of the 3D network's maps depend on the data: 12 operators for the four levels of `tiny`.
        ("paper,small", {"voxel": 0.08}, 12),
    ],
)
def test_a_pass_does_not_wait(rooms_store: Path, preset: str, options: dict[str, Any], most: int) -> None:
    small = {"size": "64x48", "batch": 4, "micro_batch": 4, "distance": 0.1, "holdout": 0.0}
    settings = pretraining(preset, **{**small, "encoder": "test_resnet", **options})
    plan = PretrainData(Mixture(parse_mixture(rooms_store)), settings)
    module = PretrainModule(
        settings, UNet(build_encoder(settings.encoder), settings.unet.decoder, settings.unet.channels)
    )
    feed = plan.feed(module.views)
    batch = feed.collate([feed.dataset[Draw(0, item)] for item in range(4)])
    with CountSyncs() as counter:
        module.loss(batch)[0].backward()
        module.after_step()
    assert len(counter.calls) == most
    assert counter.total > 300
