"""Low-rank adapters on attention: few trained parameters beside frozen weights, merged when weights are written.

W becomes W + B A with A (rank, inputs) and B (outputs, rank) (Hu et al., "LoRA", arXiv 2106.09685). It is put on the
weight itself, not on the layer's call, because some networks use a layer's weight without calling it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pri3d.errors import ConfigError

#: names of the linear layers of attention in timm: fused, apart, and the projection after it
ATTENTION = re.compile(r"(^|\.)\w*attn\w*\.(qkv|q|k|v|kv|q_proj|k_proj|v_proj|proj)$")


class LowRank(nn.Module):
    """Adds ``up @ down`` to a weight; ``up`` starts at zero, so nothing changes at first."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.down = nn.Parameter(weight.new_empty(rank, inputs))
        self.up = nn.Parameter(weight.new_zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Weight (outputs, inputs) -> adapted weight of the same shape."""
        return weight + (self.up @ self.down).to(weight.dtype)


def add_lora(encoder: nn.Module, rank: int) -> int:
    """Freeze ``encoder`` in place but for adapters of ``rank`` on its attention's linear layers; their number.

    The random halves come from torch's global generator. Load weights before: afterwards the adapted layers' weights
    have other names in the state dict, see :func:`merged_state`. Raises ConfigError for a rank below 1, a network that
    is adapted already, or one without attention.
    """
    if rank < 1:
        raise ConfigError(f"the rank of the adapters must be 1 or more, not {rank}: try lora-8")
    if any(True for _ in _adapted(encoder)):
        raise ConfigError("the network has adapters already: build a fresh one")
    layers = [m for name, m in encoder.named_modules() if isinstance(m, nn.Linear) and ATTENTION.search(name)]
    if not layers:
        name = getattr(encoder, "name", type(encoder).__name__)
        raise ConfigError(
            f"{name} has no attention to adapt: take full, frozen or last-K, or a ViT such as vit_small_patch14_dinov2"
        )
    encoder.requires_grad_(False)
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank))
    return len(layers)


@torch.no_grad()
def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """State dict of ``module`` with every adapter added to its weight, under the names it has without adapters.

    For a module without adapters this is its ``state_dict()``.
    """
    state: dict[str, Tensor] = module.state_dict()
    for name, layer in _adapted(module):
        own = f"{name}." if name else ""
        for key in [k for k in state if k.startswith(f"{own}parametrizations.weight.")]:
            del state[key]
        state[f"{own}weight"] = layer.weight.detach()
    return state


def _adapted(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Every adapted linear layer inside, with its name."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and parametrize.is_parametrized(layer, "weight"):
            parts: Any = layer.parametrizations
            if any(isinstance(part, LowRank) for part in parts["weight"]):
                yield name, layer
