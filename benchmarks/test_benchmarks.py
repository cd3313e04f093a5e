"""The benchmark scripts run at a tiny size, and what they compute is right: ``make bench-check``, not the suite."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import (
    consumers,
    damage,
    embed,
    gpu,
    loading,
    plain,
    presets,
    real,
    rivals,
    scale,
    scaling,
    similarity,
    startup,
)
from benchmarks.timing import Stopwatch, precision
from benchmarks.tries import RAW, Ended, content_of, judge

from pri3d.api.options import VERBS
from pri3d.api.presets import overlay, shipped
from pri3d.api.pretrain import PRESETS, pretrain, resolve_pretraining
from pri3d.errors import DataError
from pri3d.networks.resunet3d import ResUNet3d
from pri3d.networks.state_files import read_state

TINY = gpu.SMALL._replace(
    flags=overlay(gpu.SMALL.flags, {"geometry": {"voxel": 0.32}}),
    steps=1,
    tests=("--version",),
    table_seconds=0.0,
    store={"count": 1, "frames": 8, "size": "64x48", "voxel": 0.16, "distance": 0.1, "min_overlap": 0.15},
)


@pytest.fixture(scope="module")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return loading.make_store(tmp_path_factory.mktemp("tiny"), **TINY.store)


def result(losses: list[float], settled: int = 0, **columns: float) -> presets.Result:
    rows = [{"step": k + 1.0, "loss": loss, **columns} for k, loss in enumerate(losses)]
    weights = {name.partition("/")[0]: 2.0 for name in columns}
    return presets.Result(presets.ROWS[0], "pri3d pretrain", rows, settled, weights, 1.0, 2.0)


def test_every_preset_is_a_row_and_parses() -> None:
    rows = [row.preset for row in presets.ROWS]
    assert len(set(rows)) == len(rows)
    assert set(shipped(PRESETS)) - set(rows) == {"adapt", "quick", "small"}  # which are no rows of the paper
    for row in presets.ROWS:
        assert resolve_pretraining(f"{row.preset},small").size == presets.SIZE


def test_a_falling_loss_is_told_from_noise() -> None:
    assert result([5.0, 5.1, 4.9, 5.0, 5.0, 1.0, 1.1, 0.9, 1.0, 1.0]).fell() == "yes"
    assert result([5.0, 5.9, 4.1, 5.5, 4.5, 4.9, 5.8, 4.0, 5.5, 4.5]).fell() == "within noise"
    assert result([1.0, 1.1, 0.9, 1.0, 1.0, 5.0, 5.1, 4.9, 5.0, 5.0]).fell() == "no"
    # The steps in which a queue fills do not count: they would make this a rise.
    assert result([0.0] * 4 + [5.0, 5.1, 5.0, 4.0, 4.1, 4.0], settled=4).fell() == "yes"


def test_chance_is_the_weighted_sum_where_every_term_has_one() -> None:
    assert result([1.0, 1.0], **{"view/chance": 3.0, "geometry/chance": 4.0}).chance() == 14.0
    assert result([1.0, 1.0], **{"view/chance": 3.0, "depth/rmse": 4.0}).chance() is None


def test_presets_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [row for row in presets.ROWS if row.preset in ("moco", "unsupervised")]
    rows[0] = rows[0]._replace(options="--moco.queue 2 --moco.crop 32")  # starts from scratch, there is no View run
    small = "--size 64x48 --matching.distance 0.1 --contrast.points 64 --validation.every 0 --batch 2 --micro-batch 2"
    options = {"rooms": 1, "frames": 8, "size": "64x48", "overlap": "--distance 0.1 --min-overlap 0.15"}
    page = presets.run(tmp_path, rows, (), steps=2, extra=small, **options)
    capfd.readouterr()
    lines = [line for line in page.splitlines() if "`pri3d pretrain" in line]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == [row.paper for row in rows]
    assert [len(line.split("|")) for line in lines] == [10] * 2
    taken = read_state(tmp_path / presets.MOCO_FILE)
    trained = read_state(tmp_path / "runs" / "moco")
    assert torch.equal(taken["module.encoder_q.conv1.weight"], trained["encoder.conv1.weight"])
    assert {"module.encoder_q.fc.0.weight", "module.encoder_k.conv1.weight", "module.queue"} <= set(taken)
    started = read_state(tmp_path / "runs" / "unsupervised" / "initial.safetensors")
    assert torch.equal(started["encoder.conv1.weight"], trained["encoder.conv1.weight"])


def test_startup_is_measured_against_an_import() -> None:
    """The children's time alone, the ratios of the medians, and the commands that are named as slow."""
    tried = startup.commands()
    assert {f"pri3d {name} --help" for name in VERBS} | {"pri3d finetune semantic --help"} <= set(tried)
    assert {f"pri3d {name} {startup.MISSPELT}" for name in VERBS} <= set(tried)
    spin = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass"
    seconds = startup.measure({"nothing": ["-c", ""], "work": ["-c", spin.format(0.5)]}, rounds=1)
    assert seconds["work"] - seconds["nothing"] == pytest.approx(0.5, abs=0.2)
    with pytest.raises(ChildProcessError, match="exit code 3"):
        startup.cpu_seconds(["-c", "raise SystemExit(3)"])
    assert startup.cpu_seconds(["-m", "pri3d", "check", startup.MISSPELT]) > 0
    page = startup.table({startup.REFERENCE: 2.0, "a": 0.4, "b": 0.6})
    assert "| `a` | 0.40 | 0.20x |" in page
    assert page.endswith("More than 0.25x: b (0.30x)")
    assert startup.table({startup.REFERENCE: 2.0, "a": 0.5}).endswith("None takes more than 0.25x.")


def test_share_waited_weighs_steps_by_their_time() -> None:
    ends, waits = [10.0, 11.0, 14.0], [0.9, 0.5, 0.1]  # seconds since the beginning, share of the time since the last
    rows = [
        {"step": k + 1.0, "samples_per_s": (k + 1) * 8 / end, "data_wait": wait}
        for k, (end, wait) in enumerate(zip(ends, waits, strict=True))
    ]
    assert loading.share_waited(rows, skip=1) == pytest.approx((0.5 * 1 + 0.1 * 3) / 4)


def test_scans_are_compared(capfd: pytest.CaptureFixture[str]) -> None:
    """A store of eight scans that are two rooms, and its pairs."""
    loading.compare_scans((2, 8), pairs=80, drawn=3, rounds=1, **{**TINY.store, "voxel": 0.08})
    said = capfd.readouterr().out
    assert "8 scans:" in said
    assert "MB of its own" in said


def test_loading_runs(tmp_path: Path, tiny_store: Path) -> None:
    flags = {"size": "64x48", "batch": 2, "micro_batch": 2, "contrast": {"points": 64}}
    flags |= {"matching": {"distance": 0.1}, "geometry": {"voxel": 0.32}}
    rows = loading.measure(tmp_path / "run", tiny_store, "tiny", flags, 4, 1)
    assert rows[0][0].startswith("tiny")
    assert 0 <= float(rows[0][1].rstrip("%")) <= 100


def test_a_step_in_parts_has_the_gradients_of_the_whole(tiny_store: Path) -> None:
    """Not the optimizer's step alone: every weight that the objectives reach."""
    device = gpu.choose_device()
    gradients = []
    for cut in (False, True):
        torch.manual_seed(0)
        bench, settings = gpu.build(tiny_store, TINY, "resnet18", device)
        assert len(bench.batches) == settings.accumulate == 2
        watch = Stopwatch(device)
        with precision("fp32", device) as forward:
            if cut:
                bench.cut_step(forward, watch)
            else:
                bench.step(forward)
        gradients.append({name: p.grad for name, p in bench.module.named_parameters() if p.grad is not None})
    assert len(gradients[0]) > 100
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)
    assert {"2D forward", "3D forward", "objectives", "loss backward", "optimizer"} <= set(watch.spans)


def test_the_largest_micro_batch_that_fits_is_taken(tiny_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def step(self: gpu.Bench, forward: object) -> None:
        tried.append(len(self.batches[0].names))
        if tried[-1] > 1:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu.Bench, "step", step)
    _, settings = gpu.build(tiny_store, TINY._replace(micros=(4, 2, 1)), "resnet18", gpu.choose_device())
    assert (tried, settings.micro_batch, settings.accumulate) == ([4, 2, 1], 1, 4)
    with pytest.raises(SystemExit, match="micro batches of 2"):
        gpu.build(tiny_store, TINY._replace(micros=(4, 2)), "resnet18", gpu.choose_device())


def test_gpu_runs_without_one(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu, "precisions", lambda device: ("fp32",))
    page = gpu.report(TINY, out=tmp_path / "page.md")
    capfd.readouterr()
    assert (tmp_path / "page.md").read_text() == page
    gaps = [line for line in page.splitlines() if line.startswith(("| loss |", "| gradient of the 3D"))]
    assert len(gaps) == 2 and all(float(line.split("|")[2]) == 0 for line in gaps)  # the same device twice
    assert "`pytest --version`: passed" in page
    row = next(line for line in page.splitlines() if line.startswith("| resnet18 | fp32 |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == 6 + len(gpu.PARTS)
    assert all(float(cell) > 0 for cell in cells[3:-1])
    assert "| ours | 5^3 |" in page and "| ocnn | 3^3 |" in page


def test_a_gpu_page_that_is_cut_short_keeps_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def killed(*_: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "step_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        gpu.report(TINY, out=tmp_path / "page.md")
    capfd.readouterr()
    page = (tmp_path / "page.md").read_text()
    assert "gradient of the 3D network" in page and "`pytest --version`: passed" in page and "| ours |" not in page
    monkeypatch.setattr(gpu, "agreement_rows", killed)  # no part begins after the time
    assert gpu.report(TINY, minutes=0.0).count("No time was left.") == 5


def test_weak_scaling_of_real_processes(capfd: pytest.CaptureFixture[str]) -> None:
    rows = scaling.run(steps=4, rounds=1, size="64x48", frames=12, distance=0.1, min_overlap=0.15)
    capfd.readouterr()
    assert [name for name, *_ in rows[:3]] == list(scaling.ARRANGEMENTS)
    assert all(float(measured.split()[0]) > 0 for _, measured, _ in rows[:3])


def test_precision_is_set_and_put_back() -> None:
    matmul, device = torch.backends.cuda.matmul, gpu.choose_device()
    before = matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for name, allowed in (("fp32", False), ("tf32", True)):
        with precision(name, device) as forward, forward():
            assert (matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (allowed, allowed)
            assert not torch.is_autocast_enabled(device.type)
    with precision("bf16", device) as forward, forward():
        assert torch.is_autocast_enabled(device.type)
    assert (matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_ocnn_layers_take_the_place_of_ours() -> None:
    pytest.importorskip("ocnn", reason="pip install ocnn")
    cells = torch.unique(torch.randint(0, 20, (400, 3), generator=torch.Generator().manual_seed(0)), dim=0)
    coords = torch.cat((torch.arange(2).repeat_interleave(len(cells))[:, None], cells.repeat(2, 1)), dim=1)
    net = ResUNet3d(1, 96, (1, 1), (8, 8), 8, 3)
    geometry = rivals.swap_convolutions(net, "ocnn")(coords)
    assert not any(isinstance(module, rivals.SparseConv) for module in net.modules())
    net.features(geometry, torch.ones(len(coords), 1)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.skipif("PRI3D_REAL_DATA" not in os.environ, reason="PRI3D_REAL_DATA names no folder of real images")
def test_real_images_train(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["real", os.environ["PRI3D_REAL_DATA"], "coco", "nyuv2", "--steps", "1"])
    real.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if "CPU min" in line] == ["coco", "nyuv2"]
    assert any("box_AP50" in line for line in lines) and any("miou" in line for line in lines)


def test_embedding_is_compared_with_a_plain_loop(capfd: pytest.CaptureFixture[str]) -> None:
    rows = {name: measured for name, measured, _ in embed.run(3, (64, 48), rounds=1)}
    capfd.readouterr()
    assert float(rows["  embed, fp32, largest difference"]) < 1e-5
    assert float(rows["  embed, fp32, times faster"]) > 0


def test_loading_is_compared_with_plain_files(capfd: pytest.CaptureFixture[str]) -> None:
    tiny = {"count": 1, "frames": 8, "size": "64x48", "distance": 0.1, "min_overlap": 0.15}
    rows = plain.run(rounds=1, batches=(1, 1), batch=2, **tiny)
    capfd.readouterr()
    assert [bar for _, _, bar in rows if bar] == [">= 4", ">= 4", "<= 100"]
    figures = [measured for _, measured, _ in rows if not isinstance(measured, str)]
    assert len(figures) == 10
    assert min(figures) > 0
    assert rows[2][1] == pytest.approx(rows[1][1] / rows[0][1])


def test_scale_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    books = dict(scale.keep_books(tmp_path / "books", 3))
    said = capfd.readouterr().err
    assert "nothing, every scene is prepared" in said
    assert "to prepare: 3 scenes, 3 frames" in said
    assert float(books["finishing: pairs.npz and manifest, s"]) >= 0
    rows = dict(scale.prepare_scenes(tmp_path / "scenes", 2, kept=3))
    assert rows["scenes, frames, pairs"].startswith("2, 6, ")
    assert rows["files"] == "12"


def test_consumers_see_files_of_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers, "SIZE", (64, 96))
    kept = {name: where for name, where in consumers.FORMATS.items() if name in ("torchvision", "detectron2", "hf")}
    monkeypatch.setattr(consumers, "FORMATS", kept)
    images = torch.rand(2, 3, 64, 96)
    run, weights = consumers.make_run(tmp_path / "run", "resnet18", images)
    rows = list(consumers.measure(run, "resnet18", images))
    assert weights in ("random weights", "ImageNet weights")
    assert len(rows) == 3
    for row in rows:
        assert max(row.relative) < 1e-5
        assert row.broken.startswith("refused") or row.broken == "other features"
    assert rows[0].training.startswith("loss ")


def test_the_picture_of_readme_is_drawn(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(similarity, "DEGREES", (0.0, 180.0))
    monkeypatch.setattr(similarity, "INSIDE", 0.5)
    options = {"steps": 1, "batch": 2, "micro_batch": 2, "workers": 0, "holdout": 0, "objectives": {"view": 1}}
    run = pretrain(tiny_store, run=tmp_path / "run", size="64x48", **options)
    small = ["--pairs", "3", "--points", "20", "--size", "64", "48"]
    similarity.main([str(tiny_store), str(run), str(tmp_path / "x.png"), *small])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-5].startswith("3 pairs, ")
    assert lines[-1].startswith("point shown: rank ")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_lost_is_told_from_what_is_whole(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / "scores.json"
    file.write_text('{"miou": 0.5, "seconds": 1.5}')
    whole = content_of(tmp_path / "out")
    file.write_text('{"miou": 0.5, "seconds": 2.5}')  # clocks may differ
    assert judge(tmp_path / "out", whole, [Ended(-9, ""), Ended(0, "")]) == "harmless"
    assert judge(tmp_path / "out", whole, [Ended(0, ""), Ended(1, "error: no")]) == "lost"
    assert judge(tmp_path / "out", whole, [Ended(0, f"{RAW}: ..."), Ended(0, "")]) == "traceback"
    assert judge(tmp_path / "out", whole, [Ended(None, ""), Ended(0, "")]) == "hang"
    file.write_text('{"miou": 0.4, "seconds": 1.5}')
    assert judge(tmp_path / "out", whole, [Ended(0, "")]) == "lost"


def test_every_outcome_of_damage_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that does something else with each byte of its file."""
    monkeypatch.setattr(damage, "HANG", 1)
    monkeypatch.setattr(damage, "MEMORY", 100_000)
    sound = bytes(6)
    (tmp_path / "x.bin").write_bytes(sound)

    def read(path: Path) -> str:
        place = next((k for k, value in enumerate(path.read_bytes()) if value), None)
        if place == 0:
            raise DataError("damaged")
        if place == 1:
            raise RuntimeError
        if place == 2:
            time.sleep(5)
        if place == 3:
            bytes(b"x" * 200_000_000)
        return str(place == 4)  # of the fifth other data, the rest does not matter

    for flips, other in ((True, "lost"), (False, "harmless")):
        monkeypatch.setattr(damage, "damaged", lambda kind, copy, *_: versions(sound, copy))
        score = damage.score_damage(damage.Kind("x", tmp_path / "x.bin", read), tmp_path / str(flips), 6, 0, flips)
        expected = {"found": 1, "traceback": 1, "hang": 1, "memory": 1, "lost": 0, "harmless": 1}
        expected[other] += 1
        assert score.counts == expected


def versions(sound: bytes, copy: Path) -> Iterator[tuple[str, Path]]:
    for place in range(len(sound)):
        copy.write_bytes(damage.flip(sound, place, 0))
        yield str(place), copy


def test_reliability_runs() -> None:
    """In a process of its own, which forks."""
    few = "--pairs 1 --kills 1 --signals 1 --flips 3 --mutations 60 --places 1 --only signals flips mutations places"
    words = [sys.executable, "-m", "benchmarks.reliability", *few.split()]
    ended = subprocess.run(words, cwd=Path(__file__).parents[1], check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    last = next(line for line in ended.stdout.splitlines() if line.startswith("| all |"))
    tries, found, harmless, *bad = (int(cell) for cell in last.strip("| ").split("|")[2:])
    assert tries == found + harmless > 60, ended.stdout
    assert bad == [0, 0, 0, 0], ended.stdout
