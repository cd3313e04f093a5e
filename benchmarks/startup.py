"""How soon the program answers: CPU time of an import, of every ``--help`` and of a misspelt option.

``python -m benchmarks.startup [--rounds N]`` prints a table of the ratios to ``python -c "import torch"`` in the same
run. Times are those of the child processes (user and system, all their threads), the median of interleaved rounds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence

from pri3d import registry
from pri3d.api.options import VERBS

BAR = 0.25  # times ``import torch``
REFERENCE = "python -c 'import torch'"
MISSPELT = "--stesp"  # no command has it


def commands() -> dict[str, list[str]]:
    """What is measured -> words for the Python interpreter."""
    helped = [[], *([name] for name in sorted(VERBS)), *(["finetune", task] for task in registry.TASKS)]
    wrong = [[name] for name in sorted(VERBS)]
    return {
        REFERENCE: ["-c", "import torch"],
        "python -c 'import pri3d'": ["-c", "import pri3d"],
        **{" ".join(["pri3d", *words, "--help"]): ["-m", "pri3d", *words, "--help"] for words in helped},
        **{" ".join(["pri3d", *words, MISSPELT]): ["-m", "pri3d", *words, MISSPELT] for words in wrong},
    }


def cpu_seconds(words: Sequence[str]) -> float:
    """User and system seconds of one child process. Raises ChildProcessError where it fails by something else."""
    before = os.times()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    after = os.times()
    if done.returncode != (2 if MISSPELT in words else 0) or "Traceback" in done.stderr:
        raise ChildProcessError(f"{' '.join(words)}: exit code {done.returncode}\n{done.stderr}")
    return after.children_user - before.children_user + after.children_system - before.children_system


def measure(tried: Mapping[str, Sequence[str]], rounds: int) -> dict[str, float]:
    """Median seconds of each command, once in every round, after a round that fills the disk's cache."""
    for words in tried.values():
        cpu_seconds(words)
    seconds: dict[str, list[float]] = {name: [] for name in tried}
    for _ in range(rounds):
        for name, words in tried.items():
            seconds[name].append(cpu_seconds(words))
    return {name: statistics.median(each) for name, each in seconds.items()}


def table(seconds: Mapping[str, float]) -> str:
    """Markdown rows of seconds and ratios, and which ratios exceed the bar."""
    ratios = {name: each / seconds[REFERENCE] for name, each in seconds.items()}
    over = [f"{name} ({ratio:.2f}x)" for name, ratio in ratios.items() if name != REFERENCE and ratio > BAR]
    rows = [f"| `{name}` | {seconds[name]:.2f} | {ratio:.2f}x |" for name, ratio in ratios.items()]
    said = f"More than {BAR}x: {', '.join(over)}" if over else f"None takes more than {BAR}x."
    return "\n".join(["| command | CPU s | of `import torch` |", "|---|---|---|", *rows, "", said])


def run(rounds: int = 3) -> list[tuple[str, float, str]]:
    """The slowest command of each kind, for the table of all benchmarks."""
    seconds = measure(commands(), rounds)
    ratios = {name: each / seconds[REFERENCE] for name, each in seconds.items() if name != REFERENCE}
    kinds = {"import pri3d": "import pri3d", "slowest --help": "--help", "slowest misspelt option": MISSPELT}
    return [
        (f"{kind}, CPU time over import torch", max(r for name, r in ratios.items() if part in name), f"<= {BAR}")
        for kind, part in kinds.items()
    ]


def main() -> None:
    """Print the table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    print(table(measure(commands(), parser.parse_args().rounds)))


if __name__ == "__main__":
    main()
