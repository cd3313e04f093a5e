"""The verb on a tiny study with real runs: data, runs, results, what is kept, failures, the estimate, Slurm."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pri3d.api.reproduce import reproduce
from pri3d.errors import ConfigError, DataError
from pri3d.reproduction import matrix
from pri3d.runs import read_json

PRETRAIN = {"steps": 2, "batch": 2, "micro_batch": 2, "holdout": 0.0, "eval_every": 0, "distance": 0.1, "voxel": 0.16}
FINETUNE = {"steps": 2, "batch": 2, "micro_batch": 2, "eval_every": 2}
#: a study of two small rooms
TINY: dict[str, Any] = {
    "layer": "small",
    "encoder": "resnet18",
    "seeds": [0],
    "base": "scratch",
    "without": ["imagenet", "moco", "moco-combine", "moco-mixed", "trivial", "depth", "geo", "view+geo"],
    "parts": {
        "pretrain": {"rooms": {"first": 0, "rooms": 1, "frames": 8}},
        "labelled": {"rooms": {"first": 10, "rooms": 1, "frames": 4}},
        "labelled-val": {"rooms": {"first": 20, "rooms": 1, "frames": 2}},
    },
    "prepare": {"size": "64x48", "distance": 0.1, "voxel": 0.08, "min_overlap": 0.2},
    "pretrain": {**PRETRAIN, "init": "scratch", "size": "64x48", "points": 32},
    "semantic": {**FINETUNE, "size": "64x48"},
    "instance": FINETUNE,
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Has the tiny study in the place of rooms, small; what is changed in it counts."""
    study = {**TINY}
    studies = {**matrix.stated("studies"), "rooms": {"small": study}}
    experiments = matrix.stated("experiments")
    monkeypatch.setattr(matrix, "stated", lambda name: studies if name == "studies" else experiments)
    return study


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.glob("*/*/*") if path.name != "log.txt"}


@pytest.mark.slow
def test_the_whole_of_a_table(tiny: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Interrupted after the data: nothing of them is made again.
    reproduce("table1", out=tmp_path, only="data")
    data = times(tmp_path / "prepared")
    assert not (tmp_path / "runs").exists()
    page = reproduce("table1", out=tmp_path).path
    assert page == tmp_path / "results" / "table1-rooms-small.md"
    assert data
    assert times(tmp_path / "prepared") == data
    runs = {path.name for path in (tmp_path / "runs").glob("*/*")}
    assert runs == {"scratch-seed0", "view-seed0"}
    scores = read_json(tmp_path / "runs/semantic-labelled-resnet18/view-seed0/scores.json")["last"]
    assert f"| Pri3D (View) | {100 * scores['miou']:.1f} (" in page.read_text()
    assert page.with_suffix(".csv").is_file()
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "view" in (tmp_path / "runs/pretrain-resnet18/view-seed0/log.txt").read_text()

    # Again, and a figure that needs no further run: everything stays.
    before = times(tmp_path / "runs")
    reproduce("table1", out=tmp_path)
    assert times(tmp_path / "runs") == before
    tiny["without"] = [start for start in TINY["without"] if start != "view+geo"]
    assert reproduce("figure3", out=tmp_path).path.read_bytes().startswith(b"\x89PNG")
    assert times(tmp_path / "runs") == before

    # The estimate comes from the finished runs, and runs nothing.
    tiny["without"] = TINY["without"]
    capfd.readouterr()
    reproduce("table1", out=tmp_path, dry_run=True, seeds="0,1")
    said = capfd.readouterr().out
    assert "a run like it" in said
    assert "tried now" not in said
    assert f"pri3d pretrain {tmp_path}/prepared/pretrain --preset view,small" in said.replace("\n", "")
    assert "3 runs to do" in said
    assert times(tmp_path / "runs") == before

    # Other settings for the same folder are refused before any work.
    tiny["semantic"] = {**FINETUNE, "size": "64x48", "steps": 3}
    with pytest.raises(ConfigError, match="steps was 2, now 3"):
        reproduce("table1", out=tmp_path)


@pytest.mark.slow
def test_one_failure_leaves_the_others(tiny: dict[str, Any], tmp_path: Path) -> None:
    tiny["pretrain"] = {**TINY["pretrain"], "batch": 3}  # no multiple of the micro batch
    with pytest.raises(DataError, match=r"2 of 3 runs have failed.*--batch 3 is not a multiple.*view-seed0 failed"):
        reproduce("table1", out=tmp_path)
    text = (tmp_path / "results/table1-rooms-small.md").read_text()
    assert "| Pri3D (View) | – |" in text
    assert "1 of 2 runs have no scores" in text
    assert "ConfigError" in (tmp_path / "runs/pretrain-resnet18/view-seed0/log.txt").read_text()


@pytest.mark.slow
def test_an_estimate_without_any_run(tiny: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reproduce("table1", out=tmp_path / "new", dry_run=True, jobs=2)
    said = capfd.readouterr().out
    assert said.count("tried now") == 3
    assert "3 runs to do" in said
    assert "left out: ImageNet" in said
    assert not (tmp_path / "new").exists()


def test_the_array_job_calls_the_verb(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Run with a mock sbatch that writes its words down and prints a number."""
    asked: dict[str, Any] = {"devices": 4, "workers": 6, "cpus": 32, "memory": "128G"}
    script = reproduce(
        "table1", out=tmp_path / "out dir", seeds="0,1", slurm=tmp_path / "submit.sh", jobs=3, **asked
    ).path
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text('#!/bin/bash\nprintf "%s\\n" "$@" "--" >> "$LOG"\necho "7;cluster"\n')
    fake.chmod(0o755)
    log = tmp_path / "log"
    environment = {**os.environ, "PATH": f"{fake.parent}:{os.environ['PATH']}", "LOG": str(log)}
    subprocess.run(["bash", script], check=True, env={**environment, "SBATCH_OPTIONS": "--partition=gpu --time=60"})
    data, runs, table = (job.splitlines() for job in log.read_text().split("--\n")[:-1])
    assert all("--partition=gpu" in job and "--time=60" in job for job in (data, runs, table))
    assert "--array=0-3" in runs  # scratch and view, two seeds each
    assert "--dependency=afterok:7" in runs
    assert "--dependency=afterany:7" in table
    assert {"--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=4", "--cpus-per-task=32", "--mem=128G"} <= set(runs)
    assert {"--cpus-per-task=32", "--mem=128G"} <= set(data)
    words = f"pri3d reproduce table1 --on rooms --scale small --out '{tmp_path}/out dir' --seeds 0,1"
    words += " --devices 4 --workers 6 --only"
    assert f"--wrap={words} data" in data
    assert f"--wrap={words} $SLURM_ARRAY_TASK_ID" in runs
    assert f"--wrap={words} table" in table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experiment": "table9"}, "table1"),
        ({"experiment": "table5"}, "not available"),
        ({"experiment": "table1", "only": "2"}, "from 0 to 1"),
        ({"experiment": "table1", "only": "all"}, "data, table"),
        ({"experiment": "table1", "seeds": "0,x"}, "joined by commas"),
        ({"experiment": "table1", "seeds": "1,1"}, "twice"),
        ({"experiment": "table1", "fractions": "0,1"}, "between 0 and 1"),
        ({"experiment": "figure3", "slurm": Path("x.sh")}, "has no runs"),
        ({"experiment": "table1", "jobs": 0}, "at least 1"),
    ],
)
def test_wrong_options_are_refused_before_any_work(
    tiny: dict[str, Any], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        reproduce(**options, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_that_were_not_named_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--scannet FOLDER"):
        reproduce("table5", on="nyuv2", out=tmp_path / "out", nyuv2=tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_plan_for_a_labs_machine(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Table 1 at the paper's size, by the model of cost: nothing is run or written."""
    folders = {name: tmp_path / name for name in ("scannet", "scannet_frames", "imagenet")}
    options: dict[str, Any] = {
        "on": "scannet",
        "scale": "paper",
        "out": tmp_path / "out",
        "encoder": "resnet18",
        **folders,
    }
    reproduce("table1", **options, dry_run=True, machine="8xa100", workers=8, jobs=8)
    said = capfd.readouterr().out
    assert "18 runs to do on 8 x A100 80 GB" in said
    hours = {
        int(found[1]): float(found[2]) for found in re.finditer(r"--jobs \d+ --devices (\d+): ([\d,]+) hours", said)
    }
    assert set(hours) == {1, 8}
    assert 10 < hours[8] < 24 * 14  # days, not hours or months
    assert "GB of a GPU at most" in said and "GB of prepared data" in said
    assert "--workers 8" in said
    assert "not measured on a GPU" in said
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="8xa100"):
        reproduce("table1", **options, dry_run=True, machine="8xz80")


@pytest.mark.slow
def test_two_processes_give_the_table_of_one(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Both runs by torchrun on gloo, as many GPUs would; data are shared.

    Without pre-training every score agrees within 1e-4. After it, some pixels fall to another class; how far that is
    rounding alone is not known, so the bound there is wide.
    """
    # Descent by the gradient: AdamW's first steps are as long where the gradient is but rounding.
    plain = {"batch": 4, "precision": "fp32", "optimizer": "sgd", "schedule": "constant", "lr": 0.01}
    tiny["pretrain"] = {**TINY["pretrain"], **plain}
    tiny["semantic"] = {**FINETUNE, "size": "64x48", **plain}
    scores: list[dict[str, float]] = []
    for devices in (1, 2):
        reproduce("table1", out=tmp_path, devices=devices, workers=0)
        runs = {path.parent.name: read_json(path)["last"] for path in (tmp_path / "runs").glob("*/*/scores.json")}
        scores.append({f"{run}/{name}": runs[run][name] for run in sorted(runs) for name in ("miou", "accuracy")})
        (tmp_path / "runs").rename(tmp_path / f"runs{devices}")
    log = (tmp_path / "runs2/pretrain-resnet18/view-seed0/log.txt").read_text()
    assert "Starting with 2 processes" in log
    alone, shared = scores
    assert alone.keys() == shared.keys()
    for name, score in alone.items():
        assert shared[name] == pytest.approx(score, abs=1e-4 if "scratch" in name else 0.01), name


def test_a_table_without_scores_is_no_table(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run of table1 has scores"):
        reproduce("table1", out=tmp_path, only="table")
