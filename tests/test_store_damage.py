"""Damaged stores: more than ten thousand versions of every kind of file give good data or DataError, in bounded memory.

Bytes are changed as they lie, and behind the checksums too: in the members of an archive that is written anew, as
somebody who means harm would.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fuzz import tries
from pri3d.errors import DataError
from pri3d.store import PairTable, SceneStore, SceneWriter, Store, read_scene_record, write_manifest, write_pairs
from test_store import CELLS, SIZE, pairs, view

COUNT = 300  # versions of each file and way
BOMB = 300_000_000  # bytes that nothing here may take
RECORD = {"source": "/r", "source_frames": 3, "frames": 2, "rejected": 1, "pairs": 2, "voxels": 2, "seconds": 0.5}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of one scene, to damage one file of at a time and to mend again."""
    folder = tmp_path_factory.mktemp("store")
    with SceneWriter(folder, "a", SIZE) as writer:
        writer.add(view("f0", 0), np.full((24, 32), 7, np.uint8), np.full((24, 32), 300, np.uint16))
        writer.reject("f1", "its pose is not finite")
        writer.add(view("f2", 2))
        record = writer.finish(pairs("a"), CELLS, RECORD)
    write_pairs(folder, PairTable.concatenate([pairs("a")]))
    settings = {"pairs": True, "distance": 0.02}
    manifest = {"state": "finished", "settings": settings, "class_names": ["wall", "door"], "scenes": {"a": record}}
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(scope="module", autouse=True)
def limited_memory() -> Iterator[None]:
    """No more than BOMB beyond what the process has now, where the system can enforce that."""
    status = Path("/proc/self/statm")
    if not status.exists():
        yield
        return
    import resource  # noqa: PLC0415 - of Unix alone

    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(status.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + BOMB, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def read_frames(root: Path) -> None:
    table = SceneStore(root / "scenes" / "a").frames
    count = len(table.names)
    assert table.world_from_camera.shape == (count, 4, 4)
    assert table.intrinsics.shape == (count, 4)
    assert table.valid.dtype == bool
    assert len(table.reasons) == len(table.valid) == count
    assert all(isinstance(text, str) for text in [*table.names.tolist(), *table.reasons.tolist()])
    assert np.isfinite(table.world_from_camera[table.valid]).all()
    assert min(table.size) > 0


def read_images(root: Path) -> None:
    scene = SceneStore(root / "scenes" / "a")
    for row in (0, 2):
        found = scene.view(row)
        assert found.color.shape == (24, 32, 3)
        assert found.color.dtype == np.uint8
        assert found.depth.shape == (24, 32)
        assert 0 <= found.depth.min() <= found.depth.max() < 65.536
        for ids, dtype in ((scene.label(row), np.uint8), (scene.instance(row), np.uint16)):
            assert ids is None or (ids.shape == (24, 32) and ids.dtype == dtype)


def read_table(table: PairTable) -> None:
    assert len({len(column) for column in table}) == 1
    assert min(table.i.min(initial=0), table.j.min(initial=0)) >= 0
    assert all(np.isfinite(column).all() for column in table[3:])


def read_surface(root: Path) -> None:
    scene = SceneStore(root / "scenes" / "a")
    for found in (scene.surface(), scene.surface_map()):
        assert found.cells.shape[1:] == (3,)
        assert 0 < found.size < np.inf
        assert found.color is None or found.color.shape == found.cells.shape


def read_manifest(root: Path) -> None:
    store = Store(root)
    assert len(store.hash) == 64
    assert store.class_names is None or isinstance(store.class_names, list)
    for scene in store.scenes:
        read_table(store.scene(scene).pairs())
    if store.manifest["settings"]["pairs"]:
        read_table(store.pairs())


def read_record(root: Path) -> None:
    record = read_scene_record(root, "a")
    assert record is not None
    assert {name: type(record[name]) for name in RECORD if name != "seconds"} == {
        name: type(value) for name, value in RECORD.items() if name != "seconds"
    }
    assert record["bytes"] >= 0
    assert isinstance(record["seconds"], int | float)


FILES: dict[str, Callable[[Path], None]] = {
    "dataset.json": read_manifest,
    "pairs.npz": lambda root: read_table(Store(root).pairs()),
    "scenes/a/scene.json": read_record,
    "scenes/a/frames.npz": read_frames,
    "scenes/a/frames.zip": read_images,
    "scenes/a/pairs.npz": lambda root: read_table(SceneStore(root / "scenes" / "a").pairs()),
    "scenes/a/surface.npz": read_surface,
}
ARCHIVES = [name for name in FILES if not name.endswith(".json")]
NUMBERS = (0, 1, 2, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 64) - 1)


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut, overwritten, with a telling number in place of a field, or with bytes repeated or taken out."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        near = rng.random()  # an archive's directory stands at its end, an array's header at its beginning
        low, high = (0, 128) if near < 0.3 else (len(changed) - 400, len(changed)) if near < 0.6 else (0, len(changed))
        at = int(rng.integers(max(low, 0), max(min(high, len(changed)), 1)))
        kind = rng.random()
        if kind < 0.45:
            changed[at : at + 1] = bytes([int(rng.integers(256))])
        elif kind < 0.6:
            changed[at : at + 1] = b"0123456789'(),:[]{}\"<>"[(k := int(rng.integers(21))) : k + 1]
        elif kind < 0.75:
            number = NUMBERS[int(rng.integers(len(NUMBERS)))].to_bytes(8, "little")[: int(rng.choice((2, 4, 8)))]
            changed[at : at + len(number)] = number
        elif kind < 0.85:
            changed[at:at] = changed[at : at + int(rng.integers(1, 60))]
        elif kind < 0.93:
            del changed[at : at + int(rng.integers(1, 60))]
        else:
            del changed[at:]
    return bytes(changed)


def behind_the_checksum(data: bytes, rng: np.random.Generator) -> bytes:
    """One member damaged, and the archive written anew."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        content = {info: archive.read(info) for info in archive.infolist()}
    victim = list(content)[int(rng.integers(len(content)))]
    content[victim] = damaged(content[victim], rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for info, member in content.items():
            archive.writestr(zipfile.ZipInfo(info.filename), member, info.compress_type)
    return buffer.getvalue()


def outcomes(root: Path, name: str, versions: Iterator[bytes]) -> tuple[int, int]:
    """How many versions of the file are read, and how many refused."""
    path = root / name
    whole, good, refused = path.read_bytes(), 0, 0
    try:
        for version in versions:
            with path.open("r+b") as file:  # not emptied first, for which some file systems wait for the disk
                file.write(version)
                file.truncate()
            try:
                FILES[name](root)
                good += 1
            except DataError as error:
                assert str(root) in str(error)
                refused += 1
    finally:
        path.write_bytes(whole)
    FILES[name](root)
    return good, refused


@pytest.mark.parametrize("name", FILES)
def test_damaged_bytes(root: Path, name: str) -> None:
    whole, rng = (root / name).read_bytes(), np.random.default_rng(len(name))
    good, refused = outcomes(root, name, (damaged(whole, rng) for _ in range(tries(COUNT))))
    assert refused > tries(COUNT) // 4
    assert good > 0


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:.*created on Python 2:UserWarning")
@pytest.mark.parametrize("name", ARCHIVES)
def test_damaged_bytes_whose_checksum_is_right(root: Path, name: str) -> None:
    whole, rng = (root / name).read_bytes(), np.random.default_rng(len(name))
    good, refused = outcomes(root, name, (behind_the_checksum(whole, rng) for _ in range(tries(COUNT))))
    assert refused > tries(COUNT) // 4
    assert good > 0


def npy(shape: str, kind: str = "<f8", data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    "member",
    [
        npy("(1000000000000, 4, 4)"),
        npy("(1000000000000000000000000,)"),
        npy("(-1, 4, 4)"),
        npy("(2, 4, 4)", data=bytes(8)),
        npy("(1,)", "|O", b"\x80\x04N."),
        npy("()", "<U100000000"),
        npy("(0,)", version=b"\x09\x00"),
        npy("(" * 3000),
        b"",
    ],
    ids=range(9),
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_headers_that_claim_anything(root: Path, member: bytes, compression: int) -> None:
    def version() -> Iterator[bytes]:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("overlap.npy", member, compression)
            for name in ("scene", "i", "j", "baseline", "angle"):
                archive.writestr(f"{name}.npy", npy("(0,)", "<i4"))
        yield buffer.getvalue()

    assert outcomes(root, "pairs.npz", version()) == (0, 1)


@pytest.mark.thorough
def test_a_bomb_is_not_inflated(root: Path) -> None:
    """Half a gigabyte of zeros in half a megabyte; the limit on memory would say something else."""
    path = root / "scenes" / "a" / "surface.npz"
    whole = path.read_bytes()
    try:
        packed = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        with packed as archive, archive.open("cells.npy", "w") as entry:
            entry.write(npy("(9,)"))
            for _ in range(500):
                entry.write(bytes(1 << 20))
        with pytest.raises(DataError, match=r"float64 of shape \(9,\) in 524288000 bytes"):
            SceneStore(path.parent).surface()
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"scenes": {"../../elsewhere": {"hash": ""}}}, "scenes"),
        ({"scenes": {"a": 3}}, "scenes"),
        ({"scenes": []}, "scenes"),
        ({"settings": {"pairs": "yes"}}, "settings"),
        ({"class_names": [1]}, "class_names"),
        ({"state": 1}, "state"),
        ({"versions": []}, "versions"),
    ],
)
def test_what_a_manifest_must_hold(root: Path, change: dict[str, object], word: str) -> None:
    manifest = json.loads((root / "dataset.json").read_text())
    try:
        write_manifest(root, {**manifest, **change})
        with pytest.raises(DataError, match=rf"dataset\.json: damaged: {word}"):
            Store(root)
    finally:
        write_manifest(root, manifest)


def test_pairs_of_unknown_scenes(root: Path) -> None:
    table = pairs("a")
    try:
        write_pairs(root, table._replace(scene=np.array(["a", "b"])))
        with pytest.raises(DataError, match=r"pairs\.npz: damaged: it names scenes that do not exist"):
            Store(root).pairs()
    finally:
        write_pairs(root, table)


@pytest.mark.parametrize("size", [0.0, -0.02, float("inf"), float("nan")])
def test_cells_of_no_size_are_refused(root: Path, size: float) -> None:
    path = root / "scenes" / "a" / "surface.npz"
    whole = path.read_bytes()
    try:
        with np.load(path) as arrays:
            np.savez(path, **{**arrays, "size": np.float64(size)})
        with pytest.raises(DataError, match=rf"surface\.npz: damaged: cells of {size} m"):
            SceneStore(path.parent).surface()
    finally:
        path.write_bytes(whole)
