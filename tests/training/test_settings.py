"""Presets parse, flags win, and every problem is named at once; schedules by closed form; metrics survive a kill."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from small import run_small, same, stop_after

from flat import finetuning, pretraining
from pri3d.api.finetune import presets_of_task, resolve_finetuning
from pri3d.api.presets import RENAMED, RENAMED_IN, current, shipped
from pri3d.api.pretrain import PRESETS, PretrainSettings, resolve_pretraining
from pri3d.errors import ConfigError
from pri3d.networks.encoders import build_encoder
from pri3d.networks.unet import UNet
from pri3d.objectives.geometry import GeometryOptions
from pri3d.objectives.moco import MocoOptions
from pri3d.runs import MetricsFile, RunPaths, leaves, read_metrics
from pri3d.training.optim import ParameterGroup, build, schedule_factor
from pri3d.training.pretraining import PretrainModule

TASKS = ("semantic", "instance")


@pytest.mark.parametrize("name", shipped(PRESETS))
def test_every_pretraining_preset_parses(name: str) -> None:
    whole = "paper,small" if name == "small" else name
    assert resolve_pretraining(whole).accumulate >= 1


@pytest.mark.parametrize(("task", "name"), [(task, name) for task in TASKS for name in shipped(presets_of_task(task))])
def test_every_finetuning_preset_parses(task: str, name: str) -> None:
    whole = "paper,small" if name == "small" else name
    assert resolve_finetuning(task, whole).accumulate >= 1


@pytest.mark.parametrize("name", sorted({*shipped(presets_of_task("semantic"))} - {"small"}))
def test_every_segmentation_preset_can_be_laid_under_small(name: str) -> None:
    settings = resolve_finetuning("semantic", f"{name},small")
    assert (settings.encoder, settings.steps, settings.batch) == ("resnet18", 200, 8)


def test_downstream_presets_have_the_papers_numbers() -> None:
    """Paper section 5 and reference figures: 80 epochs of 19,466 and of 795 images, 50 of PSPNet, 90,000 steps."""
    stated = {"paper": (80, 19_466), "nyuv2": (80, 795), "released": (80, 19_466), "pspnet": (50, 19_466)}
    for name, (epochs, images) in stated.items():
        chosen = resolve_finetuning("semantic", name)
        assert chosen.steps == math.ceil(epochs * images / chosen.batch), name
    deeplab = resolve_finetuning("semantic", "deeplabv3")
    assert (deeplab.steps, deeplab.batch, deeplab.lr) == (50_000, 16, 0.001)
    assert deeplab.lr * deeplab.backbone.head_lr == 0.01
    paper = resolve_finetuning("instance", "paper")
    own = paper.own["instance"]
    assert (paper.steps, paper.batch, paper.lr, own.rois, paper.tune) == (90_000, 16, 0.0025, 32, "last-3")
    assert own.short_sides == (640, 672, 704, 736, 768, 800)


def test_paper_preset_has_the_papers_numbers() -> None:
    paper = resolve_pretraining("paper")
    assert (paper.lr, paper.batch, paper.steps) == (0.1, 64, 60_000)
    assert (paper.own["geometry"].voxel, paper.matching.distance) == (0.02, 0.02)
    assert (paper.optim.momentum, paper.optim.dampening) == (0.9, 0.1)
    assert (paper.contrast.temperature, paper.contrast.points) == (0.4, 1024)
    assert (paper.encoder, paper.weights, paper.size, paper.unet.channels) == (
        "resnet50",
        "imagenet",
        "320x240",
        "auto",
    )
    assert paper.objectives == {"view": 1.0, "geometry": 1.0}


def test_the_fields_defaults_are_the_papers() -> None:
    """A preset file that states little, and options made by hand, begin at the paper's numbers."""
    paper = resolve_pretraining("paper")
    assert PretrainSettings(own=paper.own) == paper
    assert paper.own == {"geometry": GeometryOptions()}
    assert resolve_pretraining("paper", {"objectives": {"moco": 1}}).own == {"moco": MocoOptions()}


def test_given_values_win_and_others_stay() -> None:
    given = {"steps": 7, "batch": 16, "optim": {"momentum": 0.5}}
    settings, quick = resolve_pretraining("quick", given), resolve_pretraining("quick")
    assert (settings.steps, settings.batch, settings.accumulate) == (7, 16, 2)
    assert settings.lr == quick.lr
    assert settings.optim.plain() == {**quick.optim.plain(), "momentum": 0.5}


def test_every_problem_is_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("encodr: resnet18\nsteps: many\nlr: 0.1\n")
    with pytest.raises(ConfigError) as caught:
        pretraining(str(file), momentum="much", voxel="big", net3d=34)
    for part in (
        "unknown option --encodr, did you mean --encoder?",
        "--steps 'many': expected a whole number",
        "--optim.momentum 'much'",
        "--geometry.voxel 'big'",
        "--geometry.net3d 34: expected text",
    ):
        assert part in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        pretraining(steps=0, momentum=-1.0, points=1, geometry={"projection": 0}, tune="half")
    for part in ("--steps 0", "--optim.momentum -1.0", "--contrast.points 1", "--geometry.projection 0", "--tune half"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("given", "word"),
    [({"steps": 0}, "steps"), ({"batch": 12}, "multiple"), ({"lr": -1.0}, "lr"), ({"optimizer": "lion"}, "adamw")],
)
def test_impossible_numbers_are_refused(given: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        pretraining(**given)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"momentum": -0.1}, "--optim.momentum -0.1: give at least 0"),
        ({"dampening": -1.0}, "--optim.dampening -1.0: give at least 0"),
        ({"weight_decay": -1e-4}, "--optim.weight-decay -0.0001: give at least 0"),
        ({"seed": -1}, "--seed -1: give at least 0"),
        ({"seed": 1 << 32}, "--seed 4294967296: give less than 4294967296"),
        ({"lr": math.nan}, "--lr nan: give more than 0"),
        ({"temperature": math.nan}, "--contrast.temperature nan: give at least 0.025"),
        ({"points": 1}, "--contrast.points 1: give at least 2, or all"),
        ({"holdout": 1.0}, "--holdout 1.0: give a fraction"),
        ({"objectives": {"moco": 1.0}, "moco_momentum": 1.0}, "--moco.momentum 1.0: give less than 1"),
        ({"objectives": {"view": 0.0}}, "at least one with a positive weight"),
        ({"objectives": {"view": 1.0, "depth": -1.0}}, "at least one with a positive weight"),
        ({"objectives": {"view": 1.0, "depth": math.nan}}, "at least one with a positive weight"),
        ({"objectives": {"view": 1.0, "keep": 1.0}}, "the weight of keep is --keep"),
        ({"objectives": {"moco": 1.0, "view": 0.0}, "keep": 0.5}, "--keep 0.5: moco alone uses no pairs"),
        ({"objectives": {"moco": 1.0}, "moco_queue": 7}, "--moco.queue 7: a step makes 8 keys"),
        ({"tune": "last-0"}, "full, frozen, last-K"),
        ({"steps": 5, "backbone": {"delay": 5}}, "--backbone.delay 5: of 5 steps none would train the encoder"),
    ],
)
def test_numbers_that_would_fail_later_are_refused_now(given: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(word)):
        pretraining(**given)


def test_unknown_preset_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="paper, quick"):
        pretraining("papr")
    with pytest.raises(ConfigError, match="merge it with a complete preset, as in paper,small"):
        pretraining("small")
    with pytest.raises(ConfigError, match="merge it with a complete preset, as in paper,small"):
        finetuning("semantic", "small")
    preset_file(tmp_path / "mine.yaml", base="small", steps=5)
    with pytest.raises(ConfigError, match="changes only some options"):
        pretraining(str(tmp_path / "mine.yaml"))
    with pytest.raises(ConfigError, match="cannot be read"):
        pretraining(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("content", "word"), [(b"[1, 2]", "name: value"), (b"a: [", "not valid YAML"), (b"a: \xff", "not valid YAML")]
)
def test_a_file_that_is_no_preset_is_named(tmp_path: Path, content: bytes, word: str) -> None:
    (tmp_path / "odd.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=word) as caught:
        pretraining(str(tmp_path / "odd.yaml"))
    assert "odd.yaml" in str(caught.value)


def preset_file(path: Path, **values: object) -> str:
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_layers_and_bases_lie_over_each_other(tmp_path: Path) -> None:
    """Flags win over files, files over their bases, later layers over earlier ones; a base may be several."""
    preset_file(tmp_path / "lower.yaml", base="paper,small", steps=5, lr=0.5, batch=24)
    mine = preset_file(tmp_path / "mine.yaml", base="lower.yaml, trivial", lr=0.25)  # beside it, not where we are
    settings = pretraining(f"{mine}, released", points=77)
    released, trivial = pretraining("released"), pretraining("trivial")
    assert settings.contrast.points == 77
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


OLD_QUICK = {  # the resolved settings of the quick preset as version 0.1 wrote them
    "augment": "strong", "optimizer": "adamw", "lr": 0.002, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01,
    "schedule": "onecycle", "steps": 300, "batch": 8, "micro_batch": 8, "precision": "auto", "sync_bn": False,
    "channels_last": True, "compile": False, "encoder": "resnet18", "decoder": "slim", "channels": 32,
    "passes": "joint", "init": "scratch", "size": "160x120", "interpolation": "bilinear", "tune": "full",
    "objectives": {"view": 1.0, "geometry": 1.0}, "keep": 0.0, "points": 512, "temperature": 0.1,
    "negatives": "sample", "exclude_px": 0.0, "exclude_cm": 0.0, "match": "point", "distance": 0.02, "voxel": 0.16,
    "chunks": 1, "net3d": "tiny", "voxel_input": "occupancy", "mix": "frames", "crop": 96, "moco_queue": 2048,
    "moco_momentum": 0.99, "moco_temperature": 0.2, "moco_group": 32, "bn_momentum": "constant", "holdout": 0.1,
    "eval_every": 50, "eval_pairs": 32, "seed": 0,
}  # fmt: skip


def test_flat_names_of_version_01_mean_the_same(tmp_path: Path) -> None:
    """In a preset file, alone and as an upper layer; in a run's config.yaml; of both kinds of training."""
    assert pretraining(preset_file(tmp_path / "old.yaml", **OLD_QUICK)) == pretraining("quick")
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"verb": "pretrain", "settings": OLD_QUICK, "provenance": {}}))
    quick = dict(leaves(pretraining("quick").stated()))
    read = dict(leaves(RunPaths(tmp_path).read_config()["settings"]))
    assert {way: read[way] for way in quick if way in read} == {way: quick[way] for way in quick if way in read}
    later = {("geometry", "projection"), *(("backbone", name) for name in ("norm", "head_lr", "delay", "mix"))}
    later |= {("validation", "take"), ("validation", "stop"), ("geometry", "max_voxels"), ("geometry", "recompute")}
    later |= {("min_overlap",)}
    assert set(quick) - set(read) == later  # they could not be set then
    old = {"network": "pspnet", "size": "64x48", "decoder": "slim", "channels": 16, "head_lr": 10.0, "norm": "frozen"}
    new = {
        "network": "pspnet",
        "semantic": {"size": "64x48", "decoder": "slim", "channels": 16},
        "backbone": {"head_lr": 10.0, "norm": "frozen"},
    }
    semantic = preset_file(tmp_path / "semantic.yaml", base="paper", **old)
    assert resolve_finetuning("semantic", semantic) == resolve_finetuning("semantic", "paper", new)
    instance = preset_file(tmp_path / "instance.yaml", base="quick", rois=8, bn_momentum=0.2)
    new = {"instance": {"rois": 8}, "backbone": {"bn_momentum": 0.2}}
    assert resolve_finetuning("instance", instance) == resolve_finetuning("instance", "quick", new)


def test_every_former_name_leads_to_an_option() -> None:
    """Of one kind of training at least, or of its checkpoints."""
    every = {"objectives": {"view": 1, "geometry": 1, "moco": 1}}
    kinds = {"pretrain": resolve_pretraining("paper", every)}
    kinds |= {task: resolve_finetuning(task, "quick") for task in TASKS}
    known = {kind: {".".join(way) for way, _ in leaves(settings.stated())} for kind, settings in kinds.items()}
    for old in {*RENAMED, "bn_momentum"}:
        found = {kind: ".".join(next(leaves(current({old: 1}, kind)))[0]) for kind in kinds}
        checkpoint = all(new.startswith("checkpoint.") for new in found.values())
        assert checkpoint or any(found[kind] in known[kind] for kind in kinds), old


def test_options_of_an_objective_that_is_not_in_use(tmp_path: Path) -> None:
    """The user's are refused, those of a preset wait for a layer that uses them."""
    for given in ({"moco": {"queue": 64}}, {"moco_queue": 64}):
        with pytest.raises(ConfigError, match=r"--moco\.queue: not used by the objectives view, geometry"):
            resolve_pretraining("quick", given)
    with pytest.raises(ConfigError, match=r"--geometry\.voxel, --geometry\.chunks: not used by the objectives view"):
        pretraining("view", voxel=0.1, chunks=1)
    assert pretraining("view", objectives={"view": 1, "geometry": 1}, voxel=0.1).own["geometry"].voxel == 0.1
    stating = preset_file(tmp_path / "mine.yaml", base="quick", moco={"queue": 64}, objectives={"view": 1})
    settings = pretraining(stating)
    assert "moco" not in settings.own
    assert "moco" not in settings.stated()
    assert pretraining(stating, objectives={"moco": 1.0}).own["moco"].queue == 64
    with pytest.raises(ConfigError, match=r"--instance\.rois: no option of task semantic"):
        finetuning("semantic", rois=8)


@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_retention_is_a_weight(keep: float) -> None:
    settings = pretraining(keep=keep)
    assert settings.keep == settings.stated()["keep"] == keep
    assert ("keep" in settings.active) == (keep > 0)


@pytest.mark.slow
def test_a_run_of_version_01_is_continued(rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its config.yaml is one flat list; the same settings continue it, others are named by their present names."""
    whole, run = run_small(rooms_store, tmp_path / "whole"), tmp_path / "run"
    stop_after(1, rooms_store, run, monkeypatch)
    config = yaml.safe_load((run / "config.yaml").read_text())
    flat = {new: old for old, new in {**RENAMED, **RENAMED_IN["pretrain"]}.items()}
    ways = {".".join(way): value for way, value in leaves(config["settings"]) if way[0] != "objectives"}
    config["settings"] = {flat.get(way, way): value for way, value in ways.items()} | {"objectives": {"view": 1.0}}
    assert {"momentum", "init", "eval_every", "bn_momentum", "points"} <= set(config["settings"])
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=r"contrast\.points was 64, now 32"):
        run_small(rooms_store, run, points=32, resume=True)
    run_small(rooms_store, run, resume=True)
    assert same(run / "weights.safetensors", whole / "weights.safetensors")


def test_bases_that_go_round_are_refused(tmp_path: Path) -> None:
    preset_file(tmp_path / "a.yaml", base="b.yaml", steps=1)
    preset_file(tmp_path / "b.yaml", base=f"quick,../{tmp_path.name}/a.yaml")
    with pytest.raises(ConfigError, match=r"a\.yaml' is its own base .*b\.yaml -> .*Remove one 'base:'"):
        pretraining(str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(("value", "points"), [("all", "all"), (512, 512)])
def test_points_are_a_number_or_all(tmp_path: Path, value: object, points: object) -> None:
    assert pretraining(preset_file(tmp_path / "mine.yaml", base="quick", points=value)).contrast.points == points


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"points": "many"}, "--contrast.points 'many': expected a whole number or all"),
        ({"points": 1.5}, "--contrast.points 1.5: expected a whole number or all"),
        ({"points": True}, "--contrast.points True: expected a whole number or all"),
        ({"steps": 3.0}, "--steps 3.0: expected a whole number"),
        ({"steps": True}, "--steps True: expected a whole number"),
        ({"compile": 1}, "--compute.compile 1: expected true or false"),
        ({"compile": "yes"}, "--compute.compile 'yes': expected true or false"),
        ({"lr": "1e-3"}, "YAML takes 1e-3 for text"),
        ({"lr": True}, "--lr True: expected a number"),
        ({"encoder": 18}, "--encoder 18: expected text"),
        ({"chunks": 1.0}, "--geometry.chunks 1.0: choose one of 1, 2"),
        ({"chunks": True}, "--geometry.chunks True: choose one of 1, 2"),
        ({"precision": "fp8"}, "choose one of auto, fp32, bf16, fp16"),
        ({"objectives": ["view"]}, "--objectives ['view']: give names and weights, as in {view: 1}"),
        ({"objectives": {"view": "1"}}, "--objectives {'view': '1'}: expected a number"),
        ({"contrast": 3}, "--contrast 3"),
        ({"geometry": 3}, "geometry: expected its options"),
    ],
)
def test_types_are_taken_strictly(tmp_path: Path, given: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(word)):
        pretraining(preset_file(tmp_path / "mine.yaml", base="quick", **given))


def test_whole_numbers_serve_as_floats(tmp_path: Path) -> None:
    settings = pretraining(preset_file(tmp_path / "mine.yaml", base="quick", lr=1, objectives={"view": 1}))
    assert (settings.lr, settings.objectives) == (1.0, {"view": 1.0})
    assert isinstance(settings.lr, float)


@pytest.mark.parametrize("name", [name for name in shipped(PRESETS) if name != "small"])
def test_every_preset_builds_its_objectives(name: str) -> None:
    wanted = pretraining(name).objectives
    own = {"geometry": {"net3d": "tiny"}, "moco": {"moco_queue": 512}}
    small = {key: value for objective in wanted for key, value in own.get(objective, {}).items()}
    settings = pretraining(name, encoder="test_resnet", channels=8, **small)
    module = PretrainModule(settings, UNet(build_encoder(settings.encoder), "slim", 8))
    assert set(module.objective.terms) == set(settings.active) == set(wanted)


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
    assert [pretraining(name).own["moco"].mix for name in ("moco", "moco-combine", "moco-mixed")] == [
        "frames",
        "combine",
        "half",
    ]
    assert [pretraining(name).weights for name in ("moco", "moco-combine", "moco-mixed")] == [
        "imagenet",
        *["scratch"] * 2,
    ]


def test_released_has_the_numbers_of_the_released_code() -> None:
    released = pretraining("released")
    assert released.objectives == {"view": 1.0, "geometry": 1.0, "depth": 1.0}
    optim, matching, own = released.optim, released.matching, released.own["geometry"]
    assert (released.lr, optim.momentum, optim.dampening, optim.weight_decay) == (0.1, 0.9, 0.1, 0.0)
    assert (optim.schedule, released.steps, released.batch, released.micro_batch) == ("poly", 65_625, 64, 8)
    assert (matching.match, matching.distance, own.voxel, own.chunks) == ("depth", 0.05, 0.02, 2)
    assert (own.voxel_input, released.interpolation, own.net3d) == ("color", "nearest", "34C")
    assert (released.unet.passes, released.unet.bn_schedule) == ("separate", "decay")
    assert (released.contrast.temperature, released.contrast.points, released.unet.channels) == (0.4, 1024, "auto")


def test_moco_has_the_numbers_of_its_second_version() -> None:
    moco = pretraining("moco")
    optim, own = moco.optim, moco.own["moco"]
    assert (optim.optimizer, moco.lr, optim.schedule, optim.weight_decay, optim.momentum) == (
        "sgd", 0.03, "cosine", 1e-4, 0.9,
    )  # fmt: skip
    assert (moco.batch, moco.steps, own.crop) == (256, 100 * 840_000 // 256, 224)
    assert (own.queue, own.momentum, own.temperature) == (65_536, 0.999, 0.2)
    assert pretraining("moco-combine").steps == pytest.approx(100 * (840_000 + 1_281_167) / 256, abs=1)
    assert pretraining("moco-mixed").steps == pytest.approx(100 * 2 * 1_281_167 / 256, abs=1)


def test_schedules() -> None:
    assert schedule_factor("step", 999, 60_000) == 1
    assert schedule_factor("step", 59_999, 60_000) == pytest.approx(0.99**59)
    assert schedule_factor("poly", 50, 100) == pytest.approx(0.5**0.9)
    assert schedule_factor("poly", 100, 100) == 0
    assert schedule_factor("constant", 5, 10) == 1
    assert [schedule_factor("cosine", step, 100) for step in (0, 50, 100)] == pytest.approx([1, 0.5, 0])
    assert schedule_factor("onecycle", 9, 100) == 1
    assert [
        schedule_factor("multistep", step, 90_000) for step in (0, 1000, 59_999, 60_000, 79_999, 80_000)
    ] == pytest.approx([0.001, 1, 1, 0.1, 0.1, 0.01])
    assert schedule_factor("multistep", 0, 5) == pytest.approx(0.001)
    assert schedule_factor("multistep", 1, 5) == 1
    assert schedule_factor("onecycle", 55, 100) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


def test_sgd_has_the_papers_momentum_and_adamw_spares_norms() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    paper = pretraining("paper")
    group = build([ParameterGroup(net.parameters())], paper)[0].param_groups[0]
    assert (group["lr"], group["momentum"], group["dampening"]) == (0.1, 0.9, 0.1)
    quick = pretraining("quick")
    groups = build([ParameterGroup(net.parameters())], quick)[0].param_groups
    assert {p.ndim: g["weight_decay"] for g in groups for p in g["params"]} == {2: quick.optim.weight_decay, 1: 0.0}


@pytest.mark.parametrize("name", ["quick", "paper"])
def test_heads_may_have_a_rate_of_their_own(name: str) -> None:
    """Fixed parameters are in no group, and the schedule scales all groups alike."""
    first, second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    first.bias.requires_grad_(False)
    settings = pretraining(name, schedule="poly", steps=10)
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
