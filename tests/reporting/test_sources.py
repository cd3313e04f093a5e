from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from pri3d.errors import DataError
from pri3d.reporting.sources import (
    Missing,
    RunFolder,
    differing_settings,
    find_sources,
    labelled_of,
    pairs_of,
    used_settings,
)


def write_run(path: Path, verb: str = "finetune", init: str = "scratch", **settings: object) -> Path:
    path.mkdir(parents=True)
    stated = {"verb": verb, "settings": settings, "provenance": {"task": "semantic", "init": init}}
    (path / "config.yaml").write_text(yaml.safe_dump(stated))
    return path


def test_a_folder_stands_for_its_runs_and_a_run_for_itself(tmp_path: Path):
    write_run(tmp_path / "runs" / "pre", "pretrain")
    for seed in (1, 0):
        write_run(tmp_path / "runs" / f"a-{seed}", seed=seed)
    (tmp_path / "runs" / "comparison.json").write_text("[]")
    (tmp_path / "probe.json").write_text("{}")
    for given in ([tmp_path], [tmp_path / "runs", tmp_path / "probe.json"], [tmp_path, tmp_path / "runs" / "pre"]):
        found = find_sources(given)
        assert [run.name for run in found.pretrained] == ["pre"]
        assert [run.name for run in found.finetuned] == ["a-0", "a-1"]
        assert found.probes == [tmp_path / "probe.json"]
    assert len(find_sources([tmp_path / "runs" / "comparison.json"]).finetuned) == 2


@pytest.mark.parametrize("given", ["nothing", "empty", "text.txt", "other"])
def test_what_is_no_run_is_refused(tmp_path: Path, given: str):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").touch()
    write_run(tmp_path / "other", "dance")
    with pytest.raises(DataError, match=given):
        find_sources([tmp_path / given])


@pytest.mark.parametrize("text", ["verb: finetune", "- 1", "verb: {", "verb: finetune\nsettings: 3"])
def test_damaged_settings_are_named(tmp_path: Path, text: str):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(DataError, match=r"config\.yaml"):
        find_sources([tmp_path])


def test_runs_of_one_name_are_told_apart(tmp_path: Path):
    for folder in ("x/one", "y/one", "y/two"):
        write_run(tmp_path / folder)
    assert [run.name for run in find_sources([tmp_path]).finetuned] == ["x/one", "y/one", "two"]


def test_groups_differ_in_more_than_the_seed(tmp_path: Path):
    pre = write_run(tmp_path / "mine", "pretrain")
    for seed in (1, 0):
        write_run(tmp_path / f"s{seed}", seed=seed, lr=0.1)
        write_run(tmp_path / f"p{seed}", init=str(pre), seed=seed, lr=0.2)
    groups = find_sources([tmp_path]).groups()["semantic"]
    assert [group.name for group in groups] == ["mine", "scratch"]
    assert [[run.name for run in group.runs] for group in groups] == [["p0", "p1"], ["s0", "s1"]]
    write_run(tmp_path / "fast", seed=0, lr=0.3)
    names = {group.name for group in find_sources([tmp_path]).groups()["semantic"]}
    assert names == {"mine", "scratch, lr 0.1", "scratch, lr 0.3"}


def test_shares_of_the_labels_are_one_method(tmp_path: Path):
    for share in (0.2, 1.0):
        write_run(tmp_path / f"s{share}", seed=0, fraction=share)
    groups = find_sources([tmp_path]).groups()["semantic"]
    assert [(group.method, group.fraction) for group in groups] == [("scratch", 0.2), ("scratch", 1.0)]
    assert groups[0].name == "scratch, 20% of the labels"


def test_settings_that_differ_are_listed(tmp_path: Path):
    write_run(tmp_path / "a", lr=0.1, steps=3)
    write_run(tmp_path / "b", lr=0.2, steps=3, size="8x6")
    runs = find_sources([tmp_path]).finetuned
    assert differing_settings(runs) == {"lr": [0.1, 0.2], "semantic.size": [None, "8x6"]}


def test_settings_of_a_group_are_compared_one_by_one(tmp_path: Path):
    for name, every in (("a", 5), ("b", 9)):
        write_run(tmp_path / name, validation={"every": every, "batch": 2}, objectives={"view": 1.0})
    found = find_sources([tmp_path])
    assert differing_settings(found.finetuned) == {"validation.every": [5, 9]}
    names = [group.name for group in found.groups()["semantic"]]
    assert names == ["scratch, validation.every 5", "scratch, validation.every 9"]


class TestData:
    """The runs name their stores relative to the folder they lie in."""

    def test_the_runs_own_data_are_found(self, runs):
        found = find_sources([runs.pretrain, runs.finetune["pri3d"][0]])
        pairs = pairs_of(found.pretrained[0], None)
        assert (pairs.folder, pairs.remark) == (runs.store.resolve(), "")
        labelled = labelled_of(found.finetuned[0], None)
        assert (labelled.images.path, labelled.remark) == (runs.val.resolve(), "")

    def test_data_that_moved_are_found_where_the_user_says(self, tmp_path, runs):
        found = find_sources([runs.pretrain, runs.finetune["pri3d"][0]])
        shutil.copytree(runs.store, tmp_path / "b-store")
        shutil.copytree(runs.val, tmp_path / "a-val")
        assert pairs_of(found.pretrained[0], tmp_path) == (tmp_path / "b-store", "")
        assert labelled_of(found.finetuned[0], tmp_path).remark == ""
        assert labelled_of(found.finetuned[0], tmp_path).images.path == tmp_path / "a-val"

    def test_other_data_are_remarked(self, runs):
        found = find_sources([runs.pretrain, runs.finetune["pri3d"][0]])
        assert "was trained on another version" in pairs_of(found.pretrained[0], runs.val).remark
        assert "evaluated on other images" in labelled_of(found.finetuned[0], runs.store).remark

    def test_what_is_nowhere_is_said(self, tmp_path, runs):
        shutil.copytree(runs.pretrain, tmp_path / "pre")
        shutil.copytree(runs.finetune["pri3d"][0], tmp_path / "fine")
        found = find_sources([tmp_path])
        for missing in (pairs_of(found.pretrained[0], None), labelled_of(found.finetuned[0], None)):
            assert isinstance(missing, Missing)
            assert "--data" in missing.reason
        with pytest.raises(DataError, match="no such folder"):
            pairs_of(found.pretrained[0], tmp_path / "none")


@pytest.mark.parametrize(("objectives", "decoder"), [({"view": 1.0, "distill": 1.0}, True), ({"pyramid": 1.0}, False)])
def test_settings_that_nothing_used_are_not_listed(objectives: dict[str, float], decoder: bool) -> None:
    settings = {"objectives": objectives, "unet": {"decoder": "slim"}, "contrast": {"points": 3}, "lr": 0.1}
    used = used_settings(RunFolder(Path("run"), "run", "pretrain", settings, {}))
    assert used == (settings if decoder else {"objectives": objectives, "lr": 0.1})
