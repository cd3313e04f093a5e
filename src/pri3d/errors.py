"""The error classes that users see; each message names the file or flag, the value and the fix."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Pri3DError(Exception):
    """Base of every error pri3d raises on purpose; the command line prints it without a traceback and exits 1."""


class DataError(Pri3DError):
    """A recording, prepared dataset or image is missing, damaged or inconsistent."""


class FailedScenesError(DataError):
    """Some scenes could not be prepared; the others are there."""

    def __init__(self, message: str, failed: Mapping[str, str], total: int) -> None:
        """``failed``: scene -> why; of ``total`` scenes that were asked for."""
        super().__init__(message)
        self.failed, self.total = dict(failed), total


class FrameError(DataError):
    """One frame is unusable; ``prepare`` lists it with the reason and goes on."""


class IntrinsicsError(FrameError):
    """The frame's image cannot be that of the camera stated for it."""

    def __init__(self, message: str, stated: tuple[float, ...] = (), size: tuple[int, int] | None = None) -> None:
        """``stated`` are fx, fy, cx, cy of the camera and ``size`` width and height of the image, where known."""
        super().__init__(message)
        self.stated, self.size = stated, size


class ConfigError(Pri3DError):
    """A flag, preset or name is wrong; the message lists the choices."""


class WeightsError(Pri3DError):
    """A checkpoint does not fit: the message counts matched, missing and unexpected keys."""


class SeveralProblemsError(ConfigError):
    """Several errors in one; its message is their list."""

    def __init__(self, errors: list[Pri3DError]) -> None:
        self.errors = errors
        lines = "".join(f"\n  - {error}" for error in errors)
        super().__init__(f"{len(errors)} problems found:{lines}")


#: what steers a terminal or turns the direction of text, and what no encoding has: undecodable bytes of a name
_UNPRINTABLE = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")


def printable(text: str) -> str:
    """The text with every character that steers a terminal as its number, ESC as 1b."""
    return _UNPRINTABLE.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def first_line(error: BaseException) -> str:
    """First line of an exception's text, its kind where it has none; libraries' texts run over many lines."""
    return next(iter(str(error).splitlines()), type(error).__name__)


class Problems:
    """Collects what is wrong, so that a user sees all of it at once and not one thing a try."""

    def __init__(self) -> None:
        self.found: list[Pri3DError] = []

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Keep an error of the block for :meth:`refuse`; the code after the block goes on."""
        try:
            yield
        except SeveralProblemsError as error:
            self._keep(error.errors)
        except Pri3DError as error:
            self._keep([error])

    def _keep(self, errors: list[Pri3DError]) -> None:
        """Add what has not been said yet: two options may name the same missing folder."""
        for error in errors:
            if str(error) not in map(str, self.found):
                self.found.append(error)

    def refuse(self) -> None:
        """Raise what was found: the one error as it is, several as SeveralProblemsError."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            raise SeveralProblemsError(self.found)
