"""Rooms on disk: complete or absent, resumable, the same from any number of processes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh

from pri3d.api.rooms import rooms
from pri3d.errors import ConfigError, DataError
from pri3d.files.atomic import temporary
from pri3d.worlds import write
from pri3d.worlds.render import render_room
from pri3d.worlds.room import CLASS_NAMES, build_room

SMALL = {"frames": 2, "size": "32x24"}


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rooms") / "out"
    rooms(out, rooms=2, processes=1, **SMALL)
    return out


def test_layout(written: Path) -> None:
    assert sorted(p.name for p in written.iterdir()) == ["room-0000", "room-0001", "rooms.json"]
    files = {str(p.relative_to(written / "room-0000")) for p in (written / "room-0000").rglob("*") if p.is_file()}
    frames = {f"{part}/00000{k}.png" for part in ("depth", "label", "instance") for k in (0, 1)}
    frames |= {f"color/00000{k}.jpg" for k in (0, 1)} | {f"pose/00000{k}.txt" for k in (0, 1)}
    assert files == frames | {"cameras.yaml", "classes.txt", "mesh.ply"}
    stated = json.loads((written / "rooms.json").read_text())
    assert stated["class_names"] == list(CLASS_NAMES)
    assert stated["seed"] == 0


@pytest.mark.slow
def test_two_processes_write_the_same_as_one(written: Path, tmp_path: Path) -> None:
    rooms(tmp_path / "out", rooms=2, processes=2, **SMALL)
    assert digest(tmp_path / "out") == digest(written)


def test_split_that_starts_later_holds_the_same_room(written: Path, tmp_path: Path) -> None:
    rooms(tmp_path / "out", rooms=1, first=1, processes=1, **SMALL)
    assert digest(tmp_path / "out" / "room-0001") == digest(written / "room-0001")


def test_finished_rooms_are_kept_and_broken_ones_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    rooms(out, rooms=2, processes=1, **SMALL)
    before = digest(out)
    with monkeypatch.context() as patch:  # what a killed run leaves behind
        patch.setattr("os.getpid", lambda: 2**22 + 1)  # beyond the largest process number
        (out / "room-0001").rename(temporary(out / "room-0001"))
    marker = out / "room-0000" / "kept"
    marker.touch()
    rooms(out, rooms=2, processes=1, **SMALL)
    assert marker.exists()
    marker.unlink()
    assert digest(out) == before


def test_a_run_at_the_same_time_is_noticed_and_keeps_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"

    def raced(*args: Any) -> Any:
        (out / "room-0000" / "theirs").mkdir(parents=True)
        return render_room(*args)

    monkeypatch.setattr(write, "render_room", raced)
    with pytest.raises(DataError, match="room-0000: was created by another process during this command"):
        rooms(out, rooms=1, processes=1, **SMALL)
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*")) == ["room-0000", "room-0000/theirs", "rooms.json"]


def test_a_failure_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(write.np, "savetxt", full)
    with pytest.raises(OSError, match="disk full"):
        rooms(tmp_path / "out", rooms=1, processes=1, **SMALL)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["rooms.json"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"frames": 3}, "frames was [0-9]+, now 3"),
        ({"labels": False}, "class_names was .*, now None"),
        ({"size": "33x24"}, "width was [0-9]+, now 33"),
        ({"size": "big"}, "--size big"),
        ({"size": "8x8"}, "--size 8x8: .* 16 or more each"),
        ({"rooms": 0}, "--rooms 0"),
        ({"first": -1}, "--first -1"),
    ],
)
def test_wrong_flags_are_refused(written: Path, flags: dict[str, object], message: str) -> None:
    before = digest(written)
    with pytest.raises(ConfigError, match=message):
        rooms(written, **{"rooms": 2, "processes": 1, **SMALL, **flags})
    assert digest(written) == before


def test_damaged_rooms_json_is_no_reason_to_overwrite(tmp_path: Path) -> None:
    (tmp_path / "rooms.json").write_text("{")
    with pytest.raises(ConfigError, match=r"rooms\.json"):
        rooms(tmp_path, rooms=1, processes=1, **SMALL)


def test_mesh_is_the_rooms_surface(written: Path) -> None:
    room = build_room(0, 0)
    mesh = trimesh.load_mesh(written / "room-0000" / "mesh.ply", process=False)
    np.testing.assert_allclose(mesh.triangles, room.vertices[room.faces], atol=1e-5)
    assert len(mesh.faces) == len(room.faces) == len(room.label)
