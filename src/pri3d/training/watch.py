"""Scores while a run trains: measured every so often, the best weights kept, the history in ``scores.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric import Fabric

from pri3d.runs import RunPaths, read_json, write_json
from pri3d.training.recorder import has_finite_weights


class Watch:
    """Measures every ``every`` steps and at the last; a subclass says what, and how the network is saved.

    All processes measure the same, so that none has to wait; the first one writes.

    Args:
        run: folder of the run.
        done: steps that a continued run has behind it.
        every: steps between measurements.
        key: which of the measured numbers decides what is best; the larger the better.
    """

    def __init__(self, run: RunPaths, done: int, every: int, key: str) -> None:
        self.run, self.every, self.key = run, every, key
        history = read_json(run.scores)["history"] if run.scores.exists() and done else []
        self.history: list[dict[str, Any]] = [entry for entry in history if entry["step"] <= done]

    def measure(self, module: Any, fabric: Fabric) -> Mapping[str, Any]:
        """Name -> number, None where it cannot be measured, or further detail."""
        raise NotImplementedError

    def save(self, module: Any, path: Path, step: int) -> None:
        """Write the network."""
        raise NotImplementedError

    def look(self, fabric: Fabric, module: Any, step: int) -> dict[str, float]:
        """Measure after ``step``, keep the network where it is the best so far, and return the numbers to log."""
        with fabric.autocast():
            values = self.measure(module, fabric)
        self.history.append({"step": step, **values})
        best = max(self.history, key=lambda entry: -1.0 if entry[self.key] is None else float(entry[self.key]))
        if fabric.is_global_zero:
            # The recorder stops a broken run, but only after this.
            if best is self.history[-1] and has_finite_weights(module):
                self.save(module, self.run.best, step)
            write_json(self.run.scores, {"last": self.history[-1], "best": best, "history": self.history})
        return {f"heldout/{name}": float(value) for name, value in values.items() if isinstance(value, int | float)}
