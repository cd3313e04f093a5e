"""The whole chain for a few steps: rooms, preparation, pre-training, fine-tuning, export, report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torchvision
from safetensors.torch import load_file

import pri3d
from pri3d import chain
from pri3d.errors import ConfigError


@pytest.mark.slow
def test_demo_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "PARTS", {"pretrain": (0, 2, 12), "labelled": (100, 2, 6), "test": (200, 1, 4)})
    monkeypatch.setattr(chain, "DISTANCE", 0.1)
    monkeypatch.setattr(chain, "SEEDS", (0,))
    monkeypatch.setattr(chain, "TRIAL_STEPS", 2)
    monkeypatch.setattr(chain, "SIZE", "64x48")
    monkeypatch.setattr(chain, "cores", lambda: 1)  # one thread: several collapse beside other tests
    report = pri3d.demo(out=tmp_path / "demo", max_minutes=0.2, processes=1).path
    results = json.loads((tmp_path / "demo/results.json").read_text())
    assert results["settings"]["shortened"] is True
    assert results["minutes"] > 0
    for name in ("scratch", "pri3d"):
        assert len(results["semantic_miou"][name]) == 1
        assert 0 <= results["semantic_miou"][name][0] <= 1
    text = report.read_text()
    assert text.count("data:image/png") >= 5
    assert "http://" not in text
    assert "https://" not in text
    net = torchvision.models.resnet18(weights=None)
    missing, unexpected = net.load_state_dict(load_file(tmp_path / "demo/pri3d_resnet18.safetensors"), strict=False)
    assert set(missing) == {"fc.weight", "fc.bias"}
    assert unexpected == []


def test_demo_refuses_no_time(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--max-minutes"):
        pri3d.demo(out=tmp_path / "demo", max_minutes=0)
    assert not (tmp_path / "demo").exists()
