"""Files with flipped bits and other damage, read as pri3d reads them, in processes of bounded time and memory."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import traceback
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from benchmarks.tries import Score
from PIL import Image

from pri3d.errors import FrameError, Pri3DError
from pri3d.evaluation.arrays import check_features, read_record
from pri3d.evaluation.media import open_media
from pri3d.labelled import open_labelled
from pri3d.networks.state_files import read_state
from pri3d.networks.weights import read_provenance
from pri3d.recordings import open_recording
from pri3d.reporting.sources import find_sources
from pri3d.runs import RunPaths, read_metrics
from pri3d.store import SceneStore, Store, scene_folder

HANG = 20  # seconds of one reading
MEMORY = 1 << 20  # kilobytes beyond what the process had before
_FORKS = multiprocessing.get_context("fork")
#: what numpy and zipfile raise of a file that their checksums show to be damaged, for who reads features himself
_READERS_OWN = (zipfile.BadZipFile, zlib.error, ValueError, OSError, KeyError, EOFError, NotImplementedError)

Read = Callable[[Path], str]  #: a file or folder -> a digest of what it holds; raises Pri3DError where it is damaged


class Kind(NamedTuple):
    """A kind of input: a sound one, and what reads it."""

    name: str
    root: Path
    read: Read


def digest_of(*parts: Any) -> str:
    """One digest of arrays and plain values."""
    digest = hashlib.sha256()
    for part in parts:
        is_array = isinstance(part, np.ndarray) and part.dtype.kind not in "UO"
        digest.update(np.ascontiguousarray(part).tobytes() if is_array else repr(part).encode())
    return digest.hexdigest()


def read_store(root: Path) -> str:
    """Everything that trainings take from a prepared dataset."""
    store = Store(root)
    parts: list[Any] = [store.scenes, store.class_names, *(column.tolist() for column in store.pairs())]
    for name in store.scenes:
        scene = SceneStore(scene_folder(root, name))
        frames, surface = scene.frames, scene.surface()
        parts += [frames.world_from_camera, frames.intrinsics, frames.valid, frames.names.tolist(), frames.size]
        parts += [surface.cells, surface.size, *(column.tolist() for column in scene.pairs())]
        for row in np.flatnonzero(frames.valid):
            view = scene.view(int(row))
            parts += [view.color, view.depth]
    return digest_of(*parts)


def read_weights(path: Path) -> str:
    """Tensors and record of a weights file, safetensors or torch."""
    record, state = read_provenance(path), read_state(path)
    return digest_of(sorted(record.items()), *(part for key in sorted(state) for part in (key, state[key].numpy())))


def read_features(path: Path) -> str:
    """What ``pri3d embed`` wrote, as its repetition looks at it and numpy reads it."""
    record = read_record(path)
    check_features(path)
    with np.load(path, allow_pickle=False) as file:
        return digest_of(record, *(part for key in sorted(file.files) for part in (key, file[key])))


def read_recording(root: Path) -> str:
    """All frames of a recording; those that are unusable are left out, as ``prepare`` does."""
    parts: list[Any] = []
    for scene in open_recording(root).scenes():
        for index in range(min(len(scene.names), 3)):
            with suppress(FrameError):
                frame = scene.frame(index)
                if frame.depth is not None and not np.isfinite(frame.depth).all():
                    raise ValueError("depth that is not finite")
                parts += [frame.name, frame.color, frame.depth, frame.world_from_camera]
    return digest_of(*parts)


def read_labelled(root: Path) -> str:
    """All labelled images of a folder."""
    images = open_labelled(root, "all")
    parts: list[Any] = [list(images.class_names)]
    for index in range(min(len(images.names), 3)):
        found = images.instances(index) if images.has_objects else images.label(index)
        parts += [images.color(index), *(found if isinstance(found, tuple) else (found,))]
    return digest_of(*parts)


def read_media(path: Path) -> str:
    """All pictures of an image, animation or video."""
    return digest_of(*(picture.load() for picture in open_media(path).pictures))


def read_run(root: Path) -> str:
    """A run's folder as the report reads it."""
    runs = find_sources([root]).pretrained
    return digest_of(*(part for run in runs for part in (run.provenance, read_metrics(RunPaths(run.path).metrics))))


def flip(data: bytes, position: int, bit: int) -> bytes:
    """The bytes with one bit of another value."""
    changed = bytearray(data)
    changed[position] ^= 1 << bit
    return bytes(changed)


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes as damage and malice leave them: bits, numbers, cuts, repeats, zeros, text that is too large."""
    if not data:
        return bytes(rng.integers(0, 256, 16, dtype=np.uint8))
    changed, at = bytearray(data), int(rng.integers(len(data)))
    # Headers and directories lie at the ends, and decide most.
    at = (at, at % 64, max(0, len(data) - 1 - at % 128))[int(rng.integers(3))] % len(data)
    length = int(rng.integers(1, 1 + min(64, len(data))))
    way = int(rng.integers(8))
    if way == 0:
        changed[at] ^= 1 << int(rng.integers(8))
    elif way == 1:
        changed[at : at + 4] = rng.integers(0, 256, 4, dtype=np.uint8).tobytes()
    elif way == 2:
        del changed[at:]
    elif way == 3:
        changed[at:at] = changed[at : at + length]
    elif way == 4:
        changed[at : at + length] = bytes(length)
    elif way == 5:
        changed[at : at + 4] = b"\xff" * 4
    elif way == 6:
        del changed[at : at + length]
    else:
        words = (b"1e400", b"-1", b"nan", b"99999999999999999999", b'"', b"[[[[", b"{", b"\x1b[31m", b"&a *a")
        changed[at : at + 1] = words[int(rng.integers(len(words)))]
    return bytes(changed)


def _files(root: Path) -> list[Path]:
    return [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())


def damaged(kind: Kind, copy: Path, count: int, seed: int, flips: bool) -> Iterator[tuple[str, Path]]:
    """Versions of an input, one after the other in its place: what was done to it, and where it lies."""
    rng = np.random.default_rng(seed)
    files = _files(kind.root)
    for k in range(count):
        file = files[k % len(files)] if flips or k % 2 else files[int(rng.integers(len(files)))]
        place = copy / file.relative_to(kind.root) if file != kind.root else copy
        data = file.read_bytes()
        if flips:
            position = (k // len(files) * len(data) * len(files) // count + int(rng.integers(8))) % max(1, len(data))
            place.write_bytes(flip(data, position, k % 8) if data else b"\0")
            what = f"bit {k % 8} of byte {position} of {len(data)}"
        else:
            place.write_bytes(mutate(data, rng))
            what = f"version {k} of seed {seed}"
        yield f"{place.name}, {what}", copy
        place.write_bytes(data)


def _high_water() -> int:
    """Kilobytes that this process had at most since it was last asked, where the system says."""
    try:
        text = Path("/proc/self/status").read_text()
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return int(text.partition("VmHWM:")[2].split()[0])


def _raise_hang(*_: Any) -> None:
    raise TimeoutError


def _try(kind: Kind, where: Path, sound: str) -> tuple[str, str]:
    """Outcome of one reading, and what was said."""
    signal.signal(signal.SIGALRM, _raise_hang)
    before = _high_water()
    before = _high_water() or before
    signal.alarm(HANG)
    try:
        same = kind.read(where) == sound
        outcome, said = ("harmless" if same else "other"), ""
    except TimeoutError:
        outcome, said = "hang", traceback.format_exc()
    except Pri3DError as error:
        outcome, said = "found", str(error)
    except _READERS_OWN as error:
        own = kind.read is read_features
        outcome, said = ("found" if own else "traceback"), str(error) if own else traceback.format_exc()
    except BaseException:
        outcome, said = "traceback", traceback.format_exc()
    signal.alarm(0)
    if outcome in ("harmless", "other", "found") and _high_water() - before > MEMORY:
        outcome = "memory"
    return outcome, said


def _work(kind: Kind, copy: Path, count: int, seed: int, flips: bool, report: Path) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    sys.stdout = sys.stderr = os.fdopen(null, "w")
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sound = kind.read(kind.root)
    with report.open("w") as file:
        for what, where in damaged(kind, copy, count, seed, flips):
            file.write(json.dumps({"begun": what}) + "\n")
            file.flush()
            outcome, said = _try(kind, where, sound)
            file.write(json.dumps({"outcome": outcome, "said": f"{what}: {said}"}) + "\n")


def score_damage(kind: Kind, folder: Path, count: int, seed: int, flips: bool) -> Score:
    """Read so many damaged versions of an input in a process beside this one.

    With ``flips`` other data without a word are lost; of other damage, which may change what a file honestly says,
    they count as good data.
    """
    score = Score("bit flips" if flips else "mutations", kind.name)
    folder.mkdir(parents=True, exist_ok=True)
    copy, report = folder / kind.root.name, folder / f"{kind.name.replace(' ', '-').replace('/', '-')}.jsonl"
    if kind.root.is_dir():
        shutil.copytree(kind.root, copy, dirs_exist_ok=True)
    process = _FORKS.Process(target=_work, args=(kind, copy, count, seed, flips, report))
    process.start()
    process.join(60 + count * HANG)
    lines = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
    if process.is_alive() or process.exitcode or not lines:
        hangs = process.is_alive()
        process.kill()
        process.join()
        score.add("hang" if hangs else "traceback", f"the process ended with {process.exitcode} at {lines[-1:]}")
    for line in lines:
        if "outcome" in line:
            outcome = line["outcome"]
            score.add(("lost" if flips else "harmless") if outcome == "other" else outcome, line["said"])
    return score


def write_inputs(folder: Path, names: Sequence[str]) -> list[Kind]:
    """Recordings as the tests write them, one of each format named."""
    tests = Path(__file__).parents[1] / "tests"
    sys.path[:0] = [str(tests / "recordings"), str(tests)]
    samples = import_module("samples").SAMPLES

    found = []
    for name in names:
        sample = samples[name](folder / name)
        found.append(Kind(f"recording: {name}", sample.root, read_recording))
    return found


def write_others(folder: Path, pictures: Sequence[Path]) -> list[Kind]:
    """Labelled images as a folder and as COCO, pictures, and a torch file."""
    folder.mkdir(parents=True)
    images = [Image.open(path).convert("RGB") for path in pictures[:3]]
    labelled, coco = folder / "labelled", folder / "coco"
    for place in (labelled / "images", labelled / "masks", coco / "images", coco / "annotations"):
        place.mkdir(parents=True)
    mask = np.zeros(images[0].size[::-1], np.uint8)
    mask[5:20, 5:30] = 1
    boxes = []
    for k, image in enumerate(images):
        image.save(labelled / "images" / f"{k}.jpg")
        Image.fromarray(mask).save(labelled / "masks" / f"{k}.png")
        image.save(coco / "images" / f"{k}.jpg")
        polygon = [[5, 5, 30, 5, 30, 20, 5, 20]]
        boxes.append({"id": k, "image_id": k, "category_id": 1, "bbox": [5, 5, 25, 15], "segmentation": polygon})
        boxes[-1] |= {"area": 375, "iscrowd": 0}
    (labelled / "labels.yaml").write_text("classes:\n  floor: 0\n  chair: 1\n")
    width, height = images[0].size
    listed = [{"id": k, "file_name": f"{k}.jpg", "width": width, "height": height} for k in range(len(images))]
    content = {"images": listed, "annotations": boxes, "categories": [{"id": 1, "name": "chair"}]}
    (coco / "annotations" / "instances_train.json").write_text(json.dumps(content))
    images[0].save(folder / "still.jpg")
    images[0].save(folder / "still.png")
    images[0].save(folder / "still.tiff", compression="tiff_lzw")
    images[0].save(folder / "moving.gif", save_all=True, append_images=images[1:])
    with av.open(str(folder / "film.mp4"), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in images * 2:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    torch.save({"model": {"conv1.weight": torch.ones(64, 3, 7, 7)}, "epoch": 3}, folder / "weights.pth")
    pictures_of = [Kind(f"picture: {path.name}", path, read_media) for path in sorted(folder.glob("*.*"))[:-1]]
    return [
        Kind("labelled folder", labelled, read_labelled),
        Kind("labelled COCO", coco, read_labelled),
        *pictures_of,
        Kind("weights .pth", folder / "weights.pth", read_weights),
    ]
