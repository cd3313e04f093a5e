"""Embedding that was stopped or done before: what is kept, the same bytes, and nothing of others replaced."""

from __future__ import annotations

import os
import random
import signal
import zipfile
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tiny_backbone import FLAGS, arrays, photos, source, tiny, unet, weights

from fuzz import tries
from pri3d.api.embed import embed
from pri3d.cli import main
from pri3d.errors import ConfigError, DataError
from pri3d.evaluation import embed as embedding
from pri3d.evaluation.arrays import read_record, write_entry
from pri3d.evaluation.embed import Backbone
from pri3d.files.lock import lock_file

__all__ = ["source", "tiny", "unet", "weights"]  # fixtures


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dense"), [("a.npz", True), ("a.npy", False), ("a.parquet", False)])
def test_killed_and_continued_gives_the_same_bytes(weights, source, tmp_path, name, dense, monkeypatch) -> None:
    """SIGKILL in the second part of three."""
    options = {**FLAGS, "batch": 1, "dense": dense}
    monkeypatch.setattr(embedding, "BATCHES", 3)
    whole = embed(str(weights), source, tmp_path / "whole" / name, **options)
    maps, calls = Backbone.maps, []

    def deadly(self: Backbone, images: NDArray[np.uint8]) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return maps(self, images)

    def child() -> None:
        Backbone.maps = deadly  # type: ignore[method-assign]
        embed(str(weights), source, tmp_path / name, **options)

    process = get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / name).exists()
    kept = tmp_path / f"{name}.parts"
    assert sorted(path.name for path in kept.glob("[0-9r]*")) == ["0000000.npz", "record.json"]
    assert list(kept.glob(".0000001*.part"))
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "maps", lambda self, images: calls.append(1) or maps(self, images))
        embed(str(weights), source, tmp_path / name, **options)
    assert len(calls) == 4  # of the seven images, all but the first part's
    assert (tmp_path / name).read_bytes() == whole.read_bytes()
    assert not kept.exists()


def test_a_full_disk_loses_nothing_that_is_done(weights, source, tmp_path, monkeypatch, capsys) -> None:
    resource = pytest.importorskip("resource", reason="file sizes cannot be limited here")
    monkeypatch.setattr(embedding, "BATCHES", 2)
    whole = embed(str(weights), source, tmp_path / "whole.npz", level="features", **FLAGS)
    words = ["embed", str(weights), str(source), "--out", str(tmp_path / "a.npz"), "--batch", "2"]
    words += ["--precision", "fp32", "--workers", "1", "--level", "features"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (whole.stat().st_size - 1, limits[1]))  # the parts are smaller
    try:
        assert main(words) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "free some space; the same command continues" in capsys.readouterr().err
    assert len(list((tmp_path / "a.npz.parts").glob("[0-9]*.npz"))) == 2
    assert main(words) == 0
    assert (tmp_path / "a.npz").read_bytes() == whole.read_bytes()


def test_done_is_done_and_other_settings_are_refused(weights, source, tmp_path, monkeypatch) -> None:
    out = embed(str(weights), source, tmp_path / "a.npz", **FLAGS)
    before = out.stat().st_mtime_ns
    embed(str(weights), source, out, level=2, **FLAGS)  # the same as -1
    assert out.stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"kind was 'pooled', now 'dense'; level was .*, now 0\. .*--overwrite"):
        embed(str(weights), source, out, dense=True, level=0, **FLAGS)
    photos(source, ["new.png"], [(32, 32)])
    with pytest.raises(ConfigError, match=r"other settings: images was .*, now "):
        embed(str(weights), source, out, **FLAGS)
    embed(str(weights), source, out, overwrite=True, **FLAGS)
    assert len(arrays(out)["names"]) == 8


def test_one_process_at_a_time_writes_a_file(weights, source, tmp_path) -> None:
    out = tmp_path / "a.npz"
    with lock_file(out), pytest.raises(ConfigError, match=r"a\.npz: process \d+ on .* has been writing there since"):
        embed(str(weights), source, out, **FLAGS)
    embed(str(weights), source, out, **FLAGS)
    assert out.is_file() and not list(tmp_path.glob(".*"))


def test_parts_of_other_settings_are_refused(weights, source, tmp_path, monkeypatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embedding, "write_features", stop)
        with pytest.raises(KeyboardInterrupt):
            embed(str(weights), source, tmp_path / "a.npz", **FLAGS)
    with pytest.raises(ConfigError, match=r"a\.npz\.parts: was made with other settings: size was None, now '32x32'\."):
        embed(str(weights), source, tmp_path / "a.npz", size="32x32", **FLAGS)
    part = tmp_path / "a.npz.parts" / "0000000.npz"
    whole = part.read_bytes()
    for damaged in (whole[:1000], whole[:200] + bytes(200) + whole[400:]):
        part.write_bytes(damaged)
        with pytest.raises(DataError, match=r"0000000\.npz: is damaged"):
            embed(str(weights), source, tmp_path / "a.npz", **FLAGS)
    part.unlink()
    embed(str(weights), source, tmp_path / "a.npz", **FLAGS)


@pytest.mark.parametrize("content", [b"mine", b""])
@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.parquet"])
def test_a_file_of_somebody_elses_is_kept(weights, source, tmp_path, name, content) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match="not written by this command"):
        embed(str(weights), source, tmp_path / name, **FLAGS)
    assert (tmp_path / name).read_bytes() == content
    embed(str(weights), source, tmp_path / name, overwrite=True, **FLAGS)
    embed(str(weights), source, tmp_path / name, **FLAGS)


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_a_file_that_was_deleted_is_made_again(weights, source, tmp_path, name) -> None:
    """What lies beside a .npy may be there still."""
    out = embed(str(weights), source, tmp_path / name, **FLAGS)
    whole = out.read_bytes()
    out.unlink()
    assert embed(str(weights), source, out, **FLAGS).read_bytes() == whole


def test_only_a_npy_has_a_file_beside_it(weights, source, tmp_path) -> None:
    (tmp_path / "a.npz.json").write_text("mine")
    embed(str(weights), source, tmp_path / "a.npz", **FLAGS)
    assert (tmp_path / "a.npz.json").read_text() == "mine"


def test_any_changed_byte_of_a_zip_is_no_record_or_a_damaged_part(tmp_path) -> None:
    """Never another exception, as of a method of compression that does not exist."""
    path = tmp_path / "0000000.npz"
    with zipfile.ZipFile(path, "w") as archive:
        write_entry(archive, "0", np.ones(4, np.float32))
        write_entry(archive, "record", np.array("{}"))
        archive.writestr(embedding.CONTENT, '{"rows": [[0, "a", 1, 1]], "failed": []}')
    assert read_record(path) == {}
    whole, draw, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(tries(60)):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 2, 4))):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content[: draw.choice((len(content), len(content), draw.randrange(len(content))))])
        assert read_record(path) in ({}, None)
        try:
            list(embedding._arrays([(path, embedding.Row(*row)) for row in embedding._content(path)["rows"]]))
        except DataError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > tries(30)


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".parquet"])
def test_a_file_that_was_damaged_since_is_not_called_done(weights, source, tmp_path, suffix) -> None:
    out = tmp_path / f"a{suffix}"
    embed(str(weights), source, out, **FLAGS)
    embed(str(weights), source, out, **FLAGS)
    good = bytearray(out.read_bytes())
    values = arrays(embed(str(weights), source, tmp_path / "b.npz", **FLAGS))["features"]
    good[good.index(values[2, :2].tobytes()) + 5] ^= 4
    out.write_bytes(good)
    with pytest.raises(DataError, match=rf"a{suffix}: is damaged .*--overwrite"):
        embed(str(weights), source, out, **FLAGS)
    embed(str(weights), source, out, overwrite=True, **FLAGS)
    embed(str(weights), source, out, **FLAGS)


def test_names_that_are_no_text_are_escaped(weights, tmp_path) -> None:
    """Latin-1 of an old camera, in a system of UTF-8."""
    photos = tmp_path / "photos"
    photos.mkdir()
    try:
        Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
        (tmp_path / "a.png").rename(os.fsdecode(os.fsencode(photos) + b"/k\xfcche.png"))
    except (OSError, UnicodeError):
        pytest.skip("the file system takes no such name")
    found = arrays(embed(str(weights), photos, tmp_path / "a.npz", **FLAGS))
    assert found["names"].tolist() == ["k\\xfcche"]
