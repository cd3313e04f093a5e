"""A pre-training step on one GPU, part by part, and the sparse convolution beside other libraries'.

    python -m benchmarks.gpu [--out docs/results/gpu.md] [--encoders resnet18] [--minutes 9]    on a GPU
    python -m benchmarks.gpu --small                                               anywhere: tiny sizes, printed only

Parts come one after the other, and the page is written after each, so that a run cut short leaves what it measured:
whether the device computes what the CPU does (matching, losses and gradients, sparse convolution; at a small size, for
the CPU's sake), the training tests on that device (exact resume, mixed precision, compilation; two minutes at most),
the steps, the loader, the 3D network beside other libraries', and with the minutes that are left table 1 on rooms at
size small with ResNet-50. A part for which no time is left says so.

View+Geo as the preset `paper` has it (34C, 2 cm voxels, both chunks, 1024 points), from scratch, 64 pairs a step, in
the largest micro batch that fits. The step is cut where the networks meet the loss, so that the gradients of each part
can be timed alone: between CUDA events on a GPU, by the clock on a CPU. Pairs a second are of the uncut step with its
batches on the device. fp32 is without TF32 everywhere, tf32 with it everywhere, bf16 is autocast with PyTorch's
defaults for the rest, and the contrast is fp32 in all of them.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from benchmarks import rivals
from benchmarks.loading import loader, make_store
from benchmarks.machine import describe_machine
from benchmarks.timing import Cut, CutNetwork, Stopwatch, choose_device, precision, seconds, synchronise
from torch import Tensor

from pri3d.api.presets import overlay
from pri3d.api.pretrain import PretrainSettings, resolve_pretraining
from pri3d.files.atomic import write_atomic
from pri3d.machine import peak_memory
from pri3d.networks.encoders import build_encoder
from pri3d.networks.resunet3d import SIZES, ResUNet3d
from pri3d.networks.sparse import Geometry
from pri3d.networks.unet import UNet
from pri3d.objectives import geometry as geometry_objective
from pri3d.objectives import view as view_objective
from pri3d.training.pretraining import PretrainModule
from pri3d.types import PairBatch

#: Rows of the table; matching and loss are the step's own work, the others the networks'.
PARTS = ("2D encoder and decoder", "3D network", "matching", "loss", "optimizer")


class Sizes(NamedTuple):
    """How large everything is."""

    encoders: dict[str, int]  #: name -> channels of the feature map
    flags: dict[str, Any]  #: on top of the preset `paper`
    micros: tuple[int, ...]  #: micro batches to try, the largest first
    steps: int  #: timed, after one to warm up
    workers: int
    store: dict[str, Any]  #: options of benchmarks.loading.make_store
    tests: tuple[str, ...] = ("tests/training/test_resume.py", "tests/training/test_engine.py")
    tests_seconds: float = 120.0
    table_encoder: str = "resnet50"  #: of table 1, which comes last
    table_seconds: float = 600.0  #: that it may take at most


FULL = Sizes(
    {"resnet18": 32, "resnet50": 128, "convnext_tiny": 32, "vit_small_patch16_dinov3": 32},
    {"size": "320x240", "batch": 64},
    (64, 32, 16, 8, 4),
    3,
    8,
    {"count": 12, "frames": 20, "voxel": 0.02, "workers": 0},
)
SMALL = Sizes(
    {"resnet18": 32},
    {
        "size": "64x48",
        "batch": 4,
        "unet": {"decoder": "slim"},
        "geometry": {"net3d": "tiny", "voxel": 0.16},
        "contrast": {"points": 64},
        "matching": {"distance": 0.1},
    },
    (2,),
    2,
    1,
    {"count": 2, "frames": 12, "size": "64x48", "voxel": 0.16, "distance": 0.1, "min_overlap": 0.15},
    ("tests/training/test_engine.py", "-k", "half_precision"),
    60.0,
    "resnet18",
    20.0,
)


class Bench:
    """A network under the objectives, its optimizer and the micro batches of one step, on the device."""

    def __init__(self, settings: PretrainSettings, batches: Sequence[PairBatch], device: torch.device) -> None:
        self.device, self.batches = device, batches
        unet = UNet(build_encoder(settings.encoder), settings.unet.decoder, settings.unet.channels)
        self.module = PretrainModule(settings, unet).to(device).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.module.parameters(), settings.lr, momentum=settings.optim.momentum)

    def step(self, forward: Callable[[], AbstractContextManager[Any]]) -> None:
        """As the trainer makes it."""
        self.optimizer.zero_grad()
        for batch in self.batches:
            with forward():
                loss, _ = self.module.loss(batch)
            (loss / len(self.batches)).backward()
        self.optimizer.step()

    def cut_step(self, forward: Callable[[], AbstractContextManager[Any]], watch: Stopwatch) -> None:
        """The same in parts, each timed."""
        self.optimizer.zero_grad()
        volume = CutNetwork(self.module.objective.terms["geometry"].net3d, watch, "3D forward")
        for batch in self.batches:
            with forward():
                with watch.span("2D forward"):
                    features = self.module.features(batch)
                dense = Cut(features.dense)
                with watch.span("objectives"):
                    terms = self.module.objective(features._replace(dense=dense.leaf), batch)
            with watch.span("loss backward"):
                (terms.loss / len(self.batches)).backward()
            with watch.span("3D backward"):
                volume.cut.backward()
            with watch.span("2D backward"):
                dense.backward()
        with watch.span("optimizer"):
            self.optimizer.step()
        volume.remove()

    def parts(self, forward: Callable[[], AbstractContextManager[Any]], steps: int) -> dict[str, float]:
        """Seconds a step of each of PARTS."""
        watch = Stopwatch(self.device)
        with ExitStack() as stack:
            for module in (view_objective, geometry_objective):
                for name in {"match_pixels", "match_voxels", "choose"} & set(vars(module)):
                    timed = watch.timed("matching", getattr(module, name))
                    stack.enter_context(patch.object(module, name, timed))
            self.cut_step(forward, watch)
            synchronise(self.device)
            watch.spans.clear()
            for _ in range(steps):
                self.cut_step(forward, watch)
        s = {name: watch.seconds(name) / steps for name in list(watch.spans)}
        loss = s["objectives"] - s["matching"] - s["3D forward"] + s["loss backward"]
        networks = [s["2D forward"] + s["2D backward"], s["3D forward"] + s["3D backward"]]
        return dict(zip(PARTS, [*networks, s["matching"], loss, s["optimizer"]], strict=True))


def precisions(device: torch.device) -> tuple[str, ...]:
    """Those that differ on a device."""
    return ("fp32", "bf16") if device.type == "cpu" else ("fp32", "tf32", "bf16")


def to_device(batch: PairBatch, device: torch.device) -> PairBatch:
    """All tensors of a batch."""
    return PairBatch(*(x.to(device, non_blocking=True) if isinstance(x, Tensor) else x for x in batch))


def build(store: Path, sizes: Sizes, encoder: str, device: torch.device) -> tuple[Bench, PretrainSettings]:
    """With the largest micro batch whose fp32 step fits."""
    for micro in sizes.micros:
        given = {"weights": "scratch", "lr": 1e-3, "encoder": encoder, "unet": {"channels": sizes.encoders[encoder]}}
        settings = resolve_pretraining("paper", overlay(overlay(sizes.flags, given), {"micro_batch": micro}))
        batches = loader(store, settings, settings.accumulate, workers=0)
        bench = None
        with suppress(torch.OutOfMemoryError):
            bench = Bench(settings, [to_device(batch, device) for batch in batches], device)
            with precision("fp32", device) as forward:
                bench.step(forward)
            return bench, settings
        del bench  # here, where the error with its frames is gone
        gc.collect()
        torch.cuda.empty_cache()
    raise SystemExit(f"{encoder}: not even micro batches of {sizes.micros[-1]} fit")


def step_rows(store: Path, sizes: Sizes, device: torch.device) -> list[str]:
    """The table of the step."""
    lines = [
        f"| encoder | precision | micro batch | pairs/s | peak GB | {' | '.join(f'{p} ms' for p in PARTS)} "
        "| matching + loss |",
        "|---" * (len(PARTS) + 6) + "|",
    ]
    for encoder in sizes.encoders:
        bench, settings = build(store, sizes, encoder, device)
        for name in ("fp32", "bf16"):
            with precision(name, device) as forward:
                if device.type != "cpu":
                    torch.cuda.reset_peak_memory_stats()
                bench.step(forward)
                rate = settings.batch / seconds(lambda f=forward: bench.step(f), sizes.steps, device)
                memory = peak_memory() / 1e3
                parts = bench.parts(forward, sizes.steps)
            share = (parts["matching"] + parts["loss"]) / sum(parts.values())
            cells = [encoder, name, str(settings.micro_batch), f"{rate:.1f}", f"{memory:.1f}"]
            lines.append(f"| {' | '.join([*cells, *(f'{1e3 * s:.1f}' for s in parts.values()), f'{share:.1%}'])} |")
    return lines


def data_rows(store: Path, sizes: Sizes, device: torch.device) -> list[str]:
    """The loader by itself, and the share of bf16 steps that waits for it."""
    lines = ["| encoder | loader alone, pairs/s | step with loader, pairs/s | waiting |", "|---|---|---|---|"]
    for encoder in sizes.encoders:
        bench, settings = build(store, sizes, encoder, device)
        count = (sizes.steps + 2) * settings.accumulate
        alone = loader_rate(store, settings, count, sizes.workers)
        waited, began = 0.0, time.perf_counter()
        stream = iter(loader(store, settings, count, sizes.workers))
        with precision("bf16", device) as forward:
            for step in range(sizes.steps + 2):
                if step == 2:  # the workers have begun, the kernels are chosen
                    waited, began = 0.0, time.perf_counter()
                bench.batches = []
                for _ in range(settings.accumulate):
                    asked = time.perf_counter()
                    bench.batches.append(to_device(next(stream), device))
                    waited += time.perf_counter() - asked
                bench.step(forward)
                synchronise(device)
        took = time.perf_counter() - began
        rate = sizes.steps * settings.batch / took
        lines.append(f"| {encoder} | {alone:.1f} | {rate:.1f} | {waited / took:.1%} |")
    return lines


def loader_rate(store: Path, settings: PretrainSettings, batches: int, workers: int) -> float:
    """Pairs a second after the first batch."""
    stream = iter(loader(store, settings, batches, workers))
    next(stream)
    start = time.perf_counter()
    count = sum(len(batch.names) for batch in stream)
    return count / (time.perf_counter() - start)


def sparse_rows(coords: Tensor, net3d: str, steps: int, device: torch.device) -> list[str]:
    """Forward and backward pass of the 3D network on the same chunks, kernel maps included."""
    kinds = precisions(device)
    lines = [f"| convolution | stem | {' | '.join(f'{kind} ms' for kind in kinds)} |", "|---" * (len(kinds) + 2) + "|"]
    for library, kernel in (("ours", 5), ("ours", 3), *((name, 3) for name in rivals.LIBRARIES)):
        if library != "ours" and not rivals.available(library):
            lines.append(f"| {library} | {kernel}^3 | not installed{' |' * len(kinds)}")
        elif library == "spconv-triton" and device.type == "cpu":
            lines.append(f"| {library} | {kernel}^3 | runs on GPUs only{' |' * len(kinds)}")
        else:
            times = [sparse_step(library, kernel, coords, net3d, name, steps, device) for name in kinds]
            lines.append(f"| {library} | {kernel}^3 | {' | '.join(f'{1e3 * s:.1f}' for s in times)} |")
    return lines


def sparse_step(
    library: str, kernel: int, coords: Tensor, net3d: str, name: str, steps: int, device: torch.device
) -> float:
    """Seconds of one."""
    size = SIZES[net3d]
    net = ResUNet3d(1, 96, size.blocks, size.planes, size.stem_channels, kernel).to(device)
    make: Callable[[Tensor], Any] = lambda coords: Geometry(coords, net.depth + 1)  # noqa: E731
    if library != "ours":
        make = rivals.swap_convolutions(net, library)
        rivals.allow_tf32(library, name == "tf32")
    ones = torch.ones(len(coords), 1, device=device)

    def work() -> None:
        with forward():
            result = net.features(make(coords), ones)
        result.float().square().mean().backward()

    with precision(name, device) as forward:
        work()
        return seconds(work, steps, device)


def agreement_rows(store: Path, sizes: Sizes, device: torch.device) -> list[str]:
    """Largest relative difference of a pass on the device and on the CPU: losses, matches, gradients, 3D features."""
    encoder, width = next(iter(sizes.encoders.items()))
    small = sizes._replace(encoders={encoder: width}, flags=SMALL.flags, micros=SMALL.micros)
    results: list[dict[str, Tensor]] = []
    for where in (torch.device("cpu"), device):
        torch.manual_seed(0)
        bench, _ = build(store, small, encoder, where)
        with precision("fp32", where) as forward, forward():
            loss, log = bench.module.loss(bench.batches[0])
        bench.optimizer.zero_grad()
        loss.backward()
        nets = {"2D": bench.module.unet, "3D": bench.module.objective.terms["geometry"].net3d}
        grads = {
            f"gradient of the {name} network": torch.cat(
                [p.grad.flatten() for p in net.parameters() if p.grad is not None]
            )
            for name, net in nets.items()
        }
        found = {"loss": loss.detach(), **{name: value for name, value in log.items() if "matches" in name}, **grads}
        results.append({name: value.float().cpu() for name, value in found.items()})
    lines = ["| what | difference, of its size |", "|---|---|"]
    for name, value in results[0].items():
        gap = float((value - results[1][name]).norm() / value.norm().clamp(min=1e-12))
        lines.append(f"| {name} | {gap:.1e} |")
    return lines


def test_rows(seconds: float, chosen: Sequence[str]) -> list[str]:
    """What the training tests say on this device, in so many seconds."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *chosen]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return [f"Cut off after {seconds:.0f} s; those that had run did not fail."]
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return [f"`pytest {' '.join(chosen)}`: {'passed' if not done.returncode else 'failed'}.", *failed]


def table_rows(seconds: float, encoder: str) -> list[str]:
    """Table 1 on rooms at size small with one seed and an encoder, as far as it comes in so many seconds."""
    with tempfile.TemporaryDirectory() as name:
        words = ["table1", "--seeds", "0", "--encoder", encoder, "--workers", "4", "--out", name]
        command = [sys.executable, "-m", "pri3d", "reproduce", *words]
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(command, capture_output=True, timeout=seconds, check=False)
        subprocess.run([*command, "--only", "table"], capture_output=True, check=False)
        page = next((Path(name) / "results").glob("table1-*.md"), None)
        return page.read_text().splitlines()[2:] if page else ["No run had finished when the time was up."]


def sections(sizes: Sizes, minutes: float) -> Iterator[list[str]]:
    """The parts of the page, each when it is measured."""
    device, end = choose_device(), time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as name:
        store = make_store(Path(name), **sizes.store)
        flags = {**sizes.flags, "weights": "scratch", "micro_batch": min(8, sizes.flags["batch"])}
        settings = resolve_pretraining("paper", flags)
        geometry = settings.own["geometry"]
        coords = next(iter(loader(store, settings, 1, workers=0))).voxel_cells.to(device)
        voxels = len(coords) // (geometry.chunks * settings.micro_batch)
        yield [
            "# On a GPU",
            "",
            f"`python -m benchmarks.gpu`; what is timed how stands at the head of the script. {describe_machine()}",
            f"Rendered rooms, {settings.size}, {settings.batch} pairs a step, 3D network {geometry.net3d} on",
            f"{voxels} voxels of {geometry.voxel} m a chunk, {geometry.chunks} chunks a pair, "
            f"{settings.contrast.points} points.",
        ]
        parts: list[tuple[str, Callable[[], list[str]]]] = [
            ("The device against the CPU", lambda: agreement_rows(store, sizes, device)),
            ("Tests on the device", lambda: test_rows(sizes.tests_seconds, sizes.tests)),
            *(
                (f"A step, {encoder}", partial(step_rows, store, sizes._replace(encoders={encoder: width}), device))
                for encoder, width in sizes.encoders.items()
            ),
            (f"Data, {sizes.workers} loader processes, bf16", lambda: data_rows(store, sizes, device)),
            (
                f"The 3D network alone, {settings.micro_batch * geometry.chunks} chunks",
                lambda: sparse_rows(coords, geometry.net3d, sizes.steps, device),
            ),
        ]
        for title, measure in parts:
            left = end - time.monotonic()
            yield ["", f"## {title}", "", *(measure() if left > 0 else ["No time was left."])]
        if (left := min(sizes.table_seconds, end - time.monotonic() - 10)) > 0:
            title = f"## Table 1 on rooms, size small, {sizes.table_encoder}, one seed"
            yield ["", title, "", *table_rows(left, sizes.table_encoder)]
    yield [
        "",
        "Milliseconds a step; matching and loss together should stay below 5 % of it. Under bf16 spconv-triton takes",
        "fp16 as spconv does; ocnn's own kernel takes TF32 for fp32.",
    ]


def report(sizes: Sizes, minutes: float = 60.0, out: Path | None = None) -> str:
    """The whole page; each part is printed, and the page written to ``out``, as soon as it is measured."""
    lines: list[str] = []
    for part in sections(sizes, minutes):
        lines += part
        print(*part, sep="\n", flush=True)
        if out is not None:
            write_atomic(out, ("\n".join(lines) + "\n").encode())
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes, printed only")
    parser.add_argument("--out", type=Path, default=Path("docs/results/gpu.md"))
    parser.add_argument("--encoders", nargs="+", choices=FULL.encoders, help="some of them")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no further part begins")
    options = parser.parse_args()
    if not options.small and choose_device().type == "cpu":
        raise SystemExit("no GPU: the full sizes would take hours; --small runs anywhere")
    sizes = SMALL if options.small else FULL
    if options.encoders:
        sizes = sizes._replace(encoders={name: FULL.encoders[name] for name in options.encoders})
    report(sizes, options.minutes, None if options.small else options.out)


if __name__ == "__main__":
    main()
