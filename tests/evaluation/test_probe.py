"""``pri3d probe`` as a whole: same data for every network, files, and what it refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pri3d.api.prepare import prepare
from pri3d.api.probe import probe
from pri3d.api.rooms import rooms
from pri3d.errors import ConfigError, DataError, WeightsError
from pri3d.networks.encoders import build_encoder
from pri3d.networks.unet import build_unet
from pri3d.networks.weights import save_model
from pri3d.probing.networks import open_dense
from pri3d.probing.probe import TASKS, Scores, _check_seen
from pri3d.runs import RunPaths
from pri3d.store import Store

pytestmark = pytest.mark.thorough  # but for those that say quick

Probe = Callable[..., dict[str, Scores]]


@pytest.fixture
def small(rooms_store: Path, tmp_path: Path) -> Probe:
    def run(weights: list[Path], **options: Any) -> dict[str, Scores]:
        given: dict[str, Any] = {
            "holdout": 0.4,
            "size": "64x48",
            "pixels": 40,
            "max_pairs": 4,
            "max_frames": 6,
        }
        return probe(rooms_store, weights=weights, **given | {"out": tmp_path / "out" / "probe.json"} | options)

    return run


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """What pre-training leaves: a network before and after."""
    paths = RunPaths(tmp_path / "run")
    for seed, path in enumerate((paths.initial, paths.weights)):
        torch.manual_seed(seed)
        save_model(build_unet("resnet18", "slim", 8), path, {})
    return paths.path


def test_a_run_is_shown_before_and_after_in_every_task(small: Probe, run_folder: Path, tmp_path: Path) -> None:
    results = small([run_folder])
    assert list(results) == ["run before", "run after"]
    before, after = results.values()
    for task in TASKS[:-1]:
        one, two = getattr(before, task), getattr(after, task)
        assert one is not None and one != two, task
    assert before.matching and after.matching
    assert before.matching.points == after.matching.points > 0
    assert before.retention is None
    assert after.retention and 0 < after.retention.cosine["map 4, stride 32"] < 1
    assert after.features == "U-Net resnet18, 8 channels"
    text = json.loads((tmp_path / "out/probe.json").read_text())
    assert text["networks"]["run after"]["depth"]["rmse"] == after.depth.rmse  # type: ignore[union-attr]
    assert text["settings"]["tasks"] == list(TASKS)
    assert text["data_hash"] == Store(Path(text["data"])).hash
    with (tmp_path / "out/probe.csv").open() as file:
        rows = {(r["network"], r["task"], r["measure"]): r["value"] for r in csv.DictReader(file)}
    recall = after.correspondence.recall["5 cm"]  # type: ignore[union-attr]
    assert float(rows["run after", "correspondence", "recall / 5 cm"]) == recall
    page = (tmp_path / "out/probe.md").read_text()
    assert page.count("**") == 2 * 6
    assert "| run after |" in page
    with Image.open(tmp_path / "out/probe.png") as picture:
        assert picture.width > picture.height > 200


@pytest.mark.slow
def test_encoders_and_networks_stand_in_one_table(small: Probe, run_folder: Path, tmp_path: Path) -> None:
    torch.save(build_encoder("resnet18").state_dict(), tmp_path / "other.pth")
    weights = [Path("scratch"), tmp_path / "other.pth", run_folder / "weights.safetensors"]
    results = small(weights, tasks="correspondence,retention", reference=Path("scratch"), features="encoder")
    assert [s.features for s in results.values()] == ["encoder resnet18, 64+64+128+256+512 channels"] * 3
    assert len({s.correspondence for s in map(_comparable, results.values())}) == 3
    assert results["scratch"].retention and results["scratch"].retention.weight_change == 0
    assert results["other.pth"].retention and results["other.pth"].retention.weight_change > 0.1
    assert results["scratch"].depth is None


def _comparable(score: Scores) -> Any:
    return score._replace(correspondence=str(score.correspondence))  # type: ignore[arg-type]


def test_networks_of_timm_give_features_on_the_same_grid() -> None:
    for name in ("vit_tiny_patch16_224", "convnext_atto"):
        dense = open_dense(Path("scratch"), encoder=name)
        found = dense(torch.rand(1, 3, 50, 70))
        assert found.shape == (1, sum(dense.net.channels), 25, 35)


def test_scratch_is_the_same_every_time() -> None:
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    first, again, other = (open_dense(Path("scratch"), seed=seed).net.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    key = next(key for key in first if key.endswith("conv1.weight"))
    assert torch.equal(first[key], again[key])
    assert not torch.equal(first[key], other[key])


@pytest.mark.slow
def test_a_whole_store_is_scored_where_nobody_has_seen_it(small: Probe, run_folder: Path, rooms_store: Path) -> None:
    path = run_folder / "weights.safetensors"
    part, whole = (
        small([path], portion=split, tasks="matching", max_pairs=1000)[path.name] for split in ("heldout", "all")
    )
    assert part.matching and whole.matching
    assert whole.matching.pairs == len(Store(rooms_store).pairs().i) > part.matching.pairs
    assert small([run_folder], portion="all", holdout=0.0, tasks="retention")["run after"].retention
    save_model(build_unet("resnet18", "slim", 8), path, {"data_hash": Store(rooms_store).hash, "holdout": 0.4})
    small([path], tasks="matching")
    with pytest.raises(ConfigError, match="--split all would score frames it has seen"):
        small([path], portion="all")


def test_frames_the_network_was_trained_on_are_refused(small: Probe, rooms_store: Path, tmp_path: Path) -> None:
    record = {"holdout": 0.1, "data_hash": Store(rooms_store).hash}
    save_model(build_unet("resnet18", "slim", 32), tmp_path / "net.safetensors", record)
    with pytest.raises(ConfigError, match="has seen"):
        small([tmp_path / "net.safetensors"])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"data_hash": "{0}-01234567+{0}-89abcdef"}, "was fine-tuned on"),
        ({"data_hash": "other+other", "init_data_hash": "{0}:1+more:2", "init_holdout": 0.1}, "--holdout 0.1"),
        ({"data_hash": "other+other", "init_data_hash": "{0}"}, "--holdout 0,"),
        ({"data_hash": "other+{0}-89abcdef", "init_data_hash": "{0}", "init_holdout": 0.4}, None),
    ],
)
def test_what_fine_tuning_has_seen_is_refused(rooms_store: Path, record: dict[str, Any], message: str | None) -> None:
    store = Store(rooms_store)
    stated = {key: value.format(store.hash) if isinstance(value, str) else value for key, value in record.items()}
    if message is None:
        _check_seen(Path("net"), {"task": "semantic", **stated}, store, "heldout", 0.4)
        return
    with pytest.raises(ConfigError, match=message):
        _check_seen(Path("net"), {"task": "semantic", **stated}, store, "heldout", 0.4)


def test_networks_of_one_name_stay_apart(small: Probe, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_model(build_unet("resnet18", "slim", 32), tmp_path / name / "net.safetensors", {})
    weights = [tmp_path / name / "net.safetensors" for name in ("a", "b")]
    assert len(small(weights, tasks="matching", max_pairs=2)) == 2


def test_a_store_without_labels_or_pairs_has_the_other_tasks(tmp_path: Path, run_folder: Path) -> None:
    rooms(tmp_path / "raw", rooms=1, frames=5, size="64x48", labels=False, processes=1)
    prepare([tmp_path / "raw"], tmp_path / "bare", size="64x48", pairs=False, surface=False, processes=1)
    options: dict[str, Any] = {"holdout": 0.4, "size": "64x48", "out": tmp_path / "probe.json"}
    found = probe(tmp_path / "bare", weights=[run_folder], **options)["run after"]
    assert [task for task in TASKS if getattr(found, task) is not None] == ["depth", "normals", "retention"]
    assert not (tmp_path / "probe.png").exists()
    with pytest.raises(DataError, match="no labels"):
        probe(tmp_path / "bare", weights=[run_folder], tasks="segmentation", **options)
    with pytest.raises(DataError, match="--pairs false"):
        probe(tmp_path / "bare", weights=[run_folder], tasks="matching", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"holdout": 0.0}, "holdout = 0.0: leaves no pair"),
        ({"holdout": 0.01, "tasks": "matching"}, "leaves no pair of"),
        ({"tasks": "depth,colour"}, "colour"),
        ({"tasks": "retention"}, "Give --reference"),
        ({"reference": Path("scratch"), "encoder": "resnet34", "tasks": "retention"}, "of the reference resnet34"),
        ({"portion": "some"}, "--portion"),
        ({"features": "head"}, "--features"),
        ({"steps": 300}, "steps"),
        ({"out": Path("probe.txt")}, "ends in .json"),
        ({"size": "big"}, "--size big"),
    ],
)
def test_options_that_cannot_be(small: Probe, run_folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small([run_folder / "weights.safetensors"], **options)


def test_missing_and_foreign_files_are_named(small: Probe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none.safetensors"):
        small([tmp_path / "none.safetensors"])
    with pytest.raises(DataError, match=r"typo: no such run"):
        small([Path("typo")])
    torch.save({"weight": torch.zeros(3)}, tmp_path / "odd.pth")
    with pytest.raises(WeightsError, match=r"odd\.pth"):
        small([tmp_path / "odd.pth"])
    with pytest.raises(ConfigError, match="unknown encoder"):
        small([Path("timm:nonesuch")])
    with pytest.raises(ConfigError, match="name at least one"):
        small([])


def test_no_match_is_an_error(small: Probe, run_folder: Path) -> None:
    with pytest.raises(DataError, match="Raise --distance"):
        small([run_folder / "weights.safetensors"], tasks="matching", distance=1e-9)
