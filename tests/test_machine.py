"""What the machine offers."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
import torch

from pri3d import machine
from pri3d.machine import bf16_units, cores, limit_spinning, peak_memory, prefers_bf16
from pri3d.networks.encoders import build_encoder


def test_cores_are_those_this_process_may_use() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)
    if hasattr(os, "sched_setaffinity"):
        mine = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {min(mine)})
            assert cores() == 1
        finally:
            os.sched_setaffinity(0, mine)


def test_cores_where_the_system_does_not_say_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores() == 1


@pytest.mark.parametrize(
    ("processor", "flags", "has"),
    [
        ("x86_64", "flags : fpu avx2 avx512_bf16", True),
        ("AMD64", "flags : fpu amx_bf16 amx_tile", True),
        ("x86_64", "flags : fpu avx2 avx512f", False),
        ("aarch64", "Features : fp asimd bf16", False),  # it may have it, but how fast is not known
        ("x86_64", None, False),
    ],
)
def test_bf16_is_looked_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, processor: str, flags: str | None, has: bool
) -> None:
    info = tmp_path / "cpuinfo"
    if flags is not None:
        info.write_text(flags)
    monkeypatch.setattr(platform, "machine", lambda: processor)
    monkeypatch.setattr(machine, "Path", lambda _: info)
    assert bool(bf16_units()) is has


@pytest.mark.parametrize(
    ("flags", "encoder", "bf16"),
    [
        ("flags : avx512_bf16", "resnet18", True),
        ("flags : avx512_bf16", "tf_efficientnet_lite0", False),  # slower there: its sums are short
        ("flags : avx512_bf16 amx_bf16", "tf_efficientnet_lite0", True),
        ("flags : avx512f", "resnet18", False),
    ],
)
def test_bf16_is_chosen_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, encoder: str, bf16: bool
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(flags)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(machine, "Path", lambda _: info)
    with torch.device("meta"):
        network = build_encoder(encoder)
    assert prefers_bf16(network) is bf16


def test_the_environment_has_the_last_word_on_spinning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "10000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "7"


def test_peak_memory_is_in_megabytes_and_never_falls() -> None:
    resource = pytest.importorskip("resource")
    before = peak_memory()
    held = bytearray(64 << 20)
    after = peak_memory()
    assert 10 < before <= after
    assert after < 1e6
    del held
    assert peak_memory() >= after
    if platform.system() == "Linux":
        assert peak_memory() == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, rel=0.1)
