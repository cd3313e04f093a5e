"""``pri3d embed``: features of any images, pooled or as maps, as a file of numpy or parquet."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pri3d.api.embed import EmbedOptions
from pri3d.errors import ConfigError
from pri3d.evaluation.arrays import FORMATS, check_features, import_arrow, read_record
from pri3d.evaluation.media import open_media, refuse_failed
from pri3d.evaluation.parts import Parts
from pri3d.files.lock import lock_file
from pri3d.geometry.resize import parse_size
from pri3d.machine import cores, prefers_bf16
from pri3d.networks.load import FeatureNet, load
from pri3d.terminal import Terminal

Level = int | Literal["features"]
Precision = Literal["auto", "fp32", "bf16"]


def embed(options: EmbedOptions) -> Path:
    """Embed an image, a folder of images (with its subfolders) or a video with any backbone.

    See :func:`pri3d.embed` for the options.
    """
    source = Path(options.source)
    out = Path(options.out)
    if options.pooled and options.dense:
        raise ConfigError("--pooled and --dense: choose one of them.")
    if out.suffix not in FORMATS:
        raise ConfigError(f"--out {out}: a file of features ends in {', '.join(FORMATS)}.")
    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder. Name a file.")
    if out.suffix == ".parquet":
        import_arrow("pyarrow")  # refused before any work
    # Twice the size that is asked for keeps what resizing would: it is antialiased.
    enough = None if options.size is None else 2 * max(parse_size(options.size))
    console = Terminal(stderr=True, soft_wrap=True)
    media = open_media(source, options.frame_step, enough=enough)
    if media.left_out:
        console.print(f"{source}: skipped: {media.left_out}. Give a video separately.")
    # Bytes of a name that are no text are escaped: arrays, JSON and parquet have none.
    pictures = (each._replace(name=_readable_name(each.name)) for each in media.pictures)
    media = media._replace(pictures=list(pictures) if media.rate is None else pictures)
    backbone = Backbone(str(options.weights), options.level, options.precision)
    # Names, sizes and times of the files, by which other images are told from the same ones.
    files = [(_readable_name(source.name), source)]
    if media.rate is None:
        files = [(picture.name, Path(picture.source)) for picture in media.pictures]
    images = hashlib.sha256(str(options.frame_step).encode())
    for name, path in files:
        state = path.stat()
        images.update(f"{name} {state.st_size} {state.st_mtime_ns}\n".encode())
    facts = {
        "kind": "dense" if options.dense else "pooled",
        **backbone.facts,
        "size": options.size,
        "normalised": options.normalise,
        "dtype": "float16" if options.half else "float32",
        "batch": options.batch,
        "images": images.hexdigest(),
    }
    parts = Parts(out, facts)
    record = read_record(out) or {}
    if options.overwrite or any(record.get(name) != value for name, value in facts.items()):
        with lock_file(out):
            parts.claim(options.overwrite)
            failed = parts.fill(media, backbone.maps, options.workers or min(8, cores()), console)
            parts.join(failed)
    else:
        check_features(out)
    done, failed = parts.outcome()
    refuse_failed(failed, done, out)
    console.print(f"{done} embedded in {out}")
    return out


class Backbone:
    """One map of a network, for images of any size."""

    facts: dict[str, Any]  #: network, weights (hash), level, stride (pixels a cell), channels, precision

    def __init__(self, model: str, level: Level, precision: Precision) -> None:
        """Open it on the GPU where there is one. Raises WeightsError, or ConfigError for a level it does not have."""
        self.net = load(model, "all" if level == "features" else "encoder")
        self.number = 0 if level == "features" else _number(self.net, level)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.bf16 = precision == "bf16" or (precision == "auto" and prefers_bf16(self.net))
        # SHA-256 of the tensors by name: the same whatever file they came from.
        digest = hashlib.sha256()
        for name, value in sorted(self.net.net.state_dict().items()):
            if not name.endswith("num_batches_tracked"):  # counts, which some files leave out
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        self.facts = {
            "network": self.net.encoder.name,
            "weights": digest.hexdigest(),
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


def _readable_name(name: str) -> str:
    """A file's name as text in UTF-8, whatever the encoding of the system; bytes that are none are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


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
