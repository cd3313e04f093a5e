"""What the tests are worth: faults put into the source on purpose, and the share of them that a test finds.

``python -m benchmarks.mutants --sample 300 --seed 0 --processes 2`` draws places of the source at random, changes each
by one of the operators of Cosmic Ray that fit there (another comparison, another sign, no ``not``, ...), and runs the
tests that execute that line, the quick tier first, then the others, until one fails. Which tests execute a line is
measured once with Coverage. Code that numba compiles is not seen by Coverage: there every test of the file counts.
Left out: annotations, decorators and messages, where no test could see a change.

Each mutant runs in a process of its own, which a parent with the libraries loaded forks, on a copy of the package.
"""

from __future__ import annotations

import argparse
import ast
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import coverage
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "pri3d"
#: what the figures depend on: wrong here is wrong without a word
TARGETS = (
    "geometry/*.py",
    "objectives/*.py",
    "data/sampler.py",
    "data/pairs.py",
    "preparation/overlap.py",
    "store.py",
    "runs.py",
    "files/*.py",
    "labelled/spaces.py",
    "labelled/_shared/*.py",
    "intervals.py",
    "tasks/*.py",
)
SECONDS = 10.0  #: of tests that one mutant meets; the most specific come first
PATIENCE = 90.0  #: further seconds until a mutant that does not end counts as found
OPERATORS = tuple(name for name in operator_names() if "Variable" not in name)  # which want names to replace
LIBRARIES = ("torch", "torchvision", "timm", "scipy.spatial", "numba", "hypothesis", "lightning.fabric", "h5py")


#: file -> line, or ``*`` for any -> tests that execute it
Seen = dict[str, dict[str, set[str]]]


class Mutant(NamedTuple):
    """One fault."""

    file: str  #: below the package
    line: int
    operator: str
    occurrence: int  #: which of the operator's places in the file
    change: str  #: the line as it was and as it is


class Test(NamedTuple):
    """What is known of one test."""

    quick: bool
    seconds: float
    lines: int  #: of the package that it executes


def left_out(text: str) -> set[int]:
    """Lines of annotations, decorators, docstrings and messages of errors."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        parts: list[ast.AST | None] = list(getattr(node, "decorator_list", []))
        parts += [getattr(node, "annotation", None), getattr(node, "returns", None)]
        parts += [node.exc] if isinstance(node, ast.Raise) else []
        for part in parts:
            if part is not None:
                lines |= set(range(part.lineno, (part.end_lineno or part.lineno) + 1))  # type: ignore[attr-defined]
    return lines


def mutants_of(file: str) -> Iterator[list[Mutant]]:
    """The mutants of each place of a file."""
    text = (PACKAGE / file).read_text()
    without, places = left_out(text), defaultdict(list)
    nodes = list(ast_nodes(get_ast(text)))
    for name in OPERATORS:
        operator = get_operator(name)()
        found = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, place in enumerate(found):
            if place[0] not in without:
                places[place].append((name, occurrence))
    for place, operators in sorted(places.items()):
        yield [Mutant(file, place[0], *each, "") for each in operators]


def sample(count: int, seed: int, targets: Sequence[str]) -> list[Mutant]:
    """Random places, one random mutant at each."""
    files = sorted({str(path.relative_to(PACKAGE)) for target in targets for path in PACKAGE.glob(target)})
    draw = random.Random(seed)
    places = [place for file in files for place in mutants_of(file)]
    return [draw.choice(place) for place in draw.sample(places, count)]


def mutated(mutant: Mutant) -> str:
    """Text of the file with the fault."""
    text = mutate_code((PACKAGE / mutant.file).read_text(), get_operator(mutant.operator)(), mutant.occurrence)
    if text is None:
        raise RuntimeError(f"{mutant} has no place any more")
    return str(text)


class _Contexts:
    """Tells Coverage which test runs, and notes what each is."""

    def __init__(self, watcher: coverage.Coverage) -> None:
        self.watcher, self.tests = watcher, {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self.watcher.switch_context(item.nodeid)
        began = time.perf_counter()
        try:
            return (yield)
        finally:
            self.tests[item.nodeid] = (any(item.iter_markers("quick")), time.perf_counter() - began)


def _pytest(folder: Path, source: Path, words: list[str], plugins: list[object]) -> int:
    """Run pytest in this process, which has not imported the package yet, on the package in ``source``."""
    os.environ["PYTHONPATH"] = str(source)  # of processes that tests start
    sys.path.insert(0, str(source))
    sys.stdout = sys.stderr = (folder / "output.txt").open("w")
    os.dup2(sys.stdout.fileno(), 1)
    os.dup2(sys.stdout.fileno(), 2)
    return int(pytest.main(["-q", "-p", "no:cacheprovider", f"--basetemp={folder / 'tmp'}", *words], plugins))


def _watch(folder: Path, files: list[str], answer: Any) -> None:
    watcher = coverage.Coverage(data_file=str(folder / "coverage"), source=[str(PACKAGE)])
    watcher.start()
    contexts = _Contexts(watcher)
    _pytest(folder, PACKAGE.parent, ["-m", "not slow", *files], [contexts])
    watcher.stop()
    watcher.save()
    data = watcher.get_data()
    seen: dict[str, dict[str, list[int]]] = {}
    for path in data.measured_files():
        by_test: dict[str, list[int]] = defaultdict(list)
        for line, names in data.contexts_by_lineno(path).items():
            for name in filter(None, names):
                by_test[name].append(line)
        seen[str(Path(path).relative_to(PACKAGE))] = by_test
    answer.send((seen, contexts.tests))


def watch(folder: Path, where: Sequence[Path], processes: int) -> tuple[Seen, dict[str, Test]]:
    """Which tests execute what, and what each test is."""
    files = sorted(str(path) for each in where for path in (each.rglob("test_*.py") if each.is_dir() else (each,)))
    seen: Seen = defaultdict(lambda: defaultdict(set))
    marks: dict[str, tuple[bool, float]] = {}
    counts: dict[str, int] = defaultdict(int)
    started = []
    for share in range(processes):
        (folder / f"watch{share}").mkdir()
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(
            target=_watch, args=(folder / f"watch{share}", files[share::processes], there)
        )
        process.start()
        started.append((process, here))
    for process, here in started:
        found, own = here.recv()
        process.join()
        marks |= own
        for file, by_test in found.items():
            for test, lines in by_test.items():
                counts[test] += len(lines)
                seen[file]["*"].add(test)
                for line in lines:
                    seen[file][str(line)].add(test)
    return seen, {name: Test(*mark, counts[name]) for name, mark in marks.items()}


def chosen(mutant: Mutant, seen: Seen, tests: dict[str, Test]) -> list[str]:
    """Tests that the mutant meets, the quick ones first, each tier by how little else a test executes."""
    lines = seen.get(mutant.file, {})
    names = sorted(lines.get(str(mutant.line)) or lines.get("*") or (), key=lambda name: tests[name].lines)
    taken, spent = [], 0.0
    for name in sorted(names, key=lambda name: not tests[name].quick):
        if spent + tests[name].seconds <= SECONDS:
            taken.append(name)
            spent += tests[name].seconds
    return taken


class _First:
    """Notes the first test that fails."""

    name = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.name:
            self.name = report.nodeid


def _meet(folder: Path, mutant: Mutant, names: list[str]) -> None:
    os.setsid()
    # What numba compiled comes along, but where the fault may lie in it: a kernel holds those that it calls.
    text = mutated(mutant)
    kernels = shutil.ignore_patterns("*.nbi", "*.nbc") if "njit" in text else None
    shutil.copytree(PACKAGE, folder / "src" / "pri3d", ignore=kernels)
    (folder / "src" / "pri3d" / mutant.file).write_text(text)
    (folder / "names").write_text("\n".join(names))
    first = _First()
    code = _pytest(folder, folder / "src", ["-x", "-o", "addopts=", f"@{folder / 'names'}"], [first])
    (folder / "outcome.json").write_text(json.dumps({"code": code, "test": first.name}))
    os._exit(0)


def meet(folder: Path, mutant: Mutant, names: list[str]) -> str:
    """Name of the test that finds the mutant; ``hang``, ``import`` or ``""`` where it survives."""
    folder.mkdir()
    process = multiprocessing.get_context("fork").Process(target=_meet, args=(folder, mutant, names))
    process.start()
    process.join(SECONDS + PATIENCE)
    if process.is_alive():
        os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
        found = "hang"
    elif process.exitcode or not (folder / "outcome.json").exists():
        found = "crash"
    else:
        outcome = json.loads((folder / "outcome.json").read_text())
        found = outcome["test"] or ("" if outcome["code"] == 0 else "import")
    shutil.rmtree(folder)
    return found


def _work(share: list[Mutant], seen: Seen, tests: dict[str, Test], folder: Path, out: Path) -> None:
    for number, mutant in enumerate(share):
        names = chosen(mutant, seen, tests)
        found = meet(folder / str(number), mutant, names) if names else ""
        texts = (PACKAGE / mutant.file).read_text(), mutated(mutant)
        lines = [text.splitlines()[mutant.line - 1].strip() for text in texts]
        tier = "survives" if not found else "quick" if found not in tests or tests[found].quick else "whole"
        row = mutant._replace(change=" -> ".join(lines))._asdict() | {"found": found, "tier": tier, "met": len(names)}
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """Share found by part of the source, as Markdown."""
    parts: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        parts[row["file"].partition("/")[0].removesuffix(".py")].append(row["tier"])
    parts = dict(sorted(parts.items())) | {"all": [row["tier"] for row in rows]}
    lines = ["| part | mutants | found by the quick tier | by all but the slow tier |", "| --- | --- | --- | --- |"]
    for name, tiers in parts.items():
        quick, survivors = tiers.count("quick"), tiers.count("survives")
        shares = f"{100 * quick / len(tiers):.0f} % | {100 * (1 - survivors / len(tiers)):.0f} %"
        lines.append(f"| {name} | {len(tiers)} | {shares} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=300, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="files below src/pri3d, as patterns; all that matter most otherwise")
    parser.add_argument("--tests", nargs="*", type=Path, default=[ROOT / "tests"], help="tests that they meet")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=Path("mutants.jsonl"), help="a line for each mutant")
    given = parser.parse_args()
    for name in LIBRARIES:
        __import__(name)
    given.out.write_text("")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        seen, tests = watch(folder, given.tests, given.processes)
        print(f"{len(tests)} tests, {sum(test.quick for test in tests.values())} of them quick", flush=True)
        drawn = sample(given.sample, given.seed, given.only or TARGETS)
        started = []
        for share in range(given.processes):
            (folder / str(share)).mkdir()
            work = drawn[share :: given.processes], seen, tests, folder / str(share), given.out.absolute()
            process = multiprocessing.get_context("fork").Process(target=_work, args=work)
            process.start()
            started.append(process)
        for process in started:
            process.join()
    rows = [json.loads(line) for line in given.out.read_text().splitlines()]
    print(table(rows))
    for row in rows:
        if row["tier"] == "survives":
            print(f"survives {row['met']} tests: {row['file']}:{row['line']}: {row['change']}")


if __name__ == "__main__":
    main()
