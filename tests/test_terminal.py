"""Names out of files and folders on the terminal: shown, never obeyed."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from rich.table import Table

from pri3d.cli import main
from pri3d.errors import printable
from pri3d.terminal import Terminal, track


def test_control_characters_are_numbers_and_other_letters_stay() -> None:
    assert printable("a\x1b[31mb\rc\u202ed\udcff") == r"a\x1b[31mb\rc\u202ed\udcff"
    assert printable("Küche 房间\n\tx") == "Küche 房间\n\tx"


def test_lines_and_cells_show_them(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    terminal = Terminal(file=file, width=80)
    terminal.print("room \x1b[2J one", markup=False)
    table = Table("scene")
    table.add_row("kitchen\x1b]0;owned\x07")
    terminal.print(table)
    assert "\x1b" not in file.getvalue() and "\x07" not in file.getvalue()
    assert r"room \x1b[2J one" in file.getvalue()
    assert r"kitchen\x1b]0;owned\x07" in file.getvalue()


def test_an_error_names_such_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "\x1b[31mroom[bold]")]) == 1
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert r"\x1b[31mroom[bold]" in said


@pytest.mark.parametrize("verb", ["prepare", "embed"])
def test_any_error_of_the_system_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error", str(tmp_path / "x"))

    monkeypatch.setattr(Path, "exists", fail)
    assert main([verb, str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said == [
        f"error: [Errno 5] Input/output error: '{tmp_path / 'x'}'. Check that the file or folder "
        "exists and that you have permission; the same command continues"
    ]


def test_markup_in_names_is_a_part_of_them() -> None:
    """Of lines, cells, titles and the line of progress."""
    file = io.StringIO()
    terminal = Terminal(file=file, width=80, force_terminal=True, force_interactive=True, color_system=None)
    terminal.print("room [bold]one[/nonsense]")
    table = Table("[red]scene", title="[dim]out")
    table.add_row("kitchen[/x]")
    terminal.print(table)
    for name in ("[b]a[/c]", "\x1b[31mb"):
        assert list(track([name], "embedding [x]", console=terminal, name=str)) == [name]
    said = file.getvalue()
    for shown in (
        "room [bold]one[/nonsense]",
        "[red]scene",
        "[dim]out",
        "kitchen[/x]",
        "embedding [x] [b]a[/c]",
        "1/1",
    ):
        assert shown in said
    assert r"embedding [x] \x1b[31mb" in said


def test_progress_moves_while_one_item_takes_long() -> None:
    file = io.StringIO()
    terminal = Terminal(file=file, width=80, force_terminal=True, force_interactive=True, color_system=None)
    for _ in track(["large"], "embedding", console=terminal, name=str):
        time.sleep(0.5)
    assert len(set(re.findall(r"(\S) embedding large", file.getvalue()))) > 2  # of the spinner
