"""Presets: YAML files of options, merged with each other and with the user's options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pri3d.api.options import Options
from pri3d.api.training import TrainSettings
from pri3d.errors import ConfigError
from pri3d.notation import parse_yaml

S = TypeVar("S", bound=TrainSettings)

#: Names of version 0.1 -> the present ones, in presets and run folders.
RENAMED = {
    "init": "weights",
    "decoder": "unet.decoder",
    "channels": "unet.channels",
    "passes": "unet.passes",
    "points": "contrast.points",
    "temperature": "contrast.temperature",
    "negatives": "contrast.negatives",
    "exclude_px": "contrast.exclude_px",
    "exclude_cm": "contrast.exclude_cm",
    "match": "matching.match",
    "distance": "matching.distance",
    "voxel": "geometry.voxel",
    "chunks": "geometry.chunks",
    "net3d": "geometry.net3d",
    "voxel_input": "geometry.voxel_input",
    "mix": "moco.mix",
    "images": "moco.images",
    "crop": "moco.crop",
    "moco_queue": "moco.queue",
    "moco_momentum": "moco.momentum",
    "moco_temperature": "moco.temperature",
    "moco_group": "moco.group_size",
    "norm": "backbone.norm",
    "head_lr": "backbone.head_lr",
    "class_weights": "semantic.class_weights",
    "detector": "instance.detector",
    "short_side": "instance.short_side",
    "long_side": "instance.long_side",
    "rois": "instance.rois",
    "min_area": "instance.min_area",
    "optimizer": "optim.optimizer",
    "momentum": "optim.momentum",
    "dampening": "optim.dampening",
    "weight_decay": "optim.weight_decay",
    "schedule": "optim.schedule",
    "sync_bn": "compute.sync_bn",
    "channels_last": "compute.channels_last",
    "compile": "compute.compile",
    "eval_every": "validation.every",
    "eval_pairs": "validation.pairs",
    "save_every": "checkpoint.every",
    "keep_checkpoints": "checkpoint.keep",
}
#: The same where a task of fine-tuning has another place for it.
RENAMED_IN = {
    "pretrain": {"bn_momentum": "unet.bn_schedule"},
    "semantic": {
        "bn_momentum": "backbone.bn_momentum",
        "decoder": "semantic.decoder",
        "channels": "semantic.channels",
        "size": "semantic.size",
    },
    "instance": {"bn_momentum": "backbone.bn_momentum"},
}


def current(values: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Options by their present names and in their groups; those of version 0.1 were one flat list."""
    renamed = {**RENAMED, **RENAMED_IN.get(kind, {"bn_momentum": "backbone.bn_momentum"})}
    result: dict[str, Any] = {}
    for name, value in values.items():
        old = name in renamed and not isinstance(value, Mapping)
        way = renamed[name] if old else name
        result = overlay(result, _nested(way, value))
    return result


def _nested(way: str, value: Any) -> dict[str, Any]:
    first, _, rest = way.partition(".")
    return {first: _nested(rest, value) if rest else value}


#: mappings that are one value
_WHOLE = ("objectives",)


def overlay(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options, the upper over the lower; mappings that are one value are replaced as a whole."""
    result = dict(lower)
    for name, value in upper.items():
        below = result.get(name)
        both = isinstance(below, Mapping) and isinstance(value, Mapping) and name not in _WHOLE
        result[name] = overlay(below, value) if both else value  # type: ignore[arg-type]
    return result


def shipped(folder: Path) -> dict[str, Path]:
    """Presets of a folder: name -> file, by name."""
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def read_presets(kind: str, folder: Path, preset: str, alone: bool = True) -> dict[str, Any]:
    """Options of a shipped preset or a YAML file, nested, by their present names.

    ``preset`` may be several joined by commas: they are merged from left to right, the later one wins. A file inherits
    what it names as ``base``, if it does: presets, or files beside it. One that says ``partial: true`` changes some
    options only, and is refused alone. What one states as ``alone`` holds where the caller says ``alone``: that
    nothing is given which it would go with. ``kind`` is "pretrain" or the name of a task.

    Raises ConfigError for an unknown preset or a file that cannot be read.
    """
    values = _layers(kind, shipped(folder), preset, alone)
    if values.pop("partial", False):
        raise ConfigError(
            f"preset {preset!r} changes only some options: merge it with a complete preset, as in paper,{preset}."
        )
    return values


def _layers(
    kind: str, known: Mapping[str, Path], preset: str, alone: bool, above: tuple[str, ...] = ()
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    partial = True
    for layer in preset.split(","):
        read = _read(kind, known, layer.strip(), alone, above)
        partial = bool(read.pop("partial", False)) and partial
        values = overlay(values, read)
    return {**values, "partial": partial}


def _read(kind: str, known: Mapping[str, Path], preset: str, alone: bool, above: tuple[str, ...]) -> dict[str, Any]:
    """Options of a shipped preset, or of the YAML file of that path, over those of its base."""
    import yaml  # noqa: PLC0415 (this module stays light)

    if preset in above:
        raise ConfigError(f"preset {preset!r} is its own base ({' -> '.join([*above, preset])}). Remove one 'base:'.")
    path = Path(preset)
    if path.suffix not in {".yaml", ".yml"}:
        if preset not in known:
            choices = ", ".join([*known, "or the path of a .yaml file"])
            raise ConfigError(f"unknown preset {preset!r} of {kind}. Choices: {choices}.")
        path = known[preset]
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({error}).") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'name: value' lines.")
    base, own = values.pop("base", None), values.pop("alone", None) or {}
    if not isinstance(own, dict):
        raise ConfigError(f"{path}: alone: expected its options, as in alone: {{encoder: resnet18}}.")
    values = current({str(name): value for name, value in ({**own, **values} if alone else values).items()}, kind)
    if base is None:
        return values
    return overlay(_layers(kind, known, _beside(path, str(base)), alone, (*above, preset)), values)


def _beside(path: Path, base: str) -> str:
    """What a file names as its base; files are looked for beside it."""
    layers = (layer.strip() for layer in base.split(","))
    files = (".yaml", ".yml")
    return ",".join(str((path.parent / layer).resolve()) if layer.endswith(files) else layer for layer in layers)


def build(kind: type[S], values: Mapping[str, Any], own: Mapping[str, type[Options] | None], where: str) -> S:
    """Settings of nested values, with the options of the objectives, task and encoder in ``own``, by name.

    ``own`` are those in use. Raises ConfigError naming every problem at once: a name that nothing in use has, a wrong
    type, an impossible number, options that do not fit each other.
    """
    problems: list[str] = []
    options: dict[str, Options] = {}
    for name, group in own.items():
        given = values.get(name, {})
        if not isinstance(given, Mapping):
            problems.append(f"{name}: expected its options, as in {name}: {{option: value}}")
        elif group is None:
            problems += [f"--{name}.{key}: {name} has no options" for key in given]
        else:
            try:
                options[name] = group(**given)
            except ConfigError as error:
                problems.append(str(error).removesuffix("."))
    settings: S | None = None
    try:
        settings = kind(**{name: value for name, value in values.items() if name not in own}, own=options)
    except ConfigError as error:
        problems.append(str(error).removesuffix("."))
    if settings is not None and not problems:
        problems = settings.problems()
        for each in options.values():
            problems += each.problems()
        if not problems:
            problems = [problem for each in options.values() for problem in each.conflicts(settings)]
        if not problems:
            return settings
    raise ConfigError(f"settings ({where}): " + "; ".join(problems) + ".")
