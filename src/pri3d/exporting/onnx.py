"""ONNX: a graph for onnxruntime, OpenVINO and other runtimes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pri3d.errors import ConfigError, WeightsError
from pri3d.exporting._shared import Graph, GraphFormat, quiet
from pri3d.networks.load import FeatureNet

#: packages of the extra
NEEDED = ("onnx", "onnxruntime", "onnxscript")

#: axes of the images that are free, by their names in the graph
AXES = {0: "batch", 2: "height", 3: "width"}

SNIPPET = """\
import numpy as np
import onnxruntime
net = onnxruntime.InferenceSession({path!r})
images = np.zeros((1, 3, 120, 160), np.float32)  # RGB 0..1, any number, height and width
outputs = net.run(None, {{"images": images}})  # {outputs}"""


class OnnxFormat(GraphFormat):
    """ONNX, opset 18, with free batch, height and width; the weights are in NAME.onnx.data beside the graph."""

    file = "{part}.onnx"
    consumer = "onnxruntime"

    def __init__(self, source: FeatureNet, to: str) -> None:
        super().__init__(source, to)
        if absent := [name for name in NEEDED if find_spec(name) is None]:
            raise ConfigError(f'--to onnx needs {", ".join(absent)}: pip install "pri3d[onnx]"')

    @property
    def note(self) -> str:
        """Where the weights are."""
        return "The weights are in the file of the same name with `.data` at its end: keep both together."

    def write(self, source: FeatureNet, path: Path) -> None:
        """Record the graph with torch.export; its metadata hold the record."""
        names = ["features"] if self.part == "all" else [f"stride{s}_{k}" for k, s in enumerate(self.strides)]
        batch, height, width = self.EXAMPLE
        with quiet(), constant_padding():
            program = torch.onnx.export(
                Graph(source),
                (torch.zeros(batch, 3, height, width),),
                dynamo=True,
                opset_version=18,
                input_names=["images"],
                output_names=names,
                dynamic_shapes=(AXES,),
                optimize=False,  # runtimes do it when they load; here it costs a copy of the weights and half the time
                verbose=False,
            )
        if program is None:
            raise WeightsError("torch.onnx.export returned nothing: this version of PyTorch cannot write ONNX")
        program.model.metadata_props["pri3d"] = json.dumps(self.record, sort_keys=True)
        program.save(str(path), external_data=True)  # one file would pass through memory three times

    def features(self, path: Path, images: Tensor) -> list[Tensor]:
        """Outputs of onnxruntime on the processor."""
        onnxruntime = import_module("onnxruntime")  # an extra
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return [torch.from_numpy(x) for x in session.run(None, {"images": images.numpy()})]

    def snippet(self, path: Path) -> str:
        """Run the file with onnxruntime."""
        return SNIPPET.format(path=str(path), outputs=self.outputs)


@contextmanager
def constant_padding() -> Iterator[None]:
    """Context in which TensorFlow's padding of a free size is a number: timm's layers that compute it record fast.

    Encoders pad images to whole strides, so such a layer's input is whole multiples of its own stride, and the padding
    is the same at every size. timm computes it from the size, the next layer's size follows from it, and PyTorch takes
    more than ten minutes over these formulas for an EfficientNet. Fixed sizes are padded as ever. Were a layer's input
    no whole multiple, the check at sizes of odd multiples would differ.
    """
    padding: Any = sys.modules.get("timm.layers.padding")
    if padding is None:  # the encoder is not timm's
        yield
        return
    of_size = padding.get_same_padding
    padding.get_same_padding = lambda size, kernel, stride, dilation: (
        max((kernel - 1) * dilation + 1 - stride, 0)
        if isinstance(size, torch.SymInt)
        else of_size(size, kernel, stride, dilation)
    )
    try:
        yield
    finally:
        padding.get_same_padding = of_size
