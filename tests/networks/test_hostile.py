"""Weights files that are damaged or want to do harm: each way of reading one refuses it, and nothing in it is run."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fuzz import tries
from pri3d.api.import_weights import import_weights
from pri3d.errors import Pri3DError, WeightsError
from pri3d.networks.encoders import build_encoder
from pri3d.networks.load import WeightsSource, load
from pri3d.networks.published import load_published
from pri3d.networks.state_files import read_state
from pri3d.networks.unet import build_unet
from pri3d.networks.weights import load_model, load_weights, read_provenance

SMALL = {
    "conv1.weight": torch.rand(4, 3, 3, 3),
    "bn1.weight": torch.rand(4),
    "bn1.num_batches_tracked": torch.tensor(3),
}


@pytest.fixture(scope="module")
def encoder():
    return build_encoder("resnet18")


@pytest.fixture(scope="module")
def ways(encoder):
    """Every way a weights file gets in: name -> function of a path."""
    unet = build_unet("resnet18", "slim")
    return {
        "read_state": read_state,
        "load": load,
        "load all": lambda path: load(path, part="all"),
        "load_model": load_model,
        "--weights, encoder": lambda path: WeightsSource(str(path), on_hub=False).fill(encoder),
        "--weights": lambda path: load_weights(encoder, path),
        "--weights, published": lambda path: WeightsSource(path, on_hub=False).fill(encoder, unet),
        "published": lambda path: load_published(unet, path),
        "import": lambda path: import_weights(path, path.with_name("out.safetensors")),
        "import as": lambda path: import_weights(path, path.with_name("out.safetensors"), encoder="resnet18"),
    }


class Runs:
    """Pickles to a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def attacks(marker):
    """Calls that would leave a file."""
    return [
        Runs(os.system, f"touch {marker}"),
        Runs(eval, f"open({str(marker)!r}, 'w')"),
        Runs(Path.touch, marker),
        Runs(getattr, Runs(__import__, "os"), "system"),
        Runs(torch.load, str(marker)),
    ]


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "pkl", "named safetensors"])
def test_no_way_in_runs_what_a_file_says(tmp_path, ways, number, form):
    marker = tmp_path / "owned"
    attack = attacks(marker)[number]
    content = {"state_dict": {**SMALL, "extra": attack}, "config": attack}
    path = tmp_path / {"pkl": "x.pkl", "named safetensors": "x.safetensors"}.get(form, "x.pth")
    if form in ("zip", "legacy"):
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    for name, way in ways.items():
        unopened = name in ("load_model", "load all") and form != "named safetensors"  # it asks for the record first
        with pytest.raises(WeightsError, match="does not state" if unopened else r"runs no code|damaged") as error:
            way(path)
        assert str(path) in str(error.value), name
    assert not marker.exists()
    assert not (tmp_path / "out.safetensors").exists()
    if (form, number) == ("zip", 0):
        assert "asks for posix.system" in str(error.value)
        torch.load(path, weights_only=False)
        assert marker.exists()  # the attack is a real one


def test_a_checkpoint_that_contains_itself(tmp_path, ways):
    content = {}
    content["state_dict"] = content
    torch.save(content, tmp_path / "x.pth")
    for way in ways.values():
        with pytest.raises(WeightsError):
            way(tmp_path / "x.pth")


@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_odd_keys_and_tensors_without_numbers_are_left_out(tmp_path):
    odd = {3: torch.ones(1), "sparse": torch.eye(3).to_sparse(), "meta": torch.ones(2, device="meta"), None: 1}
    odd["one number"] = torch.ones(1).expand(10**6, 10**6)
    torch.save({**odd, "plain": torch.ones(2), "turned": torch.ones(2, 3).mT}, tmp_path / "x.pth")
    assert list(read_state(tmp_path / "x.pth")) == ["plain", "turned"]


def packed(path, compression, repeat=0):
    """A torch file zipped anew, with a member of zeros."""
    torch.save(SMALL, path)
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    folder = next(iter(members)).partition("/")[0]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in (members | {f"{folder}/data/99": bytes(repeat)}).items():
            archive.writestr(name, content)
    return path


def test_an_archive_that_unpacks_to_more_than_its_size(tmp_path, ways):
    bomb = packed(tmp_path / "x.pth", zipfile.ZIP_DEFLATED, repeat=50_000_000)
    assert bomb.stat().st_size < 100_000
    for name, way in ways.items():
        message = "does not state" if name in ("load_model", "load all") else r"x.pth is damaged .* is compressed"
        with pytest.raises(WeightsError, match=message):
            way(bomb)
    stored = packed(tmp_path / "y.pth", zipfile.ZIP_STORED)
    content = bytearray(stored.read_bytes())
    directory = content.find(b"PK\x01\x02")
    struct.pack_into("<II", content, directory + 20, 2**31, 2**31)  # its first member's sizes
    stored.write_bytes(content)
    with pytest.raises(WeightsError, match=r"y.pth is damaged or no torch file \(its parts are larger"):
        read_state(stored)


def header(path, entries, length=None, data=b""):
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


@pytest.mark.parametrize(
    ("entries", "length"),
    [
        ({"conv1.weight": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}}, None),
        ({"conv1.weight": {"dtype": "F32", "shape": [2**63, 2**63], "data_offsets": [0, 8]}}, None),
        ({"conv1.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}}, None),
        ({"conv1.weight": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, None),
        ({"conv1.weight": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}}, None),
        ({"conv1.weight": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, None),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, 2**60),
        ({"__metadata__": {"pri3d": "[" * 100_000}}, None),
        ({"__metadata__": {"pri3d": "[1]"}}, None),
        ({}, 3),
    ],
)
def test_safetensors_headers_that_claim_what_is_not_there(tmp_path, ways, entries, length):
    path = header(tmp_path / "x.safetensors", entries, length, bytes(8) if len(entries) else b"")
    before = peak()
    for way in ways.values():
        with pytest.raises(Pri3DError, match=r"x\.safetensors"):
            way(path)
    assert peak() - before < 50e6


def test_torch_files_that_claim_what_is_not_there(tmp_path):
    """A tensor larger than its storage."""
    torch.save(SMALL, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    shape = b"K\x04K\x03K\x03K\x03t"
    assert members[name].count(shape) == 1
    with zipfile.ZipFile(tmp_path / "y.pth", "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content.replace(shape, b"J\x00\x00\x00\x7f" + shape[2:]))
    before = peak()
    with pytest.raises(WeightsError, match="damaged"):
        read_state(tmp_path / "y.pth")
    assert peak() - before < 50e6


def peak():
    """Most memory this process has had, in bytes; on systems that do not tell, 0."""
    if sys.platform != "linux":
        return 0
    return 1024 * int(next(line for line in Path("/proc/self/status").open() if line.startswith("VmHWM")).split()[1])


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_any_changed_byte_is_an_error_or_other_numbers(tmp_path, form):
    """Never another exception, a crash, or a hang."""
    path = tmp_path / ("x.safetensors" if form == "safetensors" else "x.pth")
    if form == "safetensors":
        save_file(SMALL, path, metadata={"pri3d": json.dumps({"encoder": "resnet18"})})
    else:
        torch.save({"model": SMALL, "epoch": 3}, path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(tries(25)):
        content = bytearray(whole)
        for _ in range(draw.choice((1, 1, 4))):
            content[draw.randrange(len(content))] = draw.randrange(256)
        path.write_bytes(content[: draw.choice((len(content), len(content), draw.randrange(len(content))))])
        try:
            read_provenance(path)
            assert read_state(path)
        except WeightsError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > tries(10)


def anonymous():
    """Bytes of memory of this process that are no part of a file."""
    return 1024 * int(next(line for line in Path("/proc/self/status").open() if line.startswith("RssAnon")).split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells what is mapped from a file on Linux")
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_tensors_stay_in_the_file_until_they_are_used(tmp_path, suffix):
    path, size = tmp_path / f"x{suffix}", 40_000_000
    state = {str(k): torch.rand(size // 16) for k in range(4)}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    total = sum(float(v.sum()) for v in state.values())
    before = anonymous()
    again = read_state(path)
    assert sum(float(v.sum()) for v in again.values()) == total
    assert anonymous() - before < size / 4
