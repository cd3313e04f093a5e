"""The page of runs: its sections, what it says where something is missing, objects, the command line, the overview."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetuned import instance_task
from pri3d.api.report import report
from pri3d.cli import main
from pri3d.drawing import draw_detections
from pri3d.errors import ConfigError, DataError
from pri3d.labelled.prepared import PreparedImages
from pri3d.networks.detector import SIZES, build_detector
from pri3d.reporting import gather, style
from pri3d.reporting.html import Page
from pri3d.reporting.report import build_page, write_overview
from pri3d.reporting.sections import add_pictures
from pri3d.reporting.sources import find_sources
from pri3d.runs import write_json
from pri3d.store import read_manifest, write_manifest
from pri3d.tasks.instance import InstanceTask

pytestmark = pytest.mark.thorough  # but for those that say quick


@pytest.fixture
def make(runs, read_page, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(style, "DPI", 40)

    def page_of(*paths: Path, data: Path | None = None):
        out = report(list(paths), data=data, out=tmp_path / "out" / "report.html").path
        return read_page(out.read_text())

    return page_of


def drawn(page) -> list[str]:
    """Pictures of matplotlib; those of widgets are JPEGs."""
    return [load for load in page.loads if load.startswith("data:image/png")]


def headings(page) -> list[str]:
    return [text for text in page.texts if text in {"Pre-training", "Features", "Settings and origin"}]


def notes(page) -> list[str]:
    return [text for text in page.texts if "not shown" in text or text.startswith("Not shown")]


def test_a_pre_training_run_has_curves_data_and_features(make, runs):
    page = make(runs.pretrain)
    assert set(headings(page)) == {"Pre-training", "Features", "Settings and origin"}
    assert not notes(page)
    classes = {attrs.get("class") for tag, attrs in page.tags if tag == "figure"}
    assert {"pri3d-scene", "pri3d-similarity"} <= classes
    assert len(drawn(page)) == 4
    assert "view 30.0%" in page.texts  # the recall of the last step


def test_a_fine_tuning_run_has_scores_and_predictions(make, runs):
    page = make(runs.finetune["pri3d"][1])
    assert not notes(page)
    assert "31.0" in page.texts
    assert "Predictions" in page.texts
    assert set(headings(page)) == {"Settings and origin"}  # nothing of pre-training
    assert not any("± " in text for text in page.texts)


@pytest.mark.slow
def test_a_comparison_has_means_intervals_and_differences(make, runs, tmp_path):
    page = make(*runs.finetune["scratch"], *runs.finetune["pri3d"], runs.pretrain)
    assert not notes(page)
    assert "30.5 ± 6.4" in page.texts  # Student: 12.706 * 0.5 of 30 and 31
    assert "21.0 ± 12.7" in page.texts
    assert "+9.5 ± 6.4" in page.texts  # +10 and +9, seed by seed
    assert {"from scratch", "pre"} <= set(page.texts)
    assert any("2 seeds" in text for text in page.texts)
    assert len(drawn(page)) == 8
    for load in drawn(page):
        with Image.open(io.BytesIO(base64.b64decode(load.removeprefix("data:image/png;base64,")))) as image:
            assert image.width == 400
    assert (tmp_path / "out" / "report.html").stat().st_size < 6e6


@pytest.mark.slow
def test_shares_of_the_labels_are_a_curve(make, runs, tmp_path):
    few = tmp_path / "few"
    shutil.copytree(runs.finetune["scratch"][0], few)
    config = (few / "config.yaml").read_text()
    (few / "config.yaml").write_text(config.replace("fraction: 1.0", "fraction: 0.2"))
    page = make(few, runs.finetune["scratch"][0], data=runs.val)
    assert any(text.startswith("Label efficiency") for text in page.texts)
    assert any("the runs with 100% of the labels" in text for text in page.texts)
    assert not any(text.startswith("Label efficiency") for text in make(*runs.finetune["scratch"]).texts)


def test_what_is_not_there_is_said(make, runs, tmp_path):
    shutil.copytree(runs.pretrain, tmp_path / "pre")
    shutil.copytree(runs.finetune["pri3d"][0], tmp_path / "fine")
    (tmp_path / "pre" / "metrics.csv").unlink()
    (tmp_path / "fine" / "scores.json").unlink()
    page = make(tmp_path / "pre", tmp_path / "fine")
    said = " ".join(notes(page))
    for part in (
        "no metrics.csv",
        "since they have no scores",
        "Segmentations are not shown",
        "Pair, surface and features",
    ):
        assert part in said
    assert said.count("--data") == 2
    assert not [load for load in page.loads if load.startswith("data:image")]


def test_a_pre_training_that_was_cut_short_has_no_features(make, runs, tmp_path):
    shutil.copytree(runs.pretrain, tmp_path / "cut")
    (tmp_path / "cut" / "weights.safetensors").unlink()
    page = make(tmp_path / "cut", data=runs.store)
    assert any("weights.safetensors" in note for note in notes(page))
    assert len(drawn(page)) == 3  # curves, pair and surface


def test_a_run_whose_labels_were_all_ignored_counts_as_one_without_scores(make, runs, tmp_path):
    shutil.copytree(runs.finetune["pri3d"][0], tmp_path / "blind")
    unknown = {"step": 1, "miou": None, "accuracy": None, "iou": {"wall": None}}
    write_json(tmp_path / "blind" / "scores.json", {"last": unknown, "best": unknown, "history": [unknown]})
    page = make(*runs.finetune["scratch"], tmp_path / "blind", data=runs.val)
    assert "Not shown, since they have no scores: blind." in page.texts
    assert not any(re.search(r"\bnan\b", text) for text in page.texts)


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"last": {"miou": 0.5}, "history": []}'])
def test_damaged_scores_are_an_error(make, runs, tmp_path, content):
    shutil.copytree(runs.finetune["pri3d"][0], tmp_path / "fine")
    (tmp_path / "fine" / "scores.json").write_text(content)
    with pytest.raises(DataError, match=r"scores\.json"):
        make(tmp_path / "fine")


def test_images_without_labels_are_said(make, runs, tmp_path):
    shutil.copytree(runs.val, tmp_path / "bare")
    write_manifest(tmp_path / "bare", {**read_manifest(runs.val), "class_names": None})
    page = make(runs.finetune["pri3d"][0], data=tmp_path / "bare")
    assert any(note.startswith("Segmentations are not shown: ") and "bare" in note for note in notes(page))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fact", "words"),
    [("shared_images", "training images too"), ("pretrained_on_val", "without labels, on the frames that")],
)
def test_what_weakens_the_scores_is_said(make, runs, tmp_path, fact, words):
    shutil.copytree(runs.finetune["pri3d"][0], tmp_path / "fine")
    config = tmp_path / "fine" / "config.yaml"
    config.write_text(config.read_text().replace("provenance:", f"provenance:\n  {fact}: true"))
    assert any(words in text for text in make(tmp_path / "fine", data=runs.val).texts)
    assert not any(words in text for text in make(runs.finetune["pri3d"][0]).texts)


def test_a_page_of_another_title_says_it_first(runs, read_page, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(style, "DPI", 40)
    sources = find_sources(runs.finetune["scratch"])
    told: list[str] = []
    page = read_page(build_page(sources, runs.val, "Two runs", "They are small.", told.append).render())
    assert told == ["drawing scores and predictions of semantic runs"]  # shown while they are drawn
    assert page.texts[:1] == ["Two runs"]
    assert any(text.startswith("They are small. 2 fine-tuning runs.") for text in page.texts)


def test_the_overview_is_a_wide_picture(runs, tmp_path):
    every = [runs.pretrain, *runs.finetune["scratch"], *runs.finetune["pri3d"]]
    with Image.open(write_overview(tmp_path / "overview.png", find_sources(every))) as image:
        assert image.format == "PNG"
        assert image.width > 1.5 * image.height


def test_an_overview_without_a_piece_names_it(runs, tmp_path):
    with pytest.raises(DataError, match="needs a pre-training run and a fine-tuning run"):
        write_overview(tmp_path / "o.png", find_sources([runs.pretrain]))
    shutil.copytree(runs.finetune["pri3d"][0], tmp_path / "cut")
    (tmp_path / "cut" / "weights.safetensors").unlink()
    with pytest.raises(DataError, match="no fine-tuning run"):
        write_overview(tmp_path / "o.png", find_sources([runs.pretrain, tmp_path / "cut"]), runs.val.parent)


def test_results_of_probe_are_tables_and_a_curve(make, tmp_path):
    matching = {"mean": 0.5, "balanced": 0.4, "by_angle": {"0-15": 0.6, "15-30": None}, "points": 9}
    networks = {"before": {"weights": "x", "matching": matching}, "after": {"weights": "x", "matching": matching}}
    write_json(tmp_path / "probe.json", {"data": "x", "networks": networks})
    page = make(tmp_path / "probe.json")
    assert "Matching" in page.texts
    assert "by angle 0-15" in page.texts
    assert page.texts.count("0.6") == 2
    assert len(page.loads) == 1
    gap = {"difference": 0.0625, "low": 0.03125, "high": None, "verdict": "better"}
    networks["after"] |= {
        "intervals": {"matching / mean": 0.0078125},
        "differences": {"before": {"matching / mean": gap}},
    }
    write_json(tmp_path / "probe.json", {"data": "x", "networks": networks})
    page = make(tmp_path / "probe.json")
    assert "Of the same pairs and frames" in " ".join(page.texts)
    assert all(text in page.texts for text in ("recall, all", "0.0625", "0.03125 to –", "better"))
    assert "Intervals" not in page.texts
    (tmp_path / "probe.json").write_text(json.dumps({"networks": [1]}))
    with pytest.raises(DataError, match=r"probe\.json"):
        make(tmp_path / "probe.json")


def test_texts_of_files_are_escaped(make, runs, tmp_path):
    shutil.copytree(runs.finetune["scratch"][0], tmp_path / "<em>run")
    config = tmp_path / "<em>run" / "config.yaml"
    config.write_text(config.read_text().replace("init: scratch", "init: <script>alert(1)</script>"))
    page = make(tmp_path / "<em>run", data=runs.val)
    assert not {"em", "script"} & {tag for tag, _ in page.tags}
    assert any("<em>run" in text for text in page.texts)


@pytest.mark.slow
def test_objects_are_drawn(rooms_store: Path, tmp_path: Path, read_page, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(style, "DPI", 40)
    images = PreparedImages(rooms_store, "all")
    names = InstanceTask.names_of(images)
    torch.manual_seed(0)
    sizes = SIZES["lite"]._replace(short_sides=(48,), long_side=64, rois=8)
    model = build_detector("resnet18", len(names), sizes)
    task = instance_task(names, model)
    task.save(model, tmp_path / "weights.safetensors", {})
    found = gather.predictions(images, {"pri3d": [tmp_path]}, 2, "instance")
    assert [list(frame.panels) for frame in found.frames] == [["ground truth", "pri3d"]] * 2
    assert found.class_names == []
    color, row = images.color(4), 4
    assert len(task.truth(images, row).classes) == (~images.instances(row).crowd).sum()
    likely = task.keep(task.predict(model.eval(), color), 0.5)
    assert np.array_equal(found.frames[0].panels["pri3d"], draw_detections(color, likely, names))
    page = Page("t")
    add_pictures(page, "instance", {"pri3d": [tmp_path]}, images)
    assert len(read_page(page.render()).loads) == 1


def test_a_folder_is_no_page(runs, tmp_path):
    with pytest.raises(ConfigError, match="--out"):
        report([runs.pretrain], out=tmp_path)


def test_the_command_line_takes_several_runs(runs, tmp_path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(style, "DPI", 40)
    out = tmp_path / "page.html"
    words = ["report", *map(str, runs.finetune["scratch"]), "--data", str(runs.val), "--out", str(out)]
    assert main(words) == 0
    assert "Comparison of scratch0, scratch1" in out.read_text()
    assert main(["report", str(tmp_path / "none")]) == 1
    assert "none" in capsys.readouterr().err
