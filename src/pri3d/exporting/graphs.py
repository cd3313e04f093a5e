"""Networks as recorded graphs that need no code of pri3d: ONNX and TorchScript. Normalisation is inside."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from pri3d.errors import ConfigError, WeightsError
from pri3d.exporting.base import PARTS, Format, Probe, maps_of
from pri3d.networks.load import FeatureNet

#: packages of the extra
NEEDED = ("onnx", "onnxruntime", "onnxscript")

ONNX = """\
import numpy as np
import onnxruntime
net = onnxruntime.InferenceSession({path!r})
images = np.zeros((1, 3, 120, 160), np.float32)  # RGB 0..1, any number, height and width
outputs = net.run(None, {{"images": images}})  # {outputs}"""

TORCHSCRIPT = """\
import torch
net = torch.jit.load({path!r})
outputs = net(torch.zeros(1, 3, 120, 160))  # RGB 0..1, any number, height and width -> {outputs}"""


class Graph(nn.Module):
    """RGB 0..1 (B, 3, H, W) -> tuple of maps, of a U-Net one."""

    def __init__(self, source: FeatureNet) -> None:
        super().__init__()
        self.source = source

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images -> maps, see the class."""
        return tuple(maps_of(self.source(images)))


class GraphFormat(Format):
    """Encoder or U-Net; recorded at one size, compared at two others, one of them no multiple of 32."""

    parts: ClassVar[tuple[str, ...]] = PARTS
    bound = 1e-4

    #: images, height, width at which it is recorded: no size of a map equals another by chance
    EXAMPLE: ClassVar[Probe] = (2, 75, 107)

    def probes(self) -> Sequence[Probe]:
        """Sizes and numbers of images other than the recorded ones."""
        return [(1, 64, 96), (3, 121, 83)]


class OnnxFormat(GraphFormat):
    """ONNX, opset 18, with free batch, height and width; the weights lie in NAME.onnx.data beside the graph."""

    file = "{part}.onnx"
    note = "The weights are in the file of the same name with `.data` at its end: keep both together."

    def __init__(self, source: FeatureNet, to: str) -> None:
        super().__init__(source, to)
        if absent := [name for name in NEEDED if find_spec(name) is None]:
            raise ConfigError(f'--to onnx needs {", ".join(absent)}: pip install "pri3d[onnx]"')

    def write(self, source: FeatureNet, path: Path) -> None:
        """Record the graph with torch.export; its metadata hold the record."""
        free = torch.export.Dim.DYNAMIC
        names = ["features"] if self.part == "all" else [f"stride{s}_{k}" for k, s in enumerate(self.strides)]
        batch, height, width = self.EXAMPLE
        with _quiet():
            program = torch.onnx.export(
                Graph(source),
                (torch.zeros(batch, 3, height, width),),
                dynamo=True,
                opset_version=18,
                input_names=["images"],
                output_names=names,
                dynamic_shapes=({0: free, 2: free, 3: free},),
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
        return ONNX.format(path=str(path), outputs=self.outputs)


class TorchscriptFormat(GraphFormat):
    """A traced network that torch.jit.load reads, in Python and C++."""

    file = "{part}.torchscript.pt"

    def write(self, source: FeatureNet, path: Path) -> None:
        """Trace and save, with the record as an extra file inside."""
        batch, height, width = self.EXAMPLE
        with _quiet():
            example = torch.zeros(batch, 3, height, width)
            traced = torch.jit.trace(Graph(source).eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
            torch.jit.save(traced, str(path), _extra_files={"pri3d.json": json.dumps(self.record, sort_keys=True)})

    def features(self, path: Path, images: Tensor) -> list[Tensor]:
        """Outputs of the file."""
        with _quiet():
            net = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        return list(net(images))

    def snippet(self, path: Path) -> str:
        """Load and call."""
        return TORCHSCRIPT.format(path=str(path), outputs=f"tuple of {self.outputs}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Context without the recorders' remarks, as on numbers they fix: what they get wrong shows in the comparison."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
