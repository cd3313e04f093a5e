"""Presets parse, flags win, and every problem is named at once; schedules by closed form; metrics survive a kill."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from pri3d.settings import presets, resolve
from pri3d.training.settings import PretrainSettings

from pri3d.errors import ConfigError
from pri3d.networks.encoders import build_encoder
from pri3d.networks.unet import UNet
from pri3d.runs import MetricsFile, read_metrics
from pri3d.tasks.instance import InstanceSettings
from pri3d.tasks.semantic import SemanticSettings
from pri3d.training.optim import ParameterGroup, build, factor
from pri3d.training.pretraining import PretrainModule

TASKS = {"semantic": SemanticSettings, "instance": InstanceSettings}


@pytest.mark.parametrize("name", presets(PretrainSettings, "pretrain"))
def test_every_pretraining_preset_parses(name: str) -> None:
    whole = "paper,small" if name == "small" else name
    assert resolve(PretrainSettings, "pretrain", whole, {}).accumulate >= 1


@pytest.mark.parametrize(
    ("task", "name"), [(task, name) for task, kind in TASKS.items() for name in presets(kind, task)]
)
def test_every_finetuning_preset_parses(task: str, name: str) -> None:
    whole = "paper,small" if name == "small" else name
    assert resolve(TASKS[task], task, whole, {}).accumulate >= 1


@pytest.mark.parametrize("name", sorted({*presets(SemanticSettings, "semantic")} - {"small"}))
def test_every_segmentation_preset_can_be_laid_under_small(name: str) -> None:
    settings = resolve(SemanticSettings, "semantic", f"{name},small", {})
    assert (settings.encoder, settings.steps, settings.batch) == ("resnet18", 200, 8)


def test_downstream_presets_have_the_papers_numbers() -> None:
    """Paper section 5 and reference figures: 80 epochs of 19,466 and of 795 images, 50 of PSPNet, 90,000 steps."""
    stated = {"paper": (80, 19_466), "nyuv2": (80, 795), "released": (80, 19_466), "pspnet": (50, 19_466)}
    for name, (epochs, images) in stated.items():
        chosen = resolve(SemanticSettings, "semantic", name, {})
        assert chosen.steps == math.ceil(epochs * images / chosen.batch), name
    deeplab = resolve(SemanticSettings, "semantic", "deeplabv3", {})
    assert (deeplab.steps, deeplab.batch, deeplab.lr, deeplab.lr * deeplab.head_lr) == (50_000, 16, 0.001, 0.01)
    paper = resolve(InstanceSettings, "instance", "paper", {})
    assert (paper.steps, paper.batch, paper.lr, paper.rois, paper.tune) == (90_000, 16, 0.0025, 32, "last-3")
    assert paper.short_sides == (640, 672, 704, 736, 768, 800)


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
    for part in ("did you mean 'encoder'", "steps = 'many'", "missing: augment"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("given", "word"),
    [({"steps": 0}, "steps"), ({"batch": 12}, "multiple"), ({"lr": -1.0}, "lr"), ({"optimizer": "lion"}, "adamw")],
)
def test_impossible_numbers_are_refused(given: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        resolve(PretrainSettings, "pretrain", "quick", given)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"momentum": -0.1}, "--momentum -0.1: give at least 0"),
        ({"dampening": -1.0}, "--dampening -1.0"),
        ({"weight_decay": -1e-4}, "--weight-decay"),
        ({"seed": -1}, "--seed -1: give at least 0"),
        ({"seed": 1 << 32}, "--seed 4294967296: give less than 4294967296"),
        ({"lr": math.nan}, "--lr nan"),
        ({"temperature": math.nan}, "--temperature nan"),
        ({"points": 1}, "give at least 2, or all"),
        ({"holdout": 1.0}, "--holdout 1.0: give a share"),
        ({"moco_momentum": 1.0}, "--moco-momentum 1.0"),
        ({"objectives": {"view": 0.0}}, "at least one with a positive weight"),
        ({"objectives": {"view": 1.0, "depth": -1.0}}, "at least one with a positive weight"),
        ({"objectives": {"view": 1.0, "depth": math.nan}}, "at least one with a positive weight"),
        ({"objectives": {"view": 1.0, "keep": 1.0}}, "the weight of keep is --keep"),
        ({"objectives": {"moco": 1.0, "view": 0.0}, "keep": 0.5}, "--keep 0.5: moco alone looks at no pairs"),
        ({"objectives": {"moco": 1.0}, "moco_queue": 7}, "--moco-queue 7: a step makes 8 keys"),
        ({"tune": "last-0"}, "full, frozen, last-K"),
    ],
)
def test_numbers_that_would_fail_later_are_refused_now(given: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(word)):
        resolve(PretrainSettings, "pretrain", "quick", given)


def test_unknown_preset_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="paper, quick"):
        resolve(PretrainSettings, "pretrain", "papr", {})
    with pytest.raises(ConfigError, match="lay it over a whole one, as in paper,small"):
        resolve(PretrainSettings, "pretrain", "small", {})
    with pytest.raises(ConfigError, match="cannot be read"):
        resolve(PretrainSettings, "pretrain", str(tmp_path / "none.yaml"), {})


@pytest.mark.parametrize(
    ("content", "word"), [(b"[1, 2]", "name: value"), (b"a: [", "not valid YAML"), (b"a: \xff", "not valid YAML")]
)
def test_a_file_that_is_no_preset_is_named(tmp_path: Path, content: bytes, word: str) -> None:
    (tmp_path / "odd.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=word) as caught:
        resolve(PretrainSettings, "pretrain", str(tmp_path / "odd.yaml"), {})
    assert "odd.yaml" in str(caught.value)


def pretraining(preset: str, **given: object) -> PretrainSettings:
    return resolve(PretrainSettings, "pretrain", preset, given)


def preset_file(path: Path, **values: object) -> str:
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_layers_and_bases_lie_over_each_other(tmp_path: Path) -> None:
    """Flags win over files, files over their bases, later layers over earlier ones; a base may be several."""
    preset_file(tmp_path / "lower.yaml", base="paper,small", steps=5, lr=0.5, batch=24)
    mine = preset_file(tmp_path / "mine.yaml", base="lower.yaml, trivial", lr=0.25)  # beside it, not where we are
    settings = pretraining(f"{mine}, released", points=77)
    released, trivial = pretraining("released"), pretraining("trivial")
    assert settings.points == 77
    assert (settings.lr, settings.steps) == (released.lr, released.steps)
    alone = pretraining(mine)
    assert (alone.lr, alone.objectives, alone.augment) == (0.25, {"trivial": 1.0}, trivial.augment)
    assert alone.steps == trivial.steps  # trivial is the later one, and stands on the whole paper preset
    assert pretraining(str(tmp_path / "lower.yaml")).batch == 24


def test_small_changes_the_size_of_a_preset_and_not_what_it_does() -> None:
    small, quick = pretraining("trivial,small"), pretraining("quick")
    assert (small.objectives, small.augment) == ({"trivial": 1.0}, "simclr")
    assert (small.encoder, small.steps, small.size) == (quick.encoder, quick.steps, quick.size)
    assert pretraining("paper,small") == quick


def test_bases_that_go_round_are_refused(tmp_path: Path) -> None:
    preset_file(tmp_path / "a.yaml", base="b.yaml", steps=1)
    preset_file(tmp_path / "b.yaml", base=f"quick,../{tmp_path.name}/a.yaml")
    with pytest.raises(ConfigError, match=r"a\.yaml' is its own base .*b\.yaml -> .*Remove one 'base:'"):
        pretraining(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(("value", "points"), [("all", "all"), (512, 512)])
def test_points_are_a_number_or_all(tmp_path: Path, value: object, points: object) -> None:
    assert pretraining(preset_file(tmp_path / "mine.yaml", base="quick", points=value)).points == points


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"points": "many"}, "points = 'many': expected int or all"),
        ({"points": 1.5}, "expected int or all"),
        ({"points": True}, "expected int or all"),
        ({"steps": 3.0}, "steps = 3.0: expected int"),
        ({"steps": True}, "expected int"),
        ({"compile": 1}, "compile = 1: expected bool"),
        ({"compile": "yes"}, "expected bool"),
        ({"lr": "1e-3"}, "YAML takes 1e-3 for text"),
        ({"lr": True}, "expected float"),
        ({"encoder": 18}, "expected str"),
        ({"chunks": 1.0}, "choose one of 1, 2"),
        ({"chunks": True}, "choose one of 1, 2"),
        ({"precision": "fp8"}, "choose one of auto, fp32, bf16, fp16"),
        ({"objectives": ["view"]}, "expected {name: number}"),
        ({"objectives": {"view": "1"}}, "expected float"),
    ],
)
def test_types_are_taken_strictly(tmp_path: Path, given: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(word)):
        pretraining(preset_file(tmp_path / "mine.yaml", base="quick", **given))


def test_whole_numbers_serve_as_floats(tmp_path: Path) -> None:
    settings = pretraining(preset_file(tmp_path / "mine.yaml", base="quick", lr=1, objectives={"view": 1}))
    assert (settings.lr, settings.objectives) == (1.0, {"view": 1.0})
    assert isinstance(settings.lr, float)


@pytest.mark.parametrize("name", [name for name in presets(PretrainSettings, "pretrain") if name != "small"])
def test_every_preset_builds_its_objectives(name: str) -> None:
    settings = pretraining(name, encoder="test_resnet", channels=8, net3d="tiny", moco_queue=512)
    module = PretrainModule(settings, UNet(build_encoder(settings.encoder), "slim", 8))
    assert set(module.objective.terms) == set(settings.weights)


def test_every_row_of_table_1_is_one_preset() -> None:
    rows = {
        "view": {"view": 1.0},
        "geo": {"geometry": 1.0},
        "paper": {"view": 1.0, "geometry": 1.0},
        "trivial": {"trivial": 1.0},
        "depth": {"depth": 1.0},
        "moco": {"moco": 1.0},
        "moco-combine": {"moco": 1.0},
        "moco-mixed": {"moco": 1.0},
        "unsupervised": {"view": 1.0, "geometry": 1.0},
    }
    assert {name: pretraining(name).objectives for name in rows} == rows
    assert [pretraining(name).mix for name in ("moco", "moco-combine", "moco-mixed")] == ["frames", "combine", "half"]
    assert [pretraining(name).init for name in ("moco", "moco-combine", "moco-mixed")] == ["imagenet", *["scratch"] * 2]


def test_released_has_the_numbers_of_the_released_code() -> None:
    released = pretraining("released")
    assert released.objectives == {"view": 1.0, "geometry": 1.0, "depth": 1.0}
    assert (released.lr, released.momentum, released.dampening, released.weight_decay) == (0.1, 0.9, 0.1, 0.0)
    assert (released.schedule, released.steps, released.batch, released.micro_batch) == ("poly", 65_625, 64, 8)
    assert (released.match, released.distance, released.voxel, released.chunks) == ("depth", 0.05, 0.02, 2)
    assert (released.voxel_input, released.interpolation, released.net3d) == ("color", "nearest", "34C")
    assert (released.passes, released.bn_momentum) == ("separate", "decay")
    assert (released.temperature, released.points, released.channels) == (0.4, 1024, 128)


def test_moco_has_the_numbers_of_its_second_version() -> None:
    moco = pretraining("moco")
    assert (moco.optimizer, moco.lr, moco.schedule, moco.weight_decay, moco.momentum) == (
        "sgd", 0.03, "cosine", 1e-4, 0.9,
    )  # fmt: skip
    assert (moco.batch, moco.steps, moco.crop) == (256, 100 * 840_000 // 256, 224)
    assert (moco.moco_queue, moco.moco_momentum, moco.moco_temperature) == (65_536, 0.999, 0.2)
    assert pretraining("moco-combine").steps == pytest.approx(100 * (840_000 + 1_281_167) / 256, abs=1)
    assert pretraining("moco-mixed").steps == pytest.approx(100 * 2 * 1_281_167 / 256, abs=1)


def test_schedules() -> None:
    assert factor("step", 999, 60_000) == 1
    assert factor("step", 59_999, 60_000) == pytest.approx(0.99**59)
    assert factor("poly", 50, 100) == pytest.approx(0.5**0.9)
    assert factor("poly", 100, 100) == 0
    assert factor("constant", 5, 10) == 1
    assert [factor("cosine", step, 100) for step in (0, 50, 100)] == pytest.approx([1, 0.5, 0])
    assert factor("onecycle", 9, 100) == 1
    assert [factor("multistep", step, 90_000) for step in (0, 1000, 59_999, 60_000, 79_999, 80_000)] == pytest.approx(
        [0.001, 1, 1, 0.1, 0.1, 0.01]
    )
    assert factor("multistep", 0, 5) == pytest.approx(0.001)
    assert factor("multistep", 1, 5) == 1
    assert factor("onecycle", 55, 100) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


def test_sgd_has_the_papers_momentum_and_adamw_spares_norms() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    paper = resolve(PretrainSettings, "pretrain", "paper", {})
    group = build([ParameterGroup(net.parameters())], paper)[0].param_groups[0]
    assert (group["lr"], group["momentum"], group["dampening"]) == (0.1, 0.9, 0.1)
    quick = resolve(PretrainSettings, "pretrain", "quick", {})
    groups = build([ParameterGroup(net.parameters())], quick)[0].param_groups
    assert {p.ndim: g["weight_decay"] for g in groups for p in g["params"]} == {2: quick.weight_decay, 1: 0.0}


@pytest.mark.parametrize("name", ["quick", "paper"])
def test_heads_may_have_a_rate_of_their_own(name: str) -> None:
    """Fixed parameters are in no group, and the schedule scales all groups alike."""
    first, second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    first.bias.requires_grad_(False)
    settings = resolve(PretrainSettings, "pretrain", name, {"schedule": "poly", "steps": 10})
    optimizer, schedule = build(
        [ParameterGroup(first.parameters()), ParameterGroup(second.parameters(), 10.0)], settings
    )
    rates = {p: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rates == {
        first.weight: settings.lr,
        second.weight: pytest.approx(10 * settings.lr),
        second.bias: pytest.approx(10 * settings.lr),
    }
    optimizer.step()
    schedule.step()
    assert {g["lr"] for g in optimizer.param_groups} == {settings.lr * 0.9**0.9, 10 * settings.lr * 0.9**0.9}


def test_metrics_file_grows_columns_and_forgets_what_is_run_again(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "m.csv", 0)
    file.append(1, {"loss": 3.0})
    file.append(2, {"loss": 2.0, "recall": 0.5})
    file.append(3, {"recall": 0.75})
    assert read_metrics(tmp_path / "m.csv")[0] == {"step": 1, "loss": 3.0}
    MetricsFile(tmp_path / "m.csv", 2).append(3, {"loss": 1.5})
    assert [row.get("loss") for row in read_metrics(tmp_path / "m.csv")] == [3.0, 2.0, 1.5]
