"""House limits that no linter states: lengths, imports, devices, and nothing that calls home."""

from __future__ import annotations

import ast
import pkgutil
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import pri3d
from pri3d.api.options import VERBS

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "pri3d").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FUNCTION_LINES = 80  # most are under 50; straight-line code may be longer
FILE_LINES = 450
MODULES = sorted(info.name for info in pkgutil.walk_packages(pri3d.__path__, "pri3d."))


def long_functions(text: str) -> list[tuple[str, int]]:
    """Functions of more than FUNCTION_LINES lines, docstring not counted."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            has_docstring = ast.get_docstring(node, clean=False) is not None
            lines = node.end_lineno - node.lineno + 1
            lines -= first.end_lineno - first.lineno + 1 if has_docstring else 0
            if lines > FUNCTION_LINES:
                found.append((node.name, lines))
    return found


def loose_devices(text: str) -> list[int]:
    """Lines that name a device outside ``"cuda" if torch.cuda.is_available() else "cpu"``, or call ``.cuda()``."""
    tree = ast.parse(text)
    chosen = {
        id(constant)
        for choice in ast.walk(tree)
        if isinstance(choice, ast.IfExp) and "is_available" in ast.dump(choice.test)
        for constant in (choice.body, choice.orelse)
    }
    return sorted(node.lineno for node in ast.walk(tree) if _names_device(node) and id(node) not in chosen)


def _names_device(node: ast.AST) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr == "cuda"
    return isinstance(node, ast.Constant) and re.fullmatch(r"(cuda|mps|xpu)(:\d+)?", str(node.value)) is not None


def asserts(text: str) -> list[int]:
    """Lines of ``assert`` statements; ``python -O`` drops them."""
    return [node.lineno for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Assert)]


def hosts(text: str) -> list[str]:
    """Web addresses."""
    return re.findall(r"(?:https?|ftp)://[^\s\"')]+", text)


def in_sources(find: object) -> Iterator[tuple[str, object]]:
    for path in SOURCES:
        found = find(path.read_text())  # type: ignore[operator]
        if found:
            yield str(path.relative_to(ROOT)), found


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks"])
def test_lengths(folder: str) -> None:
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / folder).rglob("*.py"))}
    assert {name: found for name, text in texts.items() if (found := long_functions(text))} == {}
    assert {name: lines for name, text in texts.items() if (lines := len(text.splitlines())) > FILE_LINES} == {}


def test_every_module_imports_and_says_what_it_is_for() -> None:
    assert [name for name in MODULES if not import_module(name).__doc__] == []


def test_importing_the_package_is_free() -> None:
    """Neither ``import pri3d`` nor a mistyped attribute brings PyTorch."""
    code = "import sys, pri3d; hasattr(pri3d, 'nothing'); sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_verb_stays_a_function_after_all_modules_are_imported() -> None:
    """A subpackage of a verb's name would take its place in the package once it is imported."""
    for name in MODULES:
        import_module(name)
    names = [name for name in pri3d.__all__ if not name.startswith("__")]
    kinds = {name: type(getattr(pri3d, name)) for name in names}
    assert {"pretrain", "load", "presets"} <= set(names)
    assert [name for name, kind in kinds.items() if kind not in (types.FunctionType, type)] == []


def test_every_verb_is_public() -> None:
    public = {"import" if name == "import_weights" else name for name in pri3d.__all__}
    assert set(VERBS) <= public


def test_signatures_are_light() -> None:
    """The modules that state the options, those of objectives and tasks among them, need none of the libraries."""
    heavy = {"torch", "numpy", "scipy", "PIL", "lightning", "timm", "numba"}
    code = (
        "import sys; from pri3d.api.plugins import options_class; from pri3d import registry\n"
        "[options_class('objectives', name) for name in registry.OBJECTIVES]\n"
        "[options_class('tasks', name) for name in registry.TASKS]\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]


@pytest.mark.thorough
def test_no_assert_in_the_package() -> None:
    assert [found for found in in_sources(asserts) if "pri3d/testing/" not in found[0]] == []


@pytest.mark.thorough
def test_devices_are_chosen_not_named() -> None:
    assert list(in_sources(loose_devices)) == []


def test_no_address_in_the_package() -> None:
    """Weights come through torchvision and timm, nothing else is fetched and nothing reports."""
    assert list(in_sources(hosts)) == []


def test_half_a_line_of_test_for_a_line_of_code() -> None:
    code, tests = (sum(len(path.read_text().splitlines()) for path in files) for files in (SOURCES, TESTS))
    assert tests / code >= 0.5


def test_the_limits_find_what_they_look_for() -> None:
    body = "    x = 1\n" * FUNCTION_LINES
    assert long_functions(f"def f():\n{body}") == [("f", FUNCTION_LINES + 1)]
    assert long_functions(f"async def f():\n{body}") == [("f", FUNCTION_LINES + 1)]
    assert long_functions(f'def f():\n    """Text.\n\n    More.\n    """\n{body[10:]}') == []
    assert loose_devices('a = torch.device("cuda:0")\nb = x.cuda()') == [1, 2]
    assert loose_devices('a = "cuda" if torch.cuda.is_available() else "cpu"') == []
    assert loose_devices('a = "cuda" if wanted else "cpu"') == [1]
    assert asserts("x = 1\nassert x") == [2]
    assert hosts("see https://example.org/x for http://a.b") == ["https://example.org/x", "http://a.b"]
