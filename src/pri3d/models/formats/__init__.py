"""Ways to write a network for other programs, one class each, with the proof that the other program reads it."""

from __future__ import annotations

FORMATS = {
    "torchvision": "pri3d.models.formats.torchvision:TorchvisionFormat",
    "timm": "pri3d.models.formats.timm:TimmFormat",
    "smp": "pri3d.models.formats.smp:SmpFormat",
    "detectron2": "pri3d.models.formats.toolboxes:Detectron2Format",
    "mmseg": "pri3d.models.formats.toolboxes:MmsegFormat",
    "safetensors": "pri3d.models.formats.plain:SafetensorsFormat",
    "onnx": "pri3d.models.formats.graphs:OnnxFormat",
    "torchscript": "pri3d.models.formats.graphs:TorchscriptFormat",
    "hf": "pri3d.models.formats.hf:HfFormat",
}
