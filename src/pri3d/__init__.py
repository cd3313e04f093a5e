"""pri3d: posed RGB-D recordings -> better image backbones (Pri3D, ICCV 2021).

Every verb of the command line is a function of the same name: ``pri3d.prepare(...)``, ``pri3d.pretrain(...)``.
They are imported on first use, so ``import pri3d`` costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

#: verb -> module that holds the function of the same name
VERBS = {
    "demo": "pri3d.chain",
    "rooms": "pri3d.worlds.write",
    "prepare": "pri3d.preparation.run",
    "pretrain": "pri3d.train.pretrain",
    "probe": "pri3d.scoring.probe",
    "coco": "pri3d.datasets.convert",
    "finetune": "pri3d.train.finetune",
    "evaluate": "pri3d.scoring.evaluation",
    "predict": "pri3d.scoring.prediction",
    "export": "pri3d.models.export",
}


def find_verb(name: str) -> Callable[..., Any]:
    """Import the function of a verb."""
    verb: Callable[..., Any] = getattr(import_module(VERBS[name]), name)
    return verb


def __getattr__(name: str) -> Any:
    if name in VERBS:
        return find_verb(name)
    raise AttributeError(f"module 'pri3d' has no attribute {name!r}")
