"""A folder in the layout of the Hugging Face hub: model.safetensors, config.json, README.md.

An encoder that timm has is written as timm's whole network, so that ``timm.create_model("local-dir:FOLDER")`` and
``timm.create_model("hf-hub:USER/NAME")`` open it; everything else opens in pri3d, by :class:`HubModel` or
:func:`pri3d.load`. ``config.json`` has timm's keys beside ours, which are one entry ``pri3d``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import timm
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from pri3d.errors import ConfigError, WeightsError
from pri3d.exporting.base import PARTS, ExportFormat, Probe, maps_of
from pri3d.networks.encoders import Encoder, ResNetEncoder, build_encoder
from pri3d.networks.load import FeatureNet
from pri3d.networks.state_files import HUB_FILE, read_state
from pri3d.networks.timm_encoders import (
    TimmEncoder,
    ViTEncoder,
    map_indices,
    match_whole,
    native_size,
    whole_options,
)
from pri3d.networks.unet import UNet
from pri3d.networks.weights import load_weights, save_state

PRI3D = """\
from pri3d.exporting.hf import HubModel
net = HubModel.from_pretrained({path!r})
# outputs = net(images), images RGB 0..1 (B, 3, H, W) -> {outputs}"""

TIMM = """\
import timm
net = timm.create_model({path!r}, pretrained=True)  # features_only=True for maps
# input: RGB 0..1, then torchvision.transforms.v2.Normalize({mean}, {std})
# or, normalised inside: pri3d.load({plain!r})(images) -> {outputs}"""

#: a file whose tensors are mostly not the run's is none to give away: VGG's classifier is eight times its trunk
MOST_FILLED = 0.5


class HubModel(nn.Module, PyTorchModelHubMixin, library_name="pri3d", tags=["pri3d"]):
    """A network of pri3d with the hub's ``from_pretrained`` and ``push_to_hub``.

    The arguments are the entries of ``config.json``: ``pri3d`` is the record of the weights, and what builds the
    network are its ``encoder``, ``encoder_options`` and ``part``, and of a U-Net ``decoder`` and ``channels``. A folder
    of version 0.1 has the record's entries themselves.
    """

    def __init__(self, pri3d: dict[str, Any] | None = None, **rest: Any) -> None:
        super().__init__()
        stated = pri3d or rest
        record = {"part": "encoder", **stated}
        encoder = build_encoder(str(record["encoder"]), options=record.get("encoder_options"))
        whole = record["part"] == "all"
        self.net = FeatureNet(UNet(encoder, record["decoder"], record["channels"]) if whole else encoder, record)

    def forward(self, images: Tensor) -> Any:
        """RGB 0..1 (B, 3, H, W) -> list of maps, or the map of a U-Net, as :class:`FeatureNet`."""
        return self.net(images)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the weights as the format does; the hub's own would leave out their record and timm's names."""
        save_state(hub_state(self.net), save_directory / HUB_FILE, self.net.record)

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        """As the hub's, of a file whose checksums hold. Raises WeightsError."""
        model.load_state_dict(read_state(Path(model_file)), strict)
        return model.to(map_location).eval()

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """Tensors under the names of the network inside: those of the other formats."""
        return self.net.net.state_dict(*args, **options)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load into the network inside; always whole, as weights that are half loaded help nobody."""
        load_weights(self.net.net, state_dict, minimum=1.0)
        return [], []  # missing, unexpected


class HfFormat(ExportFormat):
    """Encoder or U-Net in a folder with its configuration."""

    file = "{part}_hf"
    parts: ClassVar[tuple[str, ...]] = PARTS
    inside = HUB_FILE
    published = True
    consumer = "timm"

    def __init__(self, source: FeatureNet, to: str) -> None:
        super().__init__(source, to)
        encoder = source.encoder
        self.whole: dict[str, Any] = {}  # timm's keys of config.json; empty where timm has no such network
        self.filled: list[str] = []  # modules of timm's network that are not the encoder's
        if opens_in_timm(source):
            net = _build_whole(encoder, "meta")
            full = net.state_dict()
            own = set(match_whole(encoder, full).values())
            self.filled = sorted({key.rpartition(".")[0] for key in full if key not in own})
            kept = ("input_size", "interpolation", "crop_pct", "crop_mode", "pool_size", "first_conv", "classifier")
            config = {key: net.pretrained_cfg[key] for key in kept if key in net.pretrained_cfg}
            images = {"mean": list(self.mean), "std": list(self.std)}
            self.whole = {
                "architecture": encoder.name.partition(".")[0],
                "num_classes": 0,
                "num_features": int(net.num_features),
                "model_args": whole_options(encoder),
                "pretrained_cfg": {**config, **images, "num_classes": 0, "custom_load": False},
            }
            self.levels, self.norm = map_indices(encoder), isinstance(encoder, ViTEncoder)
            step = max(self.strides)
            self.size = native_size(encoder) or (step * math.ceil(64 / step), step * math.ceil(96 / step))

    def probes(self) -> Sequence[Probe]:
        """One of whole strides, as timm's networks do not pad."""
        return [(2, *self.size)] if self.whole else super().probes()

    def write(self, source: FeatureNet, path: Path) -> None:
        """Write the weights under the names of timm's whole network, or else under ours."""
        save_state(hub_state(source), path, self.record)

    def companions(self, path: Path) -> dict[str, str]:
        """Timm's keys and the record, as the hub reads them."""
        return {"config.json": json.dumps({**self.whole, "pri3d": self.record}, indent=1, sort_keys=True) + "\n"}

    def features(self, path: Path, images: Tensor) -> list[Tensor]:
        """Outputs of the network that timm makes of the folder, else of that of the hub's mixin.

        Raises WeightsError where both open it and do not agree.
        """
        with redirect_stdout(StringIO()):  # it says where it reads from
            net = HubModel.from_pretrained(path.parent, local_files_only=True)
        if net.training:
            raise WeightsError(f"{path}: the hub's mixin left the network in training mode")
        found = maps_of(net(images))
        if not self.whole:
            return found
        del net
        own: Any = timm.create_model(f"local-dir:{path.parent.absolute()}", pretrained=True).eval()
        maps: list[Tensor] = own.forward_intermediates(
            self.normalise(images), indices=self.levels, norm=self.norm, output_fmt="NCHW", intermediates_only=True
        )
        for a, b in zip(maps, found, strict=True):
            if not torch.allclose(a, b, rtol=1e-4, atol=1e-4 * max(1.0, float(b.abs().max()))):
                raise WeightsError(f"{path.parent}: timm and pri3d give different features of it")
        return maps

    def snippet(self, path: Path) -> str:
        """Load the folder; a relative one stands for its name on the hub."""
        folder = str(path.parent)
        if not self.whole:
            return PRI3D.format(path=folder, outputs=self.outputs)
        name = f"local-dir:{folder}" if path.is_absolute() else f"hf-hub:{folder}"
        return TIMM.format(path=name, plain=folder, mean=self.mean, std=self.std, outputs=self.outputs)

    @property
    def library(self) -> str:
        """What the hub shows as the library to open it with."""
        return "timm" if self.whole else "pri3d"

    @property
    def normalised_inside(self) -> bool:
        """Whether the network takes RGB 0..1: timm's does not."""
        return not self.whole

    @property
    def reader(self) -> str:
        """Timm and the hub's mixin, or the mixin alone."""
        mixin = f"huggingface_hub {version('huggingface_hub')}"
        return f"timm {version('timm')} and {mixin}" if self.whole else mixin

    @property
    def note(self) -> str:
        """What of timm's network is not the run's."""
        if not self.filled:
            return ""
        listed = ", ".join(self.filled[:4]) + (f" and {len(self.filled) - 4} more" if len(self.filled) > 4 else "")
        return f"Not trained, with timm's initial values: {listed}. Maps (`features_only=True`) do not need them."


def opens_in_timm(net: FeatureNet) -> bool:
    """Whether timm has the whole network of an encoder: not of a U-Net, nor where most of it would not be the run's."""
    encoder = net.net
    if not isinstance(encoder, (ResNetEncoder, TimmEncoder)):
        return False
    whole = _build_whole(encoder, "meta")
    full = whole.state_dict()
    try:
        own = set(match_whole(encoder, full).values())
    except ConfigError:  # a network that timm builds in another way as feature maps
        return False
    left = sum(value.numel() for key, value in full.items() if key not in own)
    return hasattr(whole, "forward_intermediates") and left <= MOST_FILLED * sum(x.numel() for x in full.values())


def hub_state(net: FeatureNet) -> dict[str, Tensor]:
    """State dict of timm's whole network, what the encoder lacks as timm begins it; where timm has none, our own."""
    state = net.net.state_dict()
    if not opens_in_timm(net):
        return dict(state)
    keys = _build_whole(net.encoder, "meta").state_dict()
    names = match_whole(net.encoder, keys)
    own = {names[key]: value for key, value in state.items()}
    if own.keys() == keys.keys():
        return own
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        full = _build_whole(net.encoder, "cpu").state_dict()
    return {**full, **own}


def _build_whole(encoder: Encoder, device: str) -> Any:
    """Timm's network without classifier."""
    with torch.device(device):
        return timm.create_model(encoder.name, num_classes=0, **whole_options(encoder))
