"""Scores while a run trains: measured every so often, the best weights kept, the history in ``scores.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from pri3d.runs import RunPaths, read_json, write_json
from pri3d.training.recorder import has_finite_weights


class Watch(Callback):
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

    def measure(self, module: Any) -> Mapping[str, Any]:
        """Name -> number, None where it cannot be measured, or further detail."""
        raise NotImplementedError

    def save(self, module: Any, path: Path, step: int) -> None:
        """Write the network."""
        raise NotImplementedError

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure where the step asks for it."""
        step = trainer.global_step
        due = step % self.every == 0 or step == pl_module.settings.steps
        if (batch_idx + 1) % pl_module.passes_per_step or not due:
            return
        with trainer.precision_plugin.val_step_context():
            values = self.measure(pl_module)
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        pl_module.notes = {f"heldout/{name}": float(value) for name, value in numbers.items()}
        self.history.append({"step": step, **values})
        best = max(self.history, key=lambda entry: -1.0 if entry[self.key] is None else float(entry[self.key]))
        if trainer.is_global_zero:
            # The recorder stops a broken run, but only after this.
            if best is self.history[-1] and has_finite_weights(pl_module):
                self.save(pl_module, self.run.best, step)
            write_json(self.run.scores, {"last": self.history[-1], "best": best, "history": self.history})
