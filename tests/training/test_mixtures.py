"""Pre-training on several stores: what is drawn, measured, refused, and that a continued run is the same run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from small import SMALLER, run_small, same, stop_after

from flat import pretrain, pretraining
from pri3d.api.options import VERBS
from pri3d.api.prepare import prepare
from pri3d.api.probe import probe
from pri3d.api.rooms import rooms
from pri3d.cli import parse as parse_words
from pri3d.data.crops import CropDataset
from pri3d.data.mixture import Mixture, parse_mixture
from pri3d.data.pairs import MixedPairs
from pri3d.data.sampler import Draw
from pri3d.errors import ConfigError, DataError
from pri3d.networks.weights import load_model
from pri3d.store import PairTable, write_pairs
from pri3d.training.pretraining import PretrainData

MOCO: dict[str, Any] = {"objectives": {"moco": 1.0}, "crop": 32, "moco_queue": 64}


@pytest.fixture(scope="module")
def other_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One more room, in images of another size and other voxels."""
    folder = tmp_path_factory.mktemp("other")
    rooms(folder / "raw", rooms=1, frames=6, size="80x60", first=7, processes=1)
    prepare([folder / "raw"], folder / "wide", size="80x60", voxel=0.04, distance=0.1, min_overlap=0.2, processes=1)
    return folder / "wide"


@pytest.fixture
def both(rooms_store: Path, other_store: Path) -> list[Path]:
    """The other room has half the weight."""
    return [rooms_store, Path(f"{other_store}:0.5")]


def plan(data: list[Path], **given: object) -> PretrainData:
    own = {name: value for name, value in {**SMALLER, **given}.items() if name != "workers"}
    planned = PretrainData(Mixture(parse_mixture(data)), pretraining(**own))
    planned.check()
    return planned


def test_pairs_of_all_stores_fit_into_a_batch(both: list[Path], other_store: Path) -> None:
    feed = plan(both, objectives={"view": 1, "geometry": 1}, voxel=0.08, batch=6, micro_batch=2).feed(
        ("first", "second")
    )
    assert isinstance(feed.dataset, MixedPairs)
    draws = list(feed.sampler(60, 0))
    sources = [feed.dataset[draw].name.split("/")[0] for draw in draws[:18]]
    for start in range(0, 18, 6):
        assert sources[start : start + 6].count(other_store.name) == 2
    batch = feed.collate([feed.dataset[draw] for draw in draws[:6]])
    assert batch.color.shape == (6, 2, 3, 48, 64)
    assert float(batch.voxel_size) == pytest.approx(0.08)
    assert list(feed.sampler(60, 24)) == draws[24:]


def test_equal_places_of_two_stores_are_augmented_unlike(rooms_store: Path, tmp_path: Path) -> None:
    twin = shutil.copytree(rooms_store, tmp_path / "twin")
    dataset = plan([rooms_store, twin]).feed(("first",)).dataset
    assert isinstance(dataset, MixedPairs)
    one, two = dataset[Draw(0, 0)], dataset[Draw(0, dataset.sizes[0])]
    assert one.name.split("/", 1)[1] == two.name.split("/", 1)[1]
    assert one.seed != two.seed


def test_measured_on_held_out_pairs_of_all_stores(both: list[Path], other_store: Path) -> None:
    planned = plan(both, holdout=0.5, eval_every=1, eval_pairs=6)
    held = planned.heldout()
    assert isinstance(held, MixedPairs)
    assert held.sizes == (4, 2)
    rows = held.parts[1].rows
    assert set(rows.tolist()) <= set(planned.portions[1].held.tolist())
    assert not set(planned.portions[1].held.tolist()) & set(planned.portions[1].train.tolist())
    assert held[Draw(0, 5)].name.startswith(f"{other_store.name}/")


@pytest.mark.thorough
@pytest.mark.slow
def test_a_run_continues_exactly_and_only_with_the_same_mixture(
    both: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"steps": 4, "holdout": 0.5, "eval_every": 2, "eval_pairs": 4}
    whole = run_small(both, tmp_path / "whole", **options)
    stop_after(2, both, tmp_path / "broken", monkeypatch, **options)
    for other in (both[0], both[::-1], [both[0], Path(str(both[1]).replace(":0.5", ":0.25"))]):
        with pytest.raises(ConfigError, match=r"made with other settings.*data_hash was"):
            run_small(other, tmp_path / "broken", resume=True, **options)
    broken = run_small(both, tmp_path / "broken", resume=True, **options)
    for name in ("weights.safetensors", "best.safetensors"):
        assert same(whole / name, broken / name)
    stated = yaml.safe_load((whole / "config.yaml").read_text())["provenance"]
    assert stated["data"] == str(Mixture(parse_mixture(both)))
    assert load_model(whole / "weights.safetensors")[1]["data_hash"] == Mixture(parse_mixture(both)).hash


@pytest.mark.thorough
def test_a_single_store_in_a_list_is_the_run_of_it_alone(rooms_store: Path, tmp_path: Path) -> None:
    alone, listed = run_small(rooms_store, tmp_path / "alone"), run_small([rooms_store], tmp_path / "listed")
    assert same(alone / "weights.safetensors", listed / "weights.safetensors")
    texts = [re.sub("data: .*", "", (run / "config.yaml").read_text()) for run in (alone, listed)]
    assert texts[0] == texts[1]


def test_the_run_is_called_after_all(
    both: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rooms_store: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert pretrain(both, **SMALLER).path == Path(f"runs/{rooms_store.name}+wide-quick")


def test_probing_a_member_on_pairs_it_has_seen_is_refused(both: list[Path], other_store: Path, tmp_path: Path) -> None:
    run = run_small(both, tmp_path / "run", holdout=0.1)
    with pytest.raises(ConfigError, match=r"was trained with --holdout 0\.1"):
        probe(other_store, weights=[run], holdout=0.5, size="64x48")


def test_a_store_without_pairs_or_surface_is_named(both: list[Path], other_store: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(other_store, tmp_path / "bare"))
    write_pairs(bare, PairTable.empty())
    with pytest.raises(DataError, match="bare: 0 training pairs"):
        plan([both[0], bare])
    with pytest.raises(DataError, match="bare: 0 training pairs"):
        plan([both[0], bare], **MOCO)
    blank = Path(shutil.copytree(other_store, tmp_path / "blank"))
    for surface in blank.glob("scenes/*/surface.npz"):
        np.savez(surface, cells=np.zeros((0, 3), np.int32), size=0.04)
    with pytest.raises(DataError, match="blank: no scene has a surface"):
        plan([both[0], blank], objectives={"geometry": 1}, voxel=0.08)


def test_voxels_must_fit_every_store(both: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"0\.04 m is not a whole multiple of the prepared 0\.08"):
        plan(both, objectives={"geometry": 1}, voxel=0.04)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for k in range(3):
        Image.new("RGB", (40, 30), (k, 0, 0)).save(tmp_path / "images" / f"{k}.png")
    return tmp_path / "images"


def crop_sources(planned: PretrainData, total: int) -> list[int]:
    feed = planned.feed(())
    assert isinstance(feed.dataset, CropDataset)
    ends = np.cumsum(feed.dataset.sizes)
    return [int(np.searchsorted(ends, draw.item, "right")) for draw in feed.sampler(total, 0)]


def test_crops_of_several_stores(both: list[Path], images: Path) -> None:
    frames = crop_sources(plan(both, **MOCO, batch=6), 60)
    assert all(frames[k : k + 6].count(1) == 2 for k in range(0, 60, 6))
    half = crop_sources(plan(both, images=images, **MOCO, batch=12, mix="half"), 60)
    assert all([half[k : k + 12].count(s) for s in range(3)] == [4, 2, 6] for k in range(0, 60, 12))
    turns = crop_sources(plan(both, images=images, **MOCO, batch=4, mix="alternate"), 48)
    assert all(len(set(turns[k : k + 4])) == 1 for k in range(0, 48, 4))
    assert [turns.count(s) for s in range(3)] == [16, 8, 24]
    with pytest.raises(ConfigError, match=r"--moco\.mix combine: shuffles all"):
        plan(both, images=images, **MOCO, mix="combine")


def test_crops_of_several_stores_train(both: list[Path], tmp_path: Path) -> None:
    run = run_small(both, tmp_path / "moco", **MOCO)
    assert (run / "weights.safetensors").exists()


def test_the_command_line_takes_several() -> None:
    def parse(line: str) -> Any:
        return VERBS["pretrain"].options(**parse_words(VERBS["pretrain"], line.split()))

    assert parse("out/a").data == [Path("out/a")]
    found = parse("out/a:1 out/b:0.5 --steps 3 --compute.no-channels-last")
    assert (found.data, found.steps) == ([Path("out/a:1"), Path("out/b:0.5")], 3)
    assert found.given()["compute"] == {"channels_last": False}
    assert parse("--steps 3 out/a").data == [Path("out/a")]
    with pytest.raises(SystemExit):
        parse("--steps 3")
