"""The prepared dataset: round trips, every kind of damage, and nothing half-written."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pri3d.errors import DataError
from pri3d.files.atomic import put_folder, temporary
from pri3d.store import (
    PairTable,
    SceneWriter,
    Store,
    finished_scenes,
    millimetres,
    read_manifest,
    read_scene_record,
    remember,
    write_manifest,
    write_pairs,
)
from pri3d.types import View, Voxels

SIZE = (32, 24)
CELLS = Voxels(np.array([(-1, 0, 2), (3, 4, 5)], np.int32), 0.02, np.array([(1, 2, 3), (4, 5, 6)], np.uint8))


def view(name: str, seed: int = 0) -> View:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (3, 4, 3), dtype=np.uint8)
    color = np.array(Image.fromarray(coarse).resize(SIZE))
    depth = millimetres(rng.random((24, 32), dtype=np.float32) * 5).astype(np.float32) * np.float32(0.001)
    pose = np.eye(4)
    pose[:3, 3] = rng.random(3)
    return View(color, depth, np.array((20.0, 21.0, 16.0, 12.0)), pose, name)


def pairs(scene: str) -> PairTable:
    numbers = np.array([0.25, 0.5], np.float32)
    rows = np.array([0, 0], np.int32), np.array([1, 2], np.int32)
    return PairTable(np.array([scene, scene]), *rows, numbers, numbers * 2, numbers * 3)


def write_scene(root: Path, scene: str) -> dict:
    with SceneWriter(root, scene, SIZE) as writer:
        writer.add(view("f0", 0), np.full((24, 32), 7, np.uint8), np.full((24, 32), 300, np.uint16))
        writer.reject("f1", "its pose is not finite")
        writer.add(view("f2", 2))
        return writer.finish(pairs(scene), CELLS, {"frames": 2})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    records = {scene: write_scene(tmp_path, scene) for scene in ("b", "a")}
    write_pairs(tmp_path, PairTable.concatenate([pairs("a"), pairs("b")]))
    manifest = {"state": "finished", "settings": {"pairs": True}, "class_names": ["wall"], "scenes": records}
    write_manifest(tmp_path, manifest)
    return tmp_path


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_round_trip(root: Path) -> None:
    store = Store(root)
    assert store.scenes == ["a", "b"]
    assert store.class_names == ["wall"]
    scene = store.scene("a")
    assert store.scene("a") is scene
    frames = scene.frames
    assert frames.names.tolist() == ["f0", "f1", "f2"]
    assert frames.valid.tolist() == [True, False, True]
    assert frames.reasons.tolist() == ["", "its pose is not finite", ""]
    assert frames.size == SIZE
    assert np.isnan(frames.world_from_camera[1]).all()
    for row, seed in ((0, 0), (2, 2)):
        stored, given = scene.view(row), view(f"f{seed}", seed)
        assert stored.name == given.name
        np.testing.assert_array_equal(stored.depth, given.depth)
        assert stored.depth.dtype == np.float32
        assert np.abs(stored.color.astype(int) - given.color).mean() < 4  # JPEG
        np.testing.assert_array_equal(stored.intrinsics, given.intrinsics)
        np.testing.assert_array_equal(stored.world_from_camera, given.world_from_camera)
    label, instance = scene.label(0), scene.instance(0)
    assert label is not None
    assert instance is not None
    assert (label == 7).all()
    assert (instance == 300).all()
    assert instance.dtype == np.uint16
    assert scene.label(2) is None
    assert [scene.has_label(row) for row in range(3)] == [True, False, False]
    assert scene.instance(2) is None
    surface = scene.surface()
    assert surface is not scene.surface()  # who needs it again keeps it
    np.testing.assert_array_equal(surface.cells, CELLS.cells)
    np.testing.assert_array_equal(surface.color, CELLS.color)
    assert surface.size == 0.02
    for _ in ("as it is written", "compressed, as older versions wrote it"):
        mapped = scene.surface_map()
        np.testing.assert_array_equal(mapped.cells, CELLS.cells)
        np.testing.assert_array_equal(mapped.color, CELLS.color)
        file = scene.path / "surface.npz"
        with np.load(file) as arrays:
            np.savez_compressed(file, **arrays)
    table = store.pairs()
    assert table.scene.tolist() == ["a", "a", "b", "b"]
    assert table.angle.tolist() == [0.75, 1.5, 0.75, 1.5]


def test_any_tool_opens_the_archive(root: Path) -> None:
    with zipfile.ZipFile(root / "scenes" / "a" / "frames.zip") as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        with Image.open(io.BytesIO(archive.read("depth/f0.png"))) as image:
            np.testing.assert_array_equal(np.array(image), millimetres(view("f0").depth))


def test_an_archive_rewritten_by_another_tool_still_reads(root: Path) -> None:
    path = root / "scenes" / "a" / "frames.zip"
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            with archive.open(name, "w", force_zip64=True) as entry:  # puts an extra field into the local header
                entry.write(data)
    np.testing.assert_array_equal(Store(root).scene("a").view(0).depth, view("f0").depth)


def test_same_input_same_bytes(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = files(root)
    write_scene(root, "a")  # over the finished one
    assert files(root) == before
    other = tmp_path_factory.mktemp("other")
    write_scene(other, "a")
    assert {name: before[name] for name in files(other)} == files(other)


def test_survives_pickling_without_its_caches(root: Path) -> None:
    store = Store(root)
    store.scene("a").surface()
    copy = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store.scene("a"))) < 1000
    np.testing.assert_array_equal(copy.scene("a").view(0).depth, store.scene("a").view(0).depth)
    assert copy.hash == store.hash


def test_hash_follows_content_not_times(root: Path) -> None:
    first = Store(root).hash
    manifest = json.loads((root / "dataset.json").read_text())
    manifest["scenes"]["a"]["seconds"] = 99
    write_manifest(root, manifest)
    assert Store(root).hash == first
    manifest["settings"]["min_overlap"] = 0.4
    write_manifest(root, manifest)
    assert Store(root).hash != first


@pytest.mark.parametrize("entry", ["color/f0.jpg", "depth/f0.png"])
def test_a_flipped_bit_is_found(root: Path, entry: str) -> None:
    path = root / "scenes" / "a" / "frames.zip"
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(entry)
    data = bytearray(path.read_bytes())
    data[info.header_offset + 30 + len(entry) + info.file_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"frames\.zip: entry {entry} is damaged"):
        Store(root).scene("a").view(0)
    Store(root).scene("a").view(2)


def test_truncation_is_found(root: Path) -> None:
    path = root / "scenes" / "a" / "frames.zip"
    scene = Store(root).scene("a")
    scene.view(0)  # the directory is in memory, then the file shrinks
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="reaches beyond the end"):
        scene.view(2)
    with pytest.raises(DataError, match=r"frames\.zip: not a readable archive"):
        Store(root).scene("a").view(0)


@pytest.mark.parametrize("name", ["frames.npz", "surface.npz", "pairs.npz"])
def test_damaged_tables_are_named(root: Path, name: str) -> None:
    path = root / "scenes" / "a" / name
    path.write_bytes(path.read_bytes()[:-40])
    scene = Store(root).scene("a")
    read = {"frames.npz": lambda: scene.frames, "surface.npz": scene.surface, "pairs.npz": scene.pairs}[name]
    with pytest.raises(DataError, match=name):
        read()


def test_pickled_arrays_are_refused(root: Path) -> None:
    np.savez(root / "pairs.npz", **{**pairs("a")._asdict(), "i": np.array([{}, {}], object)})
    with pytest.raises(DataError, match=r"pairs\.npz"):
        Store(root).pairs()


def test_a_wrong_image_size_is_found(root: Path) -> None:
    path = root / "scenes" / "a" / "frames.npz"
    with np.load(path) as data:
        table = dict(data)
    np.savez(path, **{**table, "size": np.array((31, 24))})
    with pytest.raises(DataError, match=r"entry color/f0\.jpg is 32x24 \(RGB\), expected is 31x24"):
        Store(root).scene("a").view(0)


def test_wrong_requests_are_explained(root: Path) -> None:
    store = Store(root)
    with pytest.raises(DataError, match=r"no scene 'c'\. It has a, b"):
        store.scene("c")
    with pytest.raises(DataError, match="f1 was rejected: its pose is not finite"):
        store.scene("a").view(1)
    for row in (3, -1):
        for ask in (store.scene("a").view, store.scene("a").has_label):
            with pytest.raises(DataError, match=r"rows are 0\.\.2"):
                ask(row)


def test_incomplete_stores_are_refused(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(DataError, match="not a prepared dataset"):
        Store(tmp_path_factory.mktemp("empty"))
    manifest = json.loads((root / "dataset.json").read_text())
    (root / "scenes" / "b" / "surface.npz").unlink()
    with pytest.raises(DataError, match=r"surface\.npz: missing"):
        Store(root)
    write_manifest(root, {**manifest, "state": "unfinished"})
    with pytest.raises(DataError, match="not finished"):
        Store(root)
    write_manifest(root, {**manifest, "format": 99})
    with pytest.raises(DataError, match="format 99"):
        Store(root)
    (root / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="not readable as JSON"):
        Store(root)


def test_a_store_without_pairs_says_so(root: Path) -> None:
    manifest = json.loads((root / "dataset.json").read_text())
    write_manifest(root, {**manifest, "settings": {"pairs": False}})
    with pytest.raises(DataError, match="--pairs false"):
        Store(root).pairs()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_nothing_and_the_old_scene(root: Path, error: type[BaseException]) -> None:
    before = files(root)
    with pytest.raises(error), SceneWriter(root, "a", SIZE) as writer:
        writer.add(view("other", 5))
        raise error
    assert files(root) == before
    assert finished_scenes(root) == ["a", "b"]


def test_remains_of_a_killed_run_do_not_count_and_go(tmp_path: Path) -> None:
    part = temporary(tmp_path / "scenes" / "a")  # the number of the killed process came round
    part.mkdir(parents=True)
    (part / "scene.json").write_text("{}")
    (part / "rubbish").write_text("")
    assert finished_scenes(tmp_path) == []
    assert read_scene_record(tmp_path, "a") is None
    write_scene(tmp_path, "a")
    assert finished_scenes(tmp_path) == ["a"]
    assert not part.exists()
    assert not (tmp_path / "scenes" / "a" / "rubbish").exists()


def test_two_processes_that_make_one_scene_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SceneWriter(tmp_path, "a", SIZE) as writer:
        writer.add(view("f0"))
        with monkeypatch.context() as patch:
            patch.setattr("os.getpid", lambda: 2**22 + 1)
            write_scene(tmp_path, "a")
        before = files(tmp_path / "scenes" / "a")
        with pytest.raises(DataError, match=r"scenes/a: was created by another process during this command"):
            writer.finish(PairTable.empty(), CELLS, {})
    assert [p.name for p in (tmp_path / "scenes").iterdir()] == ["a"]
    assert files(tmp_path / "scenes" / "a") == before


def test_other_errors_of_the_renaming_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        put_folder(tmp_path / "absent", tmp_path / "b")


def test_the_least_recently_used_goes_first() -> None:
    made: list[str] = []
    cache: dict[str, str] = {}

    def get(key: str) -> str:
        return remember(cache, key, lambda: made.append(key) or key.upper(), most=2)

    assert [get(key) for key in "abacab"] == list("ABACAB")
    assert made == ["a", "b", "c", "b"]
    assert list(cache) == ["a", "b"]


def test_a_store_keeps_few_scenes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = read_manifest(root)["scenes"]["a"]
    names = [f"copy-{k}" for k in range(80)]
    for name in names:
        (root / "scenes" / name).symlink_to(root / "scenes" / "a")
    write_manifest(root, {**read_manifest(root), "scenes": dict.fromkeys(names, scene)})
    store = Store(root)
    assert all(store.scene(name).frames.valid[0] for name in names)
    assert len(store._cache) == 64
    assert store.scene(names[-1]) is store.scene(names[-1])


def test_empty_pair_table_concatenates() -> None:
    assert len(PairTable.concatenate([]).i) == 0
    assert len(PairTable.concatenate([PairTable.empty(), pairs("long name")]).i) == 2


def test_millimetres_round_and_clip() -> None:
    depth = np.array([0, 0.0004, 0.0006, 1.2344, 65.535, 65.6, 1e9], np.float32)
    assert millimetres(depth).tolist() == [0, 0, 1, 1234, 65535, 0, 0]
