"""Small files of a run: round trips, what JSON cannot say, damage."""

from __future__ import annotations

import json
import math
import shutil

import pytest

from pri3d.errors import ConfigError, DataError
from pri3d.runs import MetricsFile, RunPaths, leaves, read_json, read_metrics, write_json, write_text


def test_names_of_a_run(tmp_path):
    paths = RunPaths(tmp_path)
    names = {name: path.name for name, path in vars(paths).items() if name != "path"}
    assert sorted(names) == [
        "best", "checkpoint", "config", "initial", "last", "loaded", "metrics", "scores", "weights",
    ]  # fmt: skip
    assert len(set(names.values())) == len(names)


def test_older_checkpoints_come_in_the_order_of_their_steps(tmp_path):
    paths = RunPaths(tmp_path)
    assert paths.all_older() == []
    steps = [100, 20, 3, 1_000_000, 99_999_999]
    for step in steps:
        paths.older(step).touch()
    (tmp_path / "last.ckpt").touch()
    assert paths.all_older() == [paths.older(step) for step in sorted(steps)]


def test_json_round_trip_and_nan_is_null(tmp_path):
    path = tmp_path / "a" / "scores.json"
    write_json(path, {"iou": {"wall": 0.5, "lamp": math.nan}, "list": [1, math.inf, "x"], "pair": (1.5, None, True)})
    json.loads(path.read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity
    expected = {"iou": {"wall": 0.5, "lamp": None}, "list": [1, None, "x"], "pair": [1.5, None, True]}
    assert read_json(path) == expected
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"{", b"\xff", None])
def test_damaged_json_names_the_file(tmp_path, content):
    path = tmp_path / "scores.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"scores\.json"):
        read_json(path)


def test_metrics(tmp_path):
    path = tmp_path / "metrics.csv"
    assert read_metrics(path) == []
    write_text(path, "step,loss,miou\n1,0.5,\n2,,0.25\n3,1\n")
    assert read_metrics(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "miou": 0.25}, {"step": 3, "loss": 1}]
    for damaged in ("step,loss\n1,x\n", "step,loss\n1,2,3\n"):
        write_text(path, damaged)
        with pytest.raises(DataError, match=r"metrics\.csv"):
            read_metrics(path)


def test_leaves_of_nested_mappings():
    found = list(leaves({"a": {"b": 1, "c": {"d": [2]}}, "e": None, "f": {}}))
    assert found == [(("a", "b"), 1), (("a", "c", "d"), [2]), (("e",), None)]


@pytest.mark.parametrize("name", ["last.ckpt", "step-00000004.ckpt", "weights.safetensors", "best.safetensors"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_lost_its_config_is_refused_and_stays(tmp_path, name, resume):
    (tmp_path / name).write_bytes(b"weeks of work")
    with pytest.raises(ConfigError, match=rf"holds {name} of a run, but not its config\.yaml\. Restore it and"):
        RunPaths(tmp_path).open("pretrain", {"steps": 3}, {}, resume)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_run_is_begun_once_and_continued_with_the_same_settings(tmp_path):
    run, facts = RunPaths(tmp_path / "run"), {"data_hash": "a", "data": "here"}
    run.open("pretrain", {"steps": 3}, facts, resume=True)  # nothing is there yet
    assert run.read_config() == {"verb": "pretrain", "settings": {"steps": 3}, "provenance": facts}
    run.checkpoint.touch()
    with pytest.raises(ConfigError, match="already holds a run"):
        run.open("pretrain", {"steps": 3}, facts, resume=False)
    run.open("pretrain", {"steps": 3}, {**facts, "data": "moved"}, resume=True)
    with pytest.raises(ConfigError, match=r"steps was 3, now 4; data_hash was 'a', now 'b'\."):
        run.open("pretrain", {"steps": 4}, {**facts, "data_hash": "b"}, resume=True)
    assert run.read_config()["provenance"] == facts


def test_a_run_of_an_earlier_version_is_not_continued_with_other_data(tmp_path):
    """It trained on all pairs and wrote the whole change; that is said, and it continues where it is asked for."""
    run = RunPaths(tmp_path)
    run.open("pretrain", {"steps": 3, "backbone": {"norm": "train"}}, {}, resume=False)
    run.checkpoint.touch()
    with pytest.raises(ConfigError, match=r"min_overlap was 0\.0, now 0\.3"):
        run.open("pretrain", {"steps": 3, "min_overlap": 0.3, "backbone": {"norm": "train", "mix": 1.0}}, {}, True)
    with pytest.raises(ConfigError, match=r"backbone\.mix was 1\.0, now 0\.7"):
        run.open("pretrain", {"steps": 3, "min_overlap": 0.0, "backbone": {"norm": "train", "mix": 0.7}}, {}, True)
    run.open("pretrain", {"steps": 3, "min_overlap": 0.0, "backbone": {"norm": "train", "mix": 1.0}}, {}, True)


def test_rows_that_are_kept_stay_as_they_are(tmp_path):
    """Those of a continued run: a step is a whole number before and after."""
    whole = MetricsFile(tmp_path / "a.csv", 0)
    for step in (1, 2, 3):
        whole.append(step, {"loss": step / 3})
        if step == 2:
            shutil.copy(tmp_path / "a.csv", tmp_path / "b.csv")
    again = MetricsFile(tmp_path / "b.csv", 2)
    again.append(3, {"loss": 1.0})
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()
