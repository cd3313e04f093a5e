"""What a run draws from, and every reason not to begin one, told at once and before anything is written."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from small import SMALLER, run_small

from flat import pretraining
from pri3d.api.pretrain import PretrainOptions, PretrainSettings
from pri3d.data.crops import CropDataset
from pri3d.data.mixture import Mixture, parse_mixture
from pri3d.data.pairs import PairDataset
from pri3d.data.sampler import Draw
from pri3d.errors import ConfigError, DataError, Pri3DError, WeightsError
from pri3d.store import PairTable, Store, read_manifest, write_manifest, write_pairs
from pri3d.training.launch import CallSetup, Launch
from pri3d.training.pretrain import pretrain_prepared as pretrain
from pri3d.training.pretraining import PretrainData
from pri3d.types import CropBatch


@pytest.fixture
def bare_store(rooms_store: Path, tmp_path: Path) -> Path:
    """A store of recordings that overlap nowhere and have no surface."""
    folder = tmp_path / "bare"
    shutil.copytree(rooms_store, folder)
    write_pairs(folder, PairTable.empty())
    for surface in folder.glob("scenes/*/surface.npz"):
        np.savez(surface, cells=np.zeros((0, 3), np.int32), size=0.08)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of three images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(3):
        Image.new("RGB", (40, 30), (k, 0, 0)).save(folder / f"{k}.png")
    return folder


def settings(**given: object) -> PretrainSettings:
    return pretraining(**{name: value for name, value in {**SMALLER, **given}.items() if name != "workers"})


def plan(store: Path, **given: object) -> PretrainData:
    return PretrainData(Mixture(parse_mixture(store)), settings(**given))


def refusal(store: Path, run: Path, kind: type[Pri3DError] = ConfigError, **options: object) -> str:
    """Message of a run that must not begin."""
    with pytest.raises(kind) as caught:
        run_small(store, run, **options)
    assert not run.exists()
    return str(caught.value)


def without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))


def test_everything_in_the_way_is_told_at_once(
    bare_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_wandb(monkeypatch)
    text = refusal(
        bare_store,
        tmp_path / "run",
        objectives={"geometry": 1.0, "moco": 1.0},
        size="big",
        encoder="resnet19",
        mix="half",
        workers=-1,
        save_every=-1,
        keep_checkpoints=0,
        wandb="project",
    )
    for part in (
        "bare: 0 training pairs for batches of 2",
        "no scene has a surface, which geometry needs. Prepare with --surface",
        "unknown encoder 'resnet19'. Did you mean resnet18",
        "--size",
        "--moco.mix half: give the folder of further images with --moco.images",
        "--workers -1: give at least 0",
        "--checkpoint.every -1: give at least 0",
        "--checkpoint.keep 0: give at least 1",
        "--wandb: Weights & Biases is not installed; run pip install wandb",
    ):
        assert part in text
    assert text.startswith("6 problems found:")


def test_settings_and_store_are_told_together(tmp_path: Path) -> None:
    given = {"run": tmp_path / "run", "tune": "half", "steps": 0, "micro_batch": 3, "batch": 4}
    with pytest.raises(ConfigError) as caught:  # of prepared data; what may be a recording is looked at first
        pretrain(PretrainOptions(tmp_path / "absent", **given))
    text = str(caught.value)
    for part in ("absent", "--tune half: unknown. Choices: full, frozen, last-K", "--steps 0"):
        assert part in text


def test_a_network_that_cannot_be_is_told_with_the_data(bare_store: Path, tmp_path: Path) -> None:
    text = refusal(bare_store, tmp_path / "run", weights=str(tmp_path / "no.pth"))
    assert "training pairs" in text
    assert "no.pth': no such file. Choices: scratch, imagenet, timm:NAME, or a weights file" in text


def test_metres_of_an_unknown_unit_are_refused(rooms_store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sfm"
    shutil.copytree(rooms_store, folder)
    manifest = read_manifest(folder)
    manifest["scenes"]["room-0001"]["scale"] = 0.37
    write_manifest(folder, manifest)
    text = refusal(folder, tmp_path / "run")
    assert "room-0001" in text
    assert "--matching.match relative" in text
    plan(folder, match="relative", distance=0.02).check()
    plan(folder, objectives={"trivial": 1.0}).check()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"tune": "last-9"}, "last-1 to last-4"),
        ({"tune": "lora-4"}, "has no attention to adapt"),
        ({"objectives": {"view": 1.0, "vieww": 1.0}}, "Did you mean 'view'"),
    ],
)
def test_a_network_that_does_not_fit_its_flags_is_refused(
    rooms_store: Path, tmp_path: Path, options: dict[str, object], word: str
) -> None:
    assert word in refusal(rooms_store, tmp_path / "run", **options)


def test_more_pairs_a_pass_than_there_are_is_refused(rooms_store: Path, tmp_path: Path) -> None:
    text = refusal(rooms_store, tmp_path / "run", DataError, batch=64, micro_batch=64)
    assert "40 training pairs for batches of 64" in text
    assert "lower --batch" in text


def test_imagenet_weights_that_cannot_be_fetched_say_how_to_give_a_file(
    rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    text = refusal(rooms_store, tmp_path / "run", WeightsError, encoder="resnet18", weights="imagenet")
    assert "the ImageNet weights of 'resnet18' cannot be downloaded" in text
    assert "give the file with --weights PATH, or use --weights scratch" in text


@pytest.mark.parametrize(
    ("world", "micro", "fits"), [(1, 4, True), (2, 4, True), (3, 4, False), (4, 4, False), (8, 1, True), (16, 1, False)]
)
def test_processes_share_whole_passes(world: int, micro: int, fits: bool) -> None:
    options = CallSetup(launch=Launch(0, world, 1))
    if fits:
        options.check(settings(batch=8, micro_batch=micro))
    else:
        with pytest.raises(
            ConfigError, match=f"--batch 8 is not a multiple of --micro-batch {micro} x {world} processes"
        ):
            options.check(settings(batch=8, micro_batch=micro))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_synchronised_norms_need_gpus() -> None:
    CallSetup().check(settings(sync_bn=True))  # of one process nothing is to be synchronised
    with pytest.raises(ConfigError, match=r"--compute\.sync-bn"):
        CallSetup(launch=Launch(0, 2, 1)).check(settings(sync_bn=True))


MOCO: dict[str, Any] = {"objectives": {"moco": 1.0}, "crop": 32, "moco_queue": 64}


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({**MOCO, "mix": "combine"}, "--moco.mix combine: give the folder"),
        ({**MOCO, "mix": "alternate"}, "--moco.mix alternate: give the folder"),
        ({"mix": "alternate"}, "--moco.mix: not used by the objectives view"),
    ],
)
def test_a_mixture_needs_images(rooms_store: Path, given: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        plan(rooms_store, **given).check()


@pytest.mark.parametrize("given", [MOCO, {**MOCO, "objectives": {"moco": 1.0, "view": 1.0}, "mix": "half"}])
def test_images_that_nothing_would_learn_from_are_refused(
    rooms_store: Path, images: Path, given: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="further images are only used by moco alone"):
        plan(rooms_store, images=images, **given).check()


def test_a_folder_without_images_is_refused(rooms_store: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image in this folder"):
        plan(rooms_store, images=tmp_path / "empty", **MOCO, mix="combine").check()


def test_geometry_needs_a_voxel_that_the_store_can_give(rooms_store: Path) -> None:
    for voxel, word in ((0.0, "an edge in metres"), (-1.0, "an edge in metres"), (0.1, "whole multiple")):
        with pytest.raises(Pri3DError, match=word):
            plan(rooms_store, objectives={"geometry": 1.0}, voxel=voxel).check()
    with pytest.raises(ConfigError, match=r"--geometry\.voxel: not used by the objectives view"):
        plan(rooms_store, objectives={"view": 1.0}, voxel=0.0)


def sources(store: Path, images: Path, mix: str, total: int, start: int = 0) -> list[str]:
    """Where the items of a stream come from, by their names."""
    planned = plan(store, images=images, **MOCO, mix=mix)
    planned.check()
    feed = planned.feed(())
    assert isinstance(feed.dataset, CropDataset)
    return ["image" if feed.dataset[draw].name.endswith(".png") else "frame" for draw in feed.sampler(total, start)]


def test_half_of_every_batch_is_images(rooms_store: Path, images: Path) -> None:
    """Batches of 4, and passes of 2, whichever of several processes makes them; three images are repeated."""
    drawn = sources(rooms_store, images, "half", 40)
    assert all(sorted(drawn[k : k + 2]) == ["frame", "image"] for k in range(0, 40, 2))
    assert sources(rooms_store, images, "half", 40, start=12) == drawn[12:]


def test_whole_batches_alternate(rooms_store: Path, images: Path) -> None:
    drawn = sources(rooms_store, images, "alternate", 40)
    batches = [set(drawn[k : k + 4]) for k in range(0, 40, 4)]
    assert batches == [{"frame"}, {"image"}] * 5
    assert sources(rooms_store, images, "alternate", 40, start=12) == drawn[12:]


def test_combined_sources_are_one_data_set(rooms_store: Path, images: Path) -> None:
    """Each image as often as each frame: three of 43."""
    assert sources(rooms_store, images, "combine", 2 * 43).count("image") == 2 * 3


def test_crops_are_batches_of_two_of_each_image(rooms_store: Path, images: Path) -> None:
    feed = plan(rooms_store, images=images, **MOCO, mix="half").feed(())
    batch = feed.collate([feed.dataset[Draw(0, k)] for k in (0, 41)])  # type: ignore[index]
    assert isinstance(batch, CropBatch)
    assert batch.crops.shape == (2, 2, 3, 32, 32)
    assert batch.names[0].startswith("room-")


def test_crops_come_with_pairs_where_both_are_wanted(rooms_store: Path) -> None:
    planned = plan(rooms_store, **{**MOCO, "objectives": {"view": 1.0, "moco": 0.1}})
    assert not planned.settings.crops_alone
    feed = planned.feed(("first", "second"))
    batch = feed.collate([feed.dataset[Draw(0, k)] for k in range(2)])  # type: ignore[index]
    assert batch.color.shape == (2, 2, 3, 48, 64)
    assert batch.crops.shape == (2, 2, 3, 32, 32)
    assert plan(rooms_store).feed(("first",)).dataset[Draw(0, 0)].crops.numel() == 0  # type: ignore[index]


@pytest.mark.thorough
@pytest.mark.parametrize("mix", ["half", "alternate"])
def test_mixtures_train(rooms_store: Path, images: Path, tmp_path: Path, mix: str) -> None:
    assert (run_small(rooms_store, tmp_path / mix, images=images, mix=mix, **MOCO) / "weights.safetensors").exists()


def test_held_out_pairs_are_a_fixed_choice_that_training_never_sees(rooms_store: Path) -> None:
    planned = plan(rooms_store, holdout=0.5, eval_pairs=4, eval_every=1)
    held = planned.heldout()
    (portion,) = planned.portions
    assert len(held) == 4 < len(portion.held)
    assert isinstance(held, PairDataset)
    for seed in (0, 3):
        again = plan(rooms_store, holdout=0.5, eval_pairs=4, seed=seed).heldout()
        assert isinstance(again, PairDataset)
        assert (again.rows.tolist() == held.rows.tolist()) == (seed == 0)
    assert len(plan(rooms_store, holdout=0.5, eval_pairs=999).heldout()) == len(portion.held)
    table = Store(rooms_store).pairs()

    def frames(rows: Any) -> set[tuple[str, int]]:
        return {(str(table.scene[row]), int(end[row])) for row in rows for end in (table.i, table.j)}

    assert not frames(portion.train) & frames(portion.held)
    assert torch.equal(held[Draw(0, 0)].color, held[Draw(0, 0)].color)
    trained = planned.feed(("first", "second")).dataset
    assert isinstance(trained, PairDataset)
    assert trained.recipe is not None
    assert held.recipe is None


@pytest.mark.parametrize("given", [{"holdout": 0.0}, {"eval_every": 0}, {"objectives": {"moco": 1.0}}])
def test_nothing_is_measured_where_there_is_nothing_to_measure(rooms_store: Path, given: dict[str, Any]) -> None:
    assert plan(rooms_store, holdout=0.5, eval_every=1).heldout() is not None
    assert plan(rooms_store, **{"holdout": 0.5, "eval_every": 1, **given}).heldout() is None
