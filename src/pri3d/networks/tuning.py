"""Which part of an encoder is trained: all, nothing, its last stages or blocks, or low-rank adapters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pri3d.api.training import TUNING, TUNINGS
from pri3d.errors import ConfigError
from pri3d.networks.lora import add_lora
from pri3d.networks.weights import mix_states

#: a child that holds a network's stages or blocks in order, and the names of stages that stand side by side
CONTAINERS = ("blocks", "stages", "layers")
STAGE = re.compile(r"(blocks|stages|stage|layers|layer|s)_?\d+")


def limit(encoder: nn.Module, spec: str) -> list[nn.Module]:
    """Set in place which parameters of ``encoder`` are trained, and return the modules that must stay as they are.

    ``spec`` is ``full``; ``frozen``; ``last-K``, the last K stages (ResNet's layer4, layer3, ...; a timm network's own)
    or, of a ViT, the last K blocks, with whatever follows them such as the final norm; or ``lora-R``, adapters of rank
    R on the attention (:func:`pri3d.networks.lora.add_lora`). The caller puts the returned modules in ``eval()`` before
    every forward pass: their batch-norm statistics stay and they drop nothing.

    Raises ConfigError for another spec, too large a K, a network whose stages are not known, or one without attention.
    """
    match = TUNING.fullmatch(spec)
    if match is None:
        raise ConfigError(f"unknown tuning {spec!r}. Choices: {TUNINGS}")
    if match["kind"] == "lora":
        add_lora(encoder, int(match["number"]))
        return [encoder]
    encoder.requires_grad_(spec == "full")
    if match["kind"] is None:
        return [] if spec == "full" else [encoder]
    before, stages, after = _parts(encoder)
    count = int(match["number"])
    if count > len(stages):
        what = f"{_name(encoder)} has {len(stages)} stages or blocks"
        raise ConfigError(f"{spec}: {what}, take last-1 to last-{len(stages)}, or full")
    for module in (*stages[-count:], *after):
        module.requires_grad_(True)
    return [*before, *stages[:-count]]


def fix_norms(encoder: nn.Module, spec: str) -> list[nn.Module]:
    """Set in place what of the batch norms of ``encoder`` is trained, and return the modules that must stay in eval.

    ``spec`` is ``train``; ``statistics``: their means and variances stay as they were loaded, weights and biases are
    trained; or ``frozen``: both stay. The caller does with the returned modules as with those of :func:`limit`.
    """
    if spec == "train":
        return []
    norms: list[nn.Module] = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms if spec == "frozen" else ():
        norm.requires_grad_(False)
    return norms


def _parts(encoder: nn.Module) -> tuple[list[nn.Module], list[nn.Module], list[nn.Module]]:
    """Children before the stages, the stages or blocks in order, children after them."""
    net = encoder
    while [name for name, _ in net.named_children()] in (["net"], ["model"]):  # wrappers round timm's network
        net = next(net.children())
    children = list(net.named_children())
    at = [k for k, (name, _) in enumerate(children) if name in CONTAINERS]
    if at:
        stages = list(children[at[0]][1].children())
    else:
        at = [k for k, (name, _) in enumerate(children) if STAGE.fullmatch(name)]
        stages = [children[k][1] for k in at]
    if not stages:
        raise ConfigError(f"the stages of {_name(encoder)} are not known, so last-K cannot be: take full or frozen")
    return [m for _, m in children[: at[0]]], stages, [m for _, m in children[at[-1] + 1 :]]


def _name(encoder: nn.Module) -> str:
    return str(getattr(encoder, "name", type(encoder).__name__))


@contextmanager
def mixed(encoder: nn.Module, initial: Mapping[str, Tensor], share: float) -> Iterator[None]:
    """Context in which an encoder is ``share`` of the way from its ``initial`` state; nothing where that is empty.

    As :func:`pri3d.networks.weights.mix_states`; of an adapter's product ``up @ down`` one factor moves.
    """
    state = encoder.state_dict()
    moved = [key for key in initial if not key.endswith(".0.down")]
    trained = {key: state[key].clone() for key in moved}
    between = mix_states({key: initial[key].to(state[key]) for key in moved}, trained, share)
    try:
        with torch.no_grad():
            for key in moved:
                state[key].copy_(between[key])
        yield
    finally:
        with torch.no_grad():
            for key in moved:
                state[key].copy_(trained[key])
