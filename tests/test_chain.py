"""The whole chain for a few steps: rooms, preparation, pre-training, fine-tuning, export, report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
from safetensors.torch import load_file

import pri3d
from pri3d import chain
from pri3d.errors import ConfigError


@pytest.mark.slow
def test_demo_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"pretrain": (0, 2, 12), "unseen": (50, 2, 10), "labelled": (100, 2, 6), "test": (200, 1, 4)}
    parts = {name: chain.PARTS[name]._replace(first=k, rooms=n, frames=m) for name, (k, n, m) in counts.items()}
    monkeypatch.setattr(chain, "PARTS", parts)
    monkeypatch.setattr(chain, "DISTANCE", 0.1)
    monkeypatch.setattr(chain, "SEEDS", (0,))
    monkeypatch.setattr(chain, "TRIAL_STEPS", 2)
    monkeypatch.setattr(chain, "SIZE", "64x48")
    monkeypatch.setattr(chain, "cores", lambda: 1)  # one thread: several collapse beside other tests
    report = pri3d.demo(out=tmp_path / "demo", max_minutes=0.2, processes=1).path
    results = json.loads((tmp_path / "demo/results.json").read_text())
    assert results["settings"]["shortened"] is True
    assert results["minutes"] > 0
    assert list(results["semantic_miou"]) == ["scratch", "imagenet", "pri3d"]
    for values in results["semantic_miou"].values():
        assert len(values) == 1
        assert 0 <= values[0] <= 1
    matching = results["matching"]
    assert matching["difference"] == pytest.approx(matching["after"] - matching["before"])
    text = report.read_text()
    lead = text[text.index('class="lead">') :].partition("</p>")[0]
    assert "shortened demo" in lead
    assert f"{matching['before']:.1%}" in lead
    assert f"{matching['after']:.1%}" in lead
    assert lead.index("found again") < lead.index("mean IoU")
    assert "do not show whether that is more than chance" in lead  # one seed has no interval
    assert text.index("Probes of the features") < text.index(">Pre-training<")
    assert text.count("data:image/png") >= 5
    assert "http://" not in text
    assert "https://" not in text
    net = timm.create_model("tf_efficientnet_lite0", features_only=True)
    missing, unexpected = net.load_state_dict(load_file(tmp_path / "demo/pri3d_lite0.safetensors"), strict=False)
    assert missing == unexpected == []


def test_what_the_seeds_do_not_show_is_not_claimed() -> None:
    assert "more than chance" in chain._conclusion({"imagenet": [0.20, 0.22], "pri3d": [0.21, 0.25]})
    shown = chain._conclusion({"imagenet": [0.20, 0.22], "pri3d": [0.25, 0.27]})
    assert shown == "Pri3D minus ImageNet: 5.0 ± 0.0 points, 95 % interval of 2 seeds."


def test_demo_refuses_no_time(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--max-minutes"):
        pri3d.demo(out=tmp_path / "demo", max_minutes=0)
    assert not (tmp_path / "demo").exists()
