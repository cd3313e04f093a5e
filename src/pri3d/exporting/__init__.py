"""Ways to write a network for other programs, one class each, with the proof that the other program reads it."""

from __future__ import annotations

FORMATS = {
    "torchvision": "pri3d.exporting.torchvision:TorchvisionFormat",
    "timm": "pri3d.exporting.timm:TimmFormat",
    "smp": "pri3d.exporting.smp:SmpFormat",
    "detectron2": "pri3d.exporting.toolboxes:Detectron2Format",
    "mmseg": "pri3d.exporting.toolboxes:MmsegFormat",
    "safetensors": "pri3d.exporting.plain:SafetensorsFormat",
    "onnx": "pri3d.exporting.graphs:OnnxFormat",
    "torchscript": "pri3d.exporting.graphs:TorchscriptFormat",
    "hf": "pri3d.exporting.hf:HfFormat",
}
