"""A user's script under ``mypy --strict``: right calls of every verb pass, a misspelt or wrong option fails."""

from __future__ import annotations

import os
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pri3d
from pri3d.api.options import VERBS, fields_of, groups_of

ROOT = Path(__file__).parents[1]
RIGHT = """
from pathlib import Path
from typing import Any

import pri3d
from pri3d import finetune, pretrain
from pri3d.api.finetune import BackboneOptions
from pri3d.api.pretrain import ContrastOptions, MatchingOptions
from pri3d.api.training import CheckpointOptions, ComputeOptions, OptimOptions, ScoringOptions, ValidationOptions
from pri3d.objectives.moco import MocoOptions
from pri3d.tasks.instance import InstanceOptions

verdict = pri3d.check("scan", max_frames=20, reader="tum", split="val")
raw = pri3d.rooms("raw", rooms=2, size="64x48", labels=False)
prepared = pri3d.prepare(["raw", Path("scan")], "out", distance=0.04, pairs=True, match="relative")
run = pretrain(
    [Path("out")],
    preset="paper",
    objectives={"view": 1, "moco": 0.5},
    optim=OptimOptions(momentum=0.8),
    contrast=ContrastOptions(points="all"),
    matching=MatchingOptions(match="depth"),
    validation=ValidationOptions(every=10, pairs=4),
    checkpoint=CheckpointOptions(every=5),
    compute=ComputeOptions(compile=True),
    options=[MocoOptions(queue=4)],
)
tuned = finetune(
    "instance",
    "out",
    val=Path("val"),
    weights=run.path,
    backbone=BackboneOptions(norm="frozen"),
    validation=ScoringOptions(every=5),
    options=[InstanceOptions(rois=4)],
    seed="0,1",
)
probed = pri3d.probe("out", weights=[run.path, "scratch"], portion="all")
found = pri3d.evaluate("runs/x", which="best", label_map="nyu40")
drawn = pri3d.predict("runs/x", "photos", which="last", frame_step=2)
maps = pri3d.embed(run.path, "photos", out="features")
page = pri3d.report(["runs/x", Path("probe.json")], out="page.html")
json = pri3d.coco("labelled", "out.json", min_area=10)
shown = pri3d.view("out", max_frames=3)
file = pri3d.export(run.path, to="timm", part="encoder")
taken = pri3d.import_weights("a.pth", "b.safetensors")
facts = pri3d.models(encoder="resnet18")
story = pri3d.demo(out="demo", max_minutes=2)
table = pri3d.reproduce("table1", scale="small", jobs=2, dry_run=True)
net = pri3d.load("runs/x", part="encoder")
names: list[str] = pri3d.encoders()
first = pri3d.presets("pretrain")[0].about
reveal_type(pri3d.pretrain)
reveal_type(run)
reveal_type(run.path)
reveal_type(run.weights)
reveal_type(run.scores)
reveal_type(prepared)
reveal_type(net)
reveal_type(first)
if isinstance(tuned, pri3d.runs.Run):
    reveal_type(tuned.weights)
"""
#: a line that must fail -> what the error says
WRONG = {
    'pri3d.pretrain("out", stepps=3)': r'Unexpected keyword argument "stepps"',
    'pri3d.pretrain("out", steps="many")': r'Argument "steps".*incompatible type "str"; expected "int"',
    "pri3d.pretrain(3)": r'Argument 1.*incompatible type "int"',
    'pri3d.pretrain("out", optim=OptimOptions(momentun=0.5))': r'Unexpected keyword argument "momentun"',
    'pri3d.pretrain("out", optim=OptimOptions(schedule="slow"))': r'Argument "schedule".*Literal',
    'pri3d.pretrain("out", optim=MatchingOptions())': r'Argument "optim".*expected "OptimOptions"',
    'pri3d.pretrain("out", "quick")': "Too many positional arguments",
    'pri3d.pretrain("out").wieghts': r'"Run" has no attribute "wieghts"',
}


def run_mypy(folder: Path, *files: str) -> str:
    """What mypy says of files in a folder, in the ways of somebody else's project."""
    environment = os.environ | {"MYPYPATH": str(ROOT / "src")}
    words = ("--strict", "--no-error-summary", "--follow-imports=silent", "--ignore-missing-imports")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *words, "--cache-dir", str(folder / "cache"), *files],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_users_script_is_checked(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "right.py").write_text(RIGHT)
    head = "import pri3d\nfrom pri3d.api.pretrain import MatchingOptions\nfrom pri3d.api.training import OptimOptions\n"
    lines = list(WRONG)
    for name in VERBS:  # a misspelt option of every verb
        needed = [f.name for f in fields_of(VERBS[name].options) if not f.kw_only]
        given = ", ".join(
            '"semantic"' if n == "task" else '["x"]' if n in ("recordings", "runs") else '"x"' for n in needed
        )
        function = "import_weights" if name == "import" else name
        lines.append(f"pri3d.{function}({given}{', ' if given else ''}no_such_option=1)")
        WRONG[lines[-1]] = 'Unexpected keyword argument "no_such_option"'
    (tmp_path / "wrong.py").write_text(head + "\n".join(lines) + "\n_ = OptimOptions, MatchingOptions\n")
    said = run_mypy(tmp_path, "right.py", "wrong.py")
    right = [line for line in said.splitlines() if line.startswith("right.py")]
    assert [line for line in right if "error" in line] == []
    types = re.findall(r'Revealed type is "(.*)"', "\n".join(right))
    assert len(types) == 9
    assert [kind for kind in types if kind == "Any" or kind.endswith("-> Any")] == []
    assert types[0].startswith("def (data: ") and "optim: pri3d.api.training.OptimOptions" in types[0]
    assert types[0].endswith("-> pri3d.runs.Run")
    assert types[1:3] == ["pri3d.runs.Run", "pathlib.Path"]
    assert types[3] in ("pathlib.Path", types[8])
    assert types[4].startswith(("dict[str, ", "builtins.dict[", "typing.Mapping["))
    assert types[6] == "pri3d.networks.load.FeatureNet"
    for number, line in enumerate(lines, head.count("\n") + 1):
        errors = [text for text in said.splitlines() if text.startswith(f"wrong.py:{number}: error:")]
        assert any(re.search(WRONG[line], text) for text in errors), (line, errors)


def test_completion_shows_the_verbs() -> None:
    verbs = {"import_weights" if name == "import" else name for name in VERBS}
    assert verbs <= set(dir(pri3d))
    assert verbs <= set(pri3d.__all__)


@pytest.mark.parametrize("name", VERBS)
def test_help_names_every_option_with_its_help(name: str) -> None:
    verb = VERBS[name]
    text = pydoc.plain(pydoc.render_doc(verb.function))
    plain = " ".join(text.split())
    for field in fields_of(verb.options):
        assert f"{field.name}: {field.metadata['about']}" in plain
        assert f"{field.name}:" in text.splitlines()[2]  # the signature
    for group, kind in groups_of(verb.options).items():
        for field in fields_of(kind):
            assert f"{group}.{field.name}: {field.metadata['about']}" in plain
