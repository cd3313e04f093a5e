"""Fine-tuning runs: scores, initialisation, resume, refusals."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

import pytest
import torch

from pri3d.errors import ConfigError, DataError, Pri3DError
from pri3d.models.unet import build_unet
from pri3d.models.weights import read_state, save_model
from pri3d.tasks.semantic import load_semantic
from pri3d.train.finetune import finetune
from pri3d.train.settings import FinetuneSettings

SMALL = {"size": "64x48", "batch": 4, "micro_batch": 4, "workers": 0, "precision": "fp32"}


def run_small(store: Path, run: Path, **options: object) -> Path:
    return finetune("semantic", store, store, run=run, **{"steps": 4, **SMALL, **options})  # type: ignore[arg-type]


def test_run_leaves_scores_and_a_network_that_loads(rooms_store: Path, tmp_path: Path) -> None:
    run = run_small(rooms_store, tmp_path / "run", eval_every=2)
    scores = json.loads((run / "scores.json").read_text())
    assert [entry["step"] for entry in scores["history"]] == [2, 4]
    assert scores["last"] == scores["history"][-1]
    assert scores["best"]["miou"] == max(entry["miou"] for entry in scores["history"])
    assert 0 <= scores["last"]["miou"] <= 1
    model, names = load_semantic(run)
    assert list(scores["last"]["iou"]) == names
    assert model(torch.rand(1, 3, 48, 64)).shape == (1, len(names), 48, 64)
    assert load_semantic(run / "best.safetensors")[1] == names


def test_it_learns(rooms_store: Path, tmp_path: Path) -> None:
    run = run_small(rooms_store, tmp_path / "run", steps=40, eval_every=20, augment="none")
    history = json.loads((run / "scores.json").read_text())["history"]
    assert history[-1]["accuracy"] > 0.5


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
    ],
)
def test_wrong_input_is_refused(rooms_store: Path, tmp_path: Path, options: dict[str, object], word: str) -> None:
    with pytest.raises(Pri3DError, match=word):
        run_small(rooms_store, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_network_flags_may_not_contradict_the_weights(rooms_store: Path, tmp_path: Path) -> None:
    save_model(build_unet("resnet18", "slim", 32), tmp_path / "pre.safetensors", {})
    with pytest.raises(ConfigError, match="--channels 64"):
        run_small(rooms_store, tmp_path / "run", weights=str(tmp_path / "pre.safetensors"), channels=64)


def test_unknown_task_is_refused(rooms_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="semantic"):
        finetune("depth", rooms_store, rooms_store)  # type: ignore[arg-type]


def test_missing_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent"):
        run_small(tmp_path / "absent", tmp_path / "run")


def test_every_setting_is_an_option_of_the_verb() -> None:
    options = inspect.signature(finetune).parameters
    assert {field.name for field in dataclasses.fields(FinetuneSettings)} <= options.keys()
