from __future__ import annotations

import pytest
import torch
from torch import nn

from pri3d.api.training import TrainSettings
from pri3d.errors import ConfigError
from pri3d.networks.encoders import build_encoder
from pri3d.networks.tuning import fix_norms, limit


def trained(encoder):
    return {k for k, p in encoder.named_parameters() if p.requires_grad}


def starting(encoder, *prefixes):
    return {k for k, _ in encoder.named_parameters() if k.startswith(prefixes)}


@pytest.mark.parametrize("spec", ["full", "frozen", "last-1", "last-12", "lora-8"])
def test_right_spellings(spec):
    assert TrainSettings(tune=spec).problems() == []


@pytest.mark.parametrize("spec", ["", "Full", "last", "last-0", "last--1", "last-1.5", "lora", "lora-0", "frozen "])
def test_wrong_spellings_list_the_choices(spec):
    (problem,) = TrainSettings(tune=spec).problems()
    assert "full, frozen, last-K" in problem
    with pytest.raises(ConfigError, match="lora-R"):
        limit(nn.Linear(1, 1), spec)


def test_full_and_frozen():
    encoder = build_encoder("resnet18")
    assert limit(encoder, "frozen") == [encoder]
    assert trained(encoder) == set()
    assert limit(encoder, "full") == []
    assert trained(encoder) == set(dict(encoder.named_parameters()))


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])  # timm's norms hold the activation, too
def test_norms_keep_their_statistics(name):
    encoder = build_encoder(name)
    count = sum(key.endswith("running_mean") for key in encoder.state_dict())
    every = trained(encoder)
    assert fix_norms(encoder, "train") == []
    assert len(fix_norms(encoder, "statistics")) == count
    assert trained(encoder) == every
    assert len(fix_norms(encoder, "frozen")) == count
    assert len(every) - len(trained(encoder)) == 2 * count


@pytest.mark.parametrize(
    ("name", "spec", "prefixes"),
    [
        ("resnet18", "last-1", ("layer4.",)),
        ("resnet18", "last-2", ("layer3.", "layer4.")),
        ("resnet18", "last-4", ("layer1.", "layer2.", "layer3.", "layer4.")),
        ("resnet18d", "last-1", ("net.layer4.",)),
        ("convnext_atto", "last-1", ("net.stages_3.",)),
        ("convnextv2_atto", "last-2", ("net.stages_2.", "net.stages_3.")),
        ("efficientvit_b0", "last-1", ("net.stages_3.",)),
        ("mobilenetv4_conv_small", "last-2", ("net.blocks.3.", "net.blocks.4.")),
        ("swin_tiny_patch4_window7_224", "last-1", ("net.layers_3.",)),
        ("hiera_tiny_224", "last-2", ("net.model.blocks.10.", "net.model.blocks.11.")),
        ("vit_tiny_patch16_224", "last-2", ("net.blocks.10.", "net.blocks.11.", "net.norm.")),
        ("vit_small_patch16_dinov3", "last-1", ("net.blocks.11.", "net.norm.")),
        ("regnety_002", "last-1", ("net.s4.",)),
    ],
)
def test_last_k_trains_the_end_of_the_network(name, spec, prefixes):
    with torch.device("meta"):
        encoder = build_encoder(name)
    fixed = limit(encoder, spec)
    assert trained(encoder) == starting(encoder, *prefixes)
    assert all(starting(encoder, prefix) for prefix in prefixes)
    assert not any(p.requires_grad for module in fixed for p in module.parameters())
    # every batch norm is either in a fixed module or trained
    inside = {id(m) for module in fixed for m in module.modules()}
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((id(m) in inside) != m.weight.requires_grad for m in norms)


def test_statistics_of_what_is_fixed_stay():
    encoder = build_encoder("resnet18")
    fixed = limit(encoder, "last-1")
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    encoder.train()
    for module in fixed:
        module.eval()
    encoder(torch.rand(2, 3, 64, 64))[-1].mean().backward()
    changed = {k for k, v in encoder.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(k.startswith("layer4.") and ("running" in k or "num_batches" in k) for k in changed)
    assert {k for k, p in encoder.named_parameters() if p.grad is not None} == starting(encoder, "layer4.")


def test_lora_fixes_all_but_the_adapters():
    encoder = build_encoder("vit_tiny_patch16_224")
    assert limit(encoder, "lora-3") == [encoder]
    assert all(k.endswith((".down", ".up")) for k in trained(encoder))
    assert encoder.net.blocks[0].attn.qkv.parametrizations["weight"][0].down.shape == (3, 192)
    with pytest.raises(ConfigError, match="no attention"):
        limit(build_encoder("resnet18"), "lora-3")


@pytest.mark.parametrize(("name", "count"), [("resnet18", 4), ("vit_tiny_patch16_224", 12), ("convnext_atto", 4)])
def test_too_many_stages_say_how_many_there_are(name, count):
    with torch.device("meta"):
        encoder = build_encoder(name)
    limit(encoder, f"last-{count}")
    with pytest.raises(ConfigError, match=rf"{name} has {count} stages.*last-{count}"):
        limit(encoder, f"last-{count + 1}")


def test_unknown_stages_are_refused():
    with pytest.raises(ConfigError, match="Linear are not known"):
        limit(nn.Linear(2, 2), "last-1")
