"""Preparing into a store that is there: what is kept, what is added, and every change that is noticed."""

from __future__ import annotations

import shutil
import time
from copy import copy
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from stores import FLAGS, stamps

from pri3d.api.prepare import prepare
from pri3d.errors import ConfigError, DataError
from pri3d.files.lock import LOCK, lock_folder
from pri3d.preparation import pipeline as pipeline_module
from pri3d.preparation.pipeline import Opened, SceneJob, StoreSettings, open_cached, stated_cameras
from pri3d.recordings import ChangedRecording, CorrectedScene, Recording
from pri3d.recordings._shared.correction import parse_correction
from pri3d.recordings._shared.scenes import FrameList, LazyScene
from pri3d.store import SceneWriter, Store

pytestmark = pytest.mark.thorough  # but for those that say quick


def test_twice_touches_nothing(recording: Path, out: Path) -> None:
    prepare([recording], out, **FLAGS)
    before = stamps(out)
    prepare([recording], out, **FLAGS)
    assert stamps(out) == before


def test_more_recordings_can_be_added(recording: Path, out: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    more.mkdir()
    shutil.move(recording / "room-0001", more / "room-0001")
    shutil.copy(recording / "rooms.json", more)
    prepare([recording], out, **FLAGS)
    assert Store(out).scenes == ["room-0000"]
    first = stamps(out / "scenes" / "room-0000")
    prepare([more], out, **FLAGS)
    assert Store(out).scenes == ["room-0000", "room-0001"]
    assert set(Store(out).pairs().scene.tolist()) == {"room-0000", "room-0001"}
    assert stamps(out / "scenes" / "room-0000") == first


def test_other_settings_are_refused(recording: Path, out: Path) -> None:
    prepare([recording], out, **FLAGS)
    wanted = r"out: was made with other settings: min_overlap was 0\.05, now 0\.5\. Choose another OUT"
    with pytest.raises(ConfigError, match=wanted):
        prepare([recording], out, **FLAGS, min_overlap=0.5)


def test_another_source_of_the_same_id_is_refused(recording: Path, out: Path, tmp_path: Path) -> None:
    prepare([recording], out, **FLAGS)
    other = shutil.copytree(recording, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"room-0000 comes from .*rooms, now .*other"):
        prepare([other], out, **FLAGS)
    with pytest.raises(DataError, match=r"room-0000 is in .*rooms and in .*other"):
        prepare([recording, other], tmp_path / "both", **FLAGS)
    shutil.rmtree(other)


def test_a_recording_that_grew_is_noticed(recording: Path, out: Path) -> None:
    room = recording / "room-0001"
    prepare([recording], out, **FLAGS)
    for part, suffix in (("color", "jpg"), ("depth", "png"), ("pose", "txt")):
        shutil.copy(room / part / f"000000.{suffix}", room / part / f"000006.{suffix}")
    with pytest.raises(ConfigError, match="room-0001 was made of 6, now 7"):
        prepare([recording], out, **FLAGS)


def test_a_path_may_be_written_in_many_ways(
    recording: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare([Path("rooms")], Path("out"), **FLAGS)
    before = stamps(out)
    monkeypatch.chdir(recording)
    for path in (Path(), recording, Path("room-0000") / ".."):
        prepare([path], out, **FLAGS)
    assert stamps(out) == before


@pytest.mark.slow
@pytest.mark.parametrize("where", ["room-0001", "."])
def test_edited_cameras_are_noticed(recording: Path, out: Path, where: str) -> None:
    if where == ".":  # one file for all scenes
        shutil.copy(recording / "room-0000" / "cameras.yaml", recording)
        for room in ("room-0000", "room-0001"):
            (recording / room / "cameras.yaml").unlink()
    prepare([recording], out, **FLAGS)
    path = recording / where / "cameras.yaml"
    path.write_text(path.read_text().replace("depth_scale: 0.001", "depth_scale: 0.00101"))
    scene, name = ("room-0001", "room-0001/cameras.yaml") if where != "." else ("room-0000", "cameras.yaml")
    with pytest.raises(ConfigError, match=rf"scene {scene} was made with other cameras: {name} of .*rooms has changed"):
        prepare([recording], out, **FLAGS)
    if where != ".":
        shutil.rmtree(out / "scenes" / "room-0001")  # the remedy; the other scene stays
        kept = stamps(out / "scenes" / "room-0000")
        prepare([recording], out, **FLAGS)
        assert stamps(out / "scenes" / "room-0000") == kept


def test_which_file_states_the_cameras(tmp_path: Path) -> None:
    scenes = ("kitchen/seq-01", "kitchen/seq-02", "office/seq-01", "kitchen-seq")
    for folder in scenes:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "frame-000000.color.png").touch()

    def stated(cameras: Path | None = None) -> list[str]:
        settings = StoreSettings("40x30", 1, 6.0, "paper", 0.3, 0.02, 0.02, True, True, None)
        open_cached.cache_clear()
        jobs = [SceneJob(tmp_path, None, cameras, s.replace("/", "-"), tmp_path, settings) for s in scenes]
        return ["".join(stated_cameras(job)).removesuffix("/cameras.yaml") for job in jobs]

    assert stated() == [""] * 4
    matrix, camera = "500 0 320 0 500 240 0 0 1", "color: {fx: 500, fy: 500, cx: 320, cy: 240}"
    (tmp_path / "camera-intrinsics.txt").write_text(matrix)
    (tmp_path / "kitchen/seq-01/camera-intrinsics.txt").write_text(matrix)
    assert stated() == ["kitchen/seq-01/camera-intrinsics.txt", *["camera-intrinsics.txt"] * 3]
    (tmp_path / "kitchen/cameras.yaml").write_text(camera)
    assert stated() == ["kitchen", "kitchen", "camera-intrinsics.txt", "camera-intrinsics.txt"]
    (tmp_path / "kitchen/seq-01/cameras.yaml").write_text(camera)
    assert stated() == ["kitchen/seq-01", "kitchen", "camera-intrinsics.txt", "camera-intrinsics.txt"]
    assert stated(tmp_path / "kitchen/cameras.yaml") == [""] * 4


def test_a_run_at_the_same_time_is_noticed(recording: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = SceneWriter.finish

    def raced(self: SceneWriter, *args: Any) -> Any:
        if self.target.name == "room-0001":
            shutil.copytree(out / "scenes" / "room-0000", self.target)
        return finish(self, *args)

    monkeypatch.setattr(SceneWriter, "finish", raced)
    with pytest.raises(DataError, match=r"room-0001: was created by another process during this command\. Wait"):
        prepare([recording], out, **FLAGS)
    assert sorted(p.name for p in (out / "scenes").iterdir()) == ["room-0000", "room-0001"]
    store = Store(out)
    assert store.scenes == ["room-0000", "room-0001"]
    assert store.manifest["failed"] == {}


@pytest.mark.slow
def test_one_run_at_a_time_writes_a_store(recording: Path, out: Path) -> None:
    """A second one names the first; once that is killed, the next continues."""

    def stuck(*_: Any) -> None:
        time.sleep(60)

    def child() -> None:
        SceneWriter.add = stuck  # type: ignore[method-assign]
        prepare([recording], out, **FLAGS)

    process = get_context("fork").Process(target=child)
    process.start()
    while not (out / LOCK).exists():
        time.sleep(0.05)
    with pytest.raises(ConfigError, match=rf"out: process {process.pid} on .* has been writing there since"):
        prepare([recording], out, **FLAGS)
    process.kill()
    process.join()
    prepare([recording], out, **FLAGS)
    assert Store(out).scenes == ["room-0000", "room-0001"]
    assert not (out / LOCK).exists()


def test_a_finished_store_may_lie_where_nobody_can_write(recording: Path, out: Path) -> None:
    prepare([recording], out, **FLAGS)
    before = Store(out).hash
    with lock_folder(out):  # nothing to write, nothing to wait for
        prepare([recording], out, **FLAGS)
    assert Store(out).hash == before


@pytest.mark.parametrize("correct", ["", "depth=1.5"])
def test_what_a_scene_reads_goes_with_it(correct: str, tmp_path: Path) -> None:
    """A recording stays open for thousands of scenes."""
    opened: list[str] = []

    class OneRoom(Recording):
        def scenes(self) -> list[LazyScene]:
            return [LazyScene("room", lambda: opened.append("room") or FrameList(["0"], lambda name: None))]

    recording: Recording = OneRoom()
    if correct:
        recording = ChangedRecording(recording, lambda scene: CorrectedScene(scene, parse_correction(correct)))
    scenes = {scene.id: scene for scene in recording.scenes()}
    for _ in range(2):
        assert len(copy(scenes["room"]).names) == 1
    assert len(opened) == 2
    assert len(scenes["room"].names) == len(scenes["room"].names) == 1
    assert len(opened) == 3


def test_thousands_of_files_with_cameras_take_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each scene has one, and only its own is looked at."""
    names = [f"scan-{k:04d}-a" for k in range(500)]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "cameras.yaml").write_text(name)
    asked: list[Path] = []
    holds = pipeline_module._holds
    monkeypatch.setattr(pipeline_module, "_holds", lambda *given: asked.append(given[1]) or holds(*given))
    opened = Opened("folder", None, {}, pipeline_module._camera_files(tmp_path))  # type: ignore[arg-type]
    monkeypatch.setattr(pipeline_module, "open_job", lambda job: opened)
    settings = StoreSettings("40x30", 1, 6.0, "paper", 0.3, 0.02, 0.02, True, True, None)
    for name in names:
        assert list(stated_cameras(SceneJob(tmp_path, None, None, name, tmp_path, settings))) == [
            f"{name}/cameras.yaml"
        ]
    assert len(asked) == len(names)
