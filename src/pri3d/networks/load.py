"""``pri3d.load``: a trained backbone as a plain module. A ResNet needs only PyTorch and safetensors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pri3d.api.options import flag_as_typed
from pri3d.errors import ConfigError, WeightsError, first_line
from pri3d.networks.encoders import Encoder, build_encoder, enlarge, join_maps
from pri3d.networks.naming import from_efficientnet
from pri3d.networks.starts import packaged_file
from pri3d.networks.state_files import HUB_FILE, MODEL_FILE, read_state
from pri3d.networks.unet import UNet
from pri3d.networks.weights import (
    PREFIXES,
    WeightsReport,
    build_stated_encoder,
    check_stated_encoder,
    holds_encoder_alone,
    load_model,
    load_weights,
    read_provenance,
)
from pri3d.registry import ENCODERS

Part = Literal["encoder", "all"]
Kind = Literal["unet", "encoder"]
Level = int | Literal["fused"] | None

#: smallest stride of the maps that are fused: finer ones would make the result large and say little more
FUSED = 8

STARTS = ("scratch", "imagenet")  #: names in the place of a file, beside timm:NAME

#: a model's name on the hub, with or without a revision
HUB_NAME = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


class FeatureNet(nn.Module):
    """RGB 0..1 (B, 3, H, W) of any size -> features; images are normalised inside.

    An encoder gives a list of maps (B, channels[k], ceil(H / strides[k]), ceil(W / strides[k])), finest first; a
    whole U-Net its feature map alone, (B, channels[0], ceil(H / 2), ceil(W / 2)). With ``level`` an encoder gives one
    map too, (B, channels[0], ...): that of the number, 0 the finest and -1 the coarsest; of ``fused`` all maps of
    stride ``FUSED`` or more, enlarged bilinearly to the finest of them and concatenated, fine channels first.
    """

    channels: tuple[int, ...]  #: of each map
    strides: tuple[int, ...]  #: pixels a cell of each map
    record: dict[str, Any]  #: what the file says of its origin: preset, steps, init, data hash, ...

    def __init__(self, net: Encoder | UNet, record: Mapping[str, Any], level: Level = None) -> None:
        super().__init__()
        self.net = net
        self.record = dict(record)
        self.channels = (net.channels,) if isinstance(net, UNet) else net.channels
        self.strides = (2,) if isinstance(net, UNet) else net.strides
        self.chosen: slice | None = None
        if level is None:
            return
        count = len(self.strides)
        if isinstance(net, UNet) or not (level == "fused" or (isinstance(level, int) and -count <= level < count)):
            has = (
                "a whole U-Net, which has one map" if isinstance(net, UNet) else f"{count} maps, strides {self.strides}"
            )
            raise ConfigError(f"level {level!r} of {has}. Choices: a number from -{count} to {count - 1}, fused, None.")
        if isinstance(level, int):
            self.chosen = slice(level % count, level % count + 1)
        else:
            self.chosen = slice(min(sum(stride < FUSED for stride in self.strides), count - 1), count)
        self.channels = (sum(self.channels[self.chosen]),)
        self.strides = self.strides[self.chosen][:1]

    @property
    def encoder(self) -> Encoder:
        """The encoder inside, which takes normalised images."""
        return self.net.encoder if isinstance(self.net, UNet) else self.net

    def normalise(self, images: Tensor) -> Tensor:
        """RGB 0..1 (B, 3, H, W) -> what :attr:`encoder` takes. The call does it itself."""
        return self.encoder.normalise(images)

    def forward(self, images: Tensor) -> Any:
        """RGB 0..1 (B, 3, H, W) -> list of maps, or of a whole U-Net or one level one map; see the class."""
        return self.net(images) if isinstance(self.net, UNet) else self.of_normalised(self.normalise(images))

    def of_normalised(self, images: Tensor) -> Any:
        """As the call, of images (B, 3, H, W) that a tool has normalised itself. A U-Net has only the call."""
        maps = self.encoder(images)
        if self.chosen is None:
            return maps
        first, *others = maps[self.chosen]
        size = first.shape[-2:]
        return torch.cat([first, *(F.interpolate(x, size, mode="bilinear", align_corners=False) for x in others)], 1)

    @staticmethod
    def transform(image: Any) -> Tensor:
        """An image as the call takes it: RGB 0..1 (1, 3, H, W) float32, at its own size.

        ``image`` is the path of an image file, a PIL image, or an array (H, W, 3) of uint8, or of floats of 0..1.
        Raises ConfigError for anything else. Needs pillow for files and PIL images, NumPy for arrays.
        """
        import numpy as np  # noqa: PLC0415 (loading needs PyTorch alone)

        if isinstance(image, str | os.PathLike):
            from PIL import Image  # noqa: PLC0415

            with Image.open(image) as opened:
                image = opened.convert("RGB")
        elif hasattr(image, "convert"):
            image = image.convert("RGB")
        array = np.asarray(image)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype.kind not in "uf":
            raise ConfigError(
                f"an image of shape {array.shape}, type {array.dtype}: give (height, width, 3) of uint8 or of floats."
            )
        tensor = torch.from_numpy(np.array(array)).permute(2, 0, 1)[None].float()
        return tensor / 255 if array.dtype == np.uint8 else tensor

    def pool(self, images: Tensor) -> Tensor:
        """RGB 0..1 (B, 3, H, W) -> one vector an image (B, C): the mean over the cells of its one or coarsest map."""
        maps = self(images)
        last: Tensor = maps[-1] if isinstance(maps, list) else maps
        return last.mean((2, 3))


class Dense(nn.Module):
    """RGB 0..1 (B, 3, H, W) -> one feature a cell of half the image, whatever the network.

    A U-Net's map is taken as it is, of an encoder all maps by :func:`pri3d.networks.encoders.join_maps`.
    """

    def __init__(self, net: FeatureNet) -> None:
        super().__init__()
        self.net = net
        self.strides = net.strides

    @property
    def about(self) -> str:
        """Which features: the U-Net's or the encoder's, and their channels."""
        kind = "encoder" if isinstance(self.net.net, Encoder) else "U-Net"
        return f"{kind} {self.net.encoder.name}, {'+'.join(map(str, self.net.channels))} channels"

    def maps(self, images: Tensor) -> list[Tensor]:
        """RGB 0..1 (B, 3, H, W) -> maps (B, C, h, w) at their own strides, float32: of a U-Net one."""
        found = self.net(images)
        return [x.float() for x in (found if isinstance(found, list) else [found])]

    def forward(self, images: Tensor) -> Tensor:
        """RGB 0..1 (B, 3, H, W) -> features (B, C, ceil(H / 2), ceil(W / 2)) float32."""
        half = ((images.shape[-2] + 1) // 2, (images.shape[-1] + 1) // 2)
        maps = self.maps(images)
        if len(maps) == 1:
            return enlarge(maps[0], self.strides[0] / 2, half)
        return join_maps(maps, self.strides, half)


def load(source: str | Path, part: Part | None = None, level: Level = None) -> FeatureNet:
    """Load a trained backbone: on the CPU, in eval mode.

    ``source`` is the folder of a pre-training or fine-tuning run (semantic or instance), one of its files, a file or
    folder of ``pri3d export --to safetensors`` or ``hf`` or of ``pri3d import``, or a name on the hub, ``user/name`` or
    ``user/name@revision`` (needs huggingface_hub; cached after the first time). ``part`` "encoder" takes the encoder,
    at its own strides whatever network it was fine-tuned in; "all" the whole U-Net; None what an export was made of,
    of everything else the encoder. ``level`` makes an encoder give one map, for tools that take one: a number, 0 the
    finest and -1 the coarsest, or "fused".

    Returns a :class:`FeatureNet`, whose call takes RGB 0..1. Raises WeightsError where there is no such file or name,
    or it does not hold the part, is damaged or unsafe; ConfigError for another ``part`` or ``level``.
    """
    if part not in (None, "encoder", "all"):
        raise ConfigError(f"part {part!r}. Choices: encoder, all.")
    return WeightsSource(source).features(part, level)


class WeightsSource:
    """What ``--weights`` can name, opened once for whatever is made of it: the one way from there to a network.

    Args:
        text: scratch, imagenet, timm:NAME, or a run's folder, a weights file, an export, a checkpoint of another
            project; a name on the hub too, but for ``on_hub=False``.

    Raises WeightsError where it names a file that is not there or damaged, ConfigError for anything else.
    """

    path: Path | None  #: of the file or folder; None where weights come from a library, or are new
    record: dict[str, Any]  #: what the file says of its origin; empty for other projects' files

    def __init__(self, text: str | os.PathLike[str], on_hub: bool = True) -> None:
        text = Path(text) if isinstance(text, os.PathLike) else text
        self.text = text.as_posix() if isinstance(text, Path) else text
        starts = self.text in STARTS or self.text.startswith("timm:")
        if not starts and not on_hub and not Path(text).exists():
            raise ConfigError(
                f"--weights {self.text!r}: no such file. Choices: scratch, imagenet, timm:NAME, or a weights file"
            )
        self.path = None if starts else (_find(text) if on_hub else Path(text))
        self.record = {} if self.path is None else read_provenance(self.path)

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """State dict of the file."""
        return {} if self.path is None else read_state(self.path)

    def check(self) -> None:
        """Refuse a file whose tensors are not of the encoder it names, before anything of its size is made.

        Raises WeightsError.
        """
        if self.path is not None and "encoder" in self.record:
            check_stated_encoder(self.path, self.record, self.state)

    @property
    def holds_unet(self) -> bool:
        """Whether it is a U-Net of pri3d; the record of a pre-training run names no network."""
        is_unet = str(self.record.get("network", "unet")) == "unet"
        return bool(self.record) and is_unet and any(key.startswith("decoder.") for key in self.state)

    def fill(self, encoder: Encoder, unet: UNet | None = None) -> WeightsReport | None:
        """Give an encoder its first weights, in place (paper, "Stage I: Pri3D encoder initialization").

        Where ``unet``, the network around it, is given and the source holds one, the whole of it gets them. Returns
        what was loaded, None for scratch. Raises ConfigError for a model that timm does not have, WeightsError where
        the weights cannot be had, are of another encoder or do not fit.
        """
        if self.text == "scratch":
            return None
        if self.path is None:
            return self._fill_from_library(encoder)
        if self.record:
            made_for, options = self.record.get("encoder"), self.record.get("encoder_options", {})
            options = options if isinstance(options, Mapping) else {}
            if made_for not in (None, encoder.name):
                raise WeightsError(
                    f"{self.path} holds a {made_for}, the run asks for {encoder.name}: pass --encoder {made_for}"
                )
            if made_for is not None and options != encoder.built_with:
                flags = " ".join(f"{flag_as_typed(key, encoder.name)} {value}" for key, value in options.items())
                raise WeightsError(f"{self.path} holds a {made_for} that was built with {options}: pass {flags}")
        elif unet is not None:
            from pri3d.networks.published import WRAPPERS, load_published  # noqa: PLC0415 (loads without 3D)

            if any(WRAPPERS.sub("", key).startswith("decoder.") for key in self.state):
                return load_published(unet, self.path)
        if unet is not None and self.holds_unet:
            whole = {key: value for key, value in self.state.items() if not key.startswith("classifier.")}
            return load_weights(unet, whole, minimum=1.0)
        if not self.record and any(PREFIXES.sub("", key) == "_conv_stem.weight" for key in self.state):
            return _fill_efficientnet(encoder, self.path, self.state)
        prefix = "encoder." if self.record and not holds_encoder_alone(self.state) else None
        return load_weights(encoder, self.path, prefix=prefix)

    def _fill_from_library(self, encoder: Encoder) -> WeightsReport:
        """Fill it from an installed package, the encoder's own library, or a model of timm. Raises as :meth:`fill`."""
        if self.text == "imagenet":
            if (file := packaged_file(encoder.name)) is not None:
                return _fill_efficientnet(encoder, file, read_state(file))
            library = build_encoder(encoder.name, True, encoder.built_with)
            return load_weights(encoder, library.state_dict(), minimum=1.0)
        import timm  # noqa: PLC0415 (weights are read where there is none)

        name = self.text.removeprefix("timm:")
        if not timm.is_model(name):
            raise ConfigError(f"--weights timm:{name}: timm has no such model; see timm.list_models(pretrained=True)")
        try:
            state: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
        except (OSError, RuntimeError) as error:
            raise WeightsError(f"the weights of timm's {name} cannot be downloaded: {first_line(error)}") from error
        return load_weights(encoder, state)

    def features(
        self, part: Part | None = None, level: Level = None, encoder: str | None = None, seed: int = 0
    ) -> FeatureNet:
        """Build the network as :func:`load` does: on the CPU, in eval mode.

        ``encoder`` is what scratch, imagenet and files that do not say it are made for, ``seed`` that of new weights.
        Raises ConfigError or WeightsError where there is no such part.
        """
        if self.path is None or (encoder is not None and "encoder" not in self.record):
            return FeatureNet(self._start(encoder, seed), self.record, level).eval()
        if part is None:
            whole = all(key.startswith(("encoder.", "decoder.")) for key in self.state)
            part = "all" if whole and self.record.get("part") == "all" else "encoder"
        if part == "all":
            network = self.record.get("network", "unet")
            if network != "unet":
                raise WeightsError(f"{self.path} holds a {network}, no U-Net: load its encoder with part='encoder'")
            return FeatureNet(load_model(self.path)[0], self.record, level).eval()
        built = build_stated_encoder(self.path, self.record, self.state)
        prefix = None if holds_encoder_alone(self.state) else "encoder."
        load_weights(built, self.path, prefix=prefix, minimum=1.0)
        return FeatureNet(built, self.record, level).eval()

    def dense(self, features: Kind = "unet", encoder: str | None = None, seed: int = 0) -> Dense:
        """Open a network frozen, with one feature a cell of half the image; the other arguments as :meth:`features`.

        ``features`` is ``unet``, the U-Net's where the source holds one, else the encoder's; or ``encoder``, the
        encoder's always.
        """
        part: Part = "all" if features == "unet" and self.holds_unet else "encoder"
        return Dense(self.features(part, encoder=encoder, seed=seed)).eval().requires_grad_(False)

    def _start(self, encoder: str | None, seed: int) -> Encoder:
        """Encoder with first weights, as pre-training builds it; the global generator is left as it was."""
        name = self.text.removeprefix("timm:") if self.text.startswith("timm:") else encoder
        if name is None:
            raise WeightsError(f"{self.text} does not define an encoder: give a run folder or a weights file")
        if self.text.startswith("timm:") and name not in ENCODERS:  # the package's own network, with timm's weights
            return build_encoder(name, pretrained=True)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            built = build_encoder(name)
        self.fill(built)
        return built


def _fill_efficientnet(encoder: Encoder, path: Path, state: Mapping[str, Tensor]) -> WeightsReport:
    """Fill an encoder of timm whole from the file at ``path``, whose tensors efficientnet_pytorch named."""
    plain = {PREFIXES.sub("", key): value for key, value in state.items()}
    try:
        return load_weights(encoder, from_efficientnet(plain, encoder.state_dict()), minimum=1.0)
    except WeightsError as error:
        raise WeightsError(f"{path} is no {encoder.name}: {error}") from error


def _find(source: str | Path) -> Path:
    """File or folder of ``source``, fetched where it is a name on the hub."""
    path = Path(source)
    if path.exists():
        return path
    name = HUB_NAME.fullmatch(str(source))
    if name is None or path.suffix in (".safetensors", ".pth", ".pt"):
        raise WeightsError(
            f"no weights at {source}: give a run folder, a weights file, or a name on the hub, user/name"
        )
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 (optional)
        from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"no folder {source} here; to fetch it from the hub, pip install huggingface_hub ({error})"
        ) from error
    try:
        files = [HUB_FILE, MODEL_FILE, "config.json"]
        return Path(snapshot_download(name["repository"], revision=name["revision"], allow_patterns=files))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = first_line(error)
        raise WeightsError(
            f"no folder {source} here, and the hub does not give {name['repository']} ({reason}). Check the name and "
            "the network, or copy its folder here"
        ) from error
