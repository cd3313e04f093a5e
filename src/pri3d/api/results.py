"""Return values of commands: the written path, which other commands accept, with a summary for notebooks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any


class Output(os.PathLike[str]):
    """A file or folder that a verb wrote. It is a path too: ``pri3d.pretrain(pri3d.prepare(...))``."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, os.PathLike) and self.path == Path(other)

    def __hash__(self) -> int:
        return hash(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    if not TYPE_CHECKING:  # a misspelt attribute stays an error to type checkers; they are told to take .path

        def __getattr__(self, name: str) -> Any:
            """Methods of the path, such as ``read_text``."""
            if name.startswith("_") or name == "path":
                raise AttributeError(name)
            return getattr(self.path, name)

    def __repr__(self) -> str:
        facts = "".join(f", {fact}" for fact in self.facts())
        return f"{type(self).__name__}({str(self.path)!r}{facts})"

    def facts(self) -> list[str]:
        """Content of it beside its path."""
        return []


class Record(Output, Mapping[str, Any]):
    """Results by name, and the file or folder that holds them."""

    def __init__(self, path: str | os.PathLike[str], values: Mapping[str, Any]) -> None:
        super().__init__(path)
        self.values_by_name = dict(values)

    def __getitem__(self, name: str) -> Any:
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self.values_by_name == dict(other)

    __hash__ = Output.__hash__

    def __len__(self) -> int:
        return len(self.values_by_name)

    def facts(self) -> list[str]:
        """Its names."""
        return [", ".join(self.values_by_name)]
