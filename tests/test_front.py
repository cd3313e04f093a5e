"""What a stranger meets first: README, packaging, citation, changelog, workflows, container, each held to the tree."""

from __future__ import annotations

import datetime
import fnmatch
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import pri3d

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HOME = PROJECT["urls"]["Source"]
#: addresses of files of this repository: to read, and as bytes
FILES = re.compile(
    rf"(?:{re.escape(HOME)}/blob/main|{re.escape(HOME.replace('//github', '//raw.githubusercontent'))}/main)/"
)
TARGETS = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def links(text: str) -> list[str]:
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", prose)


def ours(address: str) -> str | None:
    """Path in this repository that an address is of, with its anchor."""
    match = FILES.match(address)
    return address[match.end() :] if match else None


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_readmes_links_work_on_other_sites_too() -> None:
    found = links(README)
    assert [link for link in found if not link.startswith("https://")] == []
    assert [link for link in found if link.startswith(HOME) and ours(link) is None] == []
    paths = [path for link in found if (path := ours(link))]
    assert len(paths) > 8
    assert [path for path in paths if not (ROOT / path.partition("#")[0]).is_file()] == []


def test_readmes_numbers_are_those_of_the_results() -> None:
    page = (ROOT / "docs" / "results" / "adapt.md").read_text().splitlines()
    rows = [
        line
        for line in README.splitlines()
        if re.match(r"\| (ImageNet|adapt on .*|.* and 24 rooms) \| (second half|rooms) ", line)
    ]
    assert len(rows) == 6
    assert [row for row in rows if row not in page] == []
    # The networks that are shown are shown wherever they were scored, so that nothing is left out of them.
    networks = {row.split(" | ")[0] for row in rows}
    scored = {
        line for line in page if line.split(" | ")[0] in networks and re.search(r"\| (second half|rooms) \|", line)
    }
    assert scored == set(rows)


def test_the_place_of_the_project_is_stated_once() -> None:
    urls = PROJECT["urls"]
    assert all(url.startswith(HOME) for url in urls.values())
    assert all((ROOT / path).is_file() for url in urls.values() if (path := ours(url)))
    named = set(re.findall(r"github\.com/(pri3d/[\w-]+)", README + (ROOT / "CITATION.cff").read_text()))
    assert named == {HOME.removeprefix("https://github.com/")}


def test_every_extra_is_stated_once() -> None:
    extras: dict[str, list[str]] = PROJECT["optional-dependencies"]
    referring = {name: [each for each in needs if each.startswith("pri3d[")] for name, needs in extras.items()}
    own = [
        re.split(r"[\[<>=!; ]", each)[0]
        for name, needs in extras.items()
        for each in needs
        if each not in referring[name]
    ]
    assert len(own) == len(set(own))
    inner = {part for needs in referring.values() for each in needs for part in each[6:-1].split(",")}
    assert inner <= set(extras)
    for_users = set(referring["all"][0][6:-1].split(","))
    table = README[README.index("| extra |") : README.index("From a clone")]
    assert {*for_users, "all"} == set(re.findall(r"`(\w+)`", table))
    told = {extra for path in (ROOT / "src").rglob("*.py") for extra in re.findall(r"pri3d\[(\w+)\]", path.read_text())}
    assert told <= for_users | {"testing"}


def test_the_version_is_the_same_everywhere() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (\S+) \((\d{4}-\d\d-\d\d)\)$", text, flags=re.MULTILINE)
    assert versions[0][0] == PROJECT["version"] == pri3d.__version__
    dates = [datetime.date.fromisoformat(date) for _, date in versions]
    assert dates == sorted(dates, reverse=True)


def test_the_citation_is_of_this_version() -> None:
    """The fields that the format 1.2.0 requires, in the types that it gives them."""
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cff["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(cff)
    assert str(cff["version"]) == pri3d.__version__
    assert isinstance(cff["date-released"], datetime.date)
    assert (cff["license"], cff["repository-code"]) == (PROJECT["license"], HOME)
    people = [*cff["authors"], *(person for each in cff["references"] for person in each["authors"])]
    assert all({"name"} == set(person) or {"family-names", "given-names"} == set(person) for person in people)
    (paper,) = cff["references"]
    assert {"type", "title", "authors", "year"} <= set(paper)
    assert paper["title"].removeprefix("Pri3D: ") in README


def commands(steps: list[dict[str, Any]]) -> list[str]:
    return [step["run"] for step in steps if "run" in step]


def test_workflows_run_the_targets_of_the_makefile() -> None:
    flows = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")}
    assert set(flows) == {"ci", "release"}
    job = flows["ci"]["jobs"]["make"]
    targets = job["strategy"]["matrix"]["target"]
    assert commands(job["steps"]) == ["make ${{ matrix.target }}"]
    local = re.findall(r"^make (\S+)$", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE)
    assert sorted(targets) == sorted(local)
    released = commands(flows["release"]["jobs"]["wheel"]["steps"])
    assert released == ["make wheel-check"]
    assert {*targets, "wheel-check"} <= set(TARGETS)
    for flow in flows.values():
        # PyYAML takes the key `on` for true.
        assert {"name", True, "permissions", "jobs"} <= set(flow)
        assert flow["permissions"] == {"contents": "read"}
        assert all("timeout-minutes" in each or "needs" in each for each in flow["jobs"].values())
        used = [step["uses"] for each in flow["jobs"].values() for step in each["steps"] if "uses" in step]
        assert used
        assert all(re.fullmatch(r"actions/[\w-]+@v\d+", each) for each in used)


def instructions(text: str) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n", " ", text)
    lines = [line.strip() for line in text.splitlines()]
    return [tuple(line.split(maxsplit=1)) for line in lines if line and not line.startswith("#")]  # type: ignore[misc]


def ignored(path: str, rules: list[str]) -> bool:
    """Whether a .dockerignore leaves out a path; the last rule that fits decides."""
    out = False
    for rule in rules:
        pattern = rule.removeprefix("!").removeprefix("**/")
        if fnmatch.fnmatch(path, pattern):
            out = not rule.startswith("!")
    return out


def test_the_container_is_built_of_what_is_there() -> None:
    steps = instructions((ROOT / "Dockerfile").read_text())
    assert steps[0] == ("FROM", "python:3.11-slim")
    assert {name for name, _ in steps} <= {"FROM", "ARG", "ENV", "RUN", "COPY", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
    arguments = dict(text.split("=", 1) for name, text in steps if name == "ARG")
    assert arguments["TORCH_INDEX"] == "https://download.pytorch.org/whl/cpu"
    assert set(arguments["EXTRAS"].split(",")) <= set(PROJECT["optional-dependencies"])
    stated: set[str] = set()
    for name, text in steps:
        assert set(re.findall(r"\$\{(\w+)\}", text)) <= stated, f"{name} {text}: used before it is stated"
        stated |= {text.split("=")[0]} if name == "ARG" else set()
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    copied = [source for name, text in steps if name == "COPY" for source in text.split()[:-1]]
    assert copied
    assert all((ROOT / source).exists() and not ignored(source, rules) for source in copied)
    assert all(ignored(name, rules) for name in (".git", "tests", "docs", ".venv"))
    user = next(k for k, step in enumerate(steps) if step[0] == "USER")
    assert steps[user][1] != "root"
    assert [name for name, _ in steps[user:]] == ["USER", "WORKDIR", "ENTRYPOINT", "CMD"]
    assert dict(steps)["ENTRYPOINT"] == f'["{next(iter(PROJECT["scripts"]))}"]'


@pytest.mark.parametrize(("path", "expected"), [("src", False), ("README.md", False), ("docs", True), (".git", True)])
def test_the_reader_of_dockerignore(path: str, expected: bool) -> None:
    assert ignored(path, ["*", "!README.md", "!src", "**/__pycache__"]) == expected
