"""The loop under its options: precisions, accumulation, layouts, compilation, MoCo, partly trained encoders."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import gap, parameters
from small import PLAIN, column, run_broken, run_small, same
from torch import Tensor, nn

from pri3d.errors import ConfigError
from pri3d.networks.state_files import read_state
from pri3d.objectives import contrast
from pri3d.runs import read_json, read_metrics
from pri3d.training.pretraining import PretrainModule

pytestmark = pytest.mark.thorough  # but for those that say quick

#: Half precision is emulated on most processors: the smallest images, and layer norms, which so few do not upset.
TINY: dict[str, Any] = {"size": "32x32", "batch": 2, "micro_batch": 2, "encoder": "test_efficientnet_ln"}


@pytest.fixture
def logits(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Types of all similarities that are formed while the test runs, and of the features they are formed of."""
    seen: list[torch.dtype] = []
    similar = contrast._similar

    def watched(rows: Any, columns: Any, *rest: Any) -> Tensor:
        result = similar(rows, columns, *rest)
        seen.extend((rows.features.dtype, columns.features.dtype, result.dtype))
        return result

    monkeypatch.setattr(contrast, "_similar", watched)
    return seen


def scaler(monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
    """Another beginning for the gradient scaler."""
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, **options))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("objective", ["view", "geometry"])
def test_half_precision_trains_like_full(
    rooms_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    logits: list[torch.dtype],
    precision: str,
    objective: str,
) -> None:
    """The first loss and gradient are those of fp32 to the precision; the contrast itself stays in fp32."""
    scaler(monkeypatch, init_scale=256.0)  # that of gradients: their norm is told without it
    # Some seeds have a feature near zero, whose direction, and with it the gradient, is rounding.
    options = {**TINY, "objectives": {objective: 1.0}, "steps": 2, "seed": 13}
    full = run_small(rooms_store, tmp_path / "full", **options)
    half = run_small(rooms_store, tmp_path / "half", **options, precision=precision)
    assert set(logits) == {torch.float32}
    assert column(full, "loss") != column(half, "loss")
    assert column(half, "loss")[0] == pytest.approx(column(full, "loss")[0], rel=0.01)
    assert column(half, "grad_norm")[0] == pytest.approx(column(full, "grad_norm")[0], rel=0.05)
    assert column(half, "loss")[1] == pytest.approx(column(full, "loss")[1], rel=0.1)


def test_mocos_logits_stay_in_full_precision(
    rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []
    entropy = nn.functional.cross_entropy

    def watched(scores: Tensor, *rest: Any) -> Tensor:
        seen.append(scores.dtype)
        return entropy(scores, *rest)

    monkeypatch.setattr(nn.functional, "cross_entropy", watched)
    run_small(rooms_store, tmp_path / "run", objectives={"moco": 1.0}, crop=32, precision="bf16")
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_falls(rooms_store: Path, tmp_path: Path, precision: str) -> None:
    losses = column(run_small(rooms_store, tmp_path / "run", steps=8, precision=precision), "loss")
    assert len(losses) == 8
    assert sum(losses[-2:]) < 0.9 * sum(losses[:2])


def test_fp16_continues_bit_by_bit_with_its_scaler(
    rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler(monkeypatch, init_scale=16.0, growth_interval=2)
    options = {**TINY, "precision": "fp16", "steps": 3, "micro_batch": 1}
    whole = run_small(rooms_store, tmp_path / "whole", **options)
    broken = run_broken(1, rooms_store, tmp_path / "broken", monkeypatch, **options)
    assert same(whole / "weights.safetensors", broken / "weights.safetensors")
    assert column(whole, "loss") == column(broken, "loss")
    states = [torch.load(run / "last.ckpt", weights_only=True)["MixedPrecision"] for run in (whole, broken)]
    assert states[0] == states[1]
    assert (states[0]["scale"], states[0]["_growth_tracker"]) == (32.0, 1)  # doubled after two good steps


def test_an_overflow_under_fp16_leaves_the_step_out(
    rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler(monkeypatch, init_scale=2.0**60)
    run = run_small(rooms_store, tmp_path / "run", **TINY, precision="fp16", steps=1)
    assert gap(run / "initial.safetensors", run / "weights.safetensors") == 0
    assert torch.load(run / "last.ckpt", weights_only=True)["MixedPrecision"]["scale"] == 2.0**59


def test_memory_layout_changes_nothing_but_rounding(rooms_store: Path, tmp_path: Path) -> None:
    runs = [
        run_small(rooms_store, tmp_path / str(on), objectives={"view": 1.0, "geometry": 1.0}, channels_last=on, **PLAIN)
        for on in (False, True)
    ]
    assert column(runs[0], "loss") == pytest.approx(column(runs[1], "loss"), rel=1e-5)
    assert column(runs[0], "grad_norm") == pytest.approx(column(runs[1], "grad_norm"), rel=1e-3)
    step = gap(runs[0] / "initial.safetensors", runs[0] / "weights.safetensors")
    assert gap(*(run / "weights.safetensors" for run in runs)) < 0.02 * step


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_compiled_network_is_the_same(rooms_store: Path, tmp_path: Path) -> None:
    """First losses of both agree; held-out pairs go through it too, in evaluation mode."""
    from torch._dynamo.utils import counters  # noqa: PLC0415 (slow to import)

    options = {"steps": 3, "lr": 1e-4, "holdout": 0.3, "eval_every": 1}
    eager = run_small(rooms_store, tmp_path / "eager", **options)
    counters.clear()
    compiled = run_small(rooms_store, tmp_path / "compiled", **options, compile=True)
    assert counters["stats"]["unique_graphs"] == 2  # training and evaluation
    assert not counters["graph_break"]
    for name in ("loss", "heldout/recall"):
        assert column(compiled, name) == pytest.approx(column(eager, name), rel=1e-3, abs=0.01)
    assert same(eager / "initial.safetensors", compiled / "initial.safetensors")
    assert read_state(eager / "weights.safetensors").keys() == read_state(compiled / "weights.safetensors").keys()


@pytest.mark.slow
def test_accumulation_equals_the_big_batch(rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of four pairs at once is that of four pairs in two or four passes, norms being in evaluation mode.

    In training mode batch norm takes the mean and variance of each pass, so the passes are other functions than the
    big batch: accumulation then repeats the loss, not the statistics, of a batch that does not fit.
    """
    options = {**PLAIN, "objectives": {"view": 1.0, "geometry": 0.5}, "batch": 4}

    def step(name: str, micro_batch: int) -> tuple[Path, float]:
        run = run_small(rooms_store, tmp_path / name, **options, micro_batch=micro_batch)
        return run / "weights.safetensors", column(run, "loss")[0]

    as_they_are = [step("as they are, at once", 4), step("as they are, in passes", 2)]
    resting = property(lambda module: False, lambda module, mode: None)
    monkeypatch.setattr(nn.modules.batchnorm._BatchNorm, "training", resting, raising=False)
    whole, loss = step("at once", 4)
    assert gap(whole, tmp_path / "at once" / "initial.safetensors") > 1e-3
    for passes in (2, 4):
        parts, sum_of_losses = step(f"in {passes} passes", 4 // passes)
        assert gap(whole, parts) < 1e-6
        assert sum_of_losses == pytest.approx(loss, rel=1e-6)
    assert gap(as_they_are[0][0], as_they_are[1][0]) > 1e-4


CROPS = {"crop": 32, "moco_queue": 64, "moco_group": 2}


@pytest.mark.parametrize("objectives", [{"moco": 1.0}, {"view": 1.0, "moco": 0.1}])
def test_moco_continues_bit_by_bit(
    rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objectives: dict[str, float]
) -> None:
    """Queue, its pointer and the momentum encoder are part of the checkpoint."""
    options = {**CROPS, "objectives": objectives, "steps": 3}
    whole = run_small(rooms_store, tmp_path / "whole", **options)
    broken = run_broken(2, rooms_store, tmp_path / "broken", monkeypatch, **options)
    assert same(whole / "weights.safetensors", broken / "weights.safetensors")
    assert column(whole, "loss") == column(broken, "loss")
    states = [torch.load(run / "last.ckpt", weights_only=True)["state_dict"] for run in (whole, broken)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert states[0]["objective.terms.moco.pointer"] == 3 * 4
    key = "layer1.0.conv1.weight"
    momentum, trained = (next(v for k, v in states[0].items() if part in k and k.endswith(key)) for part in PARTS)
    assert 0 < float((momentum - trained).abs().max()) < 0.1


PARTS = ("key_encoder", "unet.encoder")


def test_moco_beside_view_draws_both(rooms_store: Path, tmp_path: Path) -> None:
    run = run_small(rooms_store, tmp_path / "run", **CROPS, objectives={"view": 1.0, "moco": 0.1})
    loss, view, moco = (column(run, name) for name in ("loss", "view/loss", "moco/loss"))
    assert loss == pytest.approx([a + 0.1 * b for a, b in zip(view, moco, strict=True)], rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"objectives": {"trivial": 1.0}, "augment": "simclr"},
        {"objectives": {"depth": 1.0}},
        {"objectives": {"view": 1.0, "depth": 1.0, "trivial": 1.0}, "keep": 0.5},
        {"points": "all", "negatives": "batch", "exclude_px": 2.0, "exclude_cm": 5.0},
        {"passes": "separate", "bn_momentum": "decay"},
        {"objectives": {"geometry": 1.0}, "chunks": 2, "voxel_input": "color"},
    ],
    ids=str,
)
def test_every_option_trains(rooms_store: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    run = run_small(rooms_store, tmp_path / "run", **options)
    losses = column(run, "loss")
    assert len(losses) == 2
    assert all(0 < loss < 100 for loss in losses)
    before, after = (parameters(run / f"{name}.safetensors") for name in ("initial", "weights"))
    # Depth and the 3D network have heads of their own; what feeds them moves all the same.
    assert not torch.equal(before["encoder.net.conv1.0.weight"], after["encoder.net.conv1.0.weight"])


VIT = "vit_tiny_patch16_224"


def changed(run: Path) -> tuple[set[str], set[str]]:
    """Names of the encoder's tensors, running statistics included, that a run has changed, and of the others."""
    before, after = (read_state(run / f"{name}.safetensors") for name in ("initial", "weights"))
    assert before.keys() == after.keys()
    moved = {key for key in before if key.startswith("encoder.") and not torch.equal(before[key], after[key])}
    return moved, {key for key in before if key.startswith("encoder.")} - moved


def test_frozen_encoder_stays_bit_by_bit(rooms_store: Path, tmp_path: Path) -> None:
    run = run_small(rooms_store, tmp_path / "run", tune="frozen", objectives={"view": 1.0, "geometry": 1.0})
    moved, kept = changed(run)
    assert not moved
    assert any("running_mean" in key for key in kept)
    assert gap(run / "initial.safetensors", run / "weights.safetensors") > 1e-4  # the decoder learns


@pytest.mark.slow
def test_only_the_last_stage_moves(rooms_store: Path, tmp_path: Path) -> None:
    """Batch-norm statistics of the frozen stages stay too, held-out measurements in between."""
    moved, kept = changed(run_small(rooms_store, tmp_path / "run", tune="last-1", holdout=0.3, eval_every=1))
    assert moved
    assert kept
    assert {key.split(".")[2] for key in moved} == {"layer4"}
    assert not [key for key in kept if ".layer4." in key and "running" in key]


@pytest.mark.parametrize("tune", ["last-1", "frozen", "lora-4"])
def test_parts_of_a_vit(rooms_store: Path, tmp_path: Path, tune: str) -> None:
    moved, kept = changed(run_small(rooms_store, tmp_path / "run", encoder=VIT, tune=tune))
    assert kept
    if tune == "frozen":
        assert not moved
    elif tune == "last-1":
        assert {key for key in moved if "blocks" in key} == {key for key in moved | kept if "blocks.11." in key}
    else:  # merged into the weights of the attention alone
        assert moved
        assert all(".attn." in key and key.endswith("weight") for key in moved)


def test_moco_under_lora_moves_the_adapters_of_both_encoders(rooms_store: Path, tmp_path: Path) -> None:
    run = run_small(rooms_store, tmp_path / "run", encoder="test_vit", tune="lora-2", objectives={"moco": 1.0}, **CROPS)
    assert all(".attn." in key for key in changed(run)[0])


@pytest.mark.parametrize(("norm", "moving"), [("train", {"statistics", "weights"}), ("statistics", {"weights"})])
def test_norms_of_the_encoder_keep_what_they_are_told(
    rooms_store: Path, tmp_path: Path, norm: str, moving: set[str]
) -> None:
    """``frozen`` is a case of the next test and of the tuning's own."""
    run = run_small(rooms_store, tmp_path / "run", norm=norm)
    before, after = (read_state(run / f"{name}.safetensors") for name in ("initial", "weights"))
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    norms = {key.rpartition(".")[0] for key in before if key.endswith("running_mean")}
    of_encoder = [key for key in changed if key.startswith("encoder.") and key.rpartition(".")[0] in norms]
    kinds = {"statistics" if ".running_" in key else "weights" for key in of_encoder if "num_batches" not in key}
    assert kinds == moving
    assert any(key.startswith("decoder.") and ".running_" in key for key in changed)


def test_the_encoder_waits_for_the_heads(rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then its rate rises over as many steps again; a continued run goes on with it."""
    options = {"steps": 4, "backbone": {"delay": 2, "norm": "frozen", "head_lr": 10.0}, "schedule": "constant"}
    moved: list[set[str]] = []
    last: dict[str, Tensor] = {}
    after = PretrainModule.after_step

    def watched(module: PretrainModule) -> None:
        now = {key: value.clone() for key, value in module.unet.state_dict().items()}
        moved.append({key.partition(".")[0] for key in now if not torch.equal(now[key], last.get(key, now[key]))})
        last.update(now)
        after(module)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainModule, "after_step", watched)
        whole = run_small(rooms_store, tmp_path / "whole", **options)
    assert moved[1:] == [{"decoder"}, {"decoder", "encoder"}, {"decoder", "encoder"}]
    rates = column(whole, "lr")
    assert rates == pytest.approx([0, 0.5 * rates[3], rates[3], rates[3]])  # each is that of the step to come
    assert rates[3] > 0
    broken = run_broken(3, rooms_store, tmp_path / "broken", monkeypatch, **options)
    assert same(whole / "weights.safetensors", broken / "weights.safetensors")


def test_a_delay_without_heads_is_refused(rooms_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--backbone\.delay 1: only the encoder is trained"):
        run_small(rooms_store, tmp_path / "run", objectives={"distill": 1.0}, backbone={"delay": 1})


@pytest.mark.slow
def test_distillation_trains_the_encoder_alone_and_measures_its_maps(rooms_store: Path, tmp_path: Path) -> None:
    """The decoder is left out; clean images reach the teacher, or the drift of the start would not come from them."""
    given = {"objectives": {"distill": 1.0}, "holdout": 0.4, "eval_pairs": 2, "augment": "strong"}
    logged = []
    for name, clean in (("clean", True), ("augmented", False)):
        run = run_small(rooms_store, tmp_path / name, **given, eval_every=2 * clean, distill={"clean": clean})
        logged.append(read_metrics(run / "metrics.csv"))
        before, after = read_state(run / "initial.safetensors"), read_state(run / "weights.safetensors")
        changed = {key.partition(".")[0] for key in before if not torch.equal(before[key], after[key])}
        assert changed == {"encoder"}
    rows = read_json(tmp_path / "clean" / "scores.json")["history"]
    assert all(0 <= row["recall"] <= 1 and row["points"] > 0 for row in rows)
    assert logged[0][0]["distill/drift"] != logged[1][0]["distill/drift"]
    assert {"distill/target", "distill/spread"} <= set(logged[0][0])


def test_the_decoder_rests_where_nothing_looks_at_it(rooms_store: Path, tmp_path: Path) -> None:
    run = run_small(rooms_store, tmp_path / "run", objectives={"moco": 1.0}, **CROPS)
    before, after = (read_state(run / f"{name}.safetensors") for name in ("initial", "weights"))
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("decoder."))
    names = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    assert any(name.startswith("unet.encoder.") for name in names)
    assert not [name for name in names if name.startswith("unet.decoder.")]


def test_a_slurm_job_of_many_tasks_that_is_not_begun_by_srun_trains_alone(
    rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning by itself would wait for the other three."""
    job = {"JOB_ID": 71, "NTASKS": 4, "NNODES": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert len(column(run_small(rooms_store, tmp_path / "run", steps=1), "loss")) == 1


def test_decaying_momentum_reaches_every_norm(rooms_store: Path, tmp_path: Path, monkeypatch: Any) -> None:
    seen: list[set[float | None]] = []
    loss = PretrainModule.loss

    def watched(module: PretrainModule, batch: Any) -> Any:
        result = loss(module, batch)
        seen.append({m.momentum for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)})
        return result

    monkeypatch.setattr(PretrainModule, "loss", watched)
    run_small(rooms_store, tmp_path / "run", bn_momentum="decay", steps=1, objectives={"view": 1.0, "geometry": 1.0})
    assert seen == [{0.5}] * 2
