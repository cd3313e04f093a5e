"""Terminal output and progress: names from files and folders cannot control the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pri3d.errors import printable

T = TypeVar("T")


class Terminal(Console):
    """rich's console, which shows texts as they are: ``[bold]`` in a name is a part of it.

    A control character is shown as its number: an ESC in a file's name moves no cursor. Styles are given beside the
    text, as rich's ``Text``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich does, of the printable text; lines, cells of tables and bars go through here."""
        return super().render_str(printable(text), **options)


def track(
    items: Iterable[T],
    what: str,
    total: int | None = None,
    console: Console | None = None,
    name: Callable[[T], str] | None = None,
) -> Iterator[T]:
    """Items in their order, with a line on a terminal that moves while one of them takes long.

    An item counts when the next one is asked for. ``name`` says what is shown of the present one; ``total`` is how many
    there are, where they do not say it themselves.
    """
    text = TextColumn("{task.description}", markup=False)
    times = TimeElapsedColumn(), TimeRemainingColumn()
    columns = (SpinnerColumn(), text, BarColumn(), MofNCompleteColumn(), *times)
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(*columns, console=console or Terminal(stderr=True), transient=True) as progress:
        task = progress.add_task(printable(what), total=total)
        for item in items:
            if name is not None:
                progress.update(task, description=printable(f"{what} {name(item)}"))
            yield item
            progress.advance(task)
