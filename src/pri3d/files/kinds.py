"""Names of files and folders: skipped files counted by kind, and valid scene ids."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath

_SHOWN = 6  # kinds that are named
_LONGEST = 12  # letters of an ending that is shown


def count_kinds(files: Iterable[str | PurePath]) -> str:
    """Files -> ``12 .heic, 3 .mp4, 1 without ending``, the most frequent first; hidden ones do not count."""
    names = [PurePath(file) for file in files]
    kinds = Counter(name.suffix.lower()[:_LONGEST] or "without ending" for name in names if name.name[:1] != ".")
    shown = [f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0]))]
    more = sum(sorted(kinds.values(), reverse=True)[_SHOWN:])
    return ", ".join(shown[:_SHOWN]) + (f" and {more} of other kinds" if more else "")


def is_id(name: str) -> bool:
    """Whether a name is a scene id: letters and digits of any script, '-', '_' and '.', which does not begin it."""
    letters = (letter in "._-" or unicodedata.category(letter)[0] in "LNM" for letter in name)
    return bool(name) and name[0] != "." and all(letters) and unicodedata.is_normalized("NFC", name)
