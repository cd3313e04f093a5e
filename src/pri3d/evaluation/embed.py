"""``pri3d embed``: features of any images, pooled or as maps, as a file of numpy or parquet."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from torch import Tensor, nn

from pri3d import registry
from pri3d.errors import ConfigError
from pri3d.evaluation.arrays import check_format
from pri3d.evaluation.media import Media, open_media, refuse_failed
from pri3d.evaluation.parts import Parts
from pri3d.files.lock import lock_file
from pri3d.geometry.resize import parse_size
from pri3d.machine import cores, cpu_has_bf16
from pri3d.networks.load import FeatureNet, load

Level = int | Literal["features"]
Precision = Literal["auto", "fp32", "bf16"]


def embed(
    model: str,
    source: Path,
    out: Path = Path("embeddings.npz"),
    pooled: bool = False,
    dense: bool = False,
    level: Level = -1,
    size: str | None = None,
    normalise: bool = False,
    half: bool = False,
    batch: int = 16,
    every: int = 1,
    precision: Precision = "auto",
    workers: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Embed an image, a folder of images (with its subfolders) or a video with any backbone.

    Pooled, a picture's feature is the mean over the cells of one of the encoder's maps, of a ViT over its patches;
    dense, it is that map (h, w, C), whose cell (i, j) lies over the pixels from (i, j) times the stride on. Rows are in
    the order of the names: the image's path below the folder without suffix; of a video its name and the frame's
    number. Values are float32 whatever the network computes in.

    A stopped command continues: what is done lies in OUT.parts until the file is written, which needs the space twice,
    and the file is the same as that of a run that was not stopped. An image that cannot be read is listed and left out
    while the others go on.

    Args:
        model: run folder, weights file, export or name on the hub.
        source: image, folder of images, or video (with the extra `video`; animated GIF, WebP and PNG without it).
        out: file to write. .npz holds names, height, width (of the maps, in cells), stride, model (hash of the
            weights), record (JSON, how it was made), and features (N, C) or a map each as maps/NAME. .npy holds (N, C),
            or (N, h, w, C) of maps of one size; names and the rest lie in OUT.json. .parquet has the columns name,
            features, height, width, stride.
        pooled: one vector (C,) a picture; the default.
        dense: one map (h, w, C) a picture.
        level: which of the encoder's maps, 0 the finest, -1 the coarsest; or features, the output of a run's U-Net.
        size: width x height to which images are resized, as in 320x240; each image's own where it is not given.
        normalise: give every vector, of maps every cell's, the length 1.
        half: write float16.
        batch: pictures of one size that are computed together, fewer where they have more than 8 megapixels.
        every: take every so many images or frames.
        precision: auto, fp32 or bf16; auto is bf16 where the hardware multiplies it.
        workers: threads that read images; one a core and at most 8 where it is not given.
        overwrite: begin anew, and replace the file.

    Returns:
        The file.

    Raises:
        ConfigError: a flag is out of range, or ``out`` or its parts were made otherwise.
        DataError: the source cannot be read, or some image could not be (the others are there).
        WeightsError: there is no such network, or its features are not finite.
    """
    if pooled and dense:
        raise ConfigError("--pooled and --dense: choose one of them.")
    for name, count in (("batch", batch), ("workers", 1 if workers is None else workers)):
        if count < 1:
            raise ConfigError(f"--{name} {count}: give 1 or more.")
    if precision not in ("auto", "fp32", "bf16"):
        raise registry.unknown("precision", ("auto", "fp32", "bf16"), precision)
    check_format(out)
    if size is not None:
        parse_size(size)
    console = Console(stderr=True, soft_wrap=True)
    media = open_media(source, every)
    if media.rate is None:
        media = media._replace(pictures=list(media.pictures))
    backbone = Backbone(model, level, precision)
    facts = {
        "kind": "dense" if dense else "pooled",
        **backbone.facts,
        "size": size,
        "normalised": normalise,
        "dtype": "float16" if half else "float32",
        "batch": batch,
        "images": _fingerprint(media, source, every),
    }
    parts = Parts(out, facts)
    if overwrite or not parts.are_joined():
        with lock_file(out):
            parts.claim(overwrite)
            failed = parts.fill(media, backbone.maps, workers or min(8, cores()), console)
            parts.join(failed)
    done, failed = parts.outcome()
    refuse_failed(failed, done, out)
    console.print(f"{done} embedded in {escape(str(out))}")
    return out


class Backbone:
    """One map of a network, for images of any size."""

    facts: dict[str, Any]  #: network, weights (hash), level, stride (pixels a cell), channels, precision

    def __init__(self, model: str, level: Level, precision: Precision) -> None:
        """Open it on the GPU where there is one. Raises WeightsError, or ConfigError for a level it does not have."""
        self.net = load(model, "all" if level == "features" else "encoder")
        self.number = 0 if level == "features" else _number(self.net, level)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.bf16 = precision == "bf16" or (precision == "auto" and _multiplies_bf16())
        self.facts = {
            "network": self.net.encoder.name,
            "weights": hash_state(self.net.net),
            "level": level if level == "features" else self.number,
            "stride": self.net.strides[self.number],
            "channels": self.net.channels[self.number],
            "precision": "bf16" if self.bf16 else "fp32",
        }
        # Convolutions are faster with the channels last: by a quarter on CPUs, twice with bf16.
        self.net.to(self.device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def maps(self, images: NDArray[np.uint8]) -> Tensor:
        """RGB (B, H, W, 3) -> maps (B, C, ceil(H / stride), ceil(W / stride)) float32 on the device."""
        x = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float() / 255  # stays channels last
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            found = self.net(x)
        chosen: Tensor = found[self.number] if isinstance(found, list) else found
        return chosen.float()


def _number(net: FeatureNet, level: Any) -> int:
    """A level counted from 0. Raises ConfigError with those that there are."""
    count = len(net.strides)
    if not isinstance(level, int) or not -count <= level < count:
        maps = enumerate(zip(net.strides, net.channels, strict=True))
        listed = ", ".join(f"{k} (stride {stride}, {channels} channels)" for k, (stride, channels) in maps)
        raise ConfigError(
            f"--level {level}: {net.encoder.name} has {listed}; -1 is the last. Or give features, of a run's U-Net."
        )
    return level % count


def hash_state(module: nn.Module) -> str:
    """SHA-256 of a network's tensors by name, hexadecimal: the same whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not name.endswith("num_batches_tracked"):  # counts, which some files leave out
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _multiplies_bf16() -> bool:
    return torch.cuda.is_bf16_supported(including_emulation=False) if torch.cuda.is_available() else cpu_has_bf16()


def _fingerprint(media: Media, source: Path, every: int) -> str:
    """Hash of the names, sizes and times of the files, by which other images are told from the same ones."""
    files = [(source.name, source)]
    if media.rate is None:
        files = [(picture.name, Path(picture.source)) for picture in media.pictures]
    digest = hashlib.sha256(str(every).encode())
    for name, path in files:
        state = path.stat()
        digest.update(f"{name} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()
