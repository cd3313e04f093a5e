from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pri3d.errors import ConfigError
from pri3d.networks.encoders import Encoder
from pri3d.networks.unet import FusionDecoder, UNet, UpProjection, build_unet


class Pool(Encoder):
    """A network of average pools: maps of any strides, cheap."""

    name = "pool"

    def __init__(self, strides):
        super().__init__()
        self.strides, self.channels = strides, tuple(4 * s for s in strides)
        self.convs = nn.ModuleList(nn.Conv2d(3, c, 1) for c in self.channels)

    def forward(self, images):
        pooled = (F.avg_pool2d(images, s, ceil_mode=True) for s in self.strides)
        return [conv(x) for conv, x in zip(self.convs, pooled, strict=True)]


@pytest.mark.parametrize("decoder", ["paper", "slim"])
@pytest.mark.parametrize("strides", [(1,), (2,), (1, 2), (4,), (14,), (16, 16, 16), (2, 4, 8), (4, 8, 16, 32)])
@pytest.mark.parametrize("size", [(40, 56), (37, 51)])
def test_features_are_at_half_resolution_whatever_the_encoder_gives(decoder, strides, size):
    net = UNet(Pool(strides), decoder, channels=5)
    features = net(torch.rand(2, 3, *size))
    assert features.shape == (2, 5, -(-size[0] // 2), -(-size[1] // 2))
    assert features.isfinite().all()


@pytest.mark.parametrize(
    ("encoder", "decoder_parameters", "channels", "widths"),
    [("resnet18", 9_491_296, 32, (256, 128, 64, 32)), ("resnet50", 151_825_792, 128, (1024, 512, 256, 128))],
)
def test_paper_decoder_has_the_published_topology(encoder, decoder_parameters, channels, widths):
    """Counted by hand: two 5 x 5 and one 3 x 3 convolution and three norms per block, one 1 x 1 at the end."""
    with torch.device("meta"):
        net = build_unet(encoder, "paper")
    ins = (2 * widths[0], *widths[:-1])
    blocks = sum(2 * 25 * i * o + 9 * o * o + 6 * o for i, o in zip(ins, widths, strict=True))
    assert sum(p.numel() for p in net.decoder.parameters()) == blocks + widths[-1] * channels + channels
    assert blocks + widths[-1] * channels + channels == decoder_parameters
    state = net.state_dict()
    for k, (i, o) in enumerate(zip(ins, widths, strict=True), start=1):
        assert state[f"decoder.up{k}.conv1.weight"].shape == (o, i, 5, 5)
        assert state[f"decoder.up{k}.conv1_2.weight"].shape == (o, o, 3, 3)
        assert state[f"decoder.up{k}.conv2.weight"].shape == (o, i, 5, 5)
    assert state["decoder.conv0.weight"].shape == (channels, widths[-1], 1, 1)


def test_up_projection_is_the_sum_of_two_branches():
    block = UpProjection(6, 4).eval()
    x = torch.rand(1, 6, 5, 7)
    y = F.interpolate(x, size=(9, 14), mode="bilinear", align_corners=True)
    main = block.bn1_2(block.conv1_2(block.bn1(block.conv1(y)).clamp(min=0)))
    torch.testing.assert_close(block(x, (9, 14)), (main + block.bn2(block.conv2(y))).clamp(min=0))


@pytest.mark.parametrize("decoder", ["paper", "slim"])
def test_every_map_of_the_encoder_reaches_the_features(decoder):
    """Changing any one map changes the features; the paper's decoder leaves the stride-2 map out."""
    net = UNet(Pool((2, 4, 8, 16)), decoder, channels=5).eval()
    maps = net.encoder(torch.rand(1, 3, 32, 48))
    base = net.decoder(maps, (16, 24))
    for k in range(len(maps)):
        other = [x + 1.0 * (k == i) for i, x in enumerate(maps)]
        used = not torch.equal(net.decoder(other, (16, 24)), base)
        assert used == (decoder == "slim" or k > 0)


@pytest.mark.parametrize("decoder", ["paper", "slim"])
def test_every_level_of_one_stride_reaches_the_features_alike(decoder):
    """Levels are projected and summed: the order of two maps with equal projections does not matter."""
    net = UNet(Pool((16, 16, 16, 16)), decoder, channels=5).eval()
    assert isinstance(net.decoder, FusionDecoder)
    for lateral in net.decoder.laterals:
        lateral.weight.data = net.decoder.laterals[0].weight.data
    maps = [torch.rand(1, 64, 2, 3) for _ in range(4)]
    base = net.decoder(maps, (16, 24))
    torch.testing.assert_close(net.decoder(maps[::-1], (16, 24)), base)
    for k in range(4):
        assert not torch.allclose(net.decoder([x + 1.0 * (i == k) for i, x in enumerate(maps)], (16, 24)), base)


@pytest.mark.parametrize(("stride", "steps"), [(16, [8, 4, 2]), (14, [7, 3, 2]), (8, [4, 2]), (32, [16, 8, 4, 2])])
def test_a_single_scale_is_brought_up_in_halves_by_a_light_decoder(stride, steps):
    paper, slim = (UNet(Pool((stride,) * 4), decoder).decoder for decoder in ("paper", "slim"))
    assert paper.strides == slim.strides == steps
    sizes = []
    for step in paper.steps:
        step.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[-2:])))
    features = paper([torch.rand(1, 4 * stride, -(-60 // stride), -(-80 // stride))] * 4, (30, 40))
    assert features.shape == (1, 32, 30, 40)
    assert sizes == [(-(-60 // s), -(-80 // s)) for s in steps]
    assert sum(p.numel() for p in paper.parameters()) < 3e6
    assert sum(p.numel() for p in slim.parameters()) < 3e5


def test_forward_maps_hands_out_what_the_encoder_gave():
    net = UNet(Pool((2, 4, 8)), "slim", channels=5).eval()
    images = torch.rand(2, 3, 32, 48)
    features, maps = net.forward_maps(images)
    assert torch.equal(features, net(images))
    assert all(torch.equal(a, b) for a, b in zip(maps, net.encoder(net.encoder.normalise(images)), strict=True))


def test_images_are_normalised_inside():
    net = build_unet("resnet18", "slim").eval()
    images = torch.rand(1, 3, 32, 32)
    maps = net.encoder((images - torch.tensor([0.485, 0.456, 0.406])[:, None, None])
                       / torch.tensor([0.229, 0.224, 0.225])[:, None, None])  # fmt: skip
    torch.testing.assert_close(net(images), net.decoder(maps, (16, 16)))


def test_bf16_autocast_trains():
    net = build_unet("resnet18", "slim")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = net(torch.rand(2, 3, 32, 48)).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_unknown_decoder_lists_the_choices():
    with pytest.raises(ConfigError, match=r"'fat'.*paper, slim"):
        UNet(Pool((2, 4)), "fat")
