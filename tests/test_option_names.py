"""Flags in pages and messages are those that the commands have; former names are listed."""

from __future__ import annotations

import ast
import re

import pytest

from pri3d.api.options import VERBS, flag_as_typed
from pri3d.api.presets import RENAMED, RENAMED_IN
from pri3d.cli import RENAMED_FLAGS, flags_of
from test_docs import PAGES, ROOT, own_flags, table


def test_no_page_names_an_option_that_no_command_has() -> None:
    """A flag in prose; those of other programs are listed here."""
    slurm = {
        "--gpus-per-task",
        "--gres",
        "--ntasks",
        "--ntasks-per-node",
        "--open-mode",
        "--requeue",
        "--signal",
        "--test-only",
    }
    benchmarks = {"--fresh", "--encoders", "--scenes", "--rounds", "--sample", "--kept", "--books", "--scans"}
    foreign = {
        "--help",
        "--version",
        "--run-path",
        "--min_overlap",
        "--stesp",  # misspelt on purpose, to see how fast that is said
        "--nthreads",  # of dask
        "--tiny",  # of the examples
        *slurm,
        *benchmarks,
    }
    known = {flag_as_typed(each.name) for verb in VERBS.values() for each in flags_of(verb, []) if not each.positional}
    known |= own_flags()
    known |= {name.replace("--", "--no-", 1) for name in known} | {re.sub(r"\.(\w)", r".no-\1", name) for name in known}
    wrong = set()
    for page in PAGES:
        prose = page.read_text()
        if page.name == "troubleshooting.md":
            prose = prose.partition("## From version 0.1")[0]
        for span in re.findall(r"`([^`\n]+)`", prose):
            for name in re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", span):
                if name not in known | foreign:
                    wrong.add(f"{page.name}: {name}")
    assert sorted(wrong) == [], sorted(wrong)


@pytest.mark.thorough
def test_messages_name_flags_that_exist() -> None:
    """A word that begins with two hyphens in a text of the program is a flag of some command, as it is typed."""
    known = {flag_as_typed(each.name) for verb in VERBS.values() for each in flags_of(verb, []) if not each.positional}
    known |= {name.replace("--", "--no-", 1) for name in known} | {"--help", "--version"}
    slurm = {"--gres", "--gpus-per-task", "--ntasks", "--ntasks-per-node", "--test-only"}
    foreign = {"planning.py", "work.py", "html.py"}  # a script for sbatch; torchrun's; a style sheet
    wrong = {
        f"{path.name}:{node.lineno}: {name}"
        for path in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if path.name not in foreign and isinstance(node, ast.Constant) and isinstance(node.value, str)
        for name in re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", node.value)
        if name not in known | slurm and path.name != "cli.py"
    }
    assert sorted(wrong) == []


def test_pages_and_messages_say_prepared_dataset() -> None:
    """The folder that ``pri3d prepare`` writes has one name; ``store`` is that of its class."""
    files = [*PAGES, *(ROOT / "src").rglob("*.py")]
    assert [path.name for path in files if re.search(r"prepared\s+store\b", path.read_text(), re.IGNORECASE)] == []


def test_the_former_names_are_listed() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## From version 0.1")[2]
    rows = {
        (row["version 0.1"].strip("`"), row["command"], row["now"].strip("`")) for row in table(text, "version 0.1")
    }
    training = {(flag_as_typed(old), flag_as_typed(new)) for old, new in RENAMED.items()}
    of_task = {(flag_as_typed(old), flag_as_typed(new)) for each in RENAMED_IN.values() for old, new in each.items()}
    others = {(flag_as_typed(old), flag_as_typed(new)) for each in RENAMED_FLAGS.values() for old, new in each.items()}
    assert training | of_task | others <= {(old, new) for old, _, new in rows}
