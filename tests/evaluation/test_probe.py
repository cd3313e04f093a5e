"""``pri3d probe`` as a whole: same data for every network, files, and what it refuses."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pri3d.api.prepare import prepare
from pri3d.api.probe import probe
from pri3d.api.rooms import rooms
from pri3d.data.crops import frame_table
from pri3d.errors import ConfigError, DataError, WeightsError
from pri3d.networks.encoders import build_encoder
from pri3d.networks.unet import build_unet
from pri3d.networks.weights import save_model
from pri3d.probing.linear import open_guards
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


def test_what_to_do_is_said_where_no_interval_is_known(
    small: Probe, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = small([run_folder], tasks="matching", max_pairs=1)["run after"]
    assert few.differences
    assert all(math.isnan(one.low) for one in few.differences["run before"].values())
    assert "too few frames for an interval. Hold out more, with --holdout" in capsys.readouterr().err


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
    differences = after.differences["run before"]  # type: ignore[index]
    gap = differences["depth / rmse"]
    assert gap.difference == pytest.approx(after.depth.rmse - before.depth.rmse)  # type: ignore[union-attr]
    assert gap.low < gap.difference < gap.high
    assert text["networks"]["run after"]["differences"]["run before"]["depth / rmse"]["verdict"] == gap.verdict
    assert float(rows["run after", "differences", "run before / depth / rmse / low"]) == gap.low
    assert rows["run after", "differences", "run before / depth / rmse / verdict"] == gap.verdict
    assert before.differences is None
    assert before.intervals and before.intervals["normals / mean"] > 0
    page = (tmp_path / "out/probe.md").read_text()
    assert page.count("**") == 2 * 7
    assert "| run after |" in page
    assert f"| depth, RMSE, m | {gap.difference:+.3f} | {gap.low:+.3f} to {gap.high:+.3f} | {gap.verdict} |" in page
    assert f"| {before.depth.rmse:.3f} ± {before.intervals['depth / rmse']:.3f} |" in page  # type: ignore[union-attr]
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
    every = small([path], portion="all", holdout=0.0, tasks="depth,segmentation", max_frames=1000)[path.name]
    half = small([path], holdout=0.5, tasks="depth,segmentation", max_frames=1000)[path.name]
    assert every.depth and half.depth and every.segmentation
    frames = len(frame_table(Store(rooms_store)).i)
    assert every.depth.pixels > 1.8 * half.depth.pixels
    assert every.depth.pixels <= frames * 64 * 48
    assert small([run_folder], portion="all", holdout=0.0, tasks="retention")["run after"].retention
    save_model(build_unet("resnet18", "slim", 8), path, {"data_hash": Store(rooms_store).hash, "holdout": 0.4})
    small([path], tasks="matching")
    with pytest.raises(ConfigError, match="--portion all would evaluate training frames"):
        small([path], portion="all")


def test_frames_the_network_was_trained_on_are_refused(small: Probe, rooms_store: Path, tmp_path: Path) -> None:
    record = {"holdout": 0.1, "data_hash": Store(rooms_store).hash}
    save_model(build_unet("resnet18", "slim", 32), tmp_path / "net.safetensors", record)
    with pytest.raises(ConfigError, match="would evaluate training frames"):
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


def write_images(folder: Path, split: str, count: int) -> Path:
    """Labelled images whose upper half is dark and of class 0, the lower half bright and of class 1."""
    for k in range(count):
        image = np.full((48, 64, 3), 40 + k, np.uint8)
        image[24:] += 150
        label = np.zeros((48, 64), np.uint8)
        label[24:] = 1
        for kind, array in (("images", image), ("masks", label)):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(folder / kind / split / f"{split}{k}.png")
    (folder / "classes.txt").write_text("dark\nbright\n")
    return folder


def test_labelled_images_of_another_kind_are_a_guard(small: Probe, tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 9), ("test", 2)):
        write_images(tmp_path / "road", split, count)
    torch.manual_seed(1)
    torch.save(build_encoder("test_resnet").state_dict(), tmp_path / "other.pth")
    weights = [Path("scratch"), tmp_path / "other.pth"]
    options: dict[str, Any] = {"encoder": "test_resnet", "reference": Path("scratch"), "tasks": "retention"}
    first, other = small(weights, guard=[tmp_path / "road"], max_frames=9, **options).values()
    assert first.guard and other.guard and first.intervals and other.differences
    assert list(first.guard) == ["road"]
    for score in (*first.guard.values(), *other.guard.values()):
        assert score.miou > 0.9  # of random weights, too: the classes are the brightness
        assert score.classes == 2
    assert first.intervals["guard / road / miou"] >= 0
    assert other.differences["scratch"]["guard / road / miou"].difference == pytest.approx(
        other.guard["road"].miou - first.guard["road"].miou
    )
    page = (tmp_path / "out/probe.md").read_text()
    assert "**Linear probe of the encoder: segmentation of road**" in page
    assert "| road, mIoU | " in page
    text = json.loads((tmp_path / "out/probe.json").read_text())
    assert text["networks"]["other.pth"]["guard"]["road"]["miou"] == other.guard["road"].miou


def test_sides_of_a_guard_share_no_image(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 9), ("test", 2)):
        write_images(tmp_path / "road", split, count)
    (side,) = open_guards([tmp_path / "road"], (64, 48), 5, (), ())["road"]
    assert (len(side.train.color), len(side.test.color)) == (4, 5 + 2)
    write_images(tmp_path / "few", "val", 6)
    sides = open_guards([tmp_path / "few"], (64, 48), 9, (), ())["few"]
    tops = [(set(s.train.color[:, 0, 0, 0].tolist()), set(s.test.color[:, 0, 0, 0].tolist())) for s in sides]
    assert all(not train & test and train | test == set(range(40, 46)) for train, test in tops)
    assert set().union(*(test for _, test in tops)) == set(range(40, 46))


def test_guards_that_cannot_be(small: Probe, run_folder: Path, tmp_path: Path) -> None:
    road = write_images(tmp_path / "road", "train", 4)
    with pytest.raises(DataError, match="road"):
        small([run_folder], guard=[road])
    lonely = write_images(tmp_path / "lonely", "val", 1)
    with pytest.raises(DataError, match="cannot be used for both training and evaluation"):
        small([run_folder], guard=[lonely])
    with pytest.raises(ConfigError, match="one for each of the 1 --guard"):
        small([run_folder], guard=[road], guard_label_map=["camvid", "nyu13"])
    with pytest.raises(DataError, match="no such file"):
        small([run_folder], guard=[tmp_path / "none"])


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
