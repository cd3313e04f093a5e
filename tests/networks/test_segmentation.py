"""Segmentation networks: exact dilation, shapes on every kind of encoder, gradients, the contract with the tasks."""

from __future__ import annotations

from itertools import product

import pytest
import timm
import torch
import torchvision
from torch import nn

from finetuned import groups_of
from pri3d.errors import ConfigError
from pri3d.networks.encoders import Encoder, ResNetEncoder, build_encoder
from pri3d.networks.segmentation import NETWORKS, SegmentationNet, build_segmentation, dilate
from pri3d.networks.unet import UNet

ENCODERS = ("resnet18", "resnet50", "convnext_atto", "vit_tiny_patch16_224")
CLASSES = 5


def build(network: str, encoder: str = "resnet18") -> SegmentationNet:
    torch.manual_seed(0)
    return build_segmentation(network, build_encoder(encoder), CLASSES, "slim", 8)


def randomise_norms(module: nn.Module) -> None:
    """Statistics as after training: those of a fresh norm would hide one that is skipped."""
    generator = torch.Generator().manual_seed(3)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean += 0.1 * torch.randn(norm.num_features, generator=generator)
            norm.running_var *= 0.5 + torch.rand(norm.num_features, generator=generator)


@pytest.fixture(scope="module")
def plain_keys() -> dict[str, list[str]]:
    return {name: list(build_encoder(name).state_dict()) for name in ENCODERS}


class Single(Encoder):
    """One convolution, one map."""

    name, channels, strides = "single", (16,), (2,)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, stride=2, padding=1)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.conv(images)]


class TestDilation:
    @pytest.mark.thorough
    @pytest.mark.parametrize(("stride", "replaced"), [(8, (False, True, True)), (16, (False, False, True))])
    def test_a_resnet50_equals_torchvisions_own(self, stride, replaced):
        torch.manual_seed(0)
        reference = torchvision.models.resnet50(weights=None, replace_stride_with_dilation=list(replaced)).eval()
        randomise_norms(reference)
        encoder = build_encoder("resnet50").eval()
        encoder.load_state_dict({k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")})
        dilate(encoder, stride)
        x = torch.randn(1, 3, 43, 58)
        with torch.no_grad():
            maps = encoder(x)
            y = reference.maxpool(reference.relu(reference.bn1(reference.conv1(x))))
            for k in range(1, 5):
                y = getattr(reference, f"layer{k}")(y)
                assert torch.equal(maps[k], y)

    @pytest.mark.parametrize("stride", [8, 16])
    def test_a_resnet18_equals_timms_own(self, stride):
        """torchvision dilates no basic block."""
        torch.manual_seed(0)
        reference = timm.create_model("resnet18", features_only=True, output_stride=stride).eval()
        randomise_norms(reference)
        encoder = build_encoder("resnet18").eval()
        encoder.load_state_dict(reference.state_dict())
        dilate(encoder, stride)
        x = torch.randn(1, 3, 43, 58)
        with torch.no_grad():
            for ours, theirs in zip(encoder(x), reference(x), strict=True):
                assert torch.equal(ours, theirs)

    @pytest.mark.parametrize(("name", "stride"), [("resnet18", 8), ("resnet18", 16), ("resnet50", 8)])
    def test_every_cell_of_the_plain_network_keeps_its_value(self, name, stride):
        torch.manual_seed(0)
        plain, dilated = build_encoder(name).eval().double(), build_encoder(name).eval().double()
        randomise_norms(plain)
        dilated.load_state_dict(plain.state_dict())
        dilate(dilated, stride)
        x = torch.randn(1, 3, 38, 51, dtype=torch.float64)
        with torch.no_grad():
            pairs = zip(plain(x), dilated(x), plain.strides, dilated.strides, strict=True)
            for coarse, fine, own, less in pairs:
                assert fine.shape[-2:] == (-(-38 // less), -(-51 // less))
                step = own // less
                torch.testing.assert_close(fine[:, :, ::step, ::step], coarse, atol=1e-9, rtol=1e-9)

    @pytest.mark.thorough
    def test_names_shapes_and_order_of_parameters_stay(self):
        plain, dilated = build_encoder("resnet50"), build_encoder("resnet50")
        dilate(dilated, 8)
        shapes = [[(k, v.shape) for k, v in net.state_dict().items()] for net in (plain, dilated)]
        assert shapes[0] == shapes[1]
        assert plain.strides == (2, 4, 8, 16, 32)  # its own, not the class's
        assert dilated.strides == (2, 4, 8, 8, 8)

    def test_a_dilated_encoder_is_not_dilated_again(self):
        net = build("deeplabv3")
        with pytest.raises(ConfigError, match=r"resnet18 is dilated already, to strides \(2, 4, 8, 16, 16\)"):
            build_segmentation("pspnet", net.encoder, CLASSES)

    def test_other_strides_are_refused(self):
        with pytest.raises(ConfigError, match="output stride of 4: a ResNet can be dilated to 8 or 16"):
            dilate(build_encoder("resnet18"), 4)


@pytest.mark.parametrize(("network", "encoder"), list(product(NETWORKS, ENCODERS)), scope="class")
class TestEveryNetwork:
    @pytest.fixture(scope="class")
    def net(self, network, encoder):
        return build(network, encoder)

    def test_scores_have_the_images_size(self, net, network, encoder):
        net.eval()
        assert net.network == network
        for size in ((97, 131), (64, 64)) if encoder == "resnet50" else ((240, 320), (97, 131), (64, 64)):
            with torch.no_grad():
                images = torch.rand(1, 3, *size)
                every = net(images, every=True)
                scores = net(images) if size == (64, 64) else every[0]
            assert scores.shape == (1, CLASSES, *size)
            assert scores.dtype == torch.float32
            assert scores.isfinite().all()
            assert len(every) == 1  # auxiliary ones are for training
            assert torch.equal(every[0], scores)

    def test_every_parameter_gets_a_gradient(self, net, network):
        """One without would stop distributed training."""
        every = net.train()(torch.rand(2, 3, 33, 50), every=True)
        assert [tuple(scores.shape) for scores in every] == [(2, CLASSES, 33, 50)] * (2 if network == "pspnet" else 1)
        torch.stack(every).square().mean().backward()
        assert [name for name, p in net.named_parameters() if p.grad is None] == []

    def test_only_a_resnet_is_dilated(self, net, network, encoder):
        dilated = {"unet": (2, 4, 8, 16, 32), "pspnet": (2, 4, 8, 8, 8)}.get(network, (2, 4, 8, 16, 16))
        own = {"convnext_atto": (4, 8, 16, 32), "vit_tiny_patch16_224": (16,) * 4}
        assert net.encoder.strides == own.get(encoder, dilated)
        assert ResNetEncoder.strides == (2, 4, 8, 16, 32)

    def test_encoder_and_head_share_out_the_parameters(self, net, plain_keys, encoder):
        assert list(net.encoder.state_dict()) == plain_keys[encoder]
        given = [[id(p) for p in group.parameters] for group in groups_of(net)]
        inside, head = set(given[0]), set(given[1])
        assert inside == {id(p) for p in net.encoder.parameters()}
        assert not inside & head
        assert inside | head == {id(p) for p in net.parameters()}
        assert len(head) == len(given[1])


def test_the_unet_is_that_of_pretraining():
    net = build("unet").eval()
    assert isinstance(net.body, UNet)
    unet = UNet(build_encoder("resnet18"), "slim", 8).eval()
    unet.load_state_dict(net.body.state_dict())
    images = torch.rand(1, 3, 40, 56)
    with torch.no_grad():
        half = net.classifier(unet(images))
        expected = nn.functional.interpolate(half, size=(40, 56), mode="bilinear", align_corners=False)
        assert torch.equal(net(images), expected)


def test_pooled_regions_are_the_means_of_the_map():
    """The whole pyramid head against slices and loops."""
    net = build("pspnet").eval()
    head = net.body.decoder
    x = torch.randn(1, 512, 12, 18)
    with torch.no_grad():
        parts = [x]
        for bins, branch in zip((1, 2, 3, 6), head.branches, strict=True):
            cells = torch.empty(1, 512, bins, bins)
            for i in range(bins):
                for j in range(bins):
                    region = x[:, :, i * 12 // bins : (i + 1) * 12 // bins, j * 18 // bins : (j + 1) * 18 // bins]
                    cells[:, :, i, j] = region.mean((2, 3))
            parts.append(nn.functional.interpolate(branch[1:](cells), (12, 18), mode="bilinear", align_corners=False))
        assert torch.cat(parts, 1).shape[1] == 2 * 512
        torch.testing.assert_close(head([x]), head.merge(torch.cat(parts, 1)), atol=1e-5, rtol=1e-4)


def test_the_branches_of_deeplab_have_the_rates_of_output_stride_16():
    for network in ("deeplabv3", "deeplabv3plus"):
        convs = [m for m in build(network).body.decoder.modules() if isinstance(m, nn.Conv2d)]
        assert sorted(c.dilation[0] for c in convs if c.dilation != (1, 1)) == [6, 12, 18]


@pytest.mark.parametrize("network", NETWORKS)
def test_a_single_image_in_training(network):
    net, image = build_segmentation(network, Single(), CLASSES, "slim").train(), torch.rand(1, 3, 48, 64)
    if network == "unet":
        assert net(image).shape == (1, CLASSES, 48, 64)
        return
    with pytest.raises(ConfigError, match=f"{network} cannot train on 1 image at a time.*--micro-batch to 2"):
        net(image)
    net.body.decoder.eval()  # norms that use what they know do not mind
    assert net(image).shape == (1, CLASSES, 48, 64)


@pytest.mark.parametrize("network", NETWORKS)
def test_channels_last_changes_nothing(network):
    net, images = build(network).eval(), torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        expected = net(images)
        net.to(memory_format=torch.channels_last)
        torch.testing.assert_close(net(images.to(memory_format=torch.channels_last)), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.thorough
def test_compiled_in_one_piece_with_its_auxiliary_scores():
    net, images = build_segmentation("pspnet", Single(), CLASSES), torch.rand(2, 3, 33, 47)
    torch.manual_seed(1)
    plain = net(images, every=True)
    graphs = []
    net.compile(backend=lambda graph, _: graphs.append(graph) or graph.forward, fullgraph=True)
    torch.manual_seed(1)
    for ours, theirs in zip(net(images, every=True), plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    assert len(graphs) == 1


@pytest.mark.parametrize("network", ["pspnet", "deeplabv3", "deeplabv3plus"])
def test_an_encoder_of_one_map_will_do(network):
    net = build_segmentation(network, Single(), CLASSES)
    assert all(scores.shape == (2, CLASSES, 33, 47) for scores in net(torch.rand(2, 3, 33, 47), every=True))


def test_an_unknown_network_lists_the_choices():
    with pytest.raises(ConfigError, match=r"unknown network 'pspnett'.*'pspnet'.*unet, pspnet, deeplabv3"):
        build("pspnett")
    with pytest.raises(ConfigError, match="unknown decoder"):
        build_segmentation("unet", build_encoder("resnet18"), CLASSES, "wide")
