"""Images a second of ``pri3d embed`` against a plain loop over the images.

    python -m benchmarks.embed

PNG images of 320 x 240 in a folder, ResNet-18 of random weights, mean over its last map. Plain: each image is read,
made a float tensor and computed alone in float32; nothing is kept on the way. Both sides open the network themselves
and take processor seconds at one thread, interleaved, the median of a few rounds. The difference of the features is
relative to the largest of their values.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pri3d.api.embed import embed
from pri3d.evaluation.embed import Precision
from pri3d.labelled._shared.decoding import read_rgb
from pri3d.machine import bf16_units
from pri3d.networks.load import load
from pri3d.networks.unet import build_unet
from pri3d.networks.weights import save_model

IMAGES, SIZE, ROUNDS = 128, (320, 240), 3


def write_images(folder: Path, count: int, size: tuple[int, int]) -> Path:
    """Smooth images."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(count):
        coarse = Image.fromarray(rng.integers(256, size=(16, 21, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(folder / f"{k:04d}.png")
    return folder


@torch.inference_mode()
def plain(weights: Path, images: Path) -> NDArray[np.float32]:
    """Features (N, C), one image after the other."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    net = load(weights).to(device)
    rows = []
    for path in sorted(images.iterdir()):
        x = torch.from_numpy(read_rgb(path).copy()).permute(2, 0, 1)[None].to(device).float() / 255
        rows.append(net(x)[-1].mean((2, 3))[0].cpu())
    return torch.stack(rows).numpy()


def ours(weights: Path, images: Path, out: Path, precision: Precision) -> NDArray[np.float32]:
    """The same by the verb."""
    found: NDArray[np.float32] = np.load(embed(str(weights), images, out, precision=precision, overwrite=True))
    return found


def run(count: int = IMAGES, size: tuple[int, int] = SIZE, rounds: int = ROUNDS) -> list[tuple[str, str, str | None]]:
    """Name, measured value and bar of every figure, for ``count`` images of ``size`` (width, height)."""
    torch.set_num_threads(1)
    kinds: list[Precision] = ["fp32", "bf16"] if bf16_units() or torch.cuda.is_available() else ["fp32"]
    rates: dict[str, list[float]] = {name: [] for name in ("plain", *kinds)}
    features = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, weights = write_images(folder / "images", count, size), folder / "weights.safetensors"
        save_model(build_unet("resnet18", "slim"), weights, {})
        for _ in range(rounds):
            for kind, found in rates.items():
                start = time.process_time()
                if kind == "plain":
                    features[kind] = plain(weights, images)
                else:
                    features[kind] = ours(weights, images, folder / "features.npy", kind)
                found.append(count / (time.process_time() - start))
    base, title = features["plain"], f"{count} images of {size[0]} x {size[1]}, ResNet-18"
    rows: list[tuple[str, str, str | None]] = [
        (f"{title}, plain loop, images/s", f"{median(rates['plain']):.1f}", None)
    ]
    for kind in kinds:
        faster = median(a / b for a, b in zip(rates[kind], rates["plain"], strict=True))
        apart = np.abs(features[kind] - base).max() / np.abs(base).max()
        rows += [
            (f"  embed, {kind}, images/s", f"{median(rates[kind]):.1f}", None),
            (f"  embed, {kind}, times faster", f"{faster:.2f}", "> 1"),
            (f"  embed, {kind}, largest difference", f"{apart:.0e}", "< 1e-5" if kind == "fp32" else None),
        ]
    return rows


def main() -> None:
    """Print the table."""
    for name, measured, bar in run():
        print(f"{name:72s} {measured:>14s}  {bar or ''}")


if __name__ == "__main__":
    main()
