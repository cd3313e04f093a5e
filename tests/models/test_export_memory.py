"""An export holds less than three times the model in memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pri3d.models.unet import build_unet
from pri3d.models.weights import save_model

#: loads everything an export of ``to`` needs with a small network first, so that what is added is the model's
CODE = """
import gc, resource, sys
from pathlib import Path
from pri3d.models.export import export
folder, to = Path(sys.argv[1]), sys.argv[2]
def held():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
export(folder / "small", to)
gc.collect()
before = held()
export(folder / "large", to)
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("to", ["torchvision", "detectron2", "safetensors", "hf", "torchscript", "onnx"])
def test_peak(tmp_path, to):
    if to == "onnx":
        pytest.importorskip("onnxscript", reason="of the extra onnx")
    for folder, name in (("small", "resnet18"), ("large", "resnet50")):
        save_model(build_unet(name, "slim", 8), tmp_path / folder / "weights.safetensors", {})
    size = (tmp_path / "large" / "weights.safetensors").stat().st_size / 1e6
    assert size > 90
    torch.manual_seed(0)
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path), to], capture_output=True, text=True, check=True)
    peak = float(done.stdout.split("PEAK")[1])
    assert peak < 3 * size
