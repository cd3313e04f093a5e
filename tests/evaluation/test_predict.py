"""Images and folders -> masks, pictures, json: any kind of image, broken ones among good ones, stopped runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scored_runs import Brightness, Halves, Level, fakes, write_run

from pri3d.api.predict import predict
from pri3d.cli import main
from pri3d.drawing import palette
from pri3d.errors import ConfigError, DataError, WeightsError
from pri3d.evaluation import predict as predicting
from pri3d.labelled._shared.decoding import read_ids
from pri3d.labelled.convert import decode_mask

__all__ = ["fakes"]  # a fixture

NAMES = ["dark", "middle", "bright"]

#: a process that writes a folder until it is killed
WRITER = """
import sys, time
from pathlib import Path
from pri3d.files.lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("writes", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def semantic(tmp_path: Path, fakes: None) -> Path:
    return write_run(tmp_path / "semantic", Brightness(NAMES), {"last": Level(0), "best": Level(0)}, data="x")


@pytest.fixture
def instance(tmp_path: Path, fakes: None) -> Path:
    return write_run(tmp_path / "instance", Halves(NAMES), {"last": Level(0)}, data="x")


def photo(path: Path, value: int = 0, size: tuple[int, int] = (40, 30)) -> Path:
    """An image of one grey value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path)
    return path


def ramp() -> NDArray[np.uint8]:
    """Grey (30, 40): dark at the left, bright at the right; the first row is dark."""
    grey = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (30, 1))
    grey[0] = 0
    return grey


def files(out: Path) -> list[str]:
    return sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())


class TestSemantic:
    def test_files_of_one_image(self, semantic: Path, tmp_path: Path) -> None:
        source = tmp_path / "ramp.png"
        Image.fromarray(ramp()).save(source)
        out = predict(semantic, source, tmp_path / "out")
        assert files(out) == ["classes.json", "ramp.json", "ramp.png", "ramp_overlay.jpg"]
        expected = Brightness(NAMES).classes(np.repeat(ramp()[..., None], 3, 2))
        assert np.array_equal(read_ids(out / "ramp.png"), expected)
        with Image.open(out / "ramp.png") as image:
            shown = np.asarray(image.convert("RGB"))
        assert np.array_equal(shown, palette(NAMES)[expected])
        about = json.loads((out / "ramp.json").read_text())
        assert (about["image"], about["width"], about["height"]) == (str(source), 40, 30)
        shares = [(expected == k).mean() for k in range(3)]
        assert list(about["classes"].values()) == pytest.approx(shares, abs=1e-6)
        classes = json.loads((out / "classes.json").read_text())["classes"]
        assert [entry["name"] for entry in classes] == NAMES
        assert [entry["color"] for entry in classes] == palette(NAMES).tolist()
        with Image.open(out / "ramp_overlay.jpg") as image:
            assert image.width >= 640

    @pytest.mark.parametrize("kind", ["rotated", "grey", "alpha", "bits16", "palette", "bilevel", "cmyk"])
    def test_any_kind_of_image(self, semantic: Path, tmp_path: Path, kind: str) -> None:
        grey = ramp()
        source = tmp_path / f"{kind}.{'jpg' if kind in ('rotated', 'cmyk') else 'png'}"
        image = Image.fromarray(grey)
        if kind == "rotated":  # stored with its top at the left: turned clockwise to be upright
            exif = Image.Exif()
            exif[0x0112] = 6
            image.rotate(90, expand=True).convert("RGB").save(source, exif=exif, quality=100)
        elif kind == "bits16":
            Image.fromarray(grey.astype(np.uint16) * 257).save(source)
        elif kind == "alpha":
            image.convert("RGBA").save(source)
        else:
            image.convert({"grey": "L", "palette": "P", "bilevel": "1", "cmyk": "CMYK"}[kind]).save(source)
        predict(semantic, source, tmp_path / "out")
        found = read_ids(tmp_path / "out" / f"{kind}.png")
        assert found.shape == (30, 40)
        expected = Brightness(NAMES).classes(np.repeat(grey[..., None], 3, 2))
        if kind == "bilevel":
            assert set(np.unique(found)) == {0, 2}
        else:
            assert (found == expected).mean() > 0.95

    def test_transparent_is_white(self, semantic: Path, tmp_path: Path) -> None:
        Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "clear.png")
        predict(semantic, tmp_path / "clear.png", tmp_path / "out")
        assert (read_ids(tmp_path / "out" / "clear.png") == 2).all()


class TestInstance:
    def test_objects_are_cocos(self, instance: Path, tmp_path: Path) -> None:
        out = predict(instance, photo(tmp_path / "a.jpg"), tmp_path / "out", threshold=0.2)
        assert files(out) == ["a.json", "a_overlay.jpg", "classes.json"]
        first, second = json.loads((out / "a.json").read_text())["objects"]
        assert (first["class"], first["category_id"], first["score"]) == ("bright", 3, 0.9)
        assert (first["bbox"], first["area"]) == ([0, 0, 20, 30], 600)
        assert second["class"] == "dark"
        mask = decode_mask(second["segmentation"], (30, 40), "a")
        assert mask[:15].all()
        assert not mask[15:].any()
        assert [entry["id"] for entry in json.loads((out / "classes.json").read_text())["classes"]] == [1, 2, 3]

    def test_weak_objects_are_left_out(self, instance: Path, tmp_path: Path) -> None:
        source = photo(tmp_path / "a.jpg")
        for threshold, count in ((0.9, 1), (0.95, 0)):
            out = predict(instance, source, tmp_path / f"out{threshold}", threshold=threshold)
            assert len(json.loads((out / "a.json").read_text())["objects"]) == count

    def test_threshold_is_a_score(self, instance: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="--threshold 50"):
            predict(instance, photo(tmp_path / "a.jpg"), threshold=50)

    def test_of_objects_alone(self, semantic: Path, instance: Path, tmp_path: Path) -> None:
        source = photo(tmp_path / "a.jpg")
        with pytest.raises(ConfigError, match=r"--threshold 0\.5: .*Leave it out"):
            predict(semantic, source, tmp_path / "out", threshold=0.5)
        assert not (tmp_path / "out").exists()
        out = predict(instance, source, tmp_path / "out")  # 0.5 where nothing is said
        assert len(json.loads((out / "a.json").read_text())["objects"]) == 1
        predict(instance, source, out, threshold=0.5)


class TestFolder:
    def test_subfolders_and_like_names_stay_apart(self, semantic: Path, tmp_path: Path) -> None:
        places = ["a.jpg", "a.png", "sub/a.png", "sub/b.tif", "classes.png", "b.c.png", ".hidden/a.png", ".a.png"]
        for k, place in enumerate(places):
            photo(tmp_path / "in" / place, 30 * k)
        (tmp_path / "in" / "notes.txt").write_text("x")
        out = predict(semantic, tmp_path / "in", tmp_path / "out")
        names = ["a.jpg", "a.png", "b.c", "classes.png", "sub/a", "sub/b"]
        expected = [f"{name}{ending}" for name in names for ending in (".json", ".png", "_overlay.jpg")]
        assert files(out) == sorted([*expected, "classes.json"])
        sources = {json.loads((out / f"{name}.json").read_text())["image"] for name in names}
        assert sources == {str(tmp_path / "in" / place) for place in places[:6]}

    def test_own_results_are_no_images(self, semantic: Path, tmp_path: Path) -> None:
        photo(tmp_path / "a.png")
        out = tmp_path / "predictions"
        predict(semantic, tmp_path, out)
        before = files(out)
        predict(semantic, tmp_path, out, overwrite=True)
        assert files(out) == before
        with pytest.raises(ConfigError, match="folder of the images"):
            predict(semantic, tmp_path, tmp_path)

    def test_every_so_many(self, semantic: Path, tmp_path: Path) -> None:
        for k in range(5):
            photo(tmp_path / "in" / f"{k}.png")
        out = predict(semantic, tmp_path / "in", tmp_path / "out", frame_step=2)
        assert [name for name in files(out) if name[0].isdigit() and name.endswith("json")] == [
            "0.json",
            "2.json",
            "4.json",
        ]
        with pytest.raises(ConfigError, match="--frame-step 0"):
            predict(semantic, tmp_path / "in", tmp_path / "out", frame_step=0)

    def test_a_broken_image_costs_only_itself(self, semantic: Path, tmp_path: Path, capsys) -> None:
        for name in ("a", "b", "c"):
            photo(tmp_path / "in" / f"{name}.png")
        cut = tmp_path / "in" / "b.png"
        cut.write_bytes(cut.read_bytes()[:60])
        words = ["predict", str(semantic), str(tmp_path / "in"), "--out", str(tmp_path / "out")]
        assert main(words) == 1
        text = capsys.readouterr().err
        assert "1 of 3 failed" in text
        assert "b.png" in text
        assert {"a.json", "c.json"} <= set(files(tmp_path / "out"))
        photo(cut)
        assert main(words) == 0
        assert "b.json" in files(tmp_path / "out")

    def test_pictures_that_are_predicted_together_are_those_of_one(
        self, semantic: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of several sizes, one of them broken and one done before; groups of three as a GPU has them of eight."""
        for k, size in enumerate(((40, 30), (40, 30), (30, 40), (40, 30), (20, 20))):
            photo(tmp_path / "in" / f"{k}.png", 60 * k, size)
        (tmp_path / "in" / "2b.png").write_bytes(b"cut")
        for out, most in (("alone", 1), ("together", 3)):
            monkeypatch.setattr(predicting, "prediction_batch", lambda _model, most=most: most)
            if most > 1:
                predict(semantic, tmp_path / "in" / "1.png", tmp_path / out)
            with pytest.raises(DataError, match="1 of 6"):
                predict(semantic, tmp_path / "in", tmp_path / out)
        assert files(tmp_path / "alone") == files(tmp_path / "together")
        for name in files(tmp_path / "alone"):
            assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "together" / name).read_bytes(), name

    def test_videos_are_counted(self, semantic: Path, tmp_path: Path, capsys) -> None:
        photo(tmp_path / "in" / "a.png")
        predict(semantic, tmp_path / "in", tmp_path / "in" / "out")
        assert "left out" not in capsys.readouterr().err
        for name in ("b.mp4", "sub/c.MOV", ".hidden/d.mp4", "out/e.mp4"):
            (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "in" / name).write_bytes(b"x")
        predict(semantic, tmp_path / "in", tmp_path / "in" / "out")
        assert "skipped: 1 .mov, 1 .mp4. Give a video" in capsys.readouterr().err

    def test_nothing_to_predict(self, semantic: Path, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        with pytest.raises(DataError, match="holds no image"):
            predict(semantic, tmp_path / "in", tmp_path / "out")
        with pytest.raises(DataError, match="no such file or folder"):
            predict(semantic, tmp_path / "none", tmp_path / "out")


class TestAgain:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        for name in ("a", "b"):
            photo(tmp_path / "in" / f"{name}.png")
        return tmp_path / "in"

    def test_what_is_there_is_skipped(self, semantic: Path, source: Path, tmp_path: Path) -> None:
        out = predict(semantic, source, tmp_path / "out")
        assert Brightness.calls == 2
        photo(source / "c.png")
        (out / "a.json").unlink()
        (out / "b.json").write_text("{")
        predict(semantic, source, out)
        assert Brightness.calls == 5
        predict(semantic, source, out, overwrite=True)
        assert Brightness.calls == 8

    def test_other_weights_or_thresholds_are_refused(self, instance: Path, source: Path, tmp_path: Path) -> None:
        out = predict(instance, source, tmp_path / "out")
        with pytest.raises(ConfigError, match=r"other settings: threshold was 0\.5, now 0\.7\. .*--overwrite"):
            predict(instance, source, out, threshold=0.7)
        Halves(NAMES).save(Level(3), instance / "weights.safetensors", {})
        with pytest.raises(ConfigError, match=r"weights was '.*, now '.*; threshold was 0\.5, now 0\.7\. "):
            predict(instance, source, out, threshold=0.7)
        predict(instance, source, out, overwrite=True)
        predict(instance, source, out)

    def test_another_task_is_refused(self, semantic: Path, instance: Path, source: Path, tmp_path: Path) -> None:
        out = predict(instance, source, tmp_path / "out")
        with pytest.raises(ConfigError, match=r"other settings: task was 'instance', now 'semantic'; "):
            predict(semantic, source, out)

    def test_a_stopped_overwriting_leaves_nothing_old_behind(
        self, semantic: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = predict(semantic, source, tmp_path / "out")
        Brightness(NAMES).save(Level(255), semantic / "best.safetensors", {})
        stored = Brightness.predict

        def stop(self: Brightness, model: Level, color: NDArray[np.uint8]) -> NDArray[np.uint8]:
            if Brightness.calls == 3:
                raise KeyboardInterrupt
            return stored(self, model, color)

        with monkeypatch.context() as patch:
            patch.setattr(Brightness, "predict", stop)
            with pytest.raises(KeyboardInterrupt):
                predict(semantic, source, out, overwrite=True)
        predict(semantic, source, out)
        assert Brightness.calls == 4
        assert all((read_ids(out / f"{name}.png") == 2).all() for name in ("a", "b"))

    def test_another_image_of_the_name_is_not_lost(self, semantic: Path, source: Path, tmp_path: Path) -> None:
        out = predict(semantic, source, tmp_path / "out")
        other = photo(tmp_path / "other" / "a.png", 255)
        with pytest.raises(DataError, match="Choose another --out"):
            predict(semantic, other, out)
        assert (read_ids(out / "a.png") == 0).all()

    def test_one_process_at_a_time(
        self, semantic: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out, stored = tmp_path / "out", Brightness.predict
        words = [sys.executable, "-c", WRITER, str(out)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None and other.stdout.readline() == "writes\n"
            with pytest.raises(ConfigError, match=rf"out: process {other.pid} on .* has been writing there since"):
                predict(semantic, source, out)
            assert files(out) == [".lock"]
            other.kill()
        held: list[int] = []

        def look(self: Brightness, model: Level, color: NDArray[np.uint8]) -> NDArray[np.uint8]:
            held.append(json.loads((out / ".lock").read_text())["pid"])
            return stored(self, model, color)

        monkeypatch.setattr(Brightness, "predict", look)
        predict(semantic, source, out)  # the other was killed: its lock is taken over
        assert held == [os.getpid()] * 2
        assert not list(out.glob(".lock*"))

    def test_a_damaged_class_list(self, semantic: Path, source: Path, tmp_path: Path) -> None:
        out = predict(semantic, source, tmp_path / "out")
        (out / "classes.json").write_text("{")
        with pytest.raises(ConfigError, match=r"classes\.json.*--overwrite"):
            predict(semantic, source, out)
        (out / "classes.json").write_text("[]")
        with pytest.raises(ConfigError, match="another"):
            predict(semantic, source, out)


class TestNetwork:
    def test_best_else_last_or_a_file(self, semantic: Path, tmp_path: Path, capsys) -> None:
        source = photo(tmp_path / "a.png")
        Brightness(NAMES).save(Level(255), semantic / "best.safetensors", {})
        last = semantic / "weights.safetensors"
        for k, (run, options, expected) in enumerate(
            [
                (semantic, {}, 2),
                (semantic, {"which": "last"}, 0),
                (last, {}, 0),
                (semantic / "best.safetensors", {}, 2),
            ]
        ):
            out = predict(run, source, tmp_path / f"out{k}", **options)
            assert (read_ids(out / "a.png") == expected).all()
        (semantic / "best.safetensors").unlink()
        out = predict(semantic, source, tmp_path / "out")
        assert (read_ids(out / "a.png") == 0).all()
        assert "no best network" in capsys.readouterr().err

    def test_no_network(self, tmp_path: Path) -> None:
        source = photo(tmp_path / "a.png")
        with pytest.raises(WeightsError, match="no such folder"):
            predict(tmp_path / "none", source, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_command_line(instance: Path, tmp_path: Path) -> None:
    source = photo(tmp_path / "a.png")
    words = [str(instance), str(source), "--out", str(tmp_path / "out"), "--threshold", "0.1"]
    assert main(["predict", *words]) == 0
    assert main(["predict", *words, "--overwrite", "--which", "last"]) == 0
    assert len(json.loads((tmp_path / "out" / "a.json").read_text())["objects"]) == 2
