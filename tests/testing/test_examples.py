"""The examples of docs/extending pass their contracts, as a package of somebody else would: without this repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pri3d

PAGES = sorted((Path(__file__).parents[2] / "docs" / "extending").glob("*.md"))
NAMED = re.compile(r"```\w+\n# file: (\S+)\n(.*?)```", re.DOTALL)


def install(page: Path, folder: Path) -> None:
    """Write the page's files, and what an installer leaves of a package: its name and its entry points."""
    for name, text in NAMED.findall(page.read_text()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (info / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in names.items())
            for group, names in project["entry-points"].items()
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.stem != "export"],  # tests/exporting/test_contract.py runs that one
    ids=lambda page: page.stem,
)
def test_the_example_passes_its_contract(page: Path, tmp_path: Path) -> None:
    install(page, tmp_path)
    path = os.pathsep.join((str(tmp_path), str(Path(pri3d.__file__).parents[1]), os.environ.get("PYTHONPATH", "")))
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert passed is not None and int(passed[1]) >= 7, done.stdout


def test_every_page_has_a_contract() -> None:
    for page in PAGES:
        assert re.search(r"# file: tests/\S+\n(?:.*\n)*?from pri3d\.testing\S* import \w+Contract", page.read_text()), (
            page
        )
