"""Write a run's weights as a file for other programs, check it by loading it, and write its model card."""

from __future__ import annotations

import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from pri3d import __version__, registry
from pri3d.errors import ConfigError, DataError, Pri3DError, WeightsError, first_line
from pri3d.exporting import FORMATS
from pri3d.exporting.base import PARTS, ExportFormat, maps_of, publishable
from pri3d.files.atomic import remove_leftovers, temporary, usable
from pri3d.files.lock import lock_file
from pri3d.networks.load import load
from pri3d.networks.state_files import INITIAL_FILE, MODEL_FILE
from pri3d.networks.weights import mix_states, read_provenance
from pri3d.store import Store

#: entries of a fine-tuned run's record that speak of its head, which is not exported
OF_TASK = ("task", "settings", "network", "class_names", "sizes", "loaded", "part")

UNKNOWN = "not recorded"

#: entries of a record that are worth a line, and what they are called
FACTS = {
    "preset": "preset",
    "objectives": "objectives and their weights",
    "steps": "steps",
    "size": "image size, width x height",
    "tune": "trained of the encoder",
    "seed": "seed",
    "init": "initial weights",
    "mix": "fraction of the run in the mix with its initial weights",
    "data": "data",
    "data_hash": "hash of the data",
    "version": "written by pri3d",
}

CARD = """\
---
{front}---
# {title}

{what}

Input: RGB in 0..1, {normalisation}. Any image size.

## Load

```python
{snippet}
```
{note}
## Provenance

{stages}

| | |
|---|---|
| licence of the initial weights | {licence} |
| official validation or test scans in the pre-training data | {leak} |
| licence of these weights | not chosen: add `license:` at the top, as those of the data and the initial weights allow |

## Checked

The file was read again by {reader} and compared with the run's own network on {probes} of random images: the largest
absolute difference of a feature was {difference:.1e}; up to {limit:.1e} is accepted. Exported by pri3d {version}.
"""


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
        source.record = {**source.record, "mix": mix * source.record.get("mix", 1.0)}
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


def build_card(form: ExportFormat, record: Mapping[str, Any], path: Path, difference: float, limit: float) -> str:
    """Markdown with a YAML head as the Hugging Face hub reads it, for the weights that end up at ``path``.

    ``record`` is the exported network's. A card that is made to be published names no file of this machine.
    """
    stages = list(read_stages(record))
    shown = [publishable(stage) for stage in stages] if form.published else stages
    tags = list(dict.fromkeys(["pri3d", "rgb-d", "self-supervised", record["encoder"], form.to, form.library]))
    front = {"library_name": form.library, "pipeline_tag": "image-feature-extraction", "tags": tags}
    stated = f"then normalised with mean {form.mean}, standard deviation {form.std}"
    return CARD.format(
        front=yaml.safe_dump(front, sort_keys=False),
        title=path.name if not form.inside else path.parent.name,
        what=_what(form),
        normalisation="normalised inside" if form.normalised_inside else stated,
        snippet=form.snippet(Path("USER", path.parent.name, path.name) if form.published else path.absolute()),
        note=f"\n{form.note}\n" if form.note else "",
        stages="\n\n".join(_table(stage) for stage in shown),
        licence=describe_licence(shown[-1]),
        leak=describe_leak(stages[-1]),
        reader=form.reader,
        probes=" and ".join(f"{n} x {h} x {w}" for n, h, w in form.probes()),
        difference=difference,
        limit=limit,
        version=__version__,
    )


def read_stages(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the record, and that of the run it began with, and so on, as far as the files are still there."""
    for _ in range(8):  # runs that began with each other's weights would go on for ever
        yield record
        init = Path(str(record.get("init") or ""))
        try:
            found = read_provenance(init) if init.name and init.exists() else {}
        except WeightsError:
            found = {}  # gone or overwritten since: what is left is what the record says
        if not found:
            return
        record = found


def describe_leak(record: Mapping[str, Any]) -> str:
    """Say how many scenes of a pre-training run are in an official validation or test list, or that it is not known.

    From ``splits`` of the record (official list -> scenes), else from the prepared folder if it is still the same.
    """
    splits = record.get("splits")
    if not isinstance(splits, Mapping):
        splits, data = {}, Path(str(record.get("data") or ""))
        with suppress(DataError, KeyError):  # no store any more
            if data.name and data.is_dir() and (store := Store(data)).hash == record.get("data_hash"):
                scenes = store.manifest["scenes"].values()
                splits = Counter(str(scene.get("split") or "none").lower() for scene in scenes)
    if not splits:
        return UNKNOWN
    held = {name: count for name, count in splits.items() if name in ("val", "test") and count}
    total = sum(splits.values())
    if held:
        return f"yes: {', '.join(f'{count} {name}' for name, count in sorted(held.items()))} of {total} scenes"
    if set(splits) == {"none"}:
        return f"none: its {total} scenes are of no data set with an official split"
    return f"none of {total} scenes"


def describe_licence(record: Mapping[str, Any]) -> str:
    """Say under which terms the first weights of a run stand, as far as they are known."""
    init = str(record.get("init") or "")
    name = init.removeprefix("timm:") if init.startswith("timm:") else str(record.get("encoder", ""))
    if init == "scratch":
        return "none: random initial weights"
    if init == "imagenet" and name.startswith("resnet"):
        return "torchvision's ImageNet weights (library BSD-3-Clause; ImageNet's images: non-commercial research)"
    if init == "imagenet" or init.startswith("timm:"):
        import timm  # noqa: PLC0415 (only here)

        config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        return f"timm states for {name}: {getattr(config, 'license', None) or 'no licence'}"
    return f"those of {init}" if init else UNKNOWN


def _what(form: ExportFormat) -> str:
    """One sentence on what the file holds."""
    if form.part == "all":
        return f"U-Net with encoder {form.record['encoder']}: features at half the image's resolution."
    channels = ", ".join(map(str, form.channels))
    return f"Image encoder {form.record['encoder']}: maps of strides {form.strides} with {channels} channels."


def _table(record: Mapping[str, Any]) -> str:
    """One stage of training as a table."""
    task = record.get("tuned_for") or record.get("task")
    head = f"| {'fine-tuned: ' + str(task) if task else 'pre-trained'} | |\n|---|---|"
    stated = {key: UNKNOWN if record.get(key) in (None, "") else str(record[key]) for key in FACTS}
    if "mix" not in record:
        del stated["mix"]
    texts = {key: text.replace("|", "\\|").replace("\n", " ") for key, text in stated.items()}
    return "\n".join([head, *(f"| {FACTS[key]} | {text} |" for key, text in texts.items())])
