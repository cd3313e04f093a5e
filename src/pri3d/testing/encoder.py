"""The contract of encoders.

A new one inherits all checks in three lines::

    class TestMine(EncoderContract):
        name = "mine"
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from pri3d.errors import ConfigError
from pri3d.networks.encoders import Encoder, build_encoder
from pri3d.networks.load import load
from pri3d.networks.tuning import limit
from pri3d.networks.unet import DECODERS, UNet
from pri3d.networks.weights import load_weights, save_model


class EncoderContract:
    """Checks of one encoder; ``name`` is what it is registered as."""

    name: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}  #: of its own, where it has some: values that are not the defaults
    decoders: ClassVar[tuple[str, ...]] = tuple(DECODERS)  #: those its gradients are tested with

    @pytest.fixture(scope="class")
    def encoder(self) -> Encoder:
        """The encoder with random weights, in eval mode."""
        torch.manual_seed(0)
        return build_encoder(self.name, options=self.options).eval()

    @pytest.mark.parametrize("size", [(64, 64), (61, 87)])
    def test_one_map_per_stride_of_the_stated_shape(self, encoder: Encoder, size: tuple[int, int]) -> None:
        """Of any image size, rounded up."""
        with torch.no_grad():
            maps = encoder(encoder.normalise(torch.rand(2, 3, *size)))
        expected = [
            (2, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(encoder.channels, encoder.strides, strict=True)
        ]
        assert [tuple(x.shape) for x in maps] == expected
        assert list(encoder.strides) == sorted(encoder.strides)
        assert all(bool(x.isfinite().all()) for x in maps)

    def test_rows_and_columns_keep_their_order(self, encoder: Encoder) -> None:
        """A bright corner changes the coarsest map most at that corner, so no axis is swapped or flipped."""
        torch.manual_seed(1)
        height, width = 4 * encoder.strides[0], 8 * encoder.strides[0]
        images = torch.rand(1, 3, height, width)
        changed = images.clone()
        changed[:, :, : height // 4, -width // 8 :] = 1 - changed[:, :, : height // 4, -width // 8 :]
        with torch.no_grad():
            difference = (encoder(changed)[0] - encoder(images)[0]).abs().mean(1)[0]
        row, column = divmod(int(difference.argmax()), difference.shape[1])
        assert row < difference.shape[0] / 2
        assert column >= difference.shape[1] / 2

    def test_images_of_a_batch_do_not_mix(self, encoder: Encoder) -> None:
        """In eval mode."""
        images = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            both, one = encoder(images), encoder(images[1:])
        for a, b in zip(both, one, strict=True):
            torch.testing.assert_close(a[1:], b, atol=1e-4, rtol=1e-3)

    def test_every_parameter_of_its_unet_gets_a_gradient(self, encoder: Encoder) -> None:
        """A parameter without one would stop distributed training."""
        for decoder in self.decoders:
            net = UNet(encoder, decoder, channels=8)
            net.zero_grad()
            features = net(torch.rand(1, 3, 61, 87))
            assert features.shape == (1, 8, 31, 44)
            torch.autograd.backward(features.square().mean())
            assert [k for k, p in net.named_parameters() if p.grad is None] == []

    def test_it_trains_at_240_x_320(self, encoder: Encoder) -> None:
        """The paper's image size, forwards and backwards, maps of the stated shapes."""
        net = UNet(encoder, "slim", channels=4)
        features, maps = net.forward_maps(torch.rand(1, 3, 240, 320))
        assert features.shape == (1, 4, 120, 160)
        for x, c, s in zip(maps, encoder.channels, encoder.strides, strict=True):
            assert x.shape == (1, c, -(-240 // s), -(-320 // s))
        net.zero_grad()
        torch.autograd.backward(features.square().mean())
        grads = [p.grad for p in encoder.parameters() if p.grad is not None]
        assert grads
        assert all(bool(g.isfinite().all()) for g in grads)

    def test_its_end_can_be_trained_alone(self, encoder: Encoder) -> None:
        """As --tune last-1 does: the rest is fixed."""
        other = copy.deepcopy(encoder)
        fixed = limit(other, "last-1")
        trained = [k for k, p in other.named_parameters() if p.requires_grad]
        assert 0 < len(trained) < len(list(other.parameters()))
        assert not any(p.requires_grad for module in fixed for p in module.parameters())

    def test_its_own_weights_load_completely(self, encoder: Encoder) -> None:
        """By the names of a checkpoint."""
        other = build_encoder(self.name, options=self.options)
        report = load_weights(other, {f"module.encoder.{k}": v for k, v in encoder.state_dict().items()})
        assert report.coverage == 1
        assert not report.missing
        assert not report.unexpected
        assert all(torch.equal(v, encoder.state_dict()[k]) for k, v in other.state_dict().items())

    def test_saved_weights_build_it_again(self, encoder: Encoder, tmp_path: Path) -> None:
        """With its own options, which the file states; no other than it has are taken."""
        if encoder.options is None:
            assert not encoder.built_with
        else:
            assert encoder.options.group == self.name
            assert encoder.built_with == encoder.options(**self.options).plain()
        with pytest.raises(ConfigError, match=r"no-such-option|has no options"):
            build_encoder(self.name, options={"no_such_option": 1})
        save_model(UNet(encoder, "slim", channels=4), tmp_path / "net.safetensors", {})
        again = load(tmp_path / "net.safetensors").encoder
        assert again.built_with == encoder.built_with
        images = torch.rand(1, 3, 64, 64)
        with torch.no_grad():
            for a, b in zip(again(images), encoder(images), strict=True):
                assert torch.equal(a, b)

    def test_normalisation_is_no_part_of_the_weights(self, encoder: Encoder) -> None:
        """Mean and standard deviation are the encoder's own."""
        assert not {"mean", "std"} & set(encoder.state_dict())
        grey = encoder.mean.expand(1, 3, 8, 8)
        torch.testing.assert_close(encoder.normalise(grey), torch.zeros(1, 3, 8, 8))
        torch.testing.assert_close(encoder.normalise(grey + encoder.std), torch.ones(1, 3, 8, 8))
