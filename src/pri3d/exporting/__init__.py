"""Export formats, one file each, with a check that the other program can read it."""

from __future__ import annotations

FORMATS = {
    "torchvision": "pri3d.exporting.torchvision:TorchvisionFormat",
    "timm": "pri3d.exporting.timm:TimmFormat",
    "smp": "pri3d.exporting.smp:SmpFormat",
    "detectron2": "pri3d.exporting.detectron2:Detectron2Format",
    "mmseg": "pri3d.exporting.mmseg:MmsegFormat",
    "safetensors": "pri3d.exporting.safetensors:SafetensorsFormat",
    "onnx": "pri3d.exporting.onnx:OnnxFormat",
    "torchscript": "pri3d.exporting.torchscript:TorchscriptFormat",
    "hf": "pri3d.exporting.hf:HfFormat",
}
