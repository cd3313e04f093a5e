"""Pre-training runs: what they leave behind, that they repeat, and that a killed one continues bit by bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from processes import SMALL, wait_until

from flat import pretrain
from pri3d.api.presets import RENAMED
from pri3d.errors import ConfigError, DataError, Pri3DError
from pri3d.networks.state_files import read_state
from pri3d.networks.weights import load_model, read_provenance
from pri3d.runs import read_metrics

pytestmark = pytest.mark.thorough  # but for those that say quick


def run_small(store: Path, run: Path, **options: object) -> Path:
    return pretrain(store, run=run, **{"steps": 2, "workers": 0, **SMALL, **options}).path


def same(one: Path, two: Path) -> bool:
    first, second = read_state(one), read_state(two)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_run_leaves_weights_metrics_and_provenance(rooms_store: Path, tmp_path: Path) -> None:
    run = run_small(rooms_store, tmp_path / "run")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["settings"]["contrast"]["points"] == 64
    assert config["provenance"]["data_hash"]
    rows = read_metrics(run / "metrics.csv")
    assert [row["step"] for row in rows] == [1, 2]
    assert {"loss", "view/loss", "geometry/loss", "view/recall", "view/matches", "lr"} <= rows[0].keys()
    record = read_provenance(run)
    assert (record["encoder"], record["steps"], record["preset"]) == ("resnet18", 2, "quick")
    assert not same(run / "initial.safetensors", run / "weights.safetensors")
    assert load_model(run)[0](torch.rand(1, 3, 48, 64)).shape == (1, 32, 24, 32)
    assert not list(run.glob("*.tmp"))


@pytest.mark.slow
def test_same_seed_same_run_other_seed_other_run(rooms_store: Path, tmp_path: Path) -> None:
    runs = [run_small(rooms_store, tmp_path / str(k), seed=s, objectives={"view": 1}) for k, s in enumerate((1, 1, 2))]
    assert same(runs[0] / "weights.safetensors", runs[1] / "weights.safetensors")
    assert not same(runs[0] / "weights.safetensors", runs[2] / "weights.safetensors")


@pytest.mark.quick
@pytest.mark.slow
def test_only_the_chosen_objectives_run(rooms_store: Path, tmp_path: Path) -> None:
    rows = read_metrics(
        run_small(rooms_store, tmp_path / "run", objectives={"view": 0.5, "geometry": 0}) / "metrics.csv"
    )
    assert "geometry/loss" not in rows[0]
    assert rows[0]["loss"] == pytest.approx(0.5 * rows[0]["view/loss"], rel=1e-5)


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_continue(rooms_store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [f"--{RENAMED.get(key, key).replace('_', '-')}={value}" for key, value in SMALL.items()]
    command = [sys.executable, "-m", "pri3d", "pretrain", str(rooms_store), "--run", str(run), "--steps", "500", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True)
    wait_until(lambda: (run / "metrics.csv").exists() and len(read_metrics(run / "metrics.csv")) >= 1, process)
    second = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert second.returncode == 1 and f"process {process.pid} on " in second.stderr
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "Continue with --resume" in errors
    steps = torch.load(run / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < steps < 500
    assert f"stopped at step {steps}" in errors


@pytest.mark.slow
def test_second_run_in_a_folder_needs_resume_and_the_same_settings(rooms_store: Path, tmp_path: Path) -> None:
    run = run_small(rooms_store, tmp_path / "run", objectives={"view": 1})
    with pytest.raises(ConfigError, match="--resume"):
        run_small(rooms_store, run, objectives={"view": 1})
    with pytest.raises(ConfigError, match=r"lr was 0.002, now 0.5"):
        run_small(rooms_store, run, objectives={"view": 1}, lr=0.5, resume=True)
    before = (run / "weights.safetensors").read_bytes()
    assert run_small(rooms_store, run, objectives={"view": 1}, resume=True) == run
    assert (run / "weights.safetensors").read_bytes() == before


def test_damaged_checkpoint_is_named(rooms_store: Path, tmp_path: Path) -> None:
    run = run_small(rooms_store, tmp_path / "run", objectives={"view": 1})
    (run / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes()[:1000])
    with pytest.raises(Pri3DError, match=r"last.ckpt.*Delete it"):
        run_small(rooms_store, run, objectives={"view": 1}, resume=True)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"preset": "nope"}, "moco, moco-combine"),
        ({"objectives": {"vew": 1}}, "Did you mean 'view'"),
        ({"objectives": {}}, "objectives"),
        ({"encoder": "resnet19"}, "resnet18"),
        ({"size": "big"}, "320x240"),
        ({"batch": 512, "micro_batch": 512}, "training pairs"),
        ({"voxel": 0.05}, "whole multiple"),
        ({"weights": "no-such-file.pth"}, "no-such-file.pth"),
        ({"augment": "wild"}, "strong"),
        ({"net3d": "50Z"}, "34C"),
    ],
)
def test_wrong_settings_are_refused_before_a_run_begins(
    rooms_store: Path, tmp_path: Path, options: dict[str, object], word: str
) -> None:
    with pytest.raises(Pri3DError) as caught:
        run_small(rooms_store, tmp_path / "run", **options)
    assert word in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_no_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing"):
        run_small(tmp_path / "nothing", tmp_path / "run")
