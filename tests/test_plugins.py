"""Packages of somebody else: installed by pip, an objective named in a YAML file, a task by the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from pri3d.cli import main
from pri3d.errors import ConfigError
from pri3d.runs import read_metrics
from pri3d.tasks import load_task

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "otherlab-twins"
version = "0.3"

[project.entry-points."pri3d.objectives"]
twins = "otherlab_twins.loss:TwinsObjective"
"""

OBJECTIVE = '''
"""Two recoloured copies of a frame should have equal features; a head of its own, an image of its own, a memory."""

import torch
from torch import nn

from pri3d.api.options import Options, option
from pri3d.objectives import Objective, Setup, Terms


class TwinsOptions(Options):
    """Equal features of two copies."""

    group = "twins"

    outputs: int = option("channels of the head", default=2, least=1)


class TwinsObjective(Objective):
    options = TwinsOptions
    views = ("first", "copy")

    def __init__(self, setup, options=TwinsOptions()):
        super().__init__(setup)
        self.head = nn.Conv2d(setup.channels, options.outputs, 1)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, features, batch):
        one, other = (self.head(features.of(view).float()) for view in self.views)
        far = (batch.color[:, batch.views.index("first")] - batch.color[:, batch.views.index("copy")]).abs().mean()
        outputs = far.new_tensor(one.shape[1])
        return Terms((one - other).square().mean(), {"far": far, "steps": self.steps.clone(), "outputs": outputs})

    def after_step(self):
        self.steps += 1
'''


def run(*words: object, path: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def install(package: Path, site: Path) -> None:
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--no-compile", "--quiet")
    run("pip", "install", *offline, "--target", site, package, path=site)


builds = pytest.mark.skipif(
    not (find_spec("pip") and find_spec("setuptools")), reason="pip and setuptools build the package"
)


@pytest.mark.slow
@builds
def test_objective_of_an_installed_package_works_from_yaml(rooms_store: Path, tmp_path: Path) -> None:
    package = tmp_path / "source" / "otherlab_twins"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "loss.py").write_text(OBJECTIVE)
    (package.parent / "pyproject.toml").write_text(PYPROJECT)
    site = tmp_path / "site"
    install(package.parent, site)
    assert {path.name for path in site.iterdir()} == {"otherlab_twins", "otherlab_twins-0.3.dist-info"}

    settings = {
        "base": "quick",
        "objectives": {"view": 1.0, "twins": 0.5},
        "size": "64x48",
        "matching": {"distance": 0.1},
        "twins": {"outputs": 5},
        "steps": 3,
        "batch": 2,
        "micro_batch": 2,
        "holdout": 0.0,
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    words = ("pretrain", rooms_store, "--preset", tmp_path / "mine.yaml", "--run", tmp_path / "run", "--workers", 0)
    run("pri3d", *words, path=site)
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.csv") if row.get("twins/loss") is not None]
    assert rows
    last = rows[-1]
    assert 0 < last["twins/loss"] < 100
    assert last["twins/steps"] > 0  # after_step was called
    assert last["twins/far"] > 0  # the copy is recoloured
    assert last["twins/outputs"] == 5  # of the preset
    stated = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["settings"]
    assert stated["twins"] == {"outputs": 5}

    helped = run("pri3d", "pretrain", "--help", path=site)
    assert "twins: Equal features of two copies:" in helped and "--twins.outputs N" in helped
    more = ("--twins.outputs", 3, "--run", tmp_path / "more")
    run("pri3d", *words[:4], "--workers", 0, *more, path=site)
    stated = yaml.safe_load((tmp_path / "more" / "config.yaml").read_text())["settings"]
    assert stated["twins"] == {"outputs": 3}
    assert last["loss"] == pytest.approx(last["view/loss"] + 0.5 * last["twins/loss"], rel=1e-3)


@pytest.mark.slow
@builds
def test_task_of_the_documentation_works_when_it_is_installed(
    rooms_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of the page, its preset among them; without the package the run's weights are refused by name."""
    page = Path(__file__).parents[1] / "docs" / "extending" / "task.md"
    for name, text in re.findall(r"```\w+\n# file: (\S+)\n(.*?)```", page.read_text(), flags=re.DOTALL):
        file = tmp_path / "source" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    site, finished = tmp_path / "site", tmp_path / "run"
    install(tmp_path / "source", site)
    assert (site / "mylab" / "presets" / "tags" / "quick.yaml").is_file()

    small = "--tags.size 64x48 --steps 2 --batch 2 --micro-batch 2 --workers 0"
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(site))
        words = ["finetune", "tags", str(rooms_store), "--val", str(rooms_store), *small.split()]
        assert main([*words, "--tags.dropout", "0.3", "--run", str(finished)]) == 0
        assert main(["evaluate", str(finished), "--which", "last"]) == 0
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[name]
    settings = yaml.safe_load((finished / "config.yaml").read_text())["settings"]
    assert (settings["tags"]["dropout"], settings["steps"], settings["network"]) == (0.3, 2, "pooled")
    validated = json.loads((finished / "scores.json").read_text())["last"]
    scored = json.loads((finished / "evaluation.json").read_text())["scores"]["last"]
    assert 0 < scored["map"] <= 1
    assert scored["map"] == pytest.approx(validated["map"], abs=0.02)  # validation is in the run's precision

    with pytest.raises(ConfigError, match=r"unknown task 'tags'.* Choices: semantic, instance\."):
        load_task(finished)
