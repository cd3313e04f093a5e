"""pri3d: posed RGB-D recordings -> better image backbones (Pri3D, ICCV 2021).

Every command is a function of the same name: ``pri3d.prepare(...)``, ``pri3d.pretrain(...)``; only ``pri3d import`` is
``pri3d.import_weights(...)``, since ``import`` is no name in Python. ``pri3d.load`` gives a trained backbone as a plain
module, ``pri3d.encoders()`` and ``pri3d.presets()`` say what there is to choose from. What does the work is imported
when it is called, so ``import pri3d`` costs next to nothing.
"""

__version__ = "0.2.0"

# In the order in which the command line lists them.
from pri3d.api.check import check
from pri3d.api.coco import coco
from pri3d.api.demo import demo
from pri3d.api.embed import embed
from pri3d.api.evaluate import evaluate
from pri3d.api.export import export
from pri3d.api.finetune import finetune
from pri3d.api.import_weights import import_weights
from pri3d.api.load import encoders, load, presets
from pri3d.api.models import models
from pri3d.api.predict import predict
from pri3d.api.prepare import prepare
from pri3d.api.pretrain import pretrain
from pri3d.api.probe import probe
from pri3d.api.report import report
from pri3d.api.reproduce import reproduce
from pri3d.api.rooms import rooms
from pri3d.api.view import view

__all__ = [
    "__version__",
    "check",
    "coco",
    "demo",
    "embed",
    "encoders",
    "evaluate",
    "export",
    "finetune",
    "import_weights",
    "load",
    "models",
    "predict",
    "prepare",
    "presets",
    "pretrain",
    "probe",
    "report",
    "reproduce",
    "rooms",
    "view",
]
