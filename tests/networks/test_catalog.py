from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

import pri3d
from pri3d.api.models import models as list_models
from pri3d.cli import main
from pri3d.errors import ConfigError
from pri3d.networks import catalog
from pri3d.networks.catalog import EXAMPLES, MEASURED, Facts, describe
from pri3d.networks.encoders import build_encoder
from pri3d.registry import ENCODERS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "convnext_atto", "vit_tiny_patch16_224"])
def test_facts_are_those_of_the_network(name):
    facts, net = describe(name), build_encoder(name)
    assert (facts.channels, facts.strides) == (net.channels, net.strides)
    assert facts.parameters == sum(p.numel() for p in net.parameters())
    mean, std = (torch.tensor(numbers) for numbers in facts.statistics)
    assert torch.equal(mean, net.mean.flatten())
    assert torch.equal(std, net.std.flatten())


@pytest.mark.thorough
def test_the_table_has_a_row_of_each(capsys):
    rows = list_models()
    lines = capsys.readouterr().out.splitlines()
    assert [row.name for row in rows] == [*ENCODERS, *EXAMPLES]
    assert all(line.startswith(row.name) for row, line in zip(rows, lines[1:], strict=False))
    resnet = next(line for line in lines if line.startswith("resnet50 "))
    stated = ["resnet50", *["64", "256", "512", "1024", "2048", "2", "4", "8", "16", "32", "23.5", "M"]]
    assert resnet.split() in ([*stated, "here"], [*stated, "-"])  # whether a cache has its weights
    assert "demo.md" in lines[1]


def test_no_weights_are_made(monkeypatch):
    """Not even of a network of a thousand million parameters, and nothing is fetched."""
    devices = []
    true = torch.nn.Linear.__init__

    def watched(self, *args, **options):
        true(self, *args, **options)
        devices.append(self.weight.device.type)

    monkeypatch.setattr(torch.nn.Linear, "__init__", watched)
    monkeypatch.setattr(timm.models._builder, "load_pretrained", lambda *a, **k: pytest.fail("weights are fetched"))
    assert describe("vit_giant_patch14_dinov2").parameters > 1e9
    assert set(devices) == {"meta"}


def test_one_in_detail(capsys):
    assert main(["models", "--encoder", "vit_tiny_patch16_224"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("vit_tiny_patch16_224: 5.5 M parameters\n")
    assert text.count("stride 16: 192 channels") == 4
    assert "mean (0.5, 0.5, 0.5)" in text
    assert "measured in: nothing yet" in text
    assert main(["models", "--encoder", "resnet81"]) == 1
    assert "Did you mean resnet18" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="one size"):
        pri3d.models(encoder="beit_base_patch16_224")


def test_pages_of_figures_exist():
    assert [page for pages in MEASURED.values() for page in pages if not (ROOT / page).is_file()] == []
    assert set(MEASURED) <= {*ENCODERS, *EXAMPLES}


def test_without_timm_the_built_in_ones_are_shown(monkeypatch, capsys):
    monkeypatch.setattr(catalog, "find_spec", lambda name: None)
    assert [row.name for row in list_models()] == list(ENCODERS)
    assert "more where timm is" in capsys.readouterr().out


def test_encoders_of_other_packages_are_shown(monkeypatch, capsys):
    class Entry:
        name = "mine"

        @staticmethod
        def load():
            return lambda name, pretrained: build_encoder("resnet18", pretrained)

    monkeypatch.setattr("pri3d.registry.entry_points", lambda group: [Entry()] if group == "pri3d.encoders" else [])
    monkeypatch.setattr(catalog, "EXAMPLES", ("convnext_atto",))
    rows = list_models()
    assert isinstance(rows[4], Facts)
    assert [row.name for row in rows[4:]] == ["mine", "convnext_atto"]
    assert capsys.readouterr().out.count("\nmine ") == 1
