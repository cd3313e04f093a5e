"""Each format passes the contract that those of other packages inherit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pri3d.testing.exporting import ExportFormatContract

pytestmark = pytest.mark.thorough  # but for those that say quick

VIT = "vit_tiny_patch16_224"


class TestTorchvision(ExportFormatContract):
    name = "torchvision"
    refused = (VIT,)


class TestTimm(ExportFormatContract):
    name = "timm"


class TestTimmViT(ExportFormatContract):
    name = "timm"
    encoder = VIT


class TestSmp(ExportFormatContract):
    name = "smp"
    refused = (VIT,)


class TestDetectron2(ExportFormatContract):
    name = "detectron2"
    refused = (VIT,)
    snippet_needs = ("detectron2",)


class TestMmseg(ExportFormatContract):
    name = "mmseg"
    refused = (VIT,)
    snippet_needs = ("mmseg",)


class TestSafetensors(ExportFormatContract):
    name = "safetensors"


class TestHf(ExportFormatContract):
    name = "hf"


@pytest.mark.slow
class TestHfOfAViT(ExportFormatContract):
    name = "hf"
    encoder = VIT


@pytest.mark.slow
class TestTorchscript(ExportFormatContract):
    name = "torchscript"
    named = False


@pytest.mark.slow
class TestOnnx(ExportFormatContract):
    name = "onnx"
    needs = ("onnx", "onnxruntime", "onnxscript")
    named = False


@pytest.mark.slow
def test_the_example_of_the_documentation(tmp_path):
    """The package of docs/extending/export.md, found by its entry point, passes the contract that it inherits."""
    page = (Path(__file__).parents[2] / "docs" / "extending" / "export.md").read_text()
    for name, text in re.findall(r"```\w+\n# file: (\S+)\n(.*?)```", page, flags=re.DOTALL):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    info = tmp_path / "mylab-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mylab\nVersion: 0.1\n")
    lines = [f"[{k}]\n{n} = {where}\n" for k, names in project["entry-points"].items() for n, where in names.items()]
    (info / "entry_points.txt").write_text("".join(lines))
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_npz.py"]
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 passed, 1 skipped" in done.stdout
