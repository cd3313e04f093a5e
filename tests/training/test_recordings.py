"""Pre-training on recordings: prepared into the cache once, by one process, and refused with advice."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import finish, start
from small import SMALLER, same

import pri3d
from flat import pretrain
from pri3d.api.prepare import prepare
from pri3d.api.rooms import rooms
from pri3d.cli import main
from pri3d.errors import ConfigError, DataError
from pri3d.recordings import open_recording
from pri3d.runs import RunPaths
from pri3d.store import MANIFEST, Store, read_manifest, write_manifest
from pri3d.training import pretrain as prepared
from pri3d.training.pretrain import cache_folder

pytestmark = pytest.mark.thorough  # but for those that say quick

SIZE = "160x120"  # large enough for the 2 cm of the default


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recording") / "my rooms"
    rooms(folder, rooms=1, frames=5, size=SIZE, processes=1)
    for mesh in folder.rglob("mesh.ply"):  # it is larger than what the frames see
        mesh.unlink()
    return folder


@pytest.fixture(scope="module")
def pristine_store(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("store") / "out"
    prepare([pristine], out)
    return out


@pytest.fixture
def recording(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / pristine.name))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRI3D_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run_small(data: Any, run: Path, **options: object) -> Path:
    return pretrain(data, run=run, **{**SMALLER, **options}).path


@pytest.mark.slow
def test_a_recording_is_prepared_once_and_trained_on(
    recording: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_small(recording, tmp_path / "first")
    out = cache_folder(recording)
    assert out.parent == cache / "prepared"
    assert out.name.startswith("my_rooms-")
    assert str(out) in capsys.readouterr().err
    made = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    second = run_small(data=recording, run=tmp_path / "second")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")} == made
    stored = run_small(out, tmp_path / "third")
    assert same(first / "weights.safetensors", second / "weights.safetensors")
    assert same(first / "weights.safetensors", stored / "weights.safetensors")
    assert yaml.safe_load((first / "config.yaml").read_text())["provenance"]["data"] == str(out)
    with pytest.raises(ConfigError, match="already holds a run"):
        run_small(recording, tmp_path / "first")
    assert run_small(recording, tmp_path / "first", resume=True) == first


def test_stopped_preparations_go_on(recording: Path, pristine_store: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(pristine_store, cache_folder(recording)))
    shutil.rmtree(out)
    prepare([recording], out)
    write_manifest(out, {**read_manifest(out), "state": "unfinished"})
    run_small(recording, tmp_path / "run")
    assert Store(out).scenes == Store(pristine_store).scenes


def test_a_changed_recording_is_refused(recording: Path, tmp_path: Path) -> None:
    run_small(recording, tmp_path / "run")
    room = recording / "room-0000"
    for part in room.glob("*/000004.*"):
        part.unlink()
    with pytest.raises(ConfigError, match=r"room-0000 was made of 5, now 4. Delete .*my_rooms-"):
        run_small(recording, tmp_path / "again")


def test_recordings_and_stores_mix_with_weights(
    recording: Path, rooms_store: Path, cache: Path, tmp_path: Path
) -> None:
    run = run_small([Path(f"{recording}:0.5"), rooms_store], tmp_path / "run")
    stated = yaml.safe_load((run / "config.yaml").read_text())["provenance"]["data"]
    assert stated == f"{cache_folder(recording)}:1 {rooms_store}:2"


def test_stores_alone_touch_no_cache(rooms_store: Path, cache: Path, tmp_path: Path) -> None:
    run = run_small([rooms_store], tmp_path / "run")
    assert RunPaths(run).weights.exists()
    assert not cache.exists()


def test_the_cache_is_where_the_environment_says(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PRI3D_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder(recording).parent == tmp_path / "xdg" / "pri3d" / "prepared"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder(recording).parent == tmp_path / "home" / ".cache" / "pri3d" / "prepared"
    link = tmp_path / "link"
    link.symlink_to(recording)
    assert cache_folder(link) == cache_folder(recording)
    other = shutil.copytree(recording, tmp_path / "elsewhere" / recording.name)
    assert cache_folder(Path(other)) != cache_folder(recording)


def test_neither_store_nor_recording_names_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").touch()
    with pytest.raises(DataError, match=r"no dataset\.json\) nor a recording.*diary\.txt[^$]*rooms\.json"):
        run_small(tmp_path / "notes", tmp_path / "run")
    with pytest.raises(
        DataError, match=r"no such file or folder\. Give a folder that `pri3d prepare` wrote, or a reco"
    ):
        run_small(tmp_path / "absent", tmp_path / "run")
    assert main(["pretrain", str(tmp_path / "notes")]) == 1
    assert capsys.readouterr().err.startswith("error: neither a prepared dataset")


def test_a_recording_of_two_formats_says_how_to_go_on(recording: Path, tmp_path: Path) -> None:
    for part in ("color.png", "depth.png", "pose.txt"):
        (recording / f"frame-000000.{part}").touch()
    with pytest.raises(ConfigError, match=r"several recording formats \(rooms, sevenscenes\).*--reader rooms, and"):
        run_small(recording, tmp_path / "run")


def test_wrong_settings_are_told_before_anything_is_prepared(recording: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.yaml").touch()
    with pytest.raises(ConfigError, match=r"2 problems found[^$]*--steps 0[^$]*already holds a run"):
        run_small(recording, tmp_path / "taken", steps=0)
    with pytest.raises(ConfigError, match="unknown option --stepps, did you mean --steps"):
        pri3d.pretrain(recording, run=tmp_path / "run", stepps=3)  # type: ignore[call-arg]
    assert not cache.exists()


def lose_poses(scene: Path) -> None:
    for pose in (scene / "pose").iterdir():
        pose.write_text("nan " * 16)


def test_faults_are_told_with_what_to_do(recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lose_poses(recording / "room-0000")
    with pytest.raises(DataError, match=r"has errors: frames unusable[^$]*Run `pri3d prepare .*my rooms OUT`"):
        run_small(recording, tmp_path / "run")
    assert "tracking was lost" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert not cache_folder(recording).exists()


@pytest.mark.slow
def test_a_scene_that_cannot_be_prepared_stops_it(recording: Path, tmp_path: Path) -> None:
    """The check looks at the first scene alone; the next call goes on with what is there and does not check again."""
    shutil.copytree(recording / "room-0000", recording / "room-0001")
    lose_poses(recording / "room-0001")
    with pytest.raises(DataError, match=r"1 of 2 scenes failed[^$]*tracking was lost"):
        run_small(recording, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    shutil.rmtree(recording / "room-0001")
    lose_poses(recording / "room-0000")
    run_small(recording, tmp_path / "run")


class TestOtherProcesses:
    @pytest.fixture(autouse=True)
    def second(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """This is the second of two processes, which only shows the data it would train on."""
        for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": 2, "WORLD_SIZE": 2, "RANK": 1}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(prepared, "pretrain_prepared", lambda call: call.data)
        monkeypatch.setattr(prepared, "_PAUSE", 0.01)

    def data(self, recording: Path) -> Any:
        return pretrain(recording, run=recording / "run", **SMALLER)

    def test_wait_for_a_finished_store_of_all_scenes(
        self, recording: Path, pristine_store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = Path(shutil.copytree(pristine_store, cache_folder(recording)))
        manifest = read_manifest(out)
        states = [{**manifest, "scenes": {}}, {**manifest, "state": "unfinished"}, manifest]
        looks: list[str] = []

        def sleep(_seconds: float) -> None:
            looks.append(read_manifest(out)["state"])
            write_manifest(out, states[len(looks)])

        write_manifest(out, states[0])  # of an earlier run, before this scene was recorded
        monkeypatch.setattr(prepared.time, "sleep", sleep)
        assert self.data(recording) == [out]
        assert looks == ["finished", "unfinished"]

    def test_give_up_with_advice(self, recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prepared, "PATIENCE", 0.05)
        with pytest.raises(DataError, match=r"no scene has come for 0.05 seconds. Is PRI3D_CACHE a folder that all"):
            self.data(recording)

    def test_wait_while_scenes_come(self, recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The clock begins anew with every scene."""
        monkeypatch.setattr(prepared, "PATIENCE", 2.5)
        clock, counts = iter(range(100)), iter([0, 1, 1, 2, 3])
        out = cache_folder(recording)
        out.mkdir(parents=True)
        (out / MANIFEST).touch()
        scenes = [scene.id for scene in open_recording(recording).scenes()]
        states = iter(["unfinished"] * 5 + ["finished"])
        monkeypatch.setattr(prepared.time, "monotonic", lambda: next(clock))
        monkeypatch.setattr(prepared, "finished_scenes", lambda _out: range(next(counts)))
        monkeypatch.setattr(prepared, "read_manifest", lambda _out: {"state": next(states), "scenes": scenes})
        monkeypatch.setattr(prepared, "_PAUSE", 0)
        assert self.data(recording) == [out]

    def test_leave_a_run_folder_alone_that_the_first_has_begun(self, recording: Path, pristine_store: Path) -> None:
        out = shutil.copytree(pristine_store, cache_folder(recording))
        (recording / "run").mkdir()
        (recording / "run" / "config.yaml").touch()
        assert self.data(recording) == [Path(out)]

    def test_prepare_nothing_themselves(self, recording: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def first() -> None:
            prepare([recording], cache_folder(recording))

        thread = threading.Thread(target=first)
        thread.start()
        monkeypatch.setattr(prepared, "prepare", lambda *_: pytest.fail("prepared"))
        assert self.data(recording) == [cache_folder(recording)]
        thread.join()


@pytest.mark.slow
def test_two_processes_train_on_a_recording(recording: Path, cache: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {**SMALLER, "encoder": "resnet18"}
    output = finish(start(recording, tmp_path / "run", 2, {"PRI3D_CACHE": str(cache)}, **options))
    assert output.count("a recording; its prepared dataset is") == 1
    assert RunPaths(tmp_path / "run").weights.exists()
