"""Scores while a run trains: shared by real processes and read by loader processes, they are those of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import flat
from pri3d.data.mixture import Mixture, parse_mixture
from pri3d.data.pairs import collate
from pri3d.data.sampler import Draw
from pri3d.labelled import open_labelled
from pri3d.networks.encoders import build_encoder, join_maps
from pri3d.networks.unet import UNet
from pri3d.objectives.quality import PairQuality
from pri3d.probing.pairs import matching_recall
from pri3d.tasks import find_task
from pri3d.training.launch import find_launch
from pri3d.training.loop import make_fabric
from pri3d.training.pretraining import PairMeter, PretrainData, PretrainModule
from pri3d.training.watch import measure

BATCH = 3  # divides neither the pairs nor the images
TASKS: dict[str, dict[str, Any]] = {
    "semantic": {"size": "64x48"},
    "instance": {"short_side": 48, "long_side": 64, "rois": 8, "min_area": 1},
}


def held_out(store: Path) -> tuple[PretrainModule, Any]:
    """A network whose running statistics differ from process to process, and the pairs it is measured on."""
    small = {"size": "64x48", "distance": 0.1, "holdout": 0.5, "eval_pairs": 10, "batch": 4, "micro_batch": 2}
    settings = flat.pretraining("view,small", **small, encoder="test_resnet")
    torch.manual_seed(0)
    unet = UNet(build_encoder(settings.encoder), settings.unet.decoder, settings.unet.channels)
    rank = find_launch().rank
    for name, buffer in unet.named_buffers():
        if "running_mean" in name:
            buffer.add_(rank)
    return PretrainModule(settings, unet), PretrainData(Mixture(parse_mixture(store)), settings).heldout()


def score_all(store: Path, workers: int) -> dict[str, Any]:
    """Every kind of score, by as many processes as there are."""
    fabric = make_fabric("fp32", find_launch())
    fabric.launch()
    module, pairs = held_out(store)
    assert module.training
    scores = {"pairs": measure(fabric, module.unet, PairMeter(module), pairs, collate, BATCH, workers)}
    assert module.unet.training
    for name, options in TASKS.items():
        kind = find_task(name)
        settings = flat.finetuning(name, **options)
        recipe = kind.recipe(settings, settings.own[name])
        images = open_labelled(store, "val")
        torch.manual_seed(0)
        model = recipe.build(kind.names_of(images))
        task, data = recipe.task(images, range(len(images.names))), recipe.dataset(images, None, training=False)
        scores[name] = measure(fabric, model, task.meter(data), data, recipe.collate, BATCH, workers)
    return scores


def test_pairs_are_measured_as_by_hand(rooms_store: Path) -> None:
    module, pairs = held_out(rooms_store)
    quality = PairQuality()
    module.unet.eval()
    with torch.no_grad():
        for start in range(0, len(pairs), BATCH):
            batch = collate([pairs[Draw(0, k)] for k in range(start, min(start + BATCH, len(pairs)))])
            quality.update(module.features(batch), batch, distance=0.1)
    module.unet.train()
    assert len(pairs) % BATCH
    assert quality.result()["points"] > 100
    fabric = make_fabric("fp32", find_launch())
    found = measure(fabric, module.unet, PairMeter(module), pairs, collate, BATCH)
    assert {name: found[name] for name in quality.result()} == quality.result()


def test_the_encoders_maps_are_matched_as_by_probe(rooms_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, pairs = held_out(rooms_store)
    encoder = module.unet.encoder.eval()
    monkeypatch.setattr("pri3d.training.pretraining.ENCODER_POINTS", 1000)
    found = measure(make_fabric("fp32", find_launch()), module.unet, PairMeter(module), pairs, collate, BATCH)

    class Joined(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return join_maps(encoder(encoder.normalise(images)), encoder.strides, (24, 32))

    angles = pairs.table.angle[pairs.rows]
    recall = matching_recall(Joined().eval(), pairs, angles, distance=0.1)
    assert found["encoder_recall"] == pytest.approx(recall.balanced, abs=1e-6)
    known = {name: value for name, value in recall.by_angle.items() if value == value}
    assert found["recall_by_angle"] == pytest.approx(known, abs=1e-6)
    assert len(known) > 1


@pytest.mark.slow
def test_two_processes_score_as_one(rooms_store: Path, tmp_path: Path) -> None:
    """Of pairs, class maps and objects; with two loader processes as with none."""
    words = [__file__, str(rooms_store), str(tmp_path)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    for start, workers in (([], 0), (launcher, 2)):
        subprocess.run([sys.executable, *start, *words, str(workers)], env=environment, check=True, timeout=300)
    alone, *shared = (json.loads((tmp_path / name).read_text()) for name in ("1-0", "2-0", "2-1"))
    assert alone["pairs"]["points"] > 100
    assert alone["semantic"]["miou"] > 0
    assert shared == [alone, alone]


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = find_launch()
    text = json.dumps(score_all(Path(sys.argv[1]), int(sys.argv[3])))
    (Path(sys.argv[2]) / f"{found.world}-{found.rank}").write_text(text)
