"""What is shown on the terminal: names out of files and folders cannot steer it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from pri3d.errors import printable


class Terminal(Console):
    """rich's console, which shows a control character as its number: an ESC in a file's name moves no cursor."""

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich does, of the printable text; lines, cells of tables and bars go through here."""
        return super().render_str(printable(text), **options)
