from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pri3d.data.labelled import LabelledDataset
from pri3d.data.sampler import Draw
from pri3d.errors import DataError
from pri3d.labelled.prepared import PreparedImages
from pri3d.reporting import gather, style
from pri3d.reporting.cutaway import drawable
from pri3d.reporting.run import compare, write_overview, write_report
from pri3d.reporting.sources import Missing, read_scores
from pri3d.runs import write_json
from pri3d.store import Store, read_manifest, write_manifest
from pri3d.tasks.semantic import load_semantic


@pytest.fixture
def report(runs, read_page, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(style, "DPI", 40)  # the pictures' content does not matter here

    def make(out: Path, **changes):
        return read_page(write(out, runs, **changes))

    return make


def write(out: Path, runs, **changes) -> str:
    arguments = {
        "title": "A report",
        "store": runs.store,
        "pretrain_run": runs.pretrain,
        "val_store": runs.val,
        "finetune_runs": runs.finetune,
        "results": {"minutes": 3.25, "probe": {"recall": 0.5}},
        "settings": {"rooms": 3},
    } | changes
    assert write_report(out / "report.html", **arguments) == out / "report.html"
    return (out / "report.html").read_text()


def drawn(page) -> list[str]:
    """Pictures of matplotlib; those of widgets are JPEGs."""
    return [load for load in page.loads if load.startswith("data:image/png")]


def notes(page) -> list[str]:
    return [text for text in page.texts if "left out" in text]


class TestReport:
    def test_everything_is_there(self, tmp_path, runs, report):
        page = report(tmp_path)
        assert len(drawn(page)) == 8
        for load in drawn(page):
            with Image.open(io.BytesIO(base64.b64decode(load.removeprefix("data:image/png;base64,")))) as image:
                assert image.width == 400
        assert not notes(page)
        text = " ".join(page.texts)
        for part in (
            "21.0%",
            "30.5%",
            "+9.5",
            "3.2",
            "probe.recall",
            "+9.0",
            "+10.0",
            "did not see these scenes",
            "rooms",
        ):
            assert part in text
        assert (tmp_path / "report.html").stat().st_size < 6e6

    def test_without_fine_tuning_the_rest_is_there_and_the_page_says_so(self, tmp_path, runs, report):
        page = report(tmp_path, finetune_runs={})
        assert len(drawn(page)) == 4
        assert any(note.startswith("Semantic segmentation is left out") for note in notes(page))
        assert any(note.startswith("Segmentations are left out") for note in notes(page))

    def test_scores_without_runs_are_shown(self, tmp_path, runs, report):
        page = report(tmp_path, finetune_runs={}, results={"semantic_miou": {"scratch": [0.25], "pri3d": [0.5]}})
        assert "+25.0" in page.texts
        assert len(drawn(page)) == 5

    def test_nothing_at_all_still_makes_a_page(self, tmp_path, runs, report):
        none = tmp_path / "none"
        page = report(tmp_path, store=none, pretrain_run=none, val_store=none, finetune_runs={}, results={})
        assert page.loads == []
        assert len(notes(page)) == 5

    def test_unfinished_runs_are_named(self, tmp_path, runs, report):
        cut = tmp_path / "cut"
        shutil.copytree(runs.pretrain, cut)
        (cut / "weights.safetensors").unlink()
        both = {"scratch": runs.finetune["scratch"], "pri3d": [cut]}
        page = report(tmp_path, pretrain_run=cut, finetune_runs=both, val_store=runs.store)
        assert len(drawn(page)) == 7
        assert "Without scores, and left out: cut." in page.texts
        assert any("weights.safetensors" in note for note in notes(page))
        assert any("may have seen them" in text for text in page.texts)

    def test_a_run_whose_labels_were_all_ignored_counts_as_one_without_scores(self, tmp_path, runs, report):
        unknown = {"step": 1, "miou": None, "accuracy": None, "iou": {"wall": None}}
        (tmp_path / "blind").mkdir()
        write_json(tmp_path / "blind" / "scores.json", {"last": unknown, "best": unknown, "history": [unknown]})
        page = report(tmp_path, finetune_runs={**runs.finetune, "imagenet": [tmp_path / "blind"]})
        assert "Without scores, and left out: blind." in page.texts
        assert not any("nan" in text for text in page.texts)

    def test_unknown_numbers_are_dashes(self, tmp_path, runs, report):
        results = {"semantic_miou": {"scratch": [None, 0.25], "pri3d": [None]}, "recall": None, "gain": float("nan")}
        page = report(tmp_path, finetune_runs={}, results=results)
        assert not {"None", "nan"} & set(page.texts)
        assert page.texts.count("–") == 2
        assert "25.0%" in page.texts

    @pytest.mark.parametrize("content", ["{", "[]", "null", '{"last": {"miou": 0.5}, "history": []}'])
    def test_damaged_scores_are_an_error(self, tmp_path, runs, report, content):
        (tmp_path / "scores.json").write_text(content)
        with pytest.raises(DataError, match=r"scores\.json"):
            report(tmp_path, finetune_runs={"pri3d": [tmp_path]})

    def test_damaged_settings_are_an_error(self, tmp_path, runs, report):
        (tmp_path / "config.yaml").write_text("verb: pretrain")
        with pytest.raises(DataError, match=r"config\.yaml"):
            report(tmp_path, pretrain_run=tmp_path)


class TestComparison:
    @pytest.mark.parametrize(
        ("baseline", "ours", "words"),
        [
            (
                [0.2, 0.3],
                [0.3, 0.35],
                ("+7.5 points", "between +5.0 and +10.0", "positive for every seed", "Over 2 seeds"),
            ),
            ([0.3, 0.3], [0.2, 0.25], ("−7.5 points", "negative for every seed", "did not help")),
            ([0.3, 0.2], [0.2, 0.3], ("0.0 points", "do not settle")),
            ([0.2], [0.3], ("+10.0 points", "one seed cannot tell")),
            ([0.2, 0.2], [0.3], ("+10.0 points", "different numbers of seeds")),
        ],
    )
    def test_the_sentence_says_what_the_seeds_show(self, baseline, ours, words):
        assert all(word in compare(baseline, ours) for word in words)


class TestGather:
    def test_matches_are_points_that_both_frames_see(self, runs):
        pairs, images = gather.matched_pairs(runs.store, 2, runs.pretrain)
        assert images.shape == (4, 3, 48, 64)
        store = Store(runs.store)
        for pair in pairs:
            scene_id, frames = pair.name.split("/")
            scene = store.scene(scene_id)
            names = scene.frames.names.tolist()
            first, second = (scene.view(names.index(name)) for name in frames.split("+"))
            assert len(pair.points) > 20
            gap = np.linalg.norm(lift(first, pair.points[:, :2]) - lift(second, pair.points[:, 2:]), axis=1)
            # A cell stands for the pixel its centre falls into, a match lies within 5 cm: both ends move by a pixel.
            assert np.median(gap) < 0.1

    def test_typical_pairs_are_at_even_ranks(self, runs):
        store = Store(runs.store)
        overlap = store.pairs().overlap
        assert overlap[gather.typical_pairs(store, 1)] == pytest.approx(np.median(overlap), abs=1e-6)
        assert len(gather.typical_pairs(store, 2)) == 2
        assert len(gather.typical_pairs(store, 50)) == len(overlap)

    def test_the_chunk_has_the_voxels_of_the_run(self, runs):
        chunk = gather.chunk(runs.store, runs.pretrain)
        assert drawable(chunk).size == pytest.approx(0.16)
        assert np.array_equal(chunk.up, (0, 0, 1))

    def test_a_voxel_size_that_does_not_fit_falls_back_to_the_stores(self, tmp_path, runs):
        (tmp_path / "config.yaml").write_text("settings: {size: 64x48, voxel: 0.1}")
        assert gather.chunk(runs.store, tmp_path).voxel == pytest.approx(0.08)

    def test_segmentations_are_the_networks_own(self, runs):
        images = PreparedImages(runs.val, "all")
        found = gather.predictions(images, runs.finetune, 2, "semantic")
        frames = found.segmented
        dataset = LabelledDataset(images, (64, 48))
        assert [frame.name for frame in frames] == [dataset[Draw(0, row)][2] for row in (1, 3)]
        assert found.class_names == images.class_names
        model = load_semantic(runs.finetune["pri3d"][0])[0]
        with torch.no_grad():
            expected = model(dataset[Draw(0, 3)][0][None].float() / 255).argmax(1)[0]
        assert np.array_equal(frames[1].predicted["pri3d"], expected)
        assert np.array_equal(frames[1].label, dataset[Draw(0, 3)][1])

    def test_a_store_without_labels_says_so(self, tmp_path, runs, report):
        shutil.copytree(runs.val, tmp_path / "bare")
        write_manifest(tmp_path / "bare", {**read_manifest(runs.val), "class_names": None})
        page = report(tmp_path, val_store=tmp_path / "bare")
        assert "Segmentations are left out: bare has no labels." in page.texts

    def test_classes_that_differ_are_no_predictions(self, tmp_path, runs):
        shutil.copytree(runs.val, tmp_path / "other")
        names = read_manifest(runs.val)["class_names"]
        write_manifest(tmp_path / "other", {**read_manifest(runs.val), "class_names": [*names[:-1], "thing"]})
        images = PreparedImages(tmp_path / "other", "all")
        assert "other classes" in gather.predictions(images, runs.finetune, 2, "semantic").reason

    def test_the_first_store_with_pairs_is_taken(self, tmp_path, runs):
        shutil.copytree(runs.val, tmp_path / "single")
        manifest = read_manifest(runs.val)
        write_manifest(tmp_path / "single", manifest | {"settings": {**manifest["settings"], "pairs": False}})
        assert gather.store_with_pairs([tmp_path / "single", runs.store]) == runs.store
        assert isinstance(gather.store_with_pairs([tmp_path / "single", tmp_path]), Missing)

    def test_scores_of_unfinished_runs_are_skipped(self, tmp_path, runs):
        scores = read_scores({"pri3d": [tmp_path, *runs.finetune["pri3d"]], "scratch": [tmp_path]}, "semantic")
        assert list(scores) == ["pri3d"]
        assert [score.last["miou"] for score in scores["pri3d"]] == [0.3, 0.31]


class TestOverview:
    def test_it_is_a_wide_picture(self, tmp_path, runs):
        path = write_overview(
            tmp_path / "overview.png", store=runs.store, pretrain_run=runs.pretrain, val_store=runs.val,
            finetune_runs=runs.finetune,
        )  # fmt: skip
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.width > 1.5 * image.height

    def test_a_missing_piece_is_named(self, tmp_path, runs):
        with pytest.raises(DataError, match="no fine-tuning run"):
            write_overview(
                tmp_path / "o.png", store=runs.store, pretrain_run=runs.pretrain, val_store=runs.val, finetune_runs={}
            )


def lift(view, points: np.ndarray) -> np.ndarray:
    """World points (N, 3) of image points (N, 2) by the view's depth."""
    u, v = points.astype(int).T
    z = view.depth[v, u]
    fx, fy, cx, cy = view.intrinsics
    camera = np.stack(((u + 0.5 - cx) / fx * z, (v + 0.5 - cy) / fy * z, z), axis=1)
    return camera @ view.world_from_camera[:3, :3].T + view.world_from_camera[:3, 3]
