"""Scores of exported predictions: equal to those made in memory, reused where they fit, never where they do not."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scored_runs import Brightness, Level, fakes, write_run

from finetuned import TINY, instance_task, semantic_task
from pri3d.api.evaluate import evaluate
from pri3d.cli import main
from pri3d.data.labelled import InstanceDataset, LabelledDataset
from pri3d.errors import ConfigError, DataError, WeightsError
from pri3d.evaluation import evaluate as evaluation
from pri3d.geometry.resize import resize_color, resize_nearest
from pri3d.labelled.convert import decode_mask
from pri3d.labelled.prepared import PreparedImages
from pri3d.networks.detector import SIZES, build_detector
from pri3d.networks.encoders import build_encoder
from pri3d.networks.segmentation import build_segmentation
from pri3d.tasks import hash_file, load_task
from pri3d.tasks.instance import DetectionMeter, detections_to_results
from pri3d.types import Detections, Instances

__all__ = ["fakes"]  # a fixture


@pytest.fixture(scope="module")
def images(rooms_store: Path) -> PreparedImages:
    return PreparedImages(rooms_store, "val")


@pytest.fixture
def run(tmp_path: Path, images: PreparedImages, fakes: None) -> Path:
    """A run of the fake task whose two networks differ."""
    task, record = Brightness(images.class_names), {"size": "32x24"}
    return write_run(tmp_path / "run", task, {"last": Level(0), "best": Level(60)}, record, data=str(images.path))


def iou_by_hand(pairs: list[tuple[np.ndarray, np.ndarray]], classes: int) -> list[float]:
    """Of (predicted, true) maps, class by class; NaN where a class is in neither."""
    result = []
    for k in range(classes):
        known = [(said[true != 255] == k, true[true != 255] == k) for said, true in pairs]
        union = sum((a | b).sum() for a, b in known)
        result.append(sum((a & b).sum() for a, b in known) / union if union else math.nan)
    return result


class TestSemantic:
    @pytest.mark.parametrize("resolution", ["training", "native"])
    def test_scores_are_those_of_a_loop(self, run: Path, images: PreparedImages, resolution: str) -> None:
        result = evaluate(run, resolution=resolution)
        task = Brightness(images.class_names)
        for which, level in (("last", 0.0), ("best", 60.0)):
            pairs = []
            for k in range(len(images.names)):
                color, label = images.color(k), images.label(k)
                if resolution == "training":
                    color, label = resize_color(color, (32, 24)), resize_nearest(label, (32, 24))
                pairs.append((task.classes(color, level), label))
            scores = result["scores"][which]
            assert list(scores["iou"]) == list(images.class_names)
            by_hand = iou_by_hand(pairs, len(images.class_names))
            assert list(scores["iou"].values()) == pytest.approx(by_hand, nan_ok=True)
            right = sum((a == b).sum() for a, b in pairs) / sum((b != 255).sum() for _, b in pairs)
            assert scores["accuracy"] == pytest.approx(right)
        assert (result["task"], result["split"], result["images"]) == ("semantic", "val", len(images.names))
        folder = run / "predictions" / f"last-val-{resolution}"
        assert sorted(path.name for path in folder.iterdir()) == ["predictions.zip", "record.json"]

    def test_scores_are_those_of_training(self, tmp_path: Path, images: PreparedImages) -> None:
        torch.manual_seed(0)
        model = build_segmentation("unet", build_encoder("test_resnet"), len(images.class_names), "slim", 8).eval()
        task = semantic_task(images.class_names, model, "48x32")
        measured = task.measure(model, LabelledDataset(images, (48, 32)), 3)
        run = write_run(tmp_path / "run", task, {"last": model}, data=str(images.path))
        scores = evaluate(run, which="last")["scores"]["last"]
        assert scores["miou"] == pytest.approx(measured["miou"], abs=1e-3)
        assert scores["accuracy"] == pytest.approx(measured["accuracy"], abs=1e-3)

    def test_the_json_says_the_same(self, run: Path, tmp_path: Path) -> None:
        result = evaluate(run, out=tmp_path / "here" / "scores.json")
        assert not (run / "evaluation.json").exists()
        written = json.loads((tmp_path / "here" / "scores.json").read_text())
        assert written["scores"]["best"]["miou"] == result["scores"]["best"]["miou"]
        nans = {name: None if math.isnan(v) else v for name, v in result["scores"]["last"]["iou"].items()}
        assert written["scores"]["last"]["iou"] == nans

    def test_the_table_compares_both_networks(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        result = evaluate(run)
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        row = next(line for line in lines if "miou" in line)
        assert [f"{result['scores'][which]['miou']:.3f}" for which in ("last", "best")] == [row[3], row[5]]

    def test_the_title_takes_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        scores = {"last": {"AP": 0.5}}
        evaluation._show({"split": "train", "images": 1_000_000, "scores": scores}, Brightness(["x"]))
        assert "train, 1000000 images" in capsys.readouterr().out


def pixels(image: torch.Tensor) -> bytes:
    """Of an image (3, H, W) 0..1, its RGB bytes."""
    return (image * 255).round().byte().permute(1, 2, 0).numpy().tobytes()


class TestInstance:
    @pytest.fixture
    def answers(self, images: PreparedImages, monkeypatch: pytest.MonkeyPatch) -> dict[bytes, Detections]:
        """A network that sees every object, with score 0.4, and a wrong one with 0.9."""
        answers = {}
        for k in range(len(images.names)):
            found = images.instances(k)
            wrong = ~found.masks.any(0)
            masks = np.concatenate([found.masks, wrong[None]])
            boxes = np.concatenate([found.boxes, [[0, 0, 64, 48]]]).astype(np.float32)
            scores = np.array([0.4] * len(found.classes) + [0.9], np.float32)
            answers[images.color(k).tobytes()] = Detections(masks, boxes, np.append(found.classes, 0), scores)
        monkeypatch.setattr(
            "pri3d.tasks.instance._find", lambda model, seen: (answers[pixels(image)] for image in seen)
        )
        return answers

    @pytest.fixture
    def run(self, tmp_path: Path, images: PreparedImages, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setitem(SIZES, "lite", TINY)
        model = build_detector("test_resnet", len(images.thing_names), TINY)
        task = instance_task(images.thing_names, model)
        return write_run(tmp_path / "run", task, {"last": model}, data=str(images.path), min_area=20)

    def test_files_are_of_cocos_form_and_scored_from(
        self, run: Path, images: PreparedImages, answers: dict[bytes, Detections]
    ) -> None:
        result = evaluate(run)
        folder = run / "predictions" / "last-val-native"
        truth, results = (json.loads((folder / f"{name}.json").read_text()) for name in ("truth", "predictions"))
        large = [int((images.instances(k).masks.sum((1, 2)) >= 20).sum()) for k in range(len(images.names))]
        assert len(truth["annotations"]) == sum(large)
        first = answers[images.color(0).tobytes()]
        own = [entry for entry in results if entry["image_id"] == truth["images"][0]["id"]]
        assert np.array_equal(decode_mask(own[0]["segmentation"], (48, 64), "x"), first.masks[0])
        assert result["scores"]["last"]["AP50"] > 0.3
        # From the files alone: without the right answers in them, the scores fall.
        (folder / "predictions.json").write_text(json.dumps([entry for entry in results if entry["score"] > 0.5]))
        record = json.loads((folder / "record.json").read_text())
        record["files"]["predictions.json"] = hash_file(folder / "predictions.json")
        (folder / "record.json").write_text(json.dumps(record))
        assert evaluate(run)["scores"]["last"]["AP50"] == 0

    @pytest.mark.thorough
    def test_scores_are_those_of_training(self, run: Path, images: PreparedImages) -> None:
        task, model = load_task(run)[:2]
        measured = task.measure(model, InstanceDataset(images, min_area=20), 1)
        scores = evaluate(run)["scores"]["last"]
        for name in ("AP", "AP50", "box_AP", "box_AP50"):
            assert scores[name] == pytest.approx(measured[name], abs=1e-6)
        results = json.loads((run / "predictions" / "last-val-native" / "predictions.json").read_text())
        found = [
            result
            for k in range(len(images.names))
            for result in detections_to_results(task.predict(model, images.color(k)), k + 1, range(1, 99))
        ]
        assert results == found != []

    def test_corrected_labels_count_at_once(
        self, run: Path, images: PreparedImages, answers: dict[bytes, Detections], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Predictions are used again, the ground truth is not: here, one object an image is left."""
        before = evaluate(run)["scores"]["last"]
        folder = run / "predictions" / "last-val-native"
        stored, written = PreparedImages.instances, (folder / "predictions.json").stat().st_mtime_ns
        first = lambda self, k: Instances(*(part[:1] for part in stored(self, k)))  # noqa: E731
        monkeypatch.setattr(PreparedImages, "instances", first)
        assert evaluate(run)["scores"]["last"]["AP50"] != before["AP50"]
        assert (folder / "predictions.json").stat().st_mtime_ns == written
        truth = json.loads((folder / "truth.json").read_text())
        assert 0 < len(truth["annotations"]) <= len(images.names)

    @pytest.mark.thorough
    def test_truth_is_made_once_for_both_networks(self, run: Path, images: PreparedImages, monkeypatch) -> None:
        (run / "best.safetensors").write_bytes((run / "weights.safetensors").read_bytes())
        read, stored = [], PreparedImages.instances
        monkeypatch.setattr(PreparedImages, "instances", lambda self, k: read.append(k) or stored(self, k))
        assert list(evaluate(run)["scores"]) == ["last", "best"]
        assert read == list(range(len(images.names)))

    def test_validation_and_evaluation_detect_alike(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(DetectionMeter, "results", lambda self: [])
        evaluate(run)
        assert json.loads((run / "predictions" / "last-val-native" / "predictions.json").read_text()) == []

    def test_the_papers_protocol_leaves_weak_objects_out(self, run: Path, answers: dict[bytes, Detections]) -> None:
        assert evaluate(run)["scores"]["last"]["AP50"] > 0.3
        assert evaluate(run, protocol="paper")["scores"]["last"]["AP50"] == 0


class TestReuse:
    def count(self, run: Path, **options: object) -> int:
        before = Brightness.calls
        evaluate(run, **{"which": "last", **options})  # type: ignore[arg-type]
        return Brightness.calls - before

    def test_predictions_are_made_once(self, run: Path, images: PreparedImages, capsys) -> None:
        assert self.count(run) == len(images.names)
        assert self.count(run) == 0
        assert "reused" in capsys.readouterr().err

    def test_other_weights_data_or_size_are_predicted_anew(self, run: Path, images: PreparedImages) -> None:
        made = self.count(run)
        assert self.count(run, resolution="native") == made
        Brightness(images.class_names).save(Level(9), run / "weights.safetensors", {"size": "32x24"})
        assert self.count(run) == made
        assert self.count(run, split="train") > 0
        assert self.count(run) == 0

    def test_another_set_has_files_of_its_own(self, run: Path, images: PreparedImages, tmp_path: Path) -> None:
        own = evaluate(run, which="last")
        others = []
        for parent in ("some where", "b"):  # sets of one name
            (tmp_path / parent).mkdir()
            others.append(shutil.copytree(images.path, tmp_path / parent / "other"))
            evaluate(run, others[-1], which="last")
        made = {path.name for path in (run / "predictions").iterdir()}
        assert made == {"last-val-training", "last-val-training-some_where-other", "last-val-training-b-other"}
        assert json.loads((run / "evaluation.json").read_text())["data"] == own["data"]
        for name, path in zip(("some_where-other", "b-other"), others, strict=True):
            assert json.loads((run / f"evaluation-{name}.json").read_text())["data"] == str(path)
        before = sorted(run.iterdir())
        assert self.count(run, data=images.path) == 0  # the run's own, by name
        assert sorted(run.iterdir()) == before

    @pytest.mark.parametrize("name", ["predictions.zip", "record.json"])
    @pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
    def test_damaged_files_are_made_anew(self, run: Path, name: str, damage: str) -> None:
        made = self.count(run)
        good = evaluate(run, which="last")["scores"]
        path = run / "predictions" / "last-val-training" / name
        content = path.read_bytes()
        if damage == "cut":
            path.write_bytes(content[: len(content) // 2])
        elif damage == "changed":
            path.write_bytes(content.replace(b"\x89PNG", b"\x89PNg").replace(b'"weights": "', b'"weights": "0'))
        else:
            path.unlink()
        assert self.count(run) == made
        again = evaluate(run, which="last")["scores"]
        assert again["last"]["miou"] == good["last"]["miou"]

    @pytest.mark.parametrize("record", ["[]", "{}", "null", '{"files": 3}', '{"files": {"predictions.zip": null}}'])
    def test_a_record_of_anything_is_none(self, run: Path, record: str) -> None:
        made = self.count(run)
        (run / "predictions" / "last-val-training" / "record.json").write_text(record)
        assert self.count(run) == made

    def test_a_stopped_export_starts_again(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made = self.count(run)
        stored = Brightness.predict

        def stop(self: Brightness, model: Level, color: np.ndarray) -> np.ndarray:
            if Brightness.calls >= 2 * made - 1:
                raise KeyboardInterrupt
            return stored(self, model, color)

        path = run / "predictions" / "last-val-training" / "record.json"
        path.unlink()
        with monkeypatch.context() as patch:
            patch.setattr(Brightness, "predict", stop)
            with pytest.raises(KeyboardInterrupt):
                evaluate(run, which="last")
        assert not path.exists()
        assert self.count(run) == made
        assert sorted(p.name for p in path.parent.iterdir()) == ["predictions.zip", "record.json"]


class TestWhatIsScored:
    """Which set, which part of it, and as what it is opened."""

    class Stop(Exception):
        pass

    @pytest.mark.parametrize(
        ("facts", "options", "opened"),
        [
            ({}, {}, ("a", "val", None, None, False)),
            ({"dataset": "folder", "labels": "nyu13"}, {}, ("a", "val", "folder", "nyu13", False)),
            ({"val": "b"}, {}, ("b", "val", None, None, True)),
            ({"val": "b"}, {"split": "test"}, ("b", "test", None, None, True)),
            ({"val": "b"}, {"split": "train"}, ("a", "train", None, None, True)),
            ({"val": "b"}, {"split": "all"}, ("a", "all", None, None, True)),
            ({}, {"data": Path("b")}, ("b", "val", None, None, True)),
            ({}, {"data": Path("a")}, ("a", "val", None, None, False)),
            ({"dataset": "folder", "labels": "nyu13"}, {"data": Path("b")}, ("b", "val", None, "nyu13", True)),
            ({"labels": "nyu13"}, {"dataset": "nyuv2", "label_map": "nyu40"}, ("a", "val", "nyuv2", "nyu40", False)),
        ],
    )
    def test_set(self, run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, facts, options, opened) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        monkeypatch.chdir(tmp_path)
        write_run(run, Brightness(["x"]), {}, data="a", **facts)
        asked = []

        def note(*args: object) -> None:
            asked.append(args)
            raise self.Stop

        monkeypatch.setattr(evaluation, "open_labelled", note)
        with pytest.raises(self.Stop):
            evaluate(run, **options)
        assert asked == [(Path(opened[0]), *opened[1:])]

    def test_data_that_has_moved(self, run: Path, images: PreparedImages, tmp_path: Path) -> None:
        write_run(run, Brightness(["x"]), {}, data=str(tmp_path / "gone"))
        with pytest.raises(DataError, match=r"gone.*--data"):
            evaluate(run)
        assert evaluate(run, images.path, split="all")["images"] > 0

    def test_other_classes_are_refused(self, run: Path, tmp_path: Path) -> None:
        space = tmp_path / "space.yaml"
        space.write_text("classes: {floor: 1, lamps: 0}\n")
        with pytest.raises(DataError, match=r"the first alone has lamps; the second alone has wall, .* more\. Choose"):
            evaluate(run, label_map=str(space))

    def test_a_run_without_a_best_network_shows_its_last(self, run: Path, capsys) -> None:
        (run / "best.safetensors").unlink()
        assert list(evaluate(run)["scores"]) == ["last"]
        assert "no best network" in capsys.readouterr().err
        with pytest.raises(WeightsError, match="no best network"):
            evaluate(run, which="best")

    def test_what_is_no_run(self, run: Path, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match="no such folder"):
            evaluate(tmp_path / "none")
        with pytest.raises(WeightsError, match=r"several runs \(run\)"):
            evaluate(tmp_path)
        with pytest.raises(ConfigError, match="run's folder"):
            evaluate(run / "weights.safetensors")
        (tmp_path / "empty").mkdir()
        with pytest.raises(WeightsError, match=r"empty: has no weights\.safetensors\. Give the folder"):
            evaluate(tmp_path / "empty", which="last")

    @pytest.mark.parametrize("text", ["", "[]", "provenance: {}\nsettings: {}", "provenance: 3", "a: [", "\x00"])
    def test_a_damaged_config(self, run: Path, text: str) -> None:
        (run / "config.yaml").write_text(text)
        with pytest.raises(DataError, match=r"config\.yaml: (does not state|not the settings of a run)"):
            evaluate(run)

    @pytest.mark.parametrize("flag", ["which", "resolution", "protocol", "split"])
    def test_unknown_words(self, run: Path, flag: str) -> None:
        with pytest.raises(ConfigError, match="choose one of"):
            evaluate(run, **{flag: "other"})  # type: ignore[arg-type]

    def test_the_papers_protocol_is_of_objects(self, run: Path) -> None:
        with pytest.raises(ConfigError, match="instance segmentation"):
            evaluate(run, protocol="paper")


def test_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--which", "best", "--resolution", "native"]) == 0
    assert list(json.loads((run / "evaluation.json").read_text())["scores"]) == ["best"]
    assert main(["evaluate", str(run / "none")]) == 1
    assert "no such folder" in capsys.readouterr().err
