from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from encoder_contract import EncoderContract

from pri3d.errors import ConfigError, WeightsError
from pri3d.models.encoders import build_encoder


class TestResNet18(EncoderContract):
    name = "resnet18"


class TestResNet50(EncoderContract):
    name = "resnet50"
    decoders = ("slim",)  # the paper's takes 150 million parameters


class TestConvNeXt(EncoderContract):
    name = "convnext_atto"


class TestSwinChannelsLast(EncoderContract):
    name = "swin_tiny_patch4_window7_224"


class TestViTSingleScale(EncoderContract):
    name = "vit_tiny_patch16_224"


class TestMobileNet(EncoderContract):
    name = "mobilenetv4_conv_small"


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_resnets_are_torchvisions_key_by_key(name):
    with torch.device("meta"):
        net, encoder = torchvision.models.get_model(name, weights=None), build_encoder(name)
    state = {k: v for k, v in net.state_dict().items() if not k.startswith("fc.")}
    assert {k: v.shape for k, v in encoder.state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert encoder.channels[-1] == net.fc.in_features


def test_resnet_features_are_torchvisions():
    net, encoder = torchvision.models.resnet18().eval(), build_encoder("resnet18").eval()
    encoder.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("fc.")})
    images = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(net.fc(encoder(images)[-1].mean((2, 3))), net(images))


def test_swin_maps_are_timms_with_channels_moved():
    encoder = build_encoder("swin_tiny_patch4_window7_224").eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        raw, maps = encoder.net(images), encoder(images)
    assert raw[0].shape[-1] == encoder.channels[0]
    assert torch.equal(maps[0], raw[0].permute(0, 3, 1, 2))


def test_timm_networks_keep_their_own_normalisation():
    assert build_encoder("vit_tiny_patch16_224").mean.flatten().tolist() == [0.5, 0.5, 0.5]


def test_unknown_name_lists_close_ones():
    with pytest.raises(ConfigError, match=r"resnet5.*Did you mean .*resnet50.*Choices: resnet18"):
        build_encoder("resnet5")
    with pytest.raises(ConfigError, match="convnext_atto"):
        build_encoder("convnext_ato")


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_weights_that_cannot_be_fetched_say_how_to_give_a_file(name, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", offline)
    monkeypatch.setattr(timm.models._builder, "load_pretrained", offline)
    with pytest.raises(WeightsError, match=rf"{name}.*not known.*--init PATH"):
        build_encoder(name, pretrained=True)


def test_an_installed_package_adds_an_encoder(monkeypatch):
    class Entry:
        name = "mine"

        @staticmethod
        def load():
            return lambda name, pretrained: build_encoder("resnet18", pretrained)

    monkeypatch.setattr("pri3d.registry.entry_points", lambda group: [Entry()] if group == "pri3d.encoders" else [])
    assert build_encoder("mine").channels == (64, 64, 128, 256, 512)
