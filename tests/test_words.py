"""Wording that was replaced by plain technical English does not come back: in the pages, messages and help texts."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: a phrase that a second-language reader must guess, or a term of no field -> what to write
INSTEAD = {
    r"\bof (?:your|one's) own\b": "custom, or your own before the noun",
    r"\b(?:can|that|what|which|is) mends?\b|\bmended\b": "fix",
    r"\bin the way\b": "problems found",
    r"\bas (?:it lies|they lie)\b": "as stored",
    r"\b(?:now lies?|lies? elsewhere|lies? there now|data lie)\b": "is in, has moved",
    r"\bstands? (?:on|in|between) (?:the (?:page|result)|another|ImageNet)": "is listed in, inherits from",
    r"\btold from\b|\btold by\b|\btold apart\b": "auto-detected, identified by, distinguished",
    r"\blaid (?:over|under)\b|\blay it over\b": "merged with",
    r"\bcarried into\b|\bcarried points\b": "reprojected",
    r"\bare passed over\b|\bis passed over\b": "skipped",
    r"\bpictures?\b": "image",
    r"\bshares? of\b": "fraction of",
    r"\blabel spaces?\b": "label map",
    r"\blabelled sets?\b": "labelled dataset",
    r"\bmean and deviation\b": "mean and standard deviation",
    r"\bthe verbs?\b|\bevery verb\b|\bverbs are\b": "command",
    r"\bstores? (?:of|that|has|with|holds)\b": "prepared dataset",
    r"\bfor want of\b|\bas systems do when\b": "probably because",
    r"\breckon(?:ed|s)?\b": "estimate",
    r"\bby heart\b|\bin small\b": "overfitting test, small scale",
    r"\b(?:begun|begin|begins|made|prepared|write|done) anew\b": "start over, again",
    r"\btake every so many\b": "use every N-th",
    r"\bway of the camera\b|\bcamera's way\b": "camera trajectory",
    r"\bthe paper's figures\b|\bfigures of the paper\b": "numbers",
    r"\btells? nothing\b": "uninformative",
    r"\bis cut off\b|\bor cut off\b": "truncated",
    r"\bhow much is (?:asked|told)\b|\bsays so of itself\b": "states",
    r"\bfor there are none\b|\bwhere none stands\b": "since, by default",
    r"\bstand-ins?\b": "mock",
    r"^#+ (?:What it (?:leaves|sees)|What there|How it is found|Does it|Is it right)": "a heading that names its topic",
}
#: pages of others' wording: quoted names of files, and the tables of former option names
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def prose(text: str) -> str:
    """A page without code, comments and addresses."""
    return re.sub(r"^[ ]*```.*?^[ ]*```$|<!--.*?-->|`[^`\n]+`|\]\([^)\s]+\)", " ", text, flags=re.DOTALL | re.MULTILINE)


def messages(text: str) -> Iterator[tuple[int, str]]:
    """Strings of a module that a user may read: all but docstrings below the module's first line."""
    tree = ast.parse(text)
    documented = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    skipped = {id(n.body[0].value) for n in documented if n.body and isinstance(n.body[0], ast.Expr)}
    yield 1, (ast.get_docstring(tree) or "").partition("\n")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value


def found(text: str) -> list[str]:
    return [f"{m[0]!r}: write {new}" for old, new in INSTEAD.items() for m in re.finditer(old, text, re.MULTILINE)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_use_plain_words(page: Path) -> None:
    assert found(prose(page.read_text())) == []


def test_messages_use_plain_words() -> None:
    """Text with a space: a lone word is a name or a key."""
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {fault}"
        for path in sorted((ROOT / "src").rglob("*.py"))
        for line, text in messages(path.read_text())
        if " " in text.strip()
        for fault in found(text)
    ]
    assert wrong == []


def test_the_reader_of_words() -> None:
    assert found("an encoder of your own\n## What it leaves") == [
        "'of your own': write custom, or your own before the noun",
        "'## What it leaves': write a heading that names its topic",
    ]
    assert prose("a\n```text\npicture\n```\n`picture` b").split() == ["a", "b"]
    text = '"""First.\n\nSecond."""\n\ndef f():\n    """A picture."""\n    return f"a picture of {f}"\n'
    assert [words for _, words in messages(text)] == ["First.", "a picture of "]
