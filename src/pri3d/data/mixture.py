"""Several prepared datasets in one training, each with a weight: ``out/kitchen:1 out/rooms:0.5``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from math import gcd, lcm
from pathlib import Path
from typing import NamedTuple

from pri3d.errors import ConfigError, Problems
from pri3d.store import Store

_LONGEST = 100_000  # samples after which the proportions have come out even


class Named(NamedTuple):
    """One entry of a mixture as a user wrote it."""

    path: Path
    weight: Fraction

    def at(self, path: Path) -> Path:
        """Return the same entry for another folder, written as :func:`parse_mixture` reads it."""
        return Path(f"{path}:{float(self.weight):.6f}")


class Part(NamedTuple):
    """One store of a mixture."""

    store: Store
    weight: int  #: samples of it in a round


def parse_mixture(data: Path | Sequence[Path]) -> list[Named]:
    """``PATH`` or ``PATH:WEIGHT`` each; without a weight it is 1. A path that exists as it stands is taken as it is.

    Raises ConfigError for no path, a weight that is no positive decimal number, or a folder that comes twice.
    """
    words = [data] if isinstance(data, str | Path) else list(data)
    if not words:
        raise ConfigError("no data given: name a prepared dataset, or several.")
    problems = Problems()
    named: list[Named] = []
    for word in words:
        with problems.collect():
            path, colon, weight = str(word).rpartition(":")
            if not colon or word.exists():
                entry = Named(Path(word), Fraction(1))
            elif not path or not re.fullmatch(r"\d{0,6}\.?\d{1,6}", weight) or not Fraction(weight):
                raise ConfigError(
                    f"{word}: no such folder, and {weight!r} is not a weight. Write PATH:WEIGHT with a number above 0, "
                    "as in out/kitchen:0.5."
                )
            else:
                entry = Named(Path(path), Fraction(weight))
            if entry.path.resolve() in {other.path.resolve() for other in named}:
                raise ConfigError(f"{word}: the same folder twice. Give it once, with the sum of the weights.")
            named.append(entry)
    problems.refuse()
    return named


class Mixture:
    """Prepared datasets and how often each is drawn from. Of a single one the weight says nothing."""

    def __init__(self, named: Sequence[Named]) -> None:
        """Open every store. Raises ConfigError or DataError naming every one that cannot be used."""
        problems = Problems()
        stores = []
        for entry in named:
            with problems.collect():
                stores.append(Store(entry.path))
        with problems.collect():
            weights = _whole([entry.weight for entry in named])
        problems.refuse()
        self.parts = [Part(store, weight) for store, weight in zip(stores, weights, strict=True)]

    def __str__(self) -> str:
        if len(self.parts) == 1:
            return str(self.parts[0].store.path)
        return " ".join(f"{part.store.path}:{part.weight}" for part in self.parts)

    @property
    def name(self) -> str:
        """Name of the first stores, and how many more there are."""
        names = [part.store.path.name for part in self.parts]
        return "+".join(names if len(names) < 4 else [*names[:2], str(len(names) - 2)])

    @cached_property
    def hash(self) -> str:
        """Changes with any store, its weight and their order; of a single store its own, see :func:`hashes_of`."""
        if len(self.parts) == 1:
            return self.parts[0].store.hash
        return "+".join(f"{part.store.hash}:{part.weight}" for part in self.parts)


def hashes_of(data_hash: str) -> list[str]:
    """Hashes of the stores that :attr:`Mixture.hash`, or the hash of one store, stands for."""
    return [part.partition(":")[0] for part in data_hash.split("+")]


def _whole(weights: Sequence[Fraction]) -> list[int]:
    """The smallest whole numbers in the same proportions: 1 and 0.5 are 2 and 1."""
    scale = lcm(*(weight.denominator for weight in weights))
    whole = [int(weight * scale) for weight in weights]
    whole = [number // gcd(*whole) for number in whole]
    if sum(whole) > _LONGEST:
        text = ", ".join(f"{float(weight):g}" for weight in weights)
        raise ConfigError(
            f"weights {text}: as whole numbers {', '.join(map(str, whole))}, a round of {sum(whole)} samples. "
            f"Round them so that it has {_LONGEST} at most."
        )
    return whole
