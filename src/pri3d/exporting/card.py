"""The model card: description, loading code, provenance, and the measured difference of the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from pri3d import __version__
from pri3d.errors import DataError, WeightsError
from pri3d.exporting.base import ExportFormat, publishable
from pri3d.networks.weights import read_provenance
from pri3d.store import Store

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
