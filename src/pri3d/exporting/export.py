"""Write a run's weights as a file for other programs, and check it by loading it."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pri3d import registry
from pri3d.errors import ConfigError, Pri3DError, WeightsError, first_line
from pri3d.exporting import FORMATS
from pri3d.exporting.base import PARTS, ExportFormat, maps_of
from pri3d.exporting.card import build_card
from pri3d.files.atomic import remove_leftovers, temporary, usable
from pri3d.files.lock import lock_file
from pri3d.networks.load import load
from pri3d.networks.state_files import INITIAL_FILE, MODEL_FILE
from pri3d.networks.weights import mix_states

#: entries of a fine-tuned run's record that speak of its head, which is not exported
OF_TASK = ("task", "settings", "network", "class_names", "sizes", "loaded", "part")


def export(
    run: Path,
    to: str = "torchvision",
    out: Path | None = None,
    part: Literal["encoder", "all"] = "encoder",
    mix: float = 1.0,
) -> Path:
    """Write a run's weights for use elsewhere, compare the reloaded file with the run's network, print how to load it.

    Beside the file lies its model card, NAME.md (in a folder README.md). Adapters are merged. A fine-tuned run gives
    its backbone: the head stays with `pri3d predict`.

    See :func:`pri3d.export` for the parameters.
    """
    if to not in (names := registry.names("exports", FORMATS)):
        raise registry.unknown("--to", names, to)
    if part not in PARTS:
        raise registry.unknown("--part", PARTS, part)
    source = load(run, part)
    if mix != 1:
        initial = (run if run.is_dir() else run.parent) / INITIAL_FILE
        if not initial.is_file():
            raise ConfigError(f"--mix {mix}: {initial} does not exist. Give the folder of a pre-training run.")
        source.net.load_state_dict(mix_states(load(initial, part).net.state_dict(), source.net.state_dict(), mix))
        source.record = {**source.record, "mix": mix}
    # What travels with the export: the run's record without what speaks of a task's head.
    record = {key: value for key, value in source.record.items() if key not in OF_TASK}
    if task := source.record.get("task", source.record.get("tuned_for")):
        record["tuned_for"] = task
    source.record = record = {**record, "part": part}
    form: ExportFormat = registry.load("exports", FORMATS, to)(source, to)
    out = out or (run if run.is_dir() else run.parent) / form.file.format(
        part="encoder" if part == "encoder" else "model"
    )
    final = out / form.inside if form.inside else out
    card = final.with_name("README.md" if form.inside else f"{out.name}.md")
    _check_place(run, out, final, card, form)
    with _staged(out) as stage, lock_file(out):
        written = stage / final.name
        with torch.no_grad(), _refusals(to, form.name):
            images = [
                torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(0))
                for n, height, width in form.probes()
            ]
            expected = [maps_of(source(x)) for x in images]
            form.write(source, written)
            del source  # two networks at a time are enough
            for name, text in form.companions(final).items():
                (stage / name).write_text(text, encoding="utf-8")
            found = [form.features(written, x) for x in images]
        difference, limit = _compare(expected, found, form.bound)
        if not difference <= limit:
            raise WeightsError(
                f"{out}: the reloaded features differ from the run's by {difference:.1e}, more than {limit:.1e}; "
                f"not written. Use another --to: {to} does not preserve the features of this network"
            )
        (stage / card.name).write_text(build_card(form, record, final, difference, limit), encoding="utf-8")
        # The weights last: they are there only with what explains them.
        final.parent.mkdir(parents=True, exist_ok=True)
        for file in sorted(stage.iterdir(), key=lambda file: file.name == final.name):
            file.replace(final.with_name(file.name))
    said = f"largest difference from the run's features {difference:.1e} (bound {limit:.1e})"
    sys.stdout.write(
        f"{out}: checked by {form.reader}, {said}; model card {card}\n\n{form.snippet(final.absolute())}\n"
    )
    return out


def _check_place(run: Path, out: Path, final: Path, card: Path, form: ExportFormat) -> None:
    """Refuse a place that is something else, and to replace what is no export, which its model card tells.

    Raises ConfigError.
    """
    if out.resolve() in {run.resolve(), (run / MODEL_FILE).resolve()}:
        raise ConfigError(f"--out {out} is the run's own: choose another name")
    suffix = Path(form.file).suffix
    if form.inside and out.is_file():
        raise ConfigError(f"--out {out} is a file: {form.to} makes a folder, give another name")
    if not form.inside and (out.is_dir() or out.suffix != suffix):
        raise ConfigError(f"--out {out}: {form.to} makes one file, whose name must end in {suffix}")
    there = [path for path in (final, card, *map(final.with_name, form.companions(final))) if path.exists()]
    if there and not {final, card} <= set(there):
        names = ", ".join(map(str, there))
        raise ConfigError(
            f"--out: {names} would be replaced, but is not an earlier export: choose another name or delete it"
        )


def _compare(expected: list[list[Tensor]], found: list[list[Tensor]], bound: float) -> tuple[float, float]:
    """Largest absolute difference over all probes and maps, and what is let through; infinite for another shape."""
    gaps, largest = [0.0], 1.0
    for ours, theirs in zip(expected, found, strict=True):
        if not 0 < len(theirs) <= len(ours):
            return math.inf, bound
        for a, b in zip(ours[-len(theirs) :], theirs, strict=True):
            gaps.append(float((a - b).abs().max()) if a.shape == b.shape else math.inf)
            largest = max(largest, float(a.abs().max()))
    return (math.nan if any(map(math.isnan, gaps)) else max(gaps)), bound * largest


@contextmanager
def _refusals(to: str, name: str) -> Iterator[None]:
    """Context that turns whatever a target library raises into a WeightsError that names it."""
    try:
        yield
    except (Pri3DError, OSError):  # clear already; a full disk has its own message
        raise
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # PyTorch's outer message says what to file; the inner one, what is wrong
            cause = cause.__cause__
        reason = first_line(cause)
        raise WeightsError(f"{to} does not support {name} ({reason}); nothing was written. Use another --to") from error


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """Context with a hidden folder beside ``out``, which is gone afterwards, as are those of killed processes."""
    stage = temporary(out)
    shutil.rmtree(stage, ignore_errors=True)  # left by a killed process of the same number
    with usable(f"--out {out}"):
        remove_leftovers(out.parent)
        stage.mkdir(parents=True)
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
