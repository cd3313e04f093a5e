"""What a run leaves on disk when something goes wrong: bad numbers, a full disk, damaged files, a change of mind."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import column, run_broken, run_small, same, step_of, stop_after
from torch import nn

from pri3d.errors import DataError, Pri3DError, WeightsError
from pri3d.networks.state_files import read_state
from pri3d.networks.weights import read_provenance
from pri3d.objectives import Features, Objective, Setup, Terms
from pri3d.processes import KilledError
from pri3d.registry import OBJECTIVES
from pri3d.runs import RunPaths
from pri3d.training.checkpoints import Checkpoint
from pri3d.training.launch import Launch
from pri3d.training.loop import make_fabric
from pri3d.training.pretraining import PretrainModule
from pri3d.training.watch import FrameMeter, Watch

pytestmark = pytest.mark.thorough  # but for those that say quick


class Poison(Objective):
    """A loss that falls, and in pass ``at`` (1 is the first) is not a number, or has no finite gradient."""

    at, bad, names = 0, math.nan, [""]

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.passes = 0
        self.head = nn.Conv2d(setup.channels, 1, 1)

    def forward(self, features: Features, batch: Any) -> Terms:
        self.passes += 1
        loss = self.head(features.dense.flatten(0, 1)).square().mean()
        if self.passes == type(self).at:
            type(self).names = batch.names
            zero = loss - loss.detach()
            loss = loss + zero.abs().sqrt() if type(self).bad == 0 else loss * type(self).bad
        return Terms(loss, {})


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The objective above, under the name poison."""
    monkeypatch.setitem(OBJECTIVES, "poison", f"{__name__}:Poison")
    return monkeypatch


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("passed", [11, 12])
def test_a_loss_that_is_no_number_names_the_frames_of_its_pass(
    rooms_store: Path, tmp_path: Path, poison: pytest.MonkeyPatch, bad: float, passed: int
) -> None:
    """Numbers are looked at every fourth step here; the pass is in step 6, the last good checkpoint of step 4."""
    poison.setattr(Poison, "bad", bad)
    poison.setattr(Poison, "at", passed)
    with pytest.raises(Pri3DError, match=f"step 6: the loss is {bad}") as caught:
        run_small(rooms_store, tmp_path, objectives={"poison": 1.0}, steps=200, save_every=4)
    assert ", ".join(Poison.names) in str(caught.value)
    assert len(Poison.names) == 2
    assert str(caught.value).count("+") == 2
    assert f"{tmp_path / 'last.ckpt'} holds the last good step" in str(caught.value)
    assert step_of(tmp_path / "last.ckpt") == 4
    assert not (tmp_path / "weights.safetensors").exists()
    assert all(torch.isfinite(value).all() for value in torch.load(tmp_path / "last.ckpt")["state_dict"].values())


def test_a_gradient_that_is_no_number_is_not_saved(
    rooms_store: Path, tmp_path: Path, poison: pytest.MonkeyPatch
) -> None:
    poison.setattr(Poison, "bad", 0)
    poison.setattr(Poison, "at", 3)
    with pytest.raises(Pri3DError, match=r"step 2: grad_norm not finite\. Lower --lr"):
        run_small(rooms_store, tmp_path, objectives={"poison": 1.0}, steps=3, save_every=1)
    assert step_of(tmp_path / "last.ckpt") == 1


def checkpoints(run: Path) -> dict[str, int]:
    return {path.name: step_of(path) for path in run.glob("*ckpt*")}


def test_the_last_three_checkpoints_stay_and_nothing_else(rooms_store: Path, tmp_path: Path) -> None:
    options = {"steps": 5, "save_every": 1, "keep_checkpoints": 3}
    run = run_small(rooms_store, tmp_path / "run", **options)
    assert checkpoints(run) == {"step-00000003.ckpt": 3, "step-00000004.ckpt": 4, "last.ckpt": 5}
    assert {path.name for path in run.iterdir()} == {
        *checkpoints(run),
        *("config.yaml", "metrics.csv", "tensorboard", "initial.safetensors", "weights.safetensors"),
    }
    # A damaged one names the next older, which goes on to the same end.
    weights = (run / "weights.safetensors").rename(tmp_path / "weights.safetensors")
    (run / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes()[:9999])
    with pytest.raises(WeightsError, match=r"last\.ckpt: damaged .*Put step-00000004\.ckpt in its place"):
        run_small(rooms_store, run, **options, resume=True)
    (run / "step-00000004.ckpt").rename(run / "last.ckpt")
    run_small(rooms_store, run, **options, resume=True)
    assert same(weights, run / "weights.safetensors")
    assert checkpoints(run) == {"step-00000003.ckpt": 3, "step-00000004.ckpt": 4, "last.ckpt": 5}


def test_checkpoints_come_by_the_clock(rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute passes at every step: with 2.5 of them, steps 3 and 6 are saved, and the last."""
    saved: list[int] = []
    save, after_step = Checkpoint.save, PretrainModule.after_step
    clock = SimpleNamespace(now=0.0)

    def minute(module: PretrainModule) -> None:
        after_step(module)
        clock.now += 60

    with monkeypatch.context() as patch:
        patch.setattr("pri3d.training.recorder.time.perf_counter", lambda: clock.now)
        patch.setattr(PretrainModule, "after_step", minute)
        patch.setattr(Checkpoint, "save", lambda each, step: (saved.append(step), save(each, step)))
        run_small(rooms_store, tmp_path / "run", steps=7, checkpoint={"minutes": 2.5})
        assert saved == [3, 6, 7]
        saved.clear()
        run_small(rooms_store, tmp_path / "both", steps=7, checkpoint={"minutes": 2.5, "every": 2})
        assert saved == [2, 4, 6, 7]  # those of the steps begin the minutes anew


def test_keeping_fewer_takes_effect_when_continued(
    rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"steps": 5, "save_every": 1}
    run = tmp_path / "run"
    stop_after(3, rooms_store, run, monkeypatch, **options, keep_checkpoints=3)
    assert sorted(checkpoints(run).values()) == [1, 2, 3]
    run_small(rooms_store, run, **options, resume=True)
    assert checkpoints(run) == {"last.ckpt": 5}


@pytest.mark.slow
def test_a_write_cut_in_the_middle_leaves_the_good_checkpoint(
    rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up while the second checkpoint is written: half of it is there already."""
    resource = pytest.importorskip("resource", reason="file sizes cannot be limited here")
    run = tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    good: list[bytes] = []
    after_step = PretrainModule.after_step

    def fill(module: PretrainModule) -> None:
        after_step(module)
        if (run / "last.ckpt").exists():
            good[:] = [(run / "last.ckpt").read_bytes()]
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(good[0]) // 2, limits[1]))

    options = {"steps": 4, "save_every": 2, "holdout": 0.3, "eval_every": 4}
    with monkeypatch.context() as patch:
        patch.setattr(PretrainModule, "after_step", fill)
        try:
            with pytest.raises(DataError, match=r"File too large.*Make room"):
                run_small(rooms_store, run, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (run / "last.ckpt").read_bytes() == good[0]
    assert step_of(run / "last.ckpt") == 2
    whole = run_small(rooms_store, tmp_path / "whole", **options)
    run_small(rooms_store, run, **options, resume=True)
    assert same(run / "weights.safetensors", whole / "weights.safetensors")
    assert not list(run.glob("*.tmp"))


def test_the_best_weights_are_those_of_the_highest_gain(
    rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores are invented so that the second is best; the history goes on after a stop between them."""
    invented = {0: 0.4, 1: 0.2, 2: 0.6, 3: None, 4: 0.5}
    states: dict[int, dict[str, torch.Tensor]] = {}

    def measure(watch: Watch, fabric: Any, module: Any, batch: int) -> dict[str, float | None]:
        step = module.step
        states[step] = {key: value.clone() for key, value in module.unet.state_dict().items()}
        return {"encoder_recall": invented[step], "rank": 1.0}

    monkeypatch.setattr(Watch, "measure", measure)
    monkeypatch.setattr(FrameMeter, "measure", lambda *_: {"depth_rmse": math.nan})
    run = run_broken(3, rooms_store, tmp_path, monkeypatch, steps=4, save_every=1, holdout=0.3, eval_every=1)
    scores = json.loads((run / "scores.json").read_text())
    assert [(entry["step"], entry["encoder_recall"]) for entry in scores["history"]] == list(invented.items())
    assert [entry["gain"] for entry in scores["history"]] == [0, -0.5, pytest.approx(0.5), None, pytest.approx(0.25)]
    assert scores["start"] == scores["history"][0]
    assert scores["best"] == scores["history"][2]
    assert scores["last"] == scores["history"][-1]
    assert read_provenance(run / "best.safetensors")["steps"] == 2
    best = read_state(run / "best.safetensors")
    assert best.keys() == states[2].keys()
    assert all(torch.equal(best[key], states[2][key]) for key in best)
    assert column(run, "heldout/encoder_recall") == [0.2, 0.6, 0.5]


@pytest.mark.slow
def test_no_measurement_possible_is_no_failure(
    rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out pairs without a single match have no recall, before a stop and after it."""
    options = {"distance": 1e-4, "steps": 2, "holdout": 0.3, "eval_every": 1}
    run = run_broken(1, rooms_store, tmp_path, monkeypatch, **options)
    history = json.loads((run / "scores.json").read_text())["history"]
    assert [entry["recall"] for entry in history] == [None] * 3


def test_settings_that_cannot_be_read_are_named(rooms_store: Path, tmp_path: Path) -> None:
    run = run_small(rooms_store, tmp_path, steps=1)
    for content in (b"", b"a: [", b"\xff", b"settings: 3"):
        (run / "config.yaml").write_bytes(content)
        with pytest.raises(Pri3DError, match=r"config\.yaml"):
            run_small(rooms_store, tmp_path, steps=1, resume=True)


def test_a_second_ctrl_c_goes_back_to_the_last_checkpoint(
    rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run stops in the middle of the step, and what asked for it is what the caller sees."""
    forward = PretrainModule.forward

    def twice(module: PretrainModule, batch: Any) -> Any:
        if module.step == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return forward(module, batch)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(PretrainModule, "forward", twice)
        with pytest.raises(KeyboardInterrupt):
            run_small(rooms_store, tmp_path / "run", steps=3, save_every=1)
    assert signal.getsignal(signal.SIGINT) == before
    assert step_of(tmp_path / "run" / "last.ckpt") == 2
    run_small(rooms_store, tmp_path / "run", steps=3, save_every=1, resume=True)
    whole = run_small(rooms_store, tmp_path / "whole", steps=3)
    assert same(tmp_path / "run" / "weights.safetensors", whole / "weights.safetensors")


@pytest.mark.slow
def test_a_loader_process_that_is_killed_is_said(
    rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As systems do it when memory runs out; what is saved continues."""
    forward = PretrainModule.forward

    def kill(module: PretrainModule, batch: Any) -> Any:
        if module.step == 1:
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)
                child.join()
        return forward(module, batch)

    options = {"steps": 8, "save_every": 1, "workers": 1}
    with monkeypatch.context() as patch:
        patch.setattr(PretrainModule, "forward", kill)
        with pytest.raises(KilledError, match=r"that loads data was killed, .* fewer --workers than 1, .*--resume"):
            run_small(rooms_store, tmp_path / "run", **options)
    run_small(rooms_store, tmp_path / "run", resume=True, **options)
    whole = run_small(rooms_store, tmp_path / "whole", **options)
    assert same(tmp_path / "run" / "weights.safetensors", whole / "weights.safetensors")


def test_a_checkpoint_of_lightnings_trainer_continues(
    rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pri3d 0.1 wrote them: the same parts, and beside them where the Trainer's own loops stood."""
    options = {"steps": 3, "save_every": 1}
    stop_after(2, rooms_store, tmp_path / "run", monkeypatch, **options)
    path = tmp_path / "run" / "last.ckpt"
    loops = {"fit_loop": {"epoch_loop.batch_progress": {"total": {"ready": 4}, "current": {"ready": 4}}}}
    old = {"epoch": 0, "pytorch-lightning_version": "2.6.6", "loops": loops, "callbacks": {}}
    torch.save(old | torch.load(path, weights_only=True), path)
    run_small(rooms_store, tmp_path / "run", **options, resume=True)
    whole = run_small(rooms_store, tmp_path / "whole", **options)
    assert same(tmp_path / "run" / "weights.safetensors", whole / "weights.safetensors")


@pytest.mark.parametrize("lacking", ["state_dict", "optimizer_states", "lr_schedulers"])
def test_a_checkpoint_of_something_else_is_refused(
    rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    stop_after(2, rooms_store, tmp_path, monkeypatch, steps=3)
    path = tmp_path / "last.ckpt"
    state = torch.load(path, weights_only=True)
    del state[lacking]
    torch.save(state, path)
    with pytest.raises(WeightsError, match=r"last\.ckpt: not a checkpoint of this run .*choose another --run"):
        run_small(rooms_store, tmp_path, steps=3, resume=True)


def test_a_flipped_bit_in_a_checkpoint_is_found_or_harmless(tmp_path: Path) -> None:
    """Every part of the file is hit: tensors, the pickle, the zip's own headers and its directory."""
    run = RunPaths(tmp_path)
    fabric = make_fabric("fp32", Launch(0, 1, 1))
    fabric.launch()
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def checkpoint() -> Checkpoint:
        optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        for parameter in module.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
        return Checkpoint(fabric, run, module, optimizer, schedule, 0, 1)

    checkpoint().save(7)
    good = run.checkpoint.read_bytes()
    saved = {key: value.clone() for key, value in module.state_dict().items()}
    found = 0
    for k in range(200):
        damaged = bytearray(good)
        damaged[k * len(good) // 200] ^= 1 << k % 8
        run.checkpoint.write_bytes(damaged)
        resumed = checkpoint()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
        try:
            resumed.load()
        except WeightsError as error:
            assert "last.ckpt: damaged" in str(error), error
            found += 1
            continue
        assert all(torch.equal(value, saved[key]) for key, value in module.state_dict().items()), k
        momenta = [state["momentum_buffer"] for state in resumed.optimizer.state.values()]
        assert all(torch.equal(momentum, torch.ones_like(momentum)) for momentum in momenta), k
    assert found > 50


def test_a_run_whose_checkpoint_has_a_flipped_bit_does_not_go_on(
    rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(2, rooms_store, tmp_path, monkeypatch, steps=3)
    path = tmp_path / "last.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    before = {file: file.read_bytes() for file in tmp_path.glob("*.*") if file.is_file()}
    with pytest.raises(WeightsError, match=r"last\.ckpt: damaged \(.*the checksum of .* is wrong.*Delete it to start"):
        run_small(rooms_store, tmp_path, steps=3, resume=True)
    assert {file: file.read_bytes() for file in tmp_path.glob("*.*") if file.is_file()} == before


def test_a_finished_run_says_so_and_how_to_go_on(
    rooms_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_small(rooms_store, tmp_path, steps=1)
    before = (tmp_path / "weights.safetensors").stat().st_mtime_ns
    assert "finished, all" not in capfd.readouterr().err
    run_small(rooms_store, tmp_path, steps=1, resume=True)
    said = capfd.readouterr().err
    assert f"{tmp_path}: finished, all 1 steps are done; nothing was trained." in said
    assert f"--weights {tmp_path} --run NEW." in said
    assert (tmp_path / "weights.safetensors").stat().st_mtime_ns == before
    with pytest.raises(Pri3DError, match=rf"steps was 1, now 5\..*--weights {tmp_path} --run NEW --steps N\."):
        run_small(rooms_store, tmp_path, steps=5, resume=True)
