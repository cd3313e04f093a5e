from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pri3d.errors import ConfigError
from pri3d.networks.encoders import build_encoder
from pri3d.networks.lora import LowRank, add_lora, merged_state
from pri3d.networks.unet import UNet
from pri3d.networks.weights import load_model, save_model

ViT = "vit_tiny_patch16_224"


def perturb(module):
    """Give every adapter a non-zero up matrix, as training does."""
    for part in module.modules():
        if isinstance(part, LowRank):
            nn.init.normal_(part.up, std=0.05)


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    return build_encoder(ViT).eval()


@pytest.fixture
def adapted(plain):
    encoder = copy.deepcopy(plain)
    add_lora(encoder, 4)
    return encoder


def test_only_adapters_train_and_nothing_changes_at_first(plain, adapted):
    trained = {k: p.numel() for k, p in adapted.named_parameters() if p.requires_grad}
    # by hand: rank 4, 12 blocks, qkv 192 -> 576 and proj 192 -> 192
    assert sum(trained.values()) == 4 * 12 * (192 + 576 + 192 + 192)
    assert all(".parametrizations.weight.0." in k for k in trained)
    images = torch.rand(1, 3, 48, 64)
    for a, b in zip(adapted(images), plain(images), strict=True):
        assert torch.equal(a, b)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        (ViT, 2 * 12),
        ("vit_small_patch16_dinov3", 2 * 12),
        ("swin_tiny_patch4_window7_224", 2 * 12),
        ("swinv2_tiny_window8_256", 2 * 12),
        ("hiera_tiny_224", 2 * 12),
        ("eva02_base_patch14_448", 4 * 12),
        ("pvt_v2_b0", 3 * 8),
    ],
)
def test_layers_are_found_by_their_names(name, layers):
    with torch.device("meta"):
        assert add_lora(build_encoder(name), 2) == layers


@pytest.mark.parametrize("name", [ViT, "swinv2_tiny_window8_256", "vit_pe_spatial_tiny_patch16_512"])
def test_every_adapter_is_used_and_learns(name):
    """Some networks take a layer's weight without calling it; an adapter on the call would never act there."""
    torch.manual_seed(0)
    encoder = build_encoder(name)
    add_lora(encoder, 2)
    perturb(encoder)
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)  # Swin v2 starts with blocks that add nothing
    sum(x.square().mean() for x in encoder(torch.rand(1, 3, 64, 64))).backward()
    adapters = {k: p for k, p in encoder.named_parameters() if p.requires_grad}
    assert adapters
    assert [k for k, p in adapters.items() if p.grad is None or not p.grad.abs().max() > 0] == []
    assert all(p.grad is None for p in encoder.parameters() if not p.requires_grad)


def test_merged_weights_are_a_plain_networks(plain, adapted):
    perturb(adapted)
    state = merged_state(adapted)
    assert set(state) == set(plain.state_dict())
    other = build_encoder(ViT).eval()
    other.load_state_dict(state)
    images = torch.rand(2, 3, 48, 64)
    with torch.no_grad():
        for a, b, c in zip(adapted(images), other(images), plain(images), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
            assert (a - c).abs().max() > 1e-3
    by_hand = state["net.blocks.3.attn.qkv.weight"]
    layer = adapted.net.blocks[3].attn.qkv.parametrizations["weight"]
    torch.testing.assert_close(by_hand, layer.original + layer[0].up @ layer[0].down)
    assert torch.equal(state["net.blocks.3.mlp.fc1.weight"], plain.net.blocks[3].mlp.fc1.weight)


def test_without_adapters_the_state_is_the_modules_own(plain):
    state = merged_state(plain)
    assert list(state) == list(plain.state_dict())
    linear = nn.Linear(2, 3)
    assert list(merged_state(linear)) == ["weight", "bias"]


def test_a_saved_model_is_merged_and_loads_without_adapters(tmp_path, adapted):
    perturb(adapted)
    unet = UNet(adapted, "slim", channels=5).eval()
    save_model(unet, tmp_path / "weights.safetensors", {"tune": "lora-4"})
    again, record = load_model(tmp_path)
    assert record["tune"] == "lora-4"
    assert not any("parametrizations" in k for k in again.state_dict())
    images = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(images), unet(images), atol=1e-5, rtol=0)
    assert any("parametrizations" in k for k in unet.state_dict())  # the run goes on with its adapters


def test_an_adapted_state_resumes(plain, adapted):
    perturb(adapted)
    other = copy.deepcopy(plain)
    add_lora(other, 4)
    other.load_state_dict(adapted.state_dict())
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(other(images)[-1], adapted(images)[-1])


def test_adapted_networks_are_copied_and_cast(adapted):
    twin = copy.deepcopy(adapted)
    perturb(twin)
    images = torch.rand(1, 3, 32, 32)
    assert not torch.equal(twin(images)[0], adapted(images)[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = twin(images)
    assert all(x.isfinite().all() for x in maps)


def test_mistakes_are_named(adapted):
    with pytest.raises(ConfigError, match=r"resnet18 has no attention.*last-K.*vit_small"):
        add_lora(build_encoder("resnet18"), 4)
    with pytest.raises(ConfigError, match="already"):
        add_lora(adapted, 4)
    with pytest.raises(ConfigError, match=r"rank.*not 0"):
        add_lora(build_encoder("resnet18"), 0)
