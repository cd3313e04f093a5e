"""Which assumptions about a recording's poses, axes, units and times its frames agree with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pri3d.checking.evidence import Guess, both_ways, carry, geometric, photometric
from pri3d.checking.shots import Stack

_SCALES = np.geomspace(1 / 4096, 4096, 97)  # factors of 1.19
_NEAR_SCALES = np.geomspace(0.6, 1.7, 7)  # the same, where frames agree so well that no unit can be wrong
_UNDERSTOOD = 0.4  # score from which they do
_FOCALS = np.geomspace(0.4, 2.5, 21)  # factors of 1.1
_FEWER = 4  # the coarse search takes every so many points, and half the pairs
_CERTAIN = 3.5  # standard errors
_GAIN = 1.06  # factor by which an alternative must agree better
_LEAST = 0.25  # score of a recording that is understood
#: factors by which units and conventions differ; one within 3 % of these is taken for it
ROUND = (1000, 500, 256, 100, 39.37, 25.4, 10, 8, 5, 4, 2, 1, 0.5, 0.25, 0.2, 0.125, 0.1, 0.0394, 0.0254, 0.01, 0.001)


class Trial(NamedTuple):
    """One set of assumptions, and how well it agrees."""

    guess: Guess
    score: float  #: mean of :attr:`pri3d.checking.evidence.Score.soft`


def soft(stack: Stack, pairs: NDArray[np.int64], guess: Guess) -> NDArray[np.float64]:
    """Agreement (P,) of pairs of frame indices (P, 2) under a guess; nan where a frame is missing."""
    score = geometric(carry(stack, pairs, guess))
    return np.where(score.points > 0, score.soft, np.nan)


def average(values: NDArray[np.float64]) -> float:
    """Mean of the finite values, 0 for none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else 0.0


def better(
    base: NDArray[np.float64], other: NDArray[np.float64], gain: float = _GAIN, certain: float = _CERTAIN
) -> bool:
    """Whether ``other`` (P,) is higher than ``base`` (P,) by the factor ``gain``, and surely so pair by pair."""
    both = np.isfinite(base) & np.isfinite(other)
    if both.sum() < 6:
        return False
    difference = other[both] - base[both]
    error = difference.std() / np.sqrt(both.sum())
    return bool(difference.mean() > certain * error and other[both].mean() > gain * max(base[both].mean(), 0.01))


def coarse_stack(stack: Stack) -> Stack:
    """The stack with fewer points."""
    return stack._replace(points=stack.points[:, ::_FEWER])


def explain(stack: Stack, pairs: NDArray[np.int64], start: Guess, tell: Callable[[int, int], None]) -> list[Trial]:
    """Find what the frames agree with, one mistake after another, beginning with ``start``.

    Returns the steps taken: the first is ``start``, the last the best; one entry means that nothing better was found.
    """
    directed = both_ways(pairs)
    trials = [Trial(start, average(soft(stack, directed, start)))]
    for number in range(3):
        tell(number, 3)
        guess = _best_step(stack, directed, trials[-1].guess)
        base, other = soft(stack, directed, trials[-1].guess), soft(stack, directed, guess)
        if not better(base, other):
            break
        trials.append(Trial(guess, average(other)))
    if len(trials) == 1 and trials[0].score < _LEAST:
        trials += _shifted_and_turned(stack, directed, trials[0])
    return trials


def _best_step(stack: Stack, directed: NDArray[np.int64], guess: Guess) -> Guess:
    """The best single mistake beyond ``guess``: a flag, a factor of the depth or of the focal length, a shift."""
    few, some = coarse_stack(stack), directed[::2]
    given = guess.correction
    scales = _NEAR_SCALES if average(soft(stack, directed, guess)) > _UNDERSTOOD else _SCALES
    flags = [
        guess._replace(correction=given._replace(inverse=i, opengl=o, ray=r))
        for i, o, r in product((False, True), repeat=3)
    ]
    scaled = [
        g._replace(correction=g.correction._replace(depth=float(given.depth * factor)))
        for g in flags
        for factor in scales
    ]
    focal = [guess._replace(focal=float(guess.focal * factor)) for factor in _FOCALS]
    shifts = [guess._replace(correction=given._replace(shift=given.shift + step)) for step in (-1, 1)]
    best = [
        _refined(stack, directed, _best(few, some, scaled), "depth"),
        _refined(stack, directed, _best(few, some, focal), "focal"),
        _best(stack, directed, flags),
        _best(stack, directed, shifts),
    ]
    return _best(stack, directed, best)


def _best(stack: Stack, directed: NDArray[np.int64], guesses: Iterable[Guess]) -> Guess:
    return max(guesses, key=lambda guess: average(soft(stack, directed, guess)))


def _refined(stack: Stack, directed: NDArray[np.int64], guess: Guess, what: str) -> Guess:
    """``guess`` with its factor of depth, or of the focal length, where the score is highest."""
    factor = estimate(stack, directed, guess, what)
    return scaled_by(guess, what, factor)


def scaled_by(guess: Guess, what: str, factor: float) -> Guess:
    """``guess`` with ``depth`` or ``focal`` multiplied."""
    if what == "focal":
        return guess._replace(focal=guess.focal * factor)
    return guess._replace(correction=guess.correction._replace(depth=guess.correction.depth * factor))


def estimate(stack: Stack, directed: NDArray[np.int64], guess: Guess, what: str, reach: float = 0.2) -> float:
    """Return the factor of ``depth`` or ``focal`` beyond ``guess`` under which the frames agree best."""
    centre = 0.0
    for width in (reach, reach / 3, reach / 9, reach / 27):
        at = centre + np.linspace(-width, width, 7)
        values = [average(soft(stack, directed, scaled_by(guess, what, float(np.exp(x))))) for x in at]
        centre = float(at[int(np.argmax(values))])
    return float(np.exp(centre))


def rounded(factor: float) -> float:
    """A factor as people make mistakes: the nearest usual one within 3 %, else three digits."""
    near = min(ROUND, key=lambda value: abs(np.log(factor / value)))
    return float(near) if abs(np.log(factor / near)) < 0.03 else float(f"{factor:.3g}")


def _shifted_and_turned(stack: Stack, directed: NDArray[np.int64], last: Trial) -> list[Trial]:
    """Where one mistake at a time does not help: a shift together with a direction and axes."""
    given = last.guess.correction
    guesses = [
        last.guess._replace(correction=given._replace(inverse=i, opengl=o, shift=s))
        for i, o, s in product((False, True), (False, True), (-1, 1))
    ]
    guess = _best(stack, directed, guesses)
    values = soft(stack, directed, guess)
    return [Trial(guess, average(values))] if better(soft(stack, directed, last.guess), values) else []


def alternatives(stack: Stack, pairs: NDArray[np.int64], guess: Guess) -> dict[str, float]:
    """Score of the guess as it is, and with each flag turned and some factors: the figures beside the verdict."""
    directed, given = both_ways(pairs), guess.correction
    tried = {
        "as stated": Guess(),
        "poses inverted": guess._replace(correction=given._replace(inverse=not given.inverse)),
        "axes turned": guess._replace(correction=given._replace(opengl=not given.opengl)),
        "both": guess._replace(correction=given._replace(inverse=not given.inverse, opengl=not given.opengl)),
        "ray length turned": guess._replace(correction=given._replace(ray=not given.ray)),
        "depth x 1.1": scaled_by(guess, "depth", 1.1),
        "depth / 1.1": scaled_by(guess, "depth", 1 / 1.1),
        "focal x 1.1": scaled_by(guess, "focal", 1.1),
        "focal / 1.1": scaled_by(guess, "focal", 1 / 1.1),
    }
    return {name: round(average(soft(stack, directed, trial)), 3) for name, trial in tried.items()}


def photo(stack: Stack, directed: NDArray[np.int64], guess: Guess) -> NDArray[np.float64]:
    """Correlation (P,) of the colours under a guess, nan where too little is seen by both."""
    return photometric(stack, carry(stack, directed, guess))
