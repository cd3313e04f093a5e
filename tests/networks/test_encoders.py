from __future__ import annotations

import pytest
import timm
import torch
import torchvision

from pri3d.errors import ConfigError, WeightsError
from pri3d.networks.encoders import build_encoder
from pri3d.networks.unet import build_unet
from pri3d.testing import EncoderContract


class TestResNet18(EncoderContract):
    name = "resnet18"


@pytest.mark.thorough
class TestResNet50(EncoderContract):
    name = "resnet50"
    decoders = ("slim",)  # the paper's takes 150 million parameters


class TestConvNeXt(EncoderContract):
    name = "convnext_atto"


class TestConvNeXtV2(EncoderContract):
    name = "convnextv2_atto"


class TestEfficientViT(EncoderContract):
    name = "efficientvit_b0"


class TestMobileNet(EncoderContract):
    name = "mobilenetv4_conv_small"


@pytest.mark.thorough
class TestSwinChannelsLast(EncoderContract):
    name = "swin_tiny_patch4_window7_224"
    decoders = ("slim",)


@pytest.mark.thorough
class TestHiera(EncoderContract):
    name = "hiera_tiny_224"
    decoders = ("slim",)


@pytest.mark.thorough
class TestViT(EncoderContract):
    name = "vit_tiny_patch16_224"


@pytest.mark.thorough
class TestEvaViT(EncoderContract):
    name = "eva02_tiny_patch14_224"
    decoders = ("slim",)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name",
    [
        *("vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"),
        *("vit_base_patch16_224.mae", "vit_pe_spatial_tiny_patch16_512", "sam2_hiera_tiny", "hiera_small_abswin_256"),
        *("swinv2_tiny_window8_256", "convnext_tiny.dinov3_lvd1689m", "mobilenetv4_hybrid_medium"),
    ],
)
def test_larger_ones_build_and_train_at_240_x_320(name):
    """Shapes and gradients of networks too large to run in a test, on torch's device without data."""
    with torch.device("meta"):
        net = build_unet(name, "slim")
        features, maps = net.forward_maps(torch.rand(2, 3, 240, 320))
    assert features.shape == (2, 32, 120, 160)
    expected = zip(net.encoder.channels, net.encoder.strides, strict=True)
    assert [tuple(x.shape) for x in maps] == [(2, c, -(-240 // s), -(-320 // s)) for c, s in expected]
    features.mean().backward()
    assert [k for k, p in net.named_parameters() if p.grad is None] == []


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


@pytest.mark.thorough
def test_swin_maps_are_timms_with_channels_moved():
    encoder = build_encoder("swin_tiny_patch4_window7_224").eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        raw, maps = encoder.net(images), encoder(images)
    assert raw[0].shape[-1] == encoder.channels[0]
    assert torch.equal(maps[0], raw[0].permute(0, 3, 1, 2))


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "size"), [("hiera_tiny_224", 224), ("hiera_small_abswin_256", 256)])
def test_hiera_is_timms_at_the_size_it_was_made_for(name, size):
    encoder = build_encoder(name).eval()
    images = torch.rand(1, 3, size, size)
    with torch.no_grad():
        for ours, theirs in zip(encoder(images), encoder.net(images), strict=True):
            assert torch.equal(ours, theirs)


def test_hiera_resizes_its_position_embedding():
    """Tokens of a linear ramp keep it at another size, rows and columns in place."""
    encoder = build_encoder("hiera_tiny_224")
    rows, columns = torch.meshgrid(torch.arange(56) + 0.5, torch.arange(56) + 0.5, indexing="ij")
    ramp = torch.stack((rows, columns), -1).reshape(1, 56 * 56, 2) / 56
    encoder.net.model.pos_embed.data[..., :2] = ramp
    resized = encoder._position([64, 80])[0, :, :2].reshape(64, 80, 2)
    rows, columns = torch.meshgrid((torch.arange(64) + 0.5) / 64, (torch.arange(80) + 0.5) / 80, indexing="ij")
    inner = (slice(4, -4), slice(4, -4))  # the resampling kernel reaches over the edge
    torch.testing.assert_close(resized[inner], torch.stack((rows, columns), -1)[inner], atol=2e-3, rtol=0)


def test_a_vits_levels_are_its_quarters_after_the_final_norm():
    encoder = build_encoder("vit_tiny_patch16_224").eval()
    assert encoder.strides == (16,) * 4
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    assert {f"net.{k}" for k in net.state_dict()} == set(encoder.state_dict())
    net.load_state_dict({k.removeprefix("net."): v for k, v in encoder.state_dict().items()})
    images = torch.rand(1, 3, 224, 224)
    seen = []
    for k in (2, 5, 8, 11):
        net.blocks[k].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        net.forward_features(images)
        for x, tokens in zip(encoder(images), seen, strict=True):
            torch.testing.assert_close(x, net.norm(tokens)[:, 1:].mT.reshape(1, 192, 14, 14))


@pytest.mark.thorough
def test_deeper_and_shallower_vits_are_cut_in_quarters_too():
    with torch.device("meta"):
        assert build_encoder("vit_large_patch14_dinov2").levels == [5, 11, 17, 23]
        assert build_encoder("vit_small_patch16_18x2_224").levels == [4, 8, 13, 17]


def test_networks_of_one_size_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"beit_base_patch16_224.*one size.*vit_small_patch14_dinov2"):
        build_encoder("beit_base_patch16_224")


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
    with pytest.raises(WeightsError, match=rf"{name}.*not known.*--weights PATH"):
        build_encoder(name, pretrained=True)


def test_an_installed_package_adds_an_encoder(monkeypatch):
    class Entry:
        name = "mine"

        @staticmethod
        def load():
            return lambda name, pretrained: build_encoder("resnet18", pretrained)

    monkeypatch.setattr("pri3d.registry.entry_points", lambda group: [Entry()] if group == "pri3d.encoders" else [])
    assert build_encoder("mine").channels == (64, 64, 128, 256, 512)
