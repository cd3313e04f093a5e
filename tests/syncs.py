"""Count the operators of a computation that make the host wait for the device; it needs no GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Operators that make the host wait for the device: they return values or shapes that depend on data.
SYNCS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "unique",
    "is_nonzero",
    "equal",
    "item",
    "bincount",
    "_unique",
)


class CountSyncs(TorchDispatchMode):
    """Collects the operators that synchronise."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.total += 1
        by_mask = name.startswith("index") and torch.bool in [getattr(x, "dtype", None) for x in tree_leaves(args)]
        if by_mask or name.startswith(SYNCS):
            self.calls.append(name)
        return func(*args, **(kwargs or {}))
