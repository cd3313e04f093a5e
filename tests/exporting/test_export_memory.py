"""An export holds less than three times the model in memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pri3d.networks.unet import build_unet
from pri3d.networks.weights import save_model

#: Not by getrusage, which counts what the test's process held when it began this one. Everything an export of ``to``
#: needs is loaded with a small network first, so that what is added is the model's.
CODE = """
import gc, re, sys
from pathlib import Path
from pri3d.exporting.export import export
folder, to = Path(sys.argv[1]), sys.argv[2]
def held(what):
    return int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024 / 1e6
export(folder / "small", to)
gc.collect()
before = held("VmRSS")
export(folder / "large", to)
print("PEAK", held("VmHWM") - before)
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
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path), to], capture_output=True, text=True, check=True)
    peak = float(done.stdout.split("PEAK")[1])
    assert 0 < peak < 3 * size
