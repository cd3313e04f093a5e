from __future__ import annotations

import pytest
import torch
import torchvision
from safetensors.torch import load_file

from pri3d.errors import ConfigError, WeightsError
from pri3d.models import export as module
from pri3d.models.encoders import build_encoder
from pri3d.models.export import export
from pri3d.models.unet import UNet, build_unet
from pri3d.models.weights import init_encoder, load_model, read_provenance, save_model


@pytest.fixture
def run(tmp_path):
    torch.manual_seed(0)
    unet = build_unet("resnet18", "slim")
    unet(torch.rand(2, 3, 64, 64))  # running statistics away from their start
    save_model(unet, tmp_path / "run" / "weights.safetensors", {"preset": "view", "steps": 5, "data_hash": "abc"})
    return tmp_path / "run"


def test_torchvision_takes_the_export(run, capsys):
    path = export(run)
    net = torchvision.models.resnet18()
    left = net.load_state_dict(load_file(path), strict=False)
    assert set(left.missing_keys) == {"fc.weight", "fc.bias"}
    assert not left.unexpected_keys
    unet, _ = load_model(run)
    images = torch.rand(1, 3, 64, 96)
    net.fc = torch.nn.Identity()
    torch.testing.assert_close(net.eval()(images), unet.encoder(images)[-1].mean((2, 3)))
    record = read_provenance(path)
    assert (record["encoder"], record["steps"], record["data_hash"]) == ("resnet18", 5, "abc")
    assert sorted(p.name for p in run.iterdir()) == ["encoder_torchvision.safetensors", "weights.safetensors"]
    assert "largest difference" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("to", "part"), [("torchvision", "encoder"), ("safetensors", "encoder"), ("safetensors", "all")]
)
def test_the_printed_snippet_runs(run, to, part, capsys):
    path = export(run, to, part=part)
    printed = capsys.readouterr().out
    snippet = printed.split("\n\n", 1)[1]
    names = {}
    exec(snippet, names)
    loaded, ours = names["net"].state_dict(), load_model(run)[0]
    source = (ours if part == "all" else ours.encoder).state_dict()
    assert str(path) in snippet
    assert all(torch.equal(loaded[k], v) for k, v in source.items())


def test_an_exported_encoder_starts_the_next_run(run):
    encoder = build_encoder("resnet18")
    assert init_encoder(encoder, str(export(run, "safetensors"))).coverage == 1
    assert torch.equal(encoder.conv1.weight, load_model(run)[0].encoder.conv1.weight)
    with pytest.raises(WeightsError, match="encoder alone"):
        load_model(run / "encoder.safetensors")


def test_other_encoders_name_the_way_that_works(tmp_path):
    save_model(UNet(build_encoder("convnext_atto"), "slim", 8), tmp_path / "weights.safetensors", {})
    with pytest.raises(ConfigError, match=r"convnext_atto.*--to safetensors"):
        export(tmp_path)
    path = export(tmp_path, "safetensors")
    build_encoder("convnext_atto").load_state_dict(load_file(path))


@pytest.mark.parametrize(
    ("to", "part", "message"),
    [("onnx", "encoder", "Choices"), ("torchvision", "all", "decoder"), ("safetensors", "x", "part")],
)
def test_combinations_that_do_not_exist(run, to, part, message):
    with pytest.raises(ConfigError, match=message):
        export(run, to, part=part)


def test_the_runs_own_file_is_never_overwritten(run):
    with pytest.raises(ConfigError, match="own file"):
        export(run, "safetensors", out=run / "weights.safetensors", part="all")


def test_a_file_that_differs_is_not_left_behind(run, monkeypatch):
    true = module.load_file

    def bent(path):
        return {k: v + 0.01 if k == "layer4.1.conv2.weight" else v for k, v in true(path).items()}

    monkeypatch.setattr(module, "load_file", bent)
    for to in ("torchvision", "safetensors"):
        with pytest.raises(WeightsError, match="differ"):
            export(run, to)
    assert [p.name for p in run.iterdir()] == ["weights.safetensors"]
