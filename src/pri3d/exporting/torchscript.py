"""TorchScript: a traced network for torch.jit in Python and libtorch in C++."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch
from torch import Tensor

from pri3d.exporting._shared import Graph, GraphFormat, quiet
from pri3d.networks.load import FeatureNet

SNIPPET = """\
import torch
net = torch.jit.load({path!r})
outputs = net(torch.zeros(1, 3, 120, 160))  # RGB 0..1, any number, height and width -> {outputs}"""


class TorchscriptFormat(GraphFormat):
    """A traced network that torch.jit.load reads, in Python and C++."""

    file = "{part}.torchscript.pt"
    consumer = "torch"

    def write(self, source: FeatureNet, path: Path) -> None:
        """Trace and save, with the record as an extra file inside."""
        batch, height, width = self.EXAMPLE
        with quiet():
            example = torch.zeros(batch, 3, height, width)
            traced = torch.jit.trace(Graph(source).eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
            buffer = io.BytesIO()  # PyTorch's own writer says of a full disk that a file "failed writing"
            torch.jit.save(traced, buffer, _extra_files={"pri3d.json": json.dumps(self.record, sort_keys=True)})
        path.write_bytes(buffer.getbuffer())

    def features(self, path: Path, images: Tensor) -> list[Tensor]:
        """Outputs of the file."""
        with quiet():
            net = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        return list(net(images))

    def snippet(self, path: Path) -> str:
        """Load and call."""
        return SNIPPET.format(path=str(path), outputs=f"tuple of {self.outputs}")
