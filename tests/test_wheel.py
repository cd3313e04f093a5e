"""The built package: what wheel and sdist hold, and that the installed wheel works outside the tree, without a network.

``PRI3D_DIST`` names a folder with both (``make wheel-check``); without it they are built here from a copy of the tree.
"""

from __future__ import annotations

import email
import email.policy
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import pri3d

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md",
          "Makefile", "mkdocs.yml", "src", "docs", "tests", "examples", "benchmarks")  # fmt: skip
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*")


def build(kind: str, tree: Path, out: Path) -> Path:
    """Build ``wheel`` or ``sdist`` with the setuptools of this environment."""
    code = f"import sys; from setuptools import build_meta as b; print(b.build_{kind}(sys.argv[1]), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, str(out)], cwd=tree, capture_output=True, text=True, check=True)
    return out / done.stderr.split()[-1]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and sdist; the wheel is built from what the sdist holds, as an installer does where there is no wheel."""
    if "PRI3D_DIST" in os.environ:
        folder = Path(os.environ["PRI3D_DIST"])
        (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
        return wheel, sdist
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in NEEDED:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, tree / name, ignore=IGNORED)
        else:
            shutil.copy(path, tree / name)
    sdist = build("sdist", tree, out)
    with tarfile.open(sdist) as archive:
        archive.extractall(out, filter="data")
    return build("wheel", out / sdist.name.removesuffix(".tar.gz"), out), sdist


def files_of(folder: Path) -> set[str]:
    found = (path.relative_to(folder.parent) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def test_the_wheel_holds_the_package_and_nothing_else(dist: tuple[Path, Path]) -> None:
    names = {name for name in zipfile.ZipFile(dist[0]).namelist() if ".dist-info/" not in name}
    assert names == files_of(ROOT / "src" / "pri3d")
    assert {"pri3d/py.typed", "pri3d/training/presets/pretrain/adapt.yaml", "pri3d/reporting/similarity.js"} <= names
    assert dist[0].stat().st_size < 1.5e6


def test_its_metadata_is_the_projects(dist: tuple[Path, Path]) -> None:
    archive = zipfile.ZipFile(dist[0])
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    stated = email.message_from_bytes(archive.read(name), policy=email.policy.default)
    assert (stated["Name"], stated["Version"]) == ("pri3d", pri3d.__version__)
    assert stated["License-Expression"] == "Apache-2.0"
    assert set(stated.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    assert "Typing :: Typed" in stated.get_all("Classifier", [])
    assert stated.get_payload(decode=True).decode() == (ROOT / "README.md").read_text()
    assert "licenses/LICENSE" in " ".join(archive.namelist())


def test_the_sdist_holds_what_tests_and_pages_need(dist: tuple[Path, Path]) -> None:
    with tarfile.open(dist[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"src/pri3d/py.typed", "tests/conftest.py", "docs/index.md", "examples/README.md", "CHANGELOG.md"}
    assert wanted <= names
    assert not any("__pycache__" in name or name.startswith((".git/", "demo/")) for name in names)


@pytest.fixture(scope="module")
def installed(dist: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel; everything that it depends on is taken from this one."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    words = ["--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(dist[0])]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    # After the environment's own packages, and without the .pth files of an editable installation in there.
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


def test_the_installed_wheel_works_outside_the_tree(installed: Path, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*words: str) -> str:
        done = subprocess.run(
            [installed / "bin" / words[0], *words[1:]],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    assert Path(run("python", "-c", "import pri3d; print(pri3d.__file__)").strip()).is_relative_to(installed)
    assert run("pri3d", "--version").split()[-1] == pri3d.__version__
    assert "pretrain" in run("pri3d", "--help")
    size, few = ("--size", "64x48"), ("--processes", "1")
    run("pri3d", "rooms", "rooms", "--rooms", "1", "--frames", "8", *size, *few)
    run("pri3d", "prepare", "rooms", "store", *size, "--distance", "0.1", "--voxel", "0.08", *few)
    steps = ("--steps", "2", "--batch", "2", "--micro-batch", "2", "--workers", "0", "--holdout", "0")
    run("pri3d", "pretrain", "store", "--run", "run", *size, "--matching.distance", "0.1", *steps)
    run("pri3d", "report", "run", "--out", "report.html")
    run("pri3d", "export", "run", "--to", "torchvision", "--out", "backbone.safetensors")
    assert (tmp_path / "backbone.safetensors").is_file()
    assert "data-similarity" in (tmp_path / "report.html").read_text()
