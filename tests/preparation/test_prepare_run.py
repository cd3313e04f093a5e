"""Recordings to store: what comes out, what is kept, and every way a run can end early."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
import signal
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from stores import FLAGS, files, stamps

from pri3d import store as store_module
from pri3d.api.prepare import prepare
from pri3d.api.rooms import rooms
from pri3d.errors import ConfigError, DataError, FrameError
from pri3d.preparation.pipeline import StoreSettings, open_cached
from pri3d.store import SceneWriter, Store

pytestmark = pytest.mark.thorough  # but for those that say quick


@pytest.mark.quick
def test_what_comes_out(recording: Path, out: Path) -> None:
    prepare([recording], out, **FLAGS)
    store = Store(out)
    assert store.scenes == ["room-0000", "room-0001"]
    assert store.class_names is not None
    assert store.class_names[0] == "wall"
    scene = store.scene("room-0000")
    assert scene.frames.valid.all()
    assert scene.frames.size == (40, 30)
    view = scene.view(2)
    source = np.array(Image.open(recording / "room-0000" / "depth" / "000002.png"))
    np.testing.assert_array_equal(np.rint(view.depth * 1000), source[1::2, 1::2])
    np.testing.assert_allclose(view.world_from_camera, np.loadtxt(recording / "room-0000" / "pose" / "000002.txt"))
    label = scene.label(2)
    assert label is not None
    np.testing.assert_array_equal(label, np.array(Image.open(recording / "room-0000/label/000002.png"))[1::2, 1::2])
    table = store.pairs()
    assert len(table.i) == sum(s["pairs"] for s in store.manifest["scenes"].values()) > 2
    assert (table.i < table.j).all()
    assert (table.overlap >= 0.05).all()
    assert (table.overlap < 0.3).any()
    k = int(np.argmax(table.baseline))
    poses = store.scene(str(table.scene[k])).frames.world_from_camera
    distance = np.linalg.norm(poses[table.i[k], :3, 3] - poses[table.j[k], :3, 3])
    assert table.baseline[k] == pytest.approx(distance, rel=1e-5)
    surface = scene.surface()  # of the room's mesh
    assert surface.color is not None
    assert store.surfaces == {"mesh": 2}
    assert len(surface.cells) == store.manifest["scenes"]["room-0000"]["voxels"] > 1000
    assert not list(out.rglob("*.part"))


@pytest.mark.quick
def test_a_missing_mesh_is_said_at_once_and_recorded(
    recording: Path, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    next((recording / "room-0001").glob("*.ply")).unlink()
    prepare([recording], out, **{**FLAGS, "pairs": False})
    said = capfd.readouterr().err
    assert "1 of 2 scenes have no mesh, theirs is fused from the depth images: room-0001" in said
    assert said.index("have no mesh") < said.index("voxels")  # before the work's summary
    assert Store(out).surfaces == {"mesh": 1, "depth": 1}
    assert Store(out).manifest["scenes"]["room-0001"]["surface"] == "depth"


def test_seen_points_lie_on_the_fused_surface(recording: Path, out: Path) -> None:
    for mesh in recording.glob("*/mesh.ply"):
        mesh.unlink()
    prepare([recording], out, **FLAGS)
    scene = Store(out).scene("room-0001")
    surface = scene.surface()
    occupied = {tuple(cell) for cell in surface.cells.tolist()}
    view = scene.view(3)
    v, u = np.nonzero(view.depth)
    fx, fy, cx, cy = view.intrinsics
    z = view.depth[v, u]
    points = np.stack(((u + 0.5 - cx) / fx * z, (v + 0.5 - cy) / fy * z, z), axis=1)
    cells = np.floor((points @ view.world_from_camera[:3, :3].T + view.world_from_camera[:3, 3]) / surface.size)
    steps = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3), axis=-1).reshape(-1, 3)
    assert np.mean([any(tuple(c + s) in occupied for s in steps) for c in cells.astype(int)]) > 0.9


@pytest.mark.slow
def test_killed_run_continues_and_gives_the_same_bytes(recording: Path, out: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of the second scene."""
    add, count = SceneWriter.add, itertools.count()

    def deadly(*args: Any) -> None:
        if next(count) == 8:
            os.kill(os.getpid(), signal.SIGKILL)
        add(*args)

    def child() -> None:
        SceneWriter.add = deadly  # type: ignore[method-assign]
        prepare([recording], out, **FLAGS)

    process = get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [p.name.split(".")[1] for p in (out / "scenes").glob(".*.part")] == ["room-0001"]
    with pytest.raises(DataError, match="not finished"):
        Store(out)
    first = stamps(out / "scenes" / "room-0000")
    prepare([recording], out, **FLAGS)
    assert stamps(out / "scenes" / "room-0000") == first
    assert sorted(p.name for p in (out / "scenes").iterdir()) == ["room-0000", "room-0001"]
    prepare([recording], tmp_path / "clean", **FLAGS)
    assert files(out) == files(tmp_path / "clean")


@pytest.mark.slow
def test_processes_give_the_same_bytes(recording: Path, out: Path, tmp_path: Path) -> None:
    shutil.copytree(recording / "room-0000", recording / "room-0002")
    shutil.rmtree(recording / "room-0002" / "depth")
    (recording / "room-0002" / "depth").mkdir()
    for folder, workers in ((out, 2), (tmp_path / "one", 1)):
        with pytest.raises(DataError, match="1 of 3 scenes failed"):
            prepare([recording], folder, **{**FLAGS, "processes": workers})
    assert files(out) == files(tmp_path / "one")


def test_damaged_frames_are_left_out_with_a_reason(recording: Path, out: Path) -> None:
    room = recording / "room-0000"
    pose = np.loadtxt(room / "pose" / "000000.txt")
    pose[0, 3] = -np.inf
    np.savetxt(room / "pose" / "000000.txt", pose)
    image = room / "color" / "000002.jpg"
    image.write_bytes(image.read_bytes()[:300])
    depth = room / "depth" / "000004.png"
    Image.fromarray(np.zeros((60, 80), np.uint16)).save(depth)
    prepare([recording], out, **{**FLAGS, "min_overlap": 0.02})
    store = Store(out)
    table = store.scene("room-0000").frames
    assert table.valid.tolist() == [False, True, False, True, False, True]
    for row, reason in ((0, "not finite"), (2, r"000002\.jpg"), (4, "no valid depth")):
        assert re.search(reason, table.reasons[row])
    used = store.pairs()
    rows = np.concatenate((used.i, used.j))[np.tile(used.scene == "room-0000", 2)]
    assert set(rows.tolist()) <= {1, 3, 5}
    assert len(rows)
    record = store.manifest["scenes"]["room-0000"]
    assert (record["frames"], record["rejected"]) == (3, 3)


def test_a_failing_scene_is_listed_and_the_others_go_on(recording: Path, out: Path) -> None:
    for image in (recording / "room-0000" / "depth").iterdir():
        Image.fromarray(np.zeros((60, 80), np.uint16)).save(image)
    with pytest.raises(
        DataError, match=r"1 of 2 scenes failed[^$]*room-0000: none of 6 frames is usable\. The first: 0"
    ):
        prepare([recording], out, **FLAGS)
    store = Store(out)
    assert store.scenes == ["room-0001"]
    assert "none of 6" in store.manifest["failed"]["room-0000"]
    assert not (out / "scenes" / "room-0000").exists()


def keep_frames(room: Path, names: list[str]) -> None:
    for part in ("color", "depth", "pose", "label", "instance"):
        for path in (room / part).iterdir():
            if path.stem not in names:
                path.unlink()


def test_few_frames(recording: Path, out: Path, tmp_path: Path) -> None:
    keep_frames(recording / "room-0000", ["000000", "000001"])
    keep_frames(recording / "room-0001", ["000000"])
    with pytest.raises(DataError, match="room-0001: pairs need two usable frames, found 1 of 1"):
        prepare([recording], out, **FLAGS)
    assert len(Store(out).pairs().i) == 1
    prepare([recording], tmp_path / "labelled", **FLAGS, pairs=False, surface=False)
    store = Store(tmp_path / "labelled")
    assert store.scenes == ["room-0000", "room-0001"]
    assert len(store.scene("room-0001").surface().cells) == 0
    with pytest.raises(DataError, match="--pairs false"):
        store.pairs()


def test_no_overlapping_pair(recording: Path, out: Path) -> None:
    with pytest.raises(DataError, match=r"no two of 6 frames overlap by 0\.999; the best pair by 0\.\d\d"):
        prepare([recording], out, **{**FLAGS, "min_overlap": 0.999})
    with pytest.raises(DataError, match="not finished"):
        Store(out)


@pytest.mark.slow
def test_a_result_that_cannot_be_right_names_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Right poses: no word. Other axes: pairs are few, neighbours do not overlap, and check is named."""
    rooms(tmp_path / "rooms", rooms=1, frames=24, size="80x60", processes=1, labels=False)
    (mesh,) = (tmp_path / "rooms").rglob("mesh.ply")
    mesh.unlink()
    flags = {**FLAGS, "distance": 0.08, "min_overlap": 0.2}
    prepare([tmp_path / "rooms"], tmp_path / "right", **flags)
    assert "pri3d check" not in capsys.readouterr().err
    assert Store(tmp_path / "right").manifest["scenes"]["room-0000"]["doubts"] == []
    prepare([tmp_path / "rooms"], tmp_path / "wrong", **{**flags, "min_overlap": 0.001}, correct="opengl,depth=3")
    record = Store(tmp_path / "wrong").manifest["scenes"]["room-0000"]
    said = capsys.readouterr().err
    assert record["doubts"], record
    assert f"poses, cameras or depth are likely wrong. Run pri3d check {tmp_path / 'rooms'}" in said
    # A centre 6 % of the width off: pairs enough, but the depth says so.
    (stated,) = (tmp_path / "rooms").rglob("cameras.yaml")
    cameras = yaml.safe_load(stated.read_text())
    for camera in ("color", "depth"):
        cameras[camera]["cx"] += 0.0625 * 80
    stated.write_text(yaml.safe_dump(cameras))
    prepare([tmp_path / "rooms"], tmp_path / "centre", **flags)
    (doubt,) = Store(tmp_path / "centre").manifest["scenes"]["room-0000"]["doubts"]
    assert re.fullmatch(r"depth of neighbouring frames agrees \d+% better with a centre -5 px along x of 80x60", doubt)


def test_frame_step(recording: Path, out: Path) -> None:
    prepare([recording], out, **{**FLAGS, "min_overlap": 0.02}, frame_step=2)
    assert Store(out).scene("room-0000").frames.names.tolist() == ["000000", "000002", "000004"]


def test_recordings_far_from_the_origin_are_refused_where_cells_are_made(recording: Path, out: Path) -> None:
    shutil.rmtree(recording / "room-0001")
    for path in (recording / "room-0000" / "pose").iterdir():
        pose = np.loadtxt(path)
        pose[0, 3] += 3e4
        np.savetxt(path, pose)
    with pytest.raises(DataError, match=r"The first: .* m from the origin, beyond the 26214\.4 m"):
        prepare([recording], out, **FLAGS)
    prepare([recording], out.with_name("labelled"), **FLAGS, pairs=False, surface=False)
    assert Store(out.with_name("labelled")).scene("room-0000").frames.valid.all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"size": "big"}, "--size big"),
        ({"frame_step": 0}, "--frame-step 0"),
        ({"min_overlap": 1.5, "voxel": 0}, "--min-overlap 1.5.*--voxel 0"),
        ({"overlap": "mean"}, "--overlap 'mean'"),
        ({"max_depth": float("nan")}, "--max-depth nan"),
        ({"cameras": Path("absent.yaml")}, "--cameras absent.yaml"),
    ],
)
def test_wrong_flags(recording: Path, out: Path, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare([recording], out, **{**FLAGS, **flags})
    assert not out.exists()


def test_wrong_folders(recording: Path, out: Path) -> None:
    with pytest.raises(ConfigError, match="no recording given"):
        prepare([], out)
    with pytest.raises(ConfigError, match="is not a prepared dataset"):
        prepare([recording], recording, **FLAGS)
    with pytest.raises(DataError, match="no such file or folder"):
        prepare([recording / "absent"], out)
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_stops_the_run(recording: Path, out: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(store_module.np, "savez_compressed", full)
        with pytest.raises(DataError, match="out: the disk is full"):
            prepare([recording], out, **FLAGS)
    assert list((out / "scenes").iterdir()) == []
    prepare([recording], out, **FLAGS)
    assert len(Store(out).scenes) == 2


def test_interruption_leaves_nothing_half_written(recording: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    add = SceneWriter.add

    def interrupted(self: SceneWriter, *args: Any) -> None:
        calls.append(self.target.name)
        if len(calls) == 8:
            raise KeyboardInterrupt
        add(self, *args)

    monkeypatch.setattr(SceneWriter, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare([recording], out, **FLAGS)
    assert [p.name for p in (out / "scenes").iterdir()] == ["room-0000"]
    prepare([recording], out, **FLAGS)
    assert calls[8:] == ["room-0001"] * 6


def test_a_bug_in_a_reader_costs_one_scene(recording: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = type(open_cached(recording, None, None).scenes["room-0000"])
    load = scene.frame

    def frame(self: Any, index: int) -> Any:
        if self.id == "room-0001":
            raise ZeroDivisionError("oops")
        if index == 1:
            raise FrameError("blurred")
        return load(self, index)

    monkeypatch.setattr(scene, "frame", frame)
    with pytest.raises(DataError, match="room-0001: ZeroDivisionError: oops"):
        prepare([recording], out, **FLAGS)
    assert Store(out).scene("room-0000").frames.reasons[1] == "blurred"


def test_manifest_states_where_everything_comes_from(recording: Path, out: Path) -> None:
    prepare([recording], out, **FLAGS, reader="rooms")
    manifest = json.loads((out / "dataset.json").read_text())
    assert manifest["settings"]["distance"] == 0.05
    assert {"python", "pri3d", "numpy", "numba", "pillow"} <= set(manifest["versions"])
    record = manifest["scenes"]["room-0001"]
    assert record["source"] == str(recording)
    assert record["reader"] == "rooms"
    size = sum((out / "scenes" / "room-0001" / name).stat().st_size for name in store_module._SCENE_FILES)
    assert record["bytes"] == size
    assert len(record["hash"]) == 64
    assert set(manifest["settings"]) == set(StoreSettings._fields)
