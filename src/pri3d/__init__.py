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

__version__ = "0.2.0"

#: verb -> module:function
VERBS = {
    "demo": "pri3d.chain:demo",
    "rooms": "pri3d.worlds.write:rooms",
    "check": "pri3d.checking.check:check",
    "prepare": "pri3d.preparation.run:prepare",
    "pretrain": "pri3d.training.recordings:pretrain",
    "probe": "pri3d.probing.verb:probe",
    "coco": "pri3d.labelled.convert:coco",
    "finetune": "pri3d.training.finetune:finetune",
    "evaluate": "pri3d.evaluation.evaluate:evaluate",
    "predict": "pri3d.evaluation.predict:predict",
    "view": "pri3d.reporting.viewer:view",
    "export": "pri3d.exporting.export:export",
    "embed": "pri3d.evaluation.embed:embed",
    "import": "pri3d.networks.importing:import_weights",  # `import` is no name in Python
    "reproduce": "pri3d.reproduction.reproduce:reproduce",
    "report": "pri3d.reporting.report:make_report",  # so is pri3d.reporting
    "models": "pri3d.networks.catalog:list_models",  # pri3d.networks is a package
}

#: what the package offers beside its verbs, module:function
OTHERS = ("pri3d.networks.load:load",)

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
