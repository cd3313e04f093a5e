"""A folder in the layout of the Hugging Face hub: model.safetensors, config.json, README.md."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from pri3d.errors import WeightsError
from pri3d.exporting.base import PARTS, maps_of
from pri3d.exporting.plain import SafetensorsFormat
from pri3d.networks.encoders import build_encoder
from pri3d.networks.load import FeatureNet
from pri3d.networks.unet import UNet
from pri3d.networks.weights import HUB_FILE, save_state

SNIPPET = """\
from pri3d.exporting.hf import HubModel
net = HubModel.from_pretrained({path!r})  # or the name it has on the hub
# outputs = net(images), images RGB 0..1 (B, 3, H, W) -> {outputs}"""


class HubModel(nn.Module, PyTorchModelHubMixin, library_name="pri3d", tags=["pri3d"]):
    """A network of pri3d with the hub's ``from_pretrained`` and ``push_to_hub``.

    ``config.json`` holds the record of the weights, so each of its entries is an argument here; what builds the
    network are ``encoder`` and ``part``, and of a U-Net ``decoder`` and ``channels``.
    """

    def __init__(self, encoder: str, part: str = "encoder", decoder: str = "", channels: int = 0, **rest: Any) -> None:
        super().__init__()
        built = build_encoder(encoder)
        whole = {"decoder": decoder, "channels": channels} if decoder else {}
        record = {"encoder": encoder, "part": part, **whole, **rest}
        self.net = FeatureNet(UNet(built, decoder, channels) if part == "all" else built, record)

    def forward(self, images: Tensor) -> Any:
        """RGB 0..1 (B, 3, H, W) -> list of maps, or the map of a U-Net, as :class:`FeatureNet`."""
        return self.net(images)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write the weights with their record, which :func:`pri3d.load` reads; the hub's own would leave it out."""
        save_state(self.state_dict(), save_directory / HUB_FILE, self.net.record)

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """Tensors under the names of the network inside: those of the other formats."""
        return self.net.net.state_dict(*args, **options)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load into the network inside; always strict, as weights that are half loaded help nobody."""
        return self.net.net.load_state_dict(state_dict, strict=True, assign=assign)


class HfFormat(SafetensorsFormat):
    """Encoder or U-Net as :class:`SafetensorsFormat`, in a folder with its configuration."""

    file = "{part}_hf"
    parts: ClassVar[tuple[str, ...]] = PARTS
    inside = HUB_FILE

    def companions(self, path: Path) -> dict[str, str]:
        """The record again, as the hub reads it."""
        return {"config.json": json.dumps(self.record, indent=1, sort_keys=True) + "\n"}

    def features(self, path: Path, images: Tensor) -> list[Tensor]:
        """Outputs of the network that the hub's mixin makes of the folder."""
        with redirect_stdout(StringIO()):  # it says where it reads from
            net = HubModel.from_pretrained(path.parent, local_files_only=True)
        if net.training:
            raise WeightsError(f"{path}: the hub's mixin left the network in training mode")
        return maps_of(net(images))

    def snippet(self, path: Path) -> str:
        """Load the folder with the hub's mixin."""
        return SNIPPET.format(path=str(path.parent), outputs=self.outputs)
