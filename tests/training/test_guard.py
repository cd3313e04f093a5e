"""Pre-training measures its encoder from the start on: good weights never end worse without a word."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small import column, run_broken, run_small, same

import flat
from pri3d.api.pretrain import PretrainOptions
from pri3d.data.mixture import Mixture, parse_mixture
from pri3d.networks.encoders import build_encoder
from pri3d.networks.load import WeightsSource
from pri3d.networks.state_files import read_state
from pri3d.networks.weights import read_provenance
from pri3d.runs import Run
from pri3d.training.launch import find_launch
from pri3d.training.loop import make_fabric
from pri3d.training.pretrain import resolve_call
from pri3d.training.pretraining import PretrainData
from pri3d.training.watch import FrameMeter, Watch, improvements

#: Measured at the start and after every step.
MEASURED: dict[str, Any] = {"holdout": 0.3, "eval_every": 1, "eval_pairs": 6}
#: A learning rate that ruins any weights; so few frames do not show it, so that the scores are invented.
RUINOUS: dict[str, Any] = {**MEASURED, "optimizer": "sgd", "schedule": "constant", "lr": 30.0, "steps": 4}
RUINED = {0: (0.5, 1.0, 20.0), 1: (0.4, 2.0, 30.0), 2: (0.3, 2.0, 30.0), 3: (0.2, 2.0, 30.0), 4: (0.2, 2.0, 30.0)}


@pytest.fixture(scope="module")
def trained(rooms_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights to begin with."""
    folder = tmp_path_factory.mktemp("trained")
    return run_small(rooms_store, folder / "run", steps=12, lr=0.01) / "weights.safetensors"


def invent(monkeypatch: pytest.MonkeyPatch, values: dict[int, tuple[float | None, float, float]]) -> None:
    """Recall, depth and normals of each step."""

    def measure(_watch: Watch, _fabric: Any, module: Any, _batch: int) -> dict[str, float | None]:
        return {"encoder_recall": values[module.step][0], "step now": module.step}

    steps = iter(values.values())
    monkeypatch.setattr(Watch, "measure", measure)

    def of_frames(*_: Any) -> dict[str, float]:
        _, depth, normals = next(steps)
        return {"depth_rmse": depth, "normal_error": normals, "cosine": 0.5}

    monkeypatch.setattr(FrameMeter, "measure", of_frames)


def test_a_ruinous_learning_rate_leaves_the_start(
    rooms_store: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run stops by itself, says so in a table of 80 columns, and leaves weights that are bit-equal to the start."""
    invent(monkeypatch, RUINED)
    capsys.readouterr()
    run = run_small(rooms_store, tmp_path / "run", weights=str(trained), **RUINOUS)
    shown = capsys.readouterr().err
    assert same(run / "weights.safetensors", run / "initial.safetensors")
    assert not same(run / "last.safetensors", run / "initial.safetensors")
    assert read_provenance(run / "weights.safetensors")["steps"] == 0
    scores = json.loads((run / "scores.json").read_text())
    steps = [entry["step"] for entry in scores["history"]]
    assert steps == [0, 1, 2]
    assert "worse than initially by more than 5%" in scores["stopped"]
    assert f"stopped at step {steps[-1]}: every measure" in shown
    assert "weights.safetensors holds the initial weights, unchanged" in shown
    table = [line for line in shown.splitlines() if line.lstrip().startswith(("start ", "best ", "last "))]
    assert [line.split()[:2] for line in table] == [["start", "0"], ["best", "0"], ["last", str(steps[-1])]]
    assert max(map(len, table)) <= 80
    assert Run(run).stopped == scores["stopped"]
    assert Run(run).comparison["start"]["depth_rmse"] == 1
    before = (run / "weights.safetensors").read_bytes()
    run_small(rooms_store, run, weights=str(trained), **RUINOUS, resume=True)
    assert "nothing was trained" in capsys.readouterr().err
    assert (run / "weights.safetensors").read_bytes() == before


def test_a_stop_can_be_turned_off_and_the_last_network_taken(
    rooms_store: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    invent(monkeypatch, RUINED)
    options = {**RUINOUS, "steps": 4, "validation": {"every": 1, "pairs": 6, "stop": 0.0, "take": "last"}}
    del options["eval_every"], options["eval_pairs"]
    run = run_small(rooms_store, tmp_path / "run", weights=str(trained), **options)
    assert read_provenance(run / "weights.safetensors")["steps"] == 4
    assert not (run / "last.safetensors").exists()
    assert same(run / "best.safetensors", run / "initial.safetensors")
    assert Run(run).stopped is None
    assert "stopped" not in capsys.readouterr().err


@pytest.mark.slow
def test_measuring_changes_nothing(rooms_store: Path, tmp_path: Path) -> None:
    """Neither random numbers nor batch norms: the same training with and without it."""
    options: dict[str, Any] = {"steps": 2, "holdout": 0.3}
    plain = run_small(rooms_store, tmp_path / "plain", **options, eval_every=0)
    measured = run_small(rooms_store, tmp_path / "measured", **options, eval_every=1, eval_pairs=6)
    assert column(plain, "loss") == column(measured, "loss")
    assert same(plain / "weights.safetensors", measured / "weights.safetensors")
    assert not (plain / "scores.json").exists()
    assert read_provenance(measured / "weights.safetensors")["steps"] == 2  # from scratch the last one is taken


@pytest.mark.slow
def test_a_resumed_run_decides_alike(
    rooms_store: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {**MEASURED, "weights": str(trained), "steps": 4, "lr": 0.01, "save_every": 1}
    whole = run_small(rooms_store, tmp_path / "whole", **options)
    broken = run_broken(2, rooms_store, tmp_path / "broken", monkeypatch, **options)
    assert json.loads((whole / "scores.json").read_text()) == json.loads((broken / "scores.json").read_text())
    for name in ("weights.safetensors", "best.safetensors"):
        assert same(whole / name, broken / name)
        assert read_provenance(whole / name)["steps"] == read_provenance(broken / name)["steps"]


@pytest.mark.parametrize(
    ("values", "stop", "taken"),
    [
        # (recall, depth, normals): all worse, once, then depth recovers
        ({0: (0.5, 1, 20), 1: (0.4, 2, 30), 2: (0.4, 1.04, 30), 3: (0.4, 2, 30)}, None, 0),
        ({0: (0.5, 1, 20), 1: (0.4, 2, 30), 2: (0.4, 2, 30), 3: (0.6, 1, 10)}, 2, 0),
        ({0: (0.5, 1, 20), 1: (0.6, 1, 20), 2: (0.6, 0.5, 20), 3: (0.7, 1, 20)}, None, 2),
        ({0: (0.5, 1, 20), 1: (None, 2, 30), 2: (None, 2, 30), 3: (0.6, 1, 10)}, 2, 0),
        # what the start does not show is not asked of the others
        ({0: (0.5, math.nan, 20), 1: (0.6, math.nan, 20), 2: (0.5, math.nan, 20), 3: (0.4, 1, 20)}, None, 1),
        ({0: (None, math.nan, math.nan), 1: (None, 1, 9), 2: (None, 1, 9), 3: (None, 1, 9)}, None, 3),
    ],
)
def test_which_network_is_taken(
    rooms_store: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[int, tuple[float | None, float, float]],
    stop: int | None,
    taken: int,
) -> None:
    invent(monkeypatch, values)
    run = run_small(rooms_store, tmp_path / "run", weights=str(trained), **MEASURED, steps=3)
    scores = json.loads((run / "scores.json").read_text())
    assert scores["last"]["step"] == (3 if stop is None else stop)
    assert (scores["stopped"] is not None) == (stop is not None)
    assert read_provenance(run / "weights.safetensors")["steps"] == taken


def test_from_scratch_nothing_stops_and_the_last_is_taken(
    rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    invent(monkeypatch, {0: (0.5, 1, 20), 1: (0.4, 2, 30), 2: (0.4, 2, 30), 3: (0.4, 2, 30)})
    run = run_small(rooms_store, tmp_path / "run", **MEASURED, steps=3)
    assert read_provenance(run / "weights.safetensors")["steps"] == 3
    assert read_provenance(run / "best.safetensors")["steps"] == 0


def test_improvements_are_relative_to_the_start() -> None:
    start = {"encoder_recall": 0.5, "depth_rmse": 0.4, "normal_error": None}
    entry = {"encoder_recall": 0.6, "depth_rmse": 0.5, "normal_error": 10.0}
    assert improvements(start, entry) == {"encoder_recall": pytest.approx(0.2), "depth_rmse": pytest.approx(-0.25)}
    assert improvements(start, {"encoder_recall": 0.5})["depth_rmse"] == -math.inf


def test_frames_without_depth_or_numbers_have_no_score(rooms_store: Path) -> None:
    settings = flat.pretraining("view,small", size="64x48", holdout=0.5, encoder="test_resnet")
    train, test = PretrainData(Mixture(parse_mixture(rooms_store)), settings).frames()
    torch.manual_seed(0)
    encoder, fabric = build_encoder("test_resnet"), make_fabric("fp32", find_launch())
    found = FrameMeter(encoder, lambda: (train, test)).measure(encoder, fabric)
    assert 0.1 < found["depth_rmse"] < 5
    assert 0 < found["normal_error"] < 90
    assert found["cosine"] == 1
    assert encoder.training
    dark = [frames._replace(depth=frames.depth * 0, normal=frames.normal * 0) for frames in (train, test)]
    found = FrameMeter(encoder, lambda: (dark[0], dark[1])).measure(encoder, fabric)
    assert math.isnan(found["depth_rmse"])
    assert math.isnan(found["normal_error"])
    assert found["cosine"] == 1
    meter = FrameMeter(encoder, lambda: (train, test))
    with torch.no_grad():
        next(encoder.parameters()).fill_(math.nan)
    assert all(math.isnan(value) for value in meter.measure(encoder, fabric).values())


def test_nothing_held_out_is_said(
    rooms_store: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    run_small(rooms_store, tmp_path / "run", weights=str(trained), holdout=0.0, steps=1)
    assert "--holdout 0: nothing is held out to measure on" in capsys.readouterr().err
    run_small(rooms_store, tmp_path / "scratch", holdout=0.0, steps=1)
    assert "nothing is held out to measure on" not in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_stop_at_one_step(rooms_store: Path, trained: Path, tmp_path: Path) -> None:
    """What the first process has measured decides in both, whatever the second one finds."""
    run = tmp_path / "run"
    words = [__file__, str(rooms_store), str(run), str(trained)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    subprocess.run([sys.executable, *launcher, *words], env=environment, check=True, timeout=300)
    assert "at steps 1 and 2" in str(Run(run).stopped)
    assert same(run / "weights.safetensors", run / "initial.safetensors")
    assert not same(run / "last.safetensors", run / "initial.safetensors")
    assert WeightsSource(str(run)).record["steps"] == 0


def test_the_preset_follows_the_start() -> None:
    """From weights it is adapt, whose encoder is its own only where the call names neither encoder nor weights."""

    def facts(**given: object) -> tuple[str, str, str, float]:
        call = PretrainOptions(data="out", **given)
        settings = resolve_call(call)
        return call.resolved_preset, settings.encoder, settings.weights, settings.lr

    assert facts() == ("quick", "resnet18", "scratch", 0.002)
    assert facts(weights="scratch") == ("quick", "resnet18", "scratch", 0.002)
    assert facts(weights="imagenet") == ("adapt", "resnet18", "imagenet", 0.0005)
    assert facts(weights="a.pth", encoder="resnet50") == ("adapt", "resnet50", "a.pth", 0.0005)
    assert facts(weights="imagenet", preset="quick") == ("quick", "resnet18", "imagenet", 0.002)
    assert facts(preset="adapt") == ("adapt", "tf_efficientnet_lite0", "imagenet", 0.0005)
    assert facts(preset="adapt", encoder="resnet18") == ("adapt", "resnet18", "imagenet", 0.0005)


if __name__ == "__main__":
    torch.set_num_threads(1)
    first = find_launch().rank == 0
    with pytest.MonkeyPatch.context() as patch:
        invent(patch, RUINED if first else dict.fromkeys(RUINED, (9.0, 0.1, 1.0)))
        run_small(Path(sys.argv[1]), Path(sys.argv[2]), weights=sys.argv[3], **RUINOUS)


@pytest.mark.parametrize("tune", ["full", "lora-2"])
@pytest.mark.slow
def test_a_part_of_the_change_is_written_and_measured(
    rooms_store: Path, trained: Path, tmp_path: Path, tune: str
) -> None:
    """Training and its checkpoint are those of the whole change; what is written lies between it and the start."""
    options: dict[str, Any] = {"holdout": 0.3, "weights": str(trained), "steps": 2, "lr": 0.01}
    options["validation"] = {"every": 1, "pairs": 6, "take": "last"}
    if tune != "full":
        options |= {"encoder": "test_vit", "weights": "scratch", "tune": tune}
    whole = run_small(rooms_store, tmp_path / "whole", **options, backbone={"mix": 1.0})
    part = run_small(rooms_store, tmp_path / "part", **options, backbone={"mix": 0.25})
    start, end, between = (
        read_state(path)
        for path in (whole / "initial.safetensors", whole / "weights.safetensors", part / "weights.safetensors")
    )
    moved = 0
    for key, value in between.items():
        if key.startswith("encoder.") and value.is_floating_point():
            torch.testing.assert_close(value, torch.lerp(start[key], end[key], 0.25), atol=1e-6, rtol=1e-5)
            moved += not torch.equal(start[key], end[key])
        else:
            assert torch.equal(value, end[key])
    assert moved
    assert read_provenance(part / "weights.safetensors")["mix"] == 0.25
    assert column(part, "loss") == column(whole, "loss")
    scores = [json.loads((run / "scores.json").read_text()) for run in (whole, part)]
    assert scores[1]["start"]["cosine"] == pytest.approx(1)
    assert scores[0]["last"]["cosine"] < scores[1]["last"]["cosine"] < 1
    best = scores[1]["best"]["step"]
    assert read_provenance(part / "best.safetensors")["steps"] == best
