"""What an experiment will run, and what that will take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from pri3d.reproduction.cost import Cost, estimate
from pri3d.reproduction.matrix import Experiment, Matrix, Run, groups
from pri3d.reproduction.work import Place, command, is_finished

WIDTH = 140  #: characters of the table where it goes to a file


class Plan(NamedTuple):
    """An experiment, its runs and where they lie."""

    place: Place
    experiment: Experiment
    matrix: Matrix


def show(plan: Plan, workers: int) -> None:
    """Print every run with its group, its state and what it will take, the commands, and the whole.

    Raises ConfigError where a folder holds a run of other options.
    """
    place, matrix = plan.place, plan.matrix
    console = Console(markup=False)
    if not console.is_terminal:
        console = Console(markup=False, width=WIDTH)
    table = Table(title=plan.experiment.title)
    for column in ("group", "run", "state", "minutes", "GB", "from"):
        table.add_column(column, justify="right" if column in ("group", "minutes", "GB") else "left", overflow="fold")
    costs = estimate(place, matrix.runs)
    todo = []
    for number, runs in enumerate(groups(matrix)):
        for run in runs:
            finished, cost = is_finished(place, run), costs[run.name]
            todo += [] if finished else [(run, cost)]
            state = "finished" if finished else "begun" if place.folder(run.name).exists() else "to do"
            table.add_row(str(number), run.name, state, *cost.words())
    console.print(table)
    for run, _ in todo:
        console.print(command(place, run), soft_wrap=True, highlight=False)
    for row, why in matrix.left_out.items():
        console.print(f"left out: {row}: {why}", soft_wrap=True, highlight=False)
    console.print(_whole(todo, workers), soft_wrap=True, highlight=False)


def _whole(todo: Sequence[tuple[Run, Cost]], workers: int) -> str:
    minutes = sum(cost.minutes for _, cost in todo)
    gigabytes = max((cost.gigabytes for _, cost in todo), default=0.0)
    at_once = min(workers, len(todo)) or 1
    hours = minutes / 60
    return (
        f"{len(todo)} runs to do: about {hours:.1f} hours one after the other, {hours / at_once:.1f} with "
        f"--workers {workers}; {gigabytes * at_once:.1f} GB at most"
    )
