"""MoCo against Algorithm 1 written as slow loops; queue, momentum, resume, shuffled batch norm, several processes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from moco_worker import build, crops, two_steps
from test_objectives import CountSyncs
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from pri3d.errors import ConfigError
from pri3d.networks.encoders import build_encoder
from pri3d.objectives import Setup, WeightedSum
from pri3d.objectives.moco import MocoObjective, MocoOptions
from pri3d.types import CropBatch

State = dict[str, Tensor]


def copied(module: torch.nn.Module) -> State:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def slow_encode(encoder: torch.nn.Module, head: torch.nn.Module, states: tuple[State, State], images: Tensor) -> Tensor:
    maps = functional_call(encoder, states[0], (encoder.normalise(images),))  # type: ignore[operator]
    vectors = functional_call(head, states[1], (maps[-1].mean((2, 3)),))
    return vectors / vectors.pow(2).sum(1, keepdim=True).sqrt()


def slow_loss(queries: Tensor, keys: Tensor, queue: list[Tensor], temperature: float) -> Tensor:
    """MoCo Eq. 1, one query after the other."""
    terms = []
    for query, key in zip(queries, keys, strict=True):
        positive = torch.exp(query @ key / temperature)
        terms.append(-torch.log(positive / (positive + sum(torch.exp(query @ old / temperature) for old in queue))))
    return torch.stack(terms).mean()


def test_steps_equal_the_algorithm_in_loops() -> None:
    """Loss, both encoders and the queue over seven steps; 20 keys are no multiple of the batch of 6."""
    encoder, objective = build()
    query = copied(encoder), copied(objective.head)
    key = copied(objective.key_encoder), copied(objective.key_head)
    queue, at = [column.clone() for column in objective.queue.T], 0
    trained = [*encoder.parameters(), *objective.head.parameters()]
    optimizer = torch.optim.SGD(trained, 0.1)
    for step in range(7):
        batch = crops(6, step)
        optimizer.zero_grad()
        terms = objective(None, batch)
        terms.loss.backward()
        optimizer.step()
        objective.after_step()

        for state, module in zip(query, (encoder, objective.head), strict=True):
            for name, _ in module.named_parameters():
                state[name] = state[name].detach().requires_grad_()
        queries = slow_encode(encoder, objective.head, query, batch.crops[:, 0])
        with torch.no_grad():
            keys = slow_encode(encoder, objective.head, key, batch.crops[:, 1])
        loss = slow_loss(queries, keys, queue, 0.2)
        assert float(terms.loss.detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
        hits = [
            float(q @ k) > max(float(q @ old) for old in queue) for q, k in zip(queries.detach(), keys, strict=True)
        ]
        assert float(terms.log["recall"]) == pytest.approx(sum(hits) / 6)
        names = [(s, n) for s in (0, 1) for n in query[s] if query[s][n].requires_grad]
        for (s, n), grad in zip(names, torch.autograd.grad(loss, [query[s][n] for s, n in names]), strict=True):
            query[s][n] = (query[s][n] - 0.1 * grad).detach()
            key[s][n] = 0.9 * key[s][n] + (1 - 0.9) * query[s][n]
        for vector in keys:
            queue[at] = vector
            at = (at + 1) % 20
        for state, module in zip(key, (objective.key_encoder, objective.key_head), strict=True):
            torch.testing.assert_close(copied(module), state, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(objective.queue, torch.stack(queue, dim=1), rtol=1e-4, atol=1e-5)
        assert int(objective.pointer) == at
    assert at == 7 * 6 % 20


@pytest.mark.thorough
def test_gradient_reaches_the_query_side_alone() -> None:
    encoder = build_encoder("resnet18")
    objective = MocoObjective(Setup(encoder=encoder), MocoOptions(queue=64))
    before = copied(objective)
    terms = objective(None, CropBatch(crops(4).crops.repeat(1, 1, 1, 3, 3)[..., :32, :32], ["a"] * 4))
    terms.loss.backward()
    assert terms.loss.dtype == torch.float32
    trained = [*encoder.parameters(), *objective.head.parameters()]
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) and bool(p.grad.any()) for p in trained)
    assert [n for n, p in objective.named_parameters() if p.requires_grad] == [
        "head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias",
    ]  # fmt: skip
    assert all(p.grad is None for n, p in objective.named_parameters() if n.startswith("key_"))
    assert {name.split(".")[0] for name in before} == {"head", "key_encoder", "key_head", "queue", "pointer"}
    assert not terms.log["recall"].requires_grad
    assert float(terms.log["chance"]) == pytest.approx(math.log(65))
    assert objective.head[0].in_features == objective.head[0].out_features == 512
    assert objective.queue.shape == (128, 64)


def test_first_keys_come_from_the_weights_of_the_queries() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("resnet18").eval()
    objective = MocoObjective(Setup(encoder=encoder), MocoOptions(queue=64))
    one = torch.rand(4, 1, 3, 32, 32)
    log = objective(None, CropBatch(one.expand(-1, 2, -1, -1, -1), ["a"] * 4)).log
    assert float(log["cosine"]) == pytest.approx(1, abs=1e-5)
    assert float(log["recall"]) == 1


def test_momentum_has_its_closed_form() -> None:
    """With queries that stand still, n steps leave m^n of the way between the two sides."""
    encoder, objective = build(momentum=0.8)
    query, start = copied(encoder), copied(objective.key_encoder)
    for _ in range(9):
        objective.after_step()
    for name, parameter in objective.key_encoder.named_parameters():
        wanted = query[name] + 0.8**9 * (start[name] - query[name])
        torch.testing.assert_close(parameter.data, wanted, rtol=1e-5, atol=1e-6)


def test_resumed_objective_goes_on_to_the_bit(tmp_path: Path) -> None:
    batches = [crops(6, seed) for seed in range(4)]
    encoder, objective = build(group_size=2)
    two_steps(encoder, objective, batches[:2])
    torch.save({"encoder": encoder.state_dict(), "objective": objective.state_dict()}, tmp_path / "state.pt")
    wanted = two_steps(encoder, objective, batches[2:])
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    encoder, objective = build(seed=5, group_size=2)
    encoder.load_state_dict(saved["encoder"])
    objective.load_state_dict(saved["objective"])
    found = two_steps(encoder, objective, batches[2:])
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_accumulation_equals_the_big_batch() -> None:
    """One queue and one key encoder for all passes of a step (batch norm frozen)."""
    results = []
    for parts in (1, 3):
        encoder, objective = build()
        encoder.eval()
        for batch in (crops(6, 1), crops(6, 2)):
            for piece in batch.crops.chunk(parts):
                (objective(None, CropBatch(piece, batch.names)).loss / parts).backward()
            objective.after_step()
        grads = [p.grad.flatten() for p in encoder.parameters() if p.grad is not None]
        results.append((torch.cat(grads), objective.queue, objective.pointer))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_evaluation_leaves_the_state_alone() -> None:
    encoder, objective = build()
    before = copied(objective)
    encoder.eval()
    objective.eval()
    assert torch.isfinite(objective(None, crops(6)).loss)
    assert objective._waiting == []
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def slow_groups(objective: MocoObjective, images: Tensor, order: list[int], groups: int) -> Tensor:
    """Keys of images that are encoded in the groups of an order, put back one by one."""
    keys: dict[int, Tensor] = {}
    size = len(order) // groups
    with torch.no_grad():
        for start in range(0, len(order), size):
            part = order[start : start + size]
            maps = objective.key_encoder(objective.key_encoder.normalise(images[part]))
            found = F.normalize(objective.key_head(maps[-1].mean((2, 3))), dim=1)
            keys |= dict(zip(part, found, strict=True))
    return torch.stack([keys[k] for k in range(len(order))])


def test_groups_of_a_big_batch_are_shuffled_for_the_keys() -> None:
    """12 crops in groups of 4: queries in order, keys across the groups, each with its own statistics."""
    encoder, objective = build(group_size=4)
    batch = crops(12)
    torch.manual_seed(7)
    objective(None, batch)
    torch.manual_seed(7)
    order = torch.randperm(12).tolist()
    wanted = slow_groups(objective, batch.crops[:, 1], order, 3)
    torch.testing.assert_close(objective._waiting[0], wanted)
    assert (wanted - slow_groups(objective, batch.crops[:, 1], list(range(12)), 3)).abs().max() > 1e-3
    assert int(encoder.norm1.num_batches_tracked) == int(objective.key_encoder.norm1.num_batches_tracked) // 3 == 3


@pytest.mark.parametrize(("norm", "training", "groups"), [("batch", True, 3), ("batch", False, 0), ("none", True, 0)])
def test_only_statistics_of_the_batch_are_grouped(norm: str, training: bool, groups: int) -> None:
    encoder, objective = build(norm, group_size=4)
    encoder.train(training)
    assert objective._groups(12) == groups
    assert build(norm, group_size=0)[1]._groups(12) == min(groups, 1) or not training


def test_synchronised_norm_is_not_shuffled() -> None:
    encoder, objective = build(group_size=4)
    torch.nn.SyncBatchNorm.convert_sync_batchnorm(encoder)
    assert objective._groups(12) == 0


def test_frozen_layers_normalise_alike_on_both_sides() -> None:
    encoder, objective = build()
    encoder.norm1.eval()
    objective(None, crops(6))
    assert not objective.key_encoder.norm1.training
    assert objective.key_encoder.conv1.training


def test_nothing_waits_for_the_device() -> None:
    _, objective = build(group_size=3)
    with CountSyncs() as counted:
        objective(None, crops(6)).loss.backward()
        objective.after_step()
    assert counted.calls == []
    assert counted.total > 50


def test_contrast_stays_float32_under_autocast() -> None:
    _, objective = build()
    with torch.autocast("cpu", torch.bfloat16):
        terms = objective(None, crops(6))
    assert terms.loss.dtype == torch.float32
    assert objective._waiting[0].dtype == torch.float32


def test_queue_must_hold_a_step() -> None:
    _, objective = build(queue=7)
    with pytest.raises(ConfigError, match=r"--moco\.queue 7: one optimizer step makes 8 keys"):
        objective(None, crops(8))
    objective(None, crops(4))
    with pytest.raises(ConfigError, match="after_step"):
        objective(None, crops(4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue": 0}, "--moco.queue 0: give at least 1"),
        ({"momentum": 1.0}, "--moco.momentum 1.0: give less than 1"),
        ({"temperature": 0.0}, "--moco.temperature 0.0: give at least 0.025"),
        ({"group_size": -1, "dim": 0}, "--moco.group-size -1.*--moco.dim 0"),
        ({"encoder": None}, "needs the network's encoder"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        encoder = options.pop("encoder", build_encoder("resnet18"))
        MocoObjective(Setup(encoder=encoder), MocoOptions(**options))


def test_batch_without_crops_is_refused() -> None:
    _, objective = build()
    for images in (None, torch.empty(4, 0, 3, 1, 1)):
        with pytest.raises(ConfigError, match="two crops of each image"):
            objective(None, CropBatch(images, ["a"] * 4))  # type: ignore[arg-type]


def test_runs_beside_other_settings_and_wants_no_image_of_a_pair() -> None:
    encoder = build_encoder("resnet18")
    total = WeightedSum({"moco": 2.0}, Setup(channels=8, encoder=encoder), {"moco": MocoOptions(queue=32)})
    assert total.views == ()
    terms = total(None, CropBatch(torch.rand(3, 2, 3, 32, 32), ["a"] * 3))
    assert float(terms.loss.detach()) == pytest.approx(2 * float(terms.log["moco/loss"]))
    total.after_step()
    assert int(total.terms["moco"].pointer) == 3


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two real processes found, see moco_worker."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, str(Path(__file__).with_name("moco_worker.py"))]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
    }
    processes = [
        subprocess.Popen([*command, str(rank), "2", str(folder)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        ends = [process.communicate(timeout=200)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], ends
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.slow
def test_two_processes_equal_one_on_the_global_batch(two_processes: list[dict[str, Any]]) -> None:
    encoder, objective = build()
    encoder.eval()
    wanted = two_steps(encoder, objective, [crops(8, 1), crops(8, 2)])
    for found in two_processes:
        torch.testing.assert_close(found["frozen"], {k: v.detach() for k, v in wanted.items()}, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_all_processes_hold_the_same_queue(two_processes: list[dict[str, Any]]) -> None:
    first, second = (found["shuffled"] for found in two_processes)
    assert torch.equal(first["queue"], second["queue"])
    assert int(first["pointer"]) == int(second["pointer"]) == 16
    assert torch.equal(first["key"], second["key"])


@pytest.mark.slow
def test_shuffling_and_back_is_the_identity(two_processes: list[dict[str, Any]]) -> None:
    """A batch norm that has no effect makes the processes shuffle, and the keys must come out as without."""
    _, objective = build("idle")
    wanted = objective._keys(crops(8, 1).crops[:, 1], 0)[0]
    for rank, found in enumerate(two_processes):
        own, every = found["keys-idle"]
        torch.testing.assert_close(every, wanted)
        assert torch.equal(own, every[4 * rank : 4 * rank + 4])


@pytest.mark.slow
def test_processes_normalise_shares_of_one_permutation(two_processes: list[dict[str, Any]]) -> None:
    """Processes whose generators differ use that of the first; four groups of two over both."""
    _, objective = build("batch")
    torch.manual_seed(10)
    order = torch.randperm(8).tolist()
    wanted = slow_groups(objective, crops(8, 1).crops[:, 1], order, 4)
    for found in two_processes:
        torch.testing.assert_close(found["keys-batch"][1], wanted, rtol=1e-4, atol=1e-5)
