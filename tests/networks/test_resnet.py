from __future__ import annotations

import pytest
import torch
import torchvision

from pri3d.errors import ConfigError
from pri3d.networks.encoders import build_encoder
from pri3d.networks.resnet import SIZES, build_trunk


@pytest.mark.parametrize("name", SIZES)
def test_a_seed_gives_torchvisions_network(name):
    """State dict, order included, every map to the bit, and what is left of the random numbers."""
    torch.manual_seed(3)
    net = torchvision.models.get_model(name, weights=None).eval()
    after = torch.get_rng_state()
    torch.manual_seed(3)
    encoder = build_encoder(name).eval()
    assert torch.equal(torch.get_rng_state(), after)
    theirs = {k: v for k, v in net.state_dict().items() if not k.startswith("fc.")}
    assert list(encoder.state_dict()) == list(theirs)
    assert all(torch.equal(v, theirs[k]) for k, v in encoder.state_dict().items())
    x = torch.rand(1, 3, 70, 50)
    with torch.no_grad():
        maps = encoder(x)
        x = net.relu(net.bn1(net.conv1(x)))
        expected = [x]
        x = net.maxpool(x)
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = layer(x)
            expected.append(x)
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
    assert encoder.channels == tuple(x.shape[1] for x in maps)


@pytest.mark.thorough
def test_a_training_step_is_torchvisions():
    torch.manual_seed(0)
    net, encoder = torchvision.models.resnet50().train(), build_encoder("resnet50").train()
    encoder.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("fc.")})
    net.fc = torch.nn.Identity()
    x = torch.rand(2, 3, 40, 40)
    net(x).square().sum().backward()
    encoder(x)[-1].mean((2, 3)).square().sum().backward()
    assert torch.equal(encoder.conv1.weight.grad, net.conv1.weight.grad)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in encoder.state_dict().items())  # running statistics


def test_other_names_are_refused_with_the_choices():
    with pytest.raises(ConfigError, match=r"unknown ResNet 'resnet5'.*resnet50.*resnet101"):
        build_trunk("resnet5")
