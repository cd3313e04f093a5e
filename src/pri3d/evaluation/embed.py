"""``pri3d embed``: features of any images, pooled or as maps, as a file of numpy or parquet.

They are computed part by part: what is done outlives a kill, and the joined file is the same as without one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pri3d.api.embed import EmbedOptions
from pri3d.data.reading import PIXELS_AHEAD, reading
from pri3d.errors import ConfigError, DataError, WeightsError
from pri3d.evaluation.arrays import (
    DAMAGED,
    FORMATS,
    Table,
    check_features,
    import_arrow,
    read_record,
    write_entry,
    write_features,
)
from pri3d.evaluation.media import Media, Picture, open_media, refuse_failed, until_damaged
from pri3d.files.atomic import remove_leftovers, replacing, usable
from pri3d.files.lock import lock_file
from pri3d.files.stamp import refuse_other_settings
from pri3d.geometry.resize import parse_size, resize_color
from pri3d.machine import cores, prefers_bf16
from pri3d.networks.load import FeatureNet, load
from pri3d.runs import read_json, write_json
from pri3d.tasks.base import PIXELS
from pri3d.terminal import Terminal, track

BATCHES = 4  #: of pictures in a part, the work that a kill costs at most
RECORD = "record.json"  #: of the folder: what the parts are made with
CONTENT = "content.json"  #: of a part: its pictures

Maps = Callable[[NDArray[np.uint8]], Tensor]  #: RGB (B, H, W, 3) -> (B, C, h, w) float32
Loading = tuple[Picture, Future[NDArray[np.uint8]]]
Placed = tuple[int, str, NDArray[np.uint8]]  #: place in the part, name, RGB (H, W, 3)

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


class Row(NamedTuple):
    """A picture of a part."""

    place: int  #: in the part, the name of its array
    name: str
    height: int  #: of its map, cells
    width: int


class Parts:
    """The folder OUT.parts beside a file of features until that is written.

    Pictures come in a fixed order; every so many are a part, a .npz written whole or not at all. A part's pictures are
    computed together by size, so that its values do not depend on whether the run was stopped before.
    """

    def __init__(self, out: Path, facts: dict[str, Any]) -> None:
        """``facts``: everything that the features depend on, as JSON keeps it; see :func:`embed`."""
        self.out, self.facts = out, facts
        self.folder = out.with_name(f"{out.name}.parts")
        self.cells: tuple[int, int] | None = None  #: of the maps, where all must have one size

    def outcome(self) -> tuple[int, list[str]]:
        """Number of rows of the file, and why other pictures are not in it."""
        record = read_record(self.out) or {}
        return int(record["rows"]), list(record["failed"])

    def claim(self, overwrite: bool) -> None:
        """Make the folder, or continue in it. Raises ConfigError where it or the file was made otherwise."""
        with usable(f"--out {self.out}"):
            if overwrite and self.folder.is_dir():
                shutil.rmtree(self.folder)
            if (self.folder / RECORD).is_file():
                self._refuse_other(read_json(self.folder / RECORD), self.folder)
                remove_leftovers(self.folder)
            elif self.out.exists() and not overwrite:
                self._refuse_other(read_record(self.out), self.out)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / RECORD, self.facts)

    def _refuse_other(self, record: Any, where: Path) -> None:
        fix = "Choose another --out, or start over with --overwrite."
        if not isinstance(record, dict) or not record:
            raise ConfigError(f"{where}: was not written by this command. {fix}")
        refuse_other_settings(where, record, self.facts, fix, ignore=("stride", "channels"))  # they follow from others

    def fill(self, media: Media, maps: Maps, workers: int, console: Terminal) -> list[str]:
        """Compute the parts that are not there. Returns why a video ended too early, if one did."""
        failed: list[str] = []
        for path in self._paths()[:1]:
            self.cells = next((Row(*row)[2:] for row in _content(path)["rows"]), None)
        dtype = torch.float16 if self.facts["dtype"] == "float16" else torch.float32
        size, pictures = BATCHES * self.facts["batch"], until_damaged(media.pictures, failed)
        lacking = ((k // size, each) for k, each in enumerate(pictures) if not self._path(k // size).exists())
        size_of = self.facts["size"]
        loaded = reading(lacking, lambda item: _load(item[1], size_of), workers, lambda item: item[1].size())
        left = None if media.total is None else max(0, media.total - size * len(self._paths()))
        loaded = track(loaded, "embedding", left, console, lambda item: item[0][1].label())
        for number, items in groupby(loaded, key=lambda item: item[0][0]):
            rows: list[Row] = []
            unread: list[str] = []
            with replacing(self._path(number)) as part, zipfile.ZipFile(part, "w") as archive:
                images = _read(((picture, image) for (_, picture), image in items), unread, console)
                for group in _batches(images, self.facts["batch"]):
                    found = maps(np.stack([image for _, _, image in group]))
                    height, width = found.shape[-2:]
                    # What is kept of (B, C, h, w): (B, h, w, C), or the mean over the cells (B, C).
                    kept = found.permute(0, 2, 3, 1) if self.facts["kind"] == "dense" else found.mean((2, 3))
                    kept = F.normalize(kept, dim=-1) if self.facts["normalised"] else kept
                    array = kept.to(dtype).cpu().numpy()
                    for (place, name, _), features in zip(group, array, strict=True):
                        self._check(name, features, (height, width))
                        write_entry(archive, str(place), features)
                        rows.append(Row(place, name, height, width))
                archive.writestr(CONTENT, json.dumps({"rows": sorted(rows), "failed": unread}))
        return failed

    def _paths(self) -> list[Path]:
        """The parts that are there, in order."""
        return sorted(self.folder.glob("[0-9]*.npz"))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:07d}.npz"

    def _check(self, name: str, features: NDArray[Any], cells: tuple[int, int]) -> None:
        """Refuse what would be useless in the file, as soon as it shows."""
        if not np.isfinite(features).all():
            half = " or too large for --half, which ends at 65504" if self.facts["dtype"] == "float16" else ""
            raise WeightsError(f"the network's features of {name} are not finite{half}. Did its training diverge?")
        if self.out.suffix != ".npy" or self.facts["kind"] != "dense":
            return
        self.cells = self.cells or cells
        if self.cells != cells:
            raise DataError(
                f"{name}: its map has {cells[0]} x {cells[1]} cells, those before {self.cells[0]} x {self.cells[1]}; "
                ".npy holds maps of one size. Give one --size, or write .npz or .parquet."
            )

    def join(self, failed: list[str]) -> None:
        """Write the file from the parts and remove these. ``failed``: what is to be reported beside their own.

        Raises DataError where there is no picture at all, or a part is damaged.
        """
        rows: list[tuple[Path, Row]] = []
        listed: list[str] = []
        for path in self._paths():
            content = _content(path)
            rows += [(path, Row(*row)) for row in content["rows"]]
            listed += content["failed"]
        listed += failed
        if rows:
            table = Table(
                names=[row.name for _, row in rows],
                cells=np.array([(row.height, row.width) for _, row in rows], np.int64),
                channels=self.facts["channels"],
                dense=self.facts["kind"] == "dense",
                dtype=self.facts["dtype"],
                record={**self.facts, "rows": len(rows), "failed": listed},
                rows=partial(_arrays, rows),
            )
            write_features(self.out, table)
        shutil.rmtree(self.folder)
        if not rows:
            raise DataError("no image could be read:" + "".join(f"\n  {reason}" for reason in listed))


def _load(picture: Picture, size: str | None) -> NDArray[np.uint8]:
    return picture.load() if size is None else resize_color(picture.load(), parse_size(size))


def _read(items: Iterable[Loading], failed: list[str], console: Terminal) -> Iterator[Placed]:
    """The images of a part with their places; those that cannot be read are said and added to ``failed``."""
    for place, (picture, loading) in enumerate(items):
        try:
            yield place, picture.name, loading.result()
        except DataError as error:
            console.print(f"skipped {error}")
            failed.append(str(error))


def _batches(images: Iterable[Placed], batch: int) -> Iterator[list[Placed]]:
    """Images of one size together, as many as go into a batch; what is left at the end goes by itself."""
    waiting: dict[tuple[int, ...], list[Placed]] = {}
    for placed in images:
        shape = placed[2].shape
        while waiting and sum(image.size // 3 for group in waiting.values() for _, _, image in group) > PIXELS_AHEAD:
            yield waiting.pop(max(waiting, key=lambda size: len(waiting[size]) * size[0] * size[1]))
        group = waiting.setdefault(shape, [])
        group.append(placed)
        if len(group) >= min(batch, PIXELS // (shape[0] * shape[1])):
            yield waiting.pop(shape)
    yield from waiting.values()


def _content(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(CONTENT))
    except DAMAGED as error:
        raise _damaged(path, error) from error


def _arrays(rows: list[tuple[Path, Row]]) -> Iterator[NDArray[Any]]:
    """Features of the rows, one at a time."""
    for path, some in groupby(rows, key=lambda row: row[0]):
        try:
            with np.load(path, allow_pickle=False) as part:
                for _, row in some:
                    yield part[str(row.place)]
        except DAMAGED as error:
            raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: is damaged ({error}). Delete it and run the same command again.")
