"""pri3d: posed RGB-D recordings -> better image backbones (Pri3D, ICCV 2021).

Every verb of the command line is a function of the same name: ``pri3d.prepare(...)``, ``pri3d.pretrain(...)``; only
``pri3d import`` is ``pri3d.import_weights(...)``, ``pri3d models`` is ``pri3d.list_models(...)`` and ``pri3d report``
is ``pri3d.make_report(...)``. ``pri3d.load`` gives a trained backbone as a plain module. They are imported on first
use, so ``import pri3d`` costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

#: verb -> module:function
VERBS = {
    "demo": "pri3d.chain:demo",
    "rooms": "pri3d.worlds.write:rooms",
    "check": "pri3d.preparation.check:check",
    "prepare": "pri3d.preparation.run:prepare",
    "pretrain": "pri3d.prepared:pretrain",
    "probe": "pri3d.probing:probe",
    "coco": "pri3d.datasets.convert:coco",
    "finetune": "pri3d.train.finetune:finetune",
    "evaluate": "pri3d.scoring.evaluation:evaluate",
    "predict": "pri3d.scoring.prediction:predict",
    "view": "pri3d.report.view:view",
    "export": "pri3d.models.export:export",
    "embed": "pri3d.scoring.embed:embed",
    "import": "pri3d.models.importing:import_weights",  # `import` is no name in Python
    "reproduce": "pri3d.reproduction.verb:reproduce",
    "report": "pri3d.report.make:make_report",  # so is pri3d.report
    "models": "pri3d.models.catalog:list_models",  # pri3d.models is a package
}

#: what the package offers beside its verbs, module:function
OTHERS = ("pri3d.models.load:load",)

_FUNCTIONS = {where.partition(":")[2]: where for where in (*VERBS.values(), *OTHERS)}


def find_verb(name: str) -> Callable[..., Any]:
    """Import the function of a verb."""
    return _find(VERBS[name])


def _find(where: str) -> Callable[..., Any]:
    module, _, function = where.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return _find(_FUNCTIONS[name])
    raise AttributeError(f"module 'pri3d' has no attribute {name!r}")
