"""Fine-tuning runs: scores, initialisation, resume, refusals."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
from pathlib import Path

import pytest
import torch
import yaml

import pri3d
from finetuned import load_semantic
from flat import finetune
from pri3d.api.finetune import FinetuneSettings
from pri3d.api.options import VERBS
from pri3d.cli import flags_of
from pri3d.errors import ConfigError, DataError, Pri3DError, WeightsError
from pri3d.labelled.prepared import PreparedImages
from pri3d.networks.state_files import read_state
from pri3d.networks.unet import build_unet
from pri3d.networks.weights import read_provenance, save_model, save_state
from pri3d.registry import TASKS
from pri3d.runs import RunPaths
from pri3d.store import Store
from pri3d.tasks import find_task
from pri3d.training.comparison import ComparedRun, ComparisonRow, folder_names

pytestmark = pytest.mark.thorough  # but for those that say quick

SMALL = {"size": "64x48", "batch": 4, "micro_batch": 4, "workers": 0, "precision": "fp32"}


def run_small(store: Path, run: Path, **options: object) -> Path:
    return finetune("semantic", store, run=run, **{"val": store, "steps": 4, **SMALL, **options}).path


@pytest.mark.slow
def test_run_leaves_scores_and_a_network_that_loads(
    rooms_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_small(rooms_store, tmp_path / "run", eval_every=2)
    said = capsys.readouterr().err
    begins = (
        r"run: on the CPU \(\d+ threads\) in fp32",
        r"run: encoder resnet18 from scratch, 11\.\d million parameters",
    )
    counts = (
        r"run: \d+ images to train on, \d+ to validate on every 2 steps",
        r"run: 4 steps of 4 images, \d+\.\d passes",
    )
    step = (r"step 2/4  loss \d+\.\d+.*samples/s  data wait \d+%  .* GB  .* min left",)
    ends = (
        r"run: validation mIoU: first 0\.\d+ \(step 2\), best",
        r"best\.safetensors",
        rf"next: pri3d evaluate {run}",
    )
    for line in (*begins, *counts, *step, *ends):
        assert re.search(line, said), line
    scores = json.loads((run / "scores.json").read_text())
    assert [entry["step"] for entry in scores["history"]] == [2, 4]
    assert scores["last"] == scores["history"][-1]
    assert scores["best"]["miou"] == max(entry["miou"] for entry in scores["history"])
    assert 0 <= scores["last"]["miou"] <= 1
    model, names = load_semantic(run)
    assert list(scores["last"]["iou"]) == names
    assert model(torch.rand(1, 3, 48, 64)).shape == (1, len(names), 48, 64)
    assert load_semantic(run / "best.safetensors")[1] == names


@pytest.mark.slow
def test_it_learns(rooms_store: Path, tmp_path: Path) -> None:
    run = run_small(rooms_store, tmp_path / "run", steps=40, eval_every=20, augment="none")
    history = json.loads((run / "scores.json").read_text())["history"]
    assert history[-1]["accuracy"] > 0.5


@pytest.mark.slow
def test_weights_reach_the_network(rooms_store: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    unet = build_unet("resnet18", "slim", 32)
    save_model(unet, tmp_path / "pre" / "weights.safetensors", {})
    for part, decoder_too in (("all", True), ("encoder", False)):
        run = run_small(rooms_store, tmp_path / part, weights=str(tmp_path / "pre"), part=part, steps=1, lr=1e-12)
        after = read_state(run)
        for key, value in unet.state_dict().items():
            if "running" not in key and "num_batches" not in key:
                close = torch.allclose(after[key], value, atol=1e-9)
                assert close or (key.startswith("decoder.") and not decoder_too), key
        changed = [k for k, v in unet.state_dict().items() if k.startswith("decoder.") and not torch.equal(after[k], v)]
        assert decoder_too or changed


@pytest.mark.slow
def test_weights_without_a_decoder_ask_for_none(rooms_store: Path, tmp_path: Path) -> None:
    """What adapt and MoCo write holds the encoder; the decoder is the user's choice."""
    torch.manual_seed(5)
    unet = build_unet("resnet18", "slim", 8)
    save_model(unet, tmp_path / "pre" / "weights.safetensors", {}, decoder=False)
    run = run_small(
        rooms_store, tmp_path / "run", weights=str(tmp_path / "pre"), decoder="paper", channels=16, steps=1, lr=1e-12
    )
    own = RunPaths(run).read_config()["settings"]["semantic"]
    assert (own["decoder"], own["channels"]) == ("paper", 16)
    after = read_state(run)
    assert torch.allclose(after["encoder.layer4.1.conv2.weight"], unet.encoder.state_dict()["layer4.1.conv2.weight"])


@pytest.mark.slow
def test_other_projects_files_fill_what_they_hold(rooms_store: Path, tmp_path: Path) -> None:
    """A published Pri3D checkpoint brings the decoder, a plain ResNet the encoder alone."""
    torch.manual_seed(5)
    given = build_unet("resnet18", "paper", 32).state_dict()
    published = {f"backbone.{key}": value for key, value in given.items()}
    plain = {key.removeprefix("encoder."): value for key, value in given.items() if key.startswith("encoder.")}
    for name, content, whole in (("pri3d", {"model": published}, True), ("resnet", plain, False)):
        torch.save(content, tmp_path / f"{name}.pth")
        run = run_small(
            rooms_store, tmp_path / name, weights=str(tmp_path / f"{name}.pth"), decoder="paper", steps=1, lr=1e-12
        )
        after = read_state(run)
        for key in ("encoder.layer4.1.conv2.weight", "decoder.up1.conv1.weight"):
            close = torch.allclose(after[key], given[key], atol=1e-9)
            assert close == (whole or key.startswith("encoder."))


def test_weights_by_name_need_the_network_or_say_so(rooms_store: Path, tmp_path: Path) -> None:
    with pytest.raises(Pri3DError, match="timm has no such model"):
        run_small(rooms_store, tmp_path / "run", weights="timm:resnet19")


@pytest.mark.slow
def test_finished_run_resumes_to_itself_and_a_shorter_history_is_continued(rooms_store: Path, tmp_path: Path) -> None:
    run = run_small(rooms_store, tmp_path / "run", eval_every=2)
    before = (run / "weights.safetensors").read_bytes()
    assert run_small(rooms_store, run, eval_every=2, resume=True) == run
    assert (run / "weights.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"weights": "no-such-run"}, "no-such-run"),
        ({"fraction": 0.0}, "fraction"),
        ({"fraction": 0.05}, "--fraction"),
        ({"preset": "quik"}, "Choices"),
        ({"augment": "nope"}, "--augment 'nope': choose one of strong"),
        ({"tune": "last-9"}, "last-9"),
        ({"tune": "lora-4"}, "has no attention"),
        ({"network": "deeplabv3", "micro_batch": 1, "sync_bn": True}, "--micro-batch 1: deeplabv3 needs 2"),
    ],
)
def test_wrong_input_is_refused(rooms_store: Path, tmp_path: Path, options: dict[str, object], word: str) -> None:
    with pytest.raises(Pri3DError, match=word):
        run_small(rooms_store, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_network_flags_may_not_contradict_the_weights(rooms_store: Path, tmp_path: Path) -> None:
    save_model(build_unet("resnet18", "slim", 32), tmp_path / "pre.safetensors", {})
    with pytest.raises(ConfigError, match=r"--semantic\.channels 64"):
        run_small(rooms_store, tmp_path / "run", weights=str(tmp_path / "pre.safetensors"), channels=64)


def test_unknown_task_is_refused(rooms_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="semantic"):
        finetune("depth", rooms_store, val=rooms_store)


def test_missing_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent"):
        run_small(tmp_path / "absent", tmp_path / "run")


def test_every_setting_is_an_option_of_the_verb() -> None:
    """Those of a task are handed over as ``options`` and are flags of its group."""
    parameters = inspect.signature(pri3d.finetune).parameters
    assert {field.name for field in dataclasses.fields(FinetuneSettings)} - {"own"} <= parameters.keys()
    for task in TASKS:
        flags = {flag.name for flag in flags_of(VERBS["finetune"], [task])}
        own = find_task(task).options
        assert own.group == task
        assert {f"{task}.{field.name}" for field in dataclasses.fields(own)} <= flags


def test_an_option_of_another_task_is_refused(rooms_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--instance\.rois: no option of task semantic"):
        run_small(rooms_store, tmp_path / "run", rois=8)


@pytest.mark.slow
def test_epochs_count_the_images_that_are_used(rooms_store: Path, tmp_path: Path) -> None:
    run = run_small(rooms_store, tmp_path / "run", steps=None, epochs=1.5, fraction=0.5, eval_every=100)
    images = len(PreparedImages(rooms_store, "all").subset(0.5))
    assert json.loads((run / "scores.json").read_text())["last"]["step"] == math.ceil(1.5 * images / 4)
    with pytest.raises(ConfigError, match="--epochs 2"):
        run_small(rooms_store, tmp_path / "other", epochs=2)


def test_without_a_second_set_the_store_is_split_by_scenes(rooms_store: Path, tmp_path: Path) -> None:
    run = run_small(rooms_store, tmp_path / "run", val=None, steps=1)
    stated = yaml.safe_load((run / "config.yaml").read_text())["provenance"]
    train, held = (PreparedImages(rooms_store, split) for split in ("train", "val"))
    assert stated["val"] is None
    assert stated["data_hash"] == f"{train.hash}+{held.hash}"
    assert not {name.split("/")[0] for name in train.names} & {name.split("/")[0] for name in held.names}


@pytest.mark.slow
@pytest.mark.parametrize("network", ["pspnet", "deeplabv3", "deeplabv3plus"])
def test_other_networks_take_the_encoder(rooms_store: Path, tmp_path: Path, network: str) -> None:
    torch.manual_seed(5)
    unet = build_unet("resnet18", "slim", 32)
    save_model(unet, tmp_path / "pre" / "weights.safetensors", {})
    run = run_small(rooms_store, tmp_path / "run", network=network, weights=str(tmp_path / "pre"), steps=1, lr=1e-12)
    model, names = load_semantic(run)
    assert model(torch.rand(1, 3, 48, 64)).shape == (1, len(names), 48, 64)
    given = {k: v for k, v in unet.encoder.state_dict().items() if "running" not in k and "num_" not in k}
    after = model.encoder.state_dict()
    assert all(torch.allclose(after[key], value, atol=1e-9) for key, value in given.items())
    loaded = json.loads((run / "loaded.json").read_text())
    assert loaded["coverage"] == 1 and loaded["missing"] == []


@pytest.mark.quick
@pytest.mark.slow
def test_frozen_parts_stay(rooms_store: Path, tmp_path: Path) -> None:
    """``last-3`` keeps stem and first stage; ``frozen`` norms keep weights and statistics everywhere."""
    torch.manual_seed(5)
    unet = build_unet("resnet18", "slim", 32)
    save_model(unet, tmp_path / "pre" / "weights.safetensors", {})
    given = unet.encoder.state_dict()
    run = run_small(
        rooms_store, tmp_path / "run", weights=str(tmp_path / "pre"), tune="last-3", norm="frozen", lr=0.01, steps=2
    )
    after = load_semantic(run)[0].encoder.state_dict()
    changed = {key for key, value in given.items() if not torch.equal(after[key], value)}
    assert changed
    assert {key.split(".")[0] for key in changed} == {"layer2", "layer3", "layer4"}
    assert not [key for key in changed if "bn" in key or "running" in key or "downsample.1" in key]


def test_adapters_are_merged_into_the_file(rooms_store: Path, tmp_path: Path) -> None:
    options = {"encoder": "vit_tiny_patch16_224", "decoder": "slim", "tune": "lora-2", "lr": 0.01, "steps": 2}
    run = run_small(rooms_store, tmp_path / "run", **options)
    assert not [key for key in read_state(run) if "lora" in key]
    assert load_semantic(run)[0](torch.rand(1, 3, 48, 64)).shape[0] == 1


@pytest.mark.slow
def test_several_values_are_compared(rooms_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(5)
    save_model(build_unet("resnet18", "slim", 32), tmp_path / "pre" / "weights.safetensors", {})
    options = {"weights": f"scratch,{tmp_path / 'pre'}", "fraction": "0.5,1", "seed": "0,1", "steps": 1}
    root = run_small(rooms_store, tmp_path / "runs", **options)
    rows = json.loads((root / "comparison.json").read_text())
    assert [(row["weights"], row["fraction"], row["seeds"]) for row in rows] == [
        ("scratch", 0.5, [0, 1]),
        ("scratch", 1.0, [0, 1]),
        ("pre", 0.5, [0, 1]),
        ("pre", 1.0, [0, 1]),
    ]
    for row in rows:
        for place, seed in enumerate(row["seeds"]):
            folder = root / f"{row['weights']}-fraction{row['fraction']:g}-seed{seed}"
            assert json.loads((folder / "scores.json").read_text())["last"]["miou"] == row["scores"]["miou"][place]
            assert row["minutes"][place] > 0
    shown = capsys.readouterr().out
    assert "mean of 2 seeds" in shown and "±" in shown
    with pytest.raises(ConfigError, match="already holds a run"):
        run_small(rooms_store, tmp_path / "runs", **options)
    before = (root / "comparison.json").read_text()
    assert run_small(rooms_store, tmp_path / "runs", resume=True, **options) == root
    assert (root / "comparison.json").read_text() == before


def test_a_comparison_is_checked_before_its_first_run(rooms_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.safetensors"):
        run_small(rooms_store, tmp_path / "runs", weights=f"scratch,{tmp_path / 'none.safetensors'}")
    for options, word in (
        ({"seed": "0,x"}, "--seed 0,x"),
        ({"fraction": "1,1.0"}, "twice"),
        ({"weights": "scratch,"}, "--weights 'scratch,'"),
    ):
        with pytest.raises(ConfigError, match=word):
            run_small(rooms_store, tmp_path / "runs", **options)
    assert not (tmp_path / "runs").exists()


def test_nothing_starts_where_one_run_could_not(rooms_store: Path, tmp_path: Path) -> None:
    """An occupied folder, weights that do not fit: found before the first run."""
    run_small(rooms_store, tmp_path / "runs" / "seed1", steps=1)
    with pytest.raises(ConfigError, match="seed1: already holds a run"):
        run_small(rooms_store, tmp_path / "runs", seed="0,1", steps=1)
    save_state({"conv1.weight": torch.zeros(3)}, tmp_path / "junk.safetensors", {})
    with pytest.raises(WeightsError, match=r"junk\.safetensors"):
        run_small(rooms_store, tmp_path / "other", weights=f"scratch,{tmp_path / 'junk.safetensors'}", steps=1)
    assert not (tmp_path / "runs" / "seed0").exists() and not (tmp_path / "other").exists()


@pytest.mark.slow
def test_scores_on_images_that_were_seen_say_so(
    rooms_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same store on both sides; and weights that were pre-trained on the store of the validation frames."""
    run = run_small(rooms_store, tmp_path / "same", steps=1)
    facts = yaml.safe_load((run / "config.yaml").read_text())["provenance"]
    assert facts["shared_images"] == len(PreparedImages(rooms_store, "all").names)
    assert "are training images" in capsys.readouterr().err
    record = {"data_hash": Store(rooms_store).hash, "holdout": 0.2}
    save_model(build_unet("resnet18", "slim", 32), tmp_path / "pre.safetensors", record)
    run = run_small(rooms_store, tmp_path / "apart", val=None, weights=str(tmp_path / "pre.safetensors"), steps=1)
    facts = yaml.safe_load((run / "config.yaml").read_text())["provenance"]
    assert (facts["shared_images"], facts["pretrained_on_val"]) == (0, True)
    assert "were pre-trained on the frames" in capsys.readouterr().err
    assert read_provenance(run)["pretrained_on_val"] is True
    assert (read_provenance(run)["init_data_hash"], read_provenance(run)["init_holdout"]) == tuple(record.values())


@pytest.mark.slow
def test_what_was_not_loaded_is_not_kept(rooms_store: Path, tmp_path: Path) -> None:
    """A preset that fixes stages and norms trains all of them from scratch, unless it is told to."""
    preset = tmp_path / "fixed.yaml"
    preset.write_text("base: quick\ntune: last-3\nnorm: frozen\n")
    save_model(build_unet("resnet18", "slim", 32), tmp_path / "pre.safetensors", {})
    stated = []
    for name, given in (("scratch", {}), (str(tmp_path / "pre.safetensors"), {}), ("scratch", {"tune": "last-3"})):
        run = run_small(rooms_store, tmp_path / str(len(stated)), preset=str(preset), weights=name, steps=1, **given)
        settings = yaml.safe_load((run / "config.yaml").read_text())["settings"]
        stated.append((settings["tune"], settings["backbone"]["norm"]))
    assert stated == [("full", "train"), ("last-3", "frozen"), ("last-3", "train")]


def test_default_names_tell_runs_apart() -> None:
    data = Path("data/rooms")
    names = [
        folder_names("semantic", data, [ComparedRun(*values)])[0]
        for values in (("scratch", None, None, 0), ("runs/lr0.1", None, 0.2, 0), ("timm:vit", "pspnet", 1.0, 3))
    ]
    assert names == [
        "semantic-rooms-scratch-0",
        "semantic-rooms-lr0.1-fraction0.2-0",
        "semantic-rooms-timm-vit-pspnet-fraction1-3",
    ]


def test_interval_is_students() -> None:
    row = ComparisonRow("scratch", None, None, [0, 1, 2], {"miou": [0.1, 0.2, 0.3], "AP": [0.5, None, 0.5]}, [1.0] * 3)
    mean, half = row.mean("miou")
    assert (mean, half) == (pytest.approx(0.2), pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6))
    assert math.isnan(row.mean("AP")[0])


@pytest.mark.slow
def test_a_fine_tuned_network_is_a_start_too(rooms_store: Path, tmp_path: Path) -> None:
    """Whatever part it began with itself, its decoder is taken with ``all``; of a detector the encoder."""
    save_model(build_unet("resnet18", "slim", 32), tmp_path / "pre.safetensors", {})
    first = run_small(rooms_store, tmp_path / "a", weights=str(tmp_path / "pre.safetensors"), part="encoder", steps=1)
    second = run_small(rooms_store, tmp_path / "b", weights=str(first), steps=1, lr=1e-12)
    before, after = read_state(first), read_state(second)
    for key in ("encoder.layer4.1.conv2.weight", "decoder.out.weight"):
        assert torch.allclose(after[key], before[key], atol=1e-9)
    boxes = finetune(
        "instance", rooms_store, run=tmp_path / "c", weights=str(first), steps=1, batch=2, micro_batch=2, workers=0,
        short_side=48, long_side=64, rois=8, min_area=1, lr=1e-12, precision="fp32",
    ).path  # fmt: skip
    third = run_small(rooms_store, tmp_path / "d", weights=str(boxes), network="pspnet", steps=1, lr=1e-12)
    after = read_state(third)
    assert torch.allclose(after["encoder.layer4.1.conv2.weight"], before["encoder.layer4.1.conv2.weight"], atol=1e-9)
