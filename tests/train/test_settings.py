"""Presets parse, flags win, and every problem is named at once; schedules by closed form; metrics survive a kill."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from pri3d.errors import ConfigError
from pri3d.runfiles import read_metrics
from pri3d.train.optim import build, factor
from pri3d.train.runs import MetricsFile
from pri3d.train.settings import FinetuneSettings, PretrainSettings, presets, resolve


@pytest.mark.parametrize("name", presets("pretrain"))
def test_every_pretraining_preset_parses(name: str) -> None:
    whole = "paper,small" if name == "small" else name
    assert resolve(PretrainSettings, "pretrain", whole, {}).accumulate >= 1


@pytest.mark.parametrize("name", presets("finetune"))
def test_every_finetuning_preset_parses(name: str) -> None:
    assert resolve(FinetuneSettings, "finetune", name, {}).steps > 0


def test_paper_preset_has_the_papers_numbers() -> None:
    paper = resolve(PretrainSettings, "pretrain", "paper", {})
    assert (paper.lr, paper.batch, paper.steps, paper.voxel, paper.distance) == (0.1, 64, 60_000, 0.02, 0.02)
    assert (paper.momentum, paper.dampening, paper.temperature, paper.points) == (0.9, 0.1, 0.4, 1024)
    assert (paper.encoder, paper.init, paper.size, paper.channels) == ("resnet50", "imagenet", "320x240", 128)
    assert paper.objectives == {"view": 1.0, "geometry": 1.0}


def test_given_values_win_and_none_means_not_given() -> None:
    settings = resolve(PretrainSettings, "pretrain", "quick", {"steps": 7, "lr": None, "data": Path("x"), "batch": 16})
    assert (settings.steps, settings.batch, settings.accumulate) == (7, 16, 2)
    assert settings.lr == resolve(PretrainSettings, "pretrain", "quick", {}).lr


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("encodr: resnet18\nsteps: many\nlr: 0.1\n")
    with pytest.raises(ConfigError) as caught:
        resolve(PretrainSettings, "pretrain", str(file), {})
    for part in ("did you mean 'encoder'", "steps = 'many'", "missing: size"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("given", "word"),
    [({"steps": 0}, "steps"), ({"batch": 12}, "multiple"), ({"lr": -1.0}, "lr"), ({"optimizer": "lion"}, "adamw")],
)
def test_impossible_numbers_are_refused(given: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        resolve(PretrainSettings, "pretrain", "quick", given)


def test_unknown_preset_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="paper, quick"):
        resolve(PretrainSettings, "pretrain", "papr", {})
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve(PretrainSettings, "pretrain", str(tmp_path / "none.yaml"), {})
    (tmp_path / "list.yaml").write_text("[1, 2]")
    with pytest.raises(ConfigError, match="name: value"):
        resolve(PretrainSettings, "pretrain", str(tmp_path / "list.yaml"), {})


def test_schedules() -> None:
    assert factor("step", 999, 60_000) == 1
    assert factor("step", 59_999, 60_000) == pytest.approx(0.99**59)
    assert factor("poly", 50, 100) == pytest.approx(0.5**0.9)
    assert factor("poly", 100, 100) == 0
    assert factor("constant", 5, 10) == 1
    assert factor("onecycle", 9, 100) == 1
    assert factor("onecycle", 55, 100) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


def test_sgd_has_the_papers_momentum_and_adamw_spares_norms() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    paper = resolve(PretrainSettings, "pretrain", "paper", {})
    group = build(net.parameters(), paper)[0].param_groups[0]
    assert (group["lr"], group["momentum"], group["dampening"]) == (0.1, 0.9, 0.1)
    quick = resolve(PretrainSettings, "pretrain", "quick", {})
    decay = {p.ndim: g["weight_decay"] for g in build(net.parameters(), quick)[0].param_groups for p in g["params"]}
    assert decay == {2: quick.weight_decay, 1: 0.0}


def test_metrics_file_grows_columns_and_forgets_what_is_run_again(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "m.csv", 0)
    file.append(1, {"loss": 3.0})
    file.append(2, {"loss": 2.0, "recall": 0.5})
    file.append(3, {"recall": 0.75})
    assert read_metrics(tmp_path / "m.csv")[0] == {"step": 1, "loss": 3.0}
    MetricsFile(tmp_path / "m.csv", 2).append(3, {"loss": 1.5})
    assert [row.get("loss") for row in read_metrics(tmp_path / "m.csv")] == [3.0, 2.0, 1.5]
