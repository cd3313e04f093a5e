"""What a run says of itself before it begins: exact counts, plain multiplication, and never in the way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from stores import FLAGS

from pri3d.api.prepare import prepare
from pri3d.preparation import estimate as estimate_module
from pri3d.preparation.estimate import COUNTED, SceneCost, combine, estimate
from pri3d.preparation.frames import Picked
from pri3d.preparation.pipeline import SceneJob, StoreSettings, open_cached
from pri3d.store import Store

SETTINGS = StoreSettings("40x30", None, 6.0, "paper", 0.3, 0.05, 0.05, True, True, None)


def picked(*counts: int, of: int = 1) -> list[Picked]:
    return [Picked(list(range(n)), n * of, f"one in {of}") for n in counts]


COST = SceneCost(frame=0.1, pair=0.002, scene=1.0, frame_bytes=60e3, scene_bytes=1e6)


def jobs_of(recording: Path, out: Path, **changed: Any) -> list[SceneJob]:
    open_cached.cache_clear()
    scenes = open_cached(recording, None, None).scenes
    return [SceneJob(recording, "rooms", None, scene, out, SETTINGS._replace(**changed)) for scene in scenes]


def test_the_figures_are_multiplied() -> None:
    found = combine(200, picked(10, 20), [COST, COST._replace(frame=0.3)], [])
    assert (found.scenes, found.counted, found.measured) == (200, 2, 2)
    assert found.frames == 100 * (10 + 20)
    assert found.pairs == 100 * (45 + 190)
    assert found.seconds == pytest.approx(3000 * 0.2 + 23500 * 0.002 + 200 * 1.0)
    assert found.bytes == pytest.approx(3000 * 60e3 + 200 * 1e6)


def test_what_is_said() -> None:
    found = combine(1201, picked(66) * 50, [COST] * 3, ["scene0001_00: cut off"])
    said = found.text(2)
    assert said.startswith(
        "to prepare: 1,201 scenes, about 79,266 frames, up to 2,576,145 pairs, about 6 GB, 1.2e+02 min"
    )
    assert "of 2 processes. Measured on 3 frames of 3, as if every pair were" in said
    assert "frames counted in 50 scenes. 1 could not be read, the first: scene0001_00: cut off" in said
    assert "minutes of one worker; divide by their number" in found.text(0)
    exact = combine(2, picked(6, 6), [], [])
    assert exact.text(1) == "to prepare: 2 scenes, 12 frames, up to 30 pairs."
    few = combine(2, picked(6, 6, of=4), [], [])
    assert few.text(1) == "to prepare: 2 scenes, 12 of 48 frames (one in 4), up to 30 pairs."
    assert (
        combine(3, [], [], ["a: lost"])
        .text(1)
        .endswith("up to 0 pairs; frames counted in 0 scenes. 1 could not be read, the first: a: lost")
    )


@pytest.mark.slow
@pytest.mark.thorough
def test_counts_are_exact_and_a_few_frames_are_measured(
    recording: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate_module, "_PATIENCE", float("inf"))  # a busy machine measures too
    found = estimate(jobs_of(recording, out), worth=1)
    assert (found.scenes, found.frames, found.pairs) == (2, 12, 30)
    assert found.measured == 2
    assert found.seconds > 0
    assert not out.exists()
    prepare([recording], out, **FLAGS)
    records = Store(out).manifest["scenes"].values()
    assert sum(record["frames"] for record in records) == found.frames
    assert sum(record["pairs"] for record in records) <= found.pairs
    assert 0.5 < found.bytes / sum(record["bytes"] for record in records) < 2


def test_the_step_and_finished_scenes_count(recording: Path, out: Path) -> None:
    assert estimate(jobs_of(recording, out, frame_step=4)).frames == 4
    assert estimate(jobs_of(recording, out)[1:]).scenes == 1
    assert estimate(jobs_of(recording, out)).measured == 0  # too few to be worth it


@pytest.mark.thorough
def test_a_damaged_scene_is_passed_over(recording: Path, out: Path) -> None:
    shutil.rmtree(recording / "room-0000" / "depth")
    (recording / "room-0000" / "depth").mkdir()
    found = estimate(jobs_of(recording, out), worth=1)
    assert found.measured == 1
    assert len(found.unreadable) == 1
    assert found.unreadable[0].startswith("room-0000: none of 3 frames is usable")
    assert found.seconds > 0


def test_nothing_can_be_read(recording: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise ZeroDivisionError("a reader's bug")

    monkeypatch.setattr(estimate_module, "open_scene", lost)
    found = estimate(jobs_of(recording, out), worth=1)
    assert (found.frames, found.measured, len(found.unreadable)) == (0, 0, 2)
    assert "2 could not be read, the first: room-0000: a reader's bug" in found.text(1)


@pytest.mark.thorough
def test_few_scenes_of_many_are_opened(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(estimate_module, "_pick", lambda job: opened.append(job.scene) or picked(30)[0])
    monkeypatch.setattr(estimate_module, "_measure", lambda job: opened.append(job.scene) or COST)
    found = estimate([SceneJob(out, None, None, f"scene{k}", out, SETTINGS) for k in range(10_000)])
    assert len(set(opened)) <= COUNTED + 6
    assert len(opened) == COUNTED + 4  # the first is measured twice
    assert (found.frames, found.counted, found.measured) == (300_000, COUNTED, 3)


def test_slow_scenes_end_the_measuring(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate_module, "_PATIENCE", -1.0)
    monkeypatch.setattr(estimate_module, "_pick", lambda job: picked(300)[0])
    monkeypatch.setattr(estimate_module, "_measure", lambda job: COST)
    assert estimate([SceneJob(out, None, None, f"scene{k}", out, SETTINGS) for k in range(9)]).measured == 1


@pytest.mark.slow
def test_dry_run_says_it_and_writes_nothing(recording: Path, out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepare([recording], out, **FLAGS, dry_run=True)
    assert not out.exists()
    said = capfd.readouterr().err
    assert "to prepare: 2 scenes, 12 frames, up to 30 pairs, about" in said
    assert "minutes of 1 process." in said
    prepare([recording], out, **FLAGS)
    assert "to prepare: 2 scenes, 12 frames, up to 30 pairs.\n" in capfd.readouterr().err
    prepare([recording], out, **FLAGS, dry_run=True)
    assert "nothing, every scene is prepared" in capfd.readouterr().err
