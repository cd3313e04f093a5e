"""Every snippet of the documentation works: Python runs, commands parse, presets resolve, tables and quotes agree.

The Python blocks of a page run in order, in a folder of their own that holds what the README's blocks left behind.
A block whose first line is ``# file: NAME`` is written to that file instead. ``<!-- not run: reason -->`` before a
block leaves it out.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

import generated
from pri3d.api.finetune import presets_of_task, resolve_finetuning
from pri3d.api.options import VERBS, fields_of, flag_as_typed
from pri3d.api.presets import current, shipped
from pri3d.api.pretrain import PRESETS, resolve_pretraining
from pri3d.api.training import TrainSettings
from pri3d.cli import flags_of, parse
from pri3d.labelled.spaces import load_space
from pri3d.recordings._shared.cameras import read_cameras
from pri3d.registry import OBJECTIVES, TASKS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: pretrain, or a task of finetune -> its presets, and the page with the table of its options
KINDS = {"pretrain": shipped(PRESETS), **{task: shipped(presets_of_task(task)) for task in TASKS}}
TABLES = {kind: ROOT / "docs" / ("pretraining.md" if kind == "pretrain" else "finetuning.md") for kind in KINDS}
#: verb -> the page that describes each of its options
PAGE_OF = generated.PAGES
PACKAGE = "mylab"  #: what the pages call a package of somebody else's
OTHER_COMMANDS = {"make", "python", "pip", "git", "source", "sbatch", "bash"}
LAUNCHERS = {"srun", "torchrun"}  #: start a command of ours in several processes


class Block(NamedTuple):
    """One fenced block."""

    page: Path
    line: int  #: of its first line of content
    language: str
    text: str
    left_out: str  #: why it is not run, "" where it is

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read_blocks(page: Path, text: str) -> Iterator[Block]:
    """Fenced blocks of a page; a fence that is not closed or has no language is an error."""
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        fence = re.fullmatch(r"(\s*)```(.*)", lines[number])
        number += 1
        if fence is None:
            continue
        end = next((k for k in range(number, len(lines)) if lines[k].strip() == "```"), None)
        assert end is not None, f"{page}:{number}: this fence is not closed"
        assert fence[2], f"{page}:{number}: name the language, or text"
        reason = re.fullmatch(r"<!-- not run: (.+) -->", lines[number - 2].strip()) if number > 1 else None
        body = "\n".join(line.removeprefix(fence[1]) for line in lines[number:end]) + "\n"
        yield Block(page, number + 1, fence[2], body, reason[1] if reason else "")
        number = end + 1


BLOCKS = [block for page in PAGES for block in read_blocks(page, page.read_text())]


def blocks(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages and not block.left_out]


def run_page(page: Path, folder: Path) -> dict[str, object]:
    """Run a page's Python blocks, write its named files; return the names they defined."""
    scope: dict[str, object] = {"__name__": "__main__"}
    for block in blocks("python", "toml", "yaml"):
        if block.page != page:
            continue
        file = re.match(r"# file: (\S+)\n", block.text)
        if file:
            (folder / file[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / file[1]).write_text(block.text)
            if file[1] == "pyproject.toml":
                install(tomllib.loads(block.text)["project"], folder)
        elif block.language == "python":
            # As many blank lines in front as the page has, so that a traceback names the page's own line.
            text = "\n" * (block.line - 1) + block.text
            exec(compile(text, str(block.page), "exec", dont_inherit=True), scope)
    return scope


def install(project: dict[str, object], folder: Path) -> None:
    """Leave what an installer leaves of a package: its name and its entry points."""
    info = folder / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = project["entry-points"]
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in groups.items()]  # type: ignore[attr-defined]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture(scope="session")
def readme_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which the README's Python blocks have run."""
    folder = tmp_path_factory.mktemp("readme")
    with chdir(folder):
        run_page(ROOT / "README.md", folder)
    return folder


@pytest.mark.slow
def test_readme_leaves_what_it_says(readme_folder: Path) -> None:
    run = readme_folder / "runs" / "rooms"
    named = re.findall(r"^runs/rooms/(\S+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert len(named) >= 5
    assert [name for name in named if not (run / name).exists()] == []
    assert {path.name for path in run.iterdir()} <= {name.rstrip("/") for name in named}


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", sorted({b.page for b in blocks("python")} - {ROOT / "README.md"}), ids=lambda p: p.name
)
def test_python_runs(page: Path, readme_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(readme_folder, tmp_path, dirs_exist_ok=True, copy_function=os.link)
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, *(ROOT / "tests" / name for name in ("networks", "recordings", "labelled"))):
        monkeypatch.syspath_prepend(str(folder))
    try:
        run_page(page, tmp_path)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]  # the next page has another one of the name


def commands(text: str) -> Iterator[list[str]]:
    """Words of every command; comments, line continuations and variables set in front are dropped."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r"\w+=", words[0]):
            words.pop(0)
        if words:
            yield words


def own_flags() -> set[str]:
    """Flags of the options that the pages' own objectives and tasks bring."""
    found = set()
    for block in blocks("python"):
        for kind in re.findall(r"^class \w+\(Options\):\n(?:(?:    .*)?\n)+", block.text, flags=re.MULTILINE):
            group = re.search(r'^    group = "(\w+)"', kind, flags=re.MULTILINE)
            assert group, f"{block}: options without a group"
            found |= {
                flag_as_typed(f"{group[1]}.{name}") for name in re.findall(r"^    (\w+): .*= option\(", kind, re.M)
            }
    return found


def resolved(kind: str, preset: str, given: dict[str, object]) -> TrainSettings:
    """Settings of pretrain or of a task."""
    return resolve_pretraining(preset, given) if kind == "pretrain" else resolve_finetuning(kind, preset, given)


def check_options(verb: str, options: dict[str, object]) -> None:
    """What a command gives is valid, together with its preset where that is a shipped one."""
    made = VERBS[verb].options(**options)
    if verb not in ("pretrain", "finetune"):
        assert made.problems() == []
        return
    kind = str(options.get("task", verb))
    if kind not in KINDS:
        assert f"{kind} = " in "".join(b.text for b in blocks("toml")), f"no page adds a task {kind}"
        return
    preset = str(options.get("preset", "quick"))
    own = {type(each).group: each.given() for each in options.get("options", [])}  # type: ignore[attr-defined]
    several = [key for key in ("network", "fraction", "seed") if "," in str(options.get(key))]
    stated = {f.name for f in fields_of(generated.SETTINGS[verb])} - set(several)
    given = {key: value for key, value in options.items() if key in stated} | own
    if verb == "finetune":
        given.pop("weights", None)
    # An objective of somebody else's package and a preset file are not here; the page that shows them runs them.
    if ".yaml" not in preset and set(given.get("objectives", {})) <= set(OBJECTIVES):  # type: ignore[call-overload]
        resolved(kind, preset, given)


def check_command(words: list[str]) -> None:
    """Parse a command of ours as the command line does; of others, check what they name in this repository."""
    if words[0] in LAUNCHERS:
        start = words.index("pri3d")
        # torchrun would take --run for one of its own --run-path.
        assert words[0] != "torchrun" or words[start - 2 : start] == ["-m", "--"]
        words = words[start:]
    if words[0] == "pri3d" and words[1] in ("--help", "--version"):
        return
    if words[0] == "pri3d":
        own = own_flags()  # whose classes are not installed here; the page that shows them runs them
        kept = [k for k in range(2, len(words)) if words[k] not in own and words[k - 1] not in own]
        check_options(words[1], parse(VERBS[words[1]], [words[k] for k in kept]))
    elif words[0] == "sbatch":
        assert any(f"# {words[1]}" in block.text.splitlines()[1:2] for block in blocks("bash")), f"no script {words[1]}"
    elif words[0] == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    else:
        assert words[0] in OTHER_COMMANDS, f"{words[0]} is no command of ours"
    if words[:2] == ["python", "-m"] and words[2].startswith("benchmarks"):
        assert (ROOT / (words[2].replace(".", "/") + ".py")).is_file() or (ROOT / words[2] / "__main__.py").is_file()


@pytest.mark.parametrize("block", blocks("bash"), ids=str)
def test_commands_parse(block: Block) -> None:
    found = list(commands(block.text))
    assert found
    for words in found:
        try:
            check_command(words)
        except SystemExit:
            pytest.fail(f"{block}: {shlex.join(words)} does not parse, see stderr")


@pytest.mark.parametrize("block", [b for b in blocks("yaml") if not b.text.startswith("# file: ")], ids=str)
def test_yaml_is_what_it_says(block: Block, tmp_path: Path) -> None:
    stated = re.match(r"# (\S+\.yaml)(?:, for pri3d (?:finetune )?(\w+))?", block.text)
    assert stated, f"{block}: the first line must name the file"
    path = tmp_path / stated[1]
    path.write_text(block.text)
    if stated[1] == "cameras.yaml":
        read_cameras(path)
    elif stated[1] == "labels.yaml":
        assert load_space(str(path)).names
    elif stated[2]:
        assert current(yaml.safe_load(block.text), stated[2]) == yaml.safe_load(block.text), f"{block}: former names"
        if set(yaml.safe_load(block.text).get("objectives", {})) <= set(OBJECTIVES):
            resolved(stated[2], str(path), {})
    else:
        assert isinstance(yaml.safe_load(block.text), dict)


def table(text: str, heading: str) -> list[dict[str, str]]:
    """Rows of all tables whose first column has this heading."""
    lines = text.splitlines()
    rows = []
    for start in (k for k, line in enumerate(lines) if re.match(rf"\| {heading} *\|", line)):
        cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[start:]]
        end = next((k for k, row in enumerate(cells) if not row), len(cells))
        rows += [dict(zip(cells[0], row, strict=False)) for row in cells[2:end]]
    assert rows
    return rows


def preset_file(kind: str, name: str) -> dict[str, object]:
    """What the file of a shipped preset states, its base included."""
    stated: dict[str, object] = yaml.safe_load(KINDS[kind][name].read_text())
    return stated


def flat(stated: dict[str, object], above: str = "") -> dict[str, object]:
    """Nested values by their flags."""
    found: dict[str, object] = {}
    for key, value in stated.items():
        nested = isinstance(value, dict) and key != "objectives"
        found |= flat(value, f"{above}{key}.") if nested else {flag_as_typed(above + key): value}  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["quick", "paper"])
def test_tables_of_options_are_the_presets(kind: str, name: str) -> None:
    """A column is called by the preset, where tasks share the table by task and preset; - is no option of that."""
    column = name if kind == "pretrain" else f"{kind} {name}"
    rows = [row for row in table(TABLES[kind].read_text(), "option") if column in row]
    cells = {row["option"].strip("`"): row[column].strip("`") for row in rows}
    assert len(cells) == len(rows)
    shown = {key: yaml.safe_load(cell) for key, cell in cells.items() if cell != "-"}
    settings = flat(resolved(kind, name, {}).stated())
    left_out = {"--seed"} if kind == "pretrain" else {"--seed", "--weights"}
    assert {key: value for key, value in settings.items() if key not in left_out} == {
        key: shown[key] for key in settings if key not in left_out
    }
    more = {key for key in shown if key not in settings}
    assert all(key.startswith(tuple(f"--{each}." for each in OBJECTIVES)) for key in more)  # of idle objectives


@pytest.mark.parametrize("verb", generated.PAGES)
def test_tables_of_options_are_the_fields(verb: str) -> None:
    text = generated.PAGES[verb].read_text()
    (part,) = (part for part in generated.parts_of(text) if part[2] == f"options: {verb}")
    assert part[3] == generated.tables(verb), "run python tests/generated.py"
    rows = {row["option"].strip("`"): row["meaning"] for row in table(part[3], "option")}
    flags = {flag_as_typed(each.name): each.about for each in flags_of(VERBS[verb], []) if not each.positional}
    assert rows == flags


@pytest.mark.thorough
def test_the_tree_is_the_source() -> None:
    (part,) = generated.parts_of(generated.ARCHITECTURE.read_text())
    assert part[3] == generated.tree(), "run python tests/generated.py"


@pytest.mark.thorough
def test_the_page_of_commands_is_the_program() -> None:
    (part,) = generated.parts_of(generated.COMMANDS.read_text())
    assert part[3] == generated.commands(), "run python tests/generated.py"


def test_no_table_of_options_is_kept_by_hand() -> None:
    """A table with a column of defaults and meanings is generated; one of choices of a few options may be written."""
    kept = {}
    for page in PAGES[1:]:
        text = page.read_text()
        for part in generated.parts_of(text):
            text = text.replace(part[0], "")
        kept[page.name] = re.findall(r"^\| option \|.*\b(?:default|quick)\b.*$", text, flags=re.MULTILINE)
    assert {name: rows for name, rows in kept.items() if rows} == {}


def test_the_table_of_presets_is_the_files() -> None:
    """``paper`` and ``small`` have no row: the columns of the options show them, ``small`` within ``quick``."""
    rows = {row["preset"].strip("`"): row for row in table(PAGE_OF["pretrain"].read_text(), "preset")}
    assert set(rows) == set(KINDS["pretrain"]) - {"paper", "small"}
    for name, row in rows.items():
        file = preset_file("pretrain", name)
        assert (row["base"].strip("`"), yaml.safe_load(row["sets"].strip("`"))) == (file.pop("base"), file)


@pytest.mark.parametrize("kind", KINDS)
def test_every_preset_is_named(kind: str) -> None:
    text = TABLES[kind].read_text()
    assert [name for name in KINDS[kind] if f"`{name}`" not in text] == []


@pytest.mark.parametrize("verb", PAGE_OF)
def test_every_option_is_described(verb: str) -> None:
    text = PAGE_OF[verb].read_text()
    options = [flag_as_typed(each.name) for each in flags_of(VERBS[verb], []) if not each.positional]
    assert [option for option in options if f"| `{option}` |" not in text] == []
    others = {flag_as_typed(each.name) for name in VERBS for each in flags_of(VERBS[name], [])}
    named = {name for row in table(text, "option") for name in re.findall(r"`(--[\w.-]+)", row["option"])}
    assert named <= others


@pytest.mark.thorough
def test_messages_in_troubleshooting_are_the_programs() -> None:
    """Each heading quotes a message; ``...`` stands for what changes. Every part must stand in the source."""
    strings = [
        node.value
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    headings = re.findall(r"^### (`.+`)$", (ROOT / "docs" / "troubleshooting.md").read_text(), flags=re.MULTILINE)
    quotes = [quote for heading in headings for quote in re.findall(r"`([^`]+)`", heading)]
    assert len(quotes) > 15
    parts = {part.strip() for quote in quotes for part in quote.split("...") if part.strip()}
    assert [part for part in sorted(parts) if not any(part in string for string in strings)] == []


def anchors(page: Path) -> set[str]:
    """Names of a page's headings as the usual viewers make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target} does not exist"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target} has no such heading"


def test_every_page_is_in_the_index() -> None:
    listed = re.findall(r"\]\(([^)\s]+\.md)\)", (ROOT / "docs" / "index.md").read_text())
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]} - {"index.md"}
    assert pages <= set(listed)


def test_files_the_program_points_to_exist() -> None:
    """Messages and docstrings name pages of the documentation."""
    named = {
        name for path in (ROOT / "src").rglob("*.py") for name in re.findall(r"docs/[\w/-]+\.md", path.read_text())
    }
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_verbs_that_are_named_exist() -> None:
    """In messages and pages: a word after pri3d, where it is set off as a command."""
    files = [*PAGES, *(ROOT / "src").rglob("*.py")]
    named = {(verb, path.name) for path in files for verb in re.findall(r"[`(]pri3d ([a-z]+)\b", path.read_text())}
    assert len(named) >= 5
    assert sorted((verb, name) for verb, name in named if verb not in VERBS) == []


def test_the_reader_of_pages() -> None:
    text = "a\n```python\nx = 1\n```\n<!-- not run: no data -->\n```bash\npri3d x\n```\n  ```yaml\n  a: 1\n  ```\n"
    found = list(read_blocks(ROOT / "x.md", text))
    assert [(b.line, b.language, b.text, b.left_out) for b in found] == [
        (3, "python", "x = 1\n", ""),
        (7, "bash", "pri3d x\n", "no data"),
        (10, "yaml", "a: 1\n", ""),
    ]
    assert list(commands("A=1 pri3d x \\\n  --y  # note\n\n# only a note\nmake demo")) == [
        ["pri3d", "x", "--y"],
        ["make", "demo"],
    ]
    with pytest.raises(SystemExit):
        check_command(["pri3d", "pretrain", "x", "--stepps", "3"])
    with pytest.raises(SystemExit):
        check_command(["srun", "--ntasks=2", "pri3d", "pretrain", "x", "--stepps", "3"])
    with pytest.raises(AssertionError):
        check_command(["torchrun", "-m", "pri3d", "pretrain", "x"])
    with pytest.raises(AssertionError, match="rm"):
        check_command(["rm", "-r", "x"])
    for broken in ("```python\nx\n", "```\nx\n```\n"):
        with pytest.raises(AssertionError):
            list(read_blocks(ROOT / "x.md", broken))
