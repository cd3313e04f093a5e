"""The settings of a training run: a dataclass, filled from a preset file and overridden by what the user gives."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from pri3d.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Schedule = Literal["constant", "step", "poly", "cosine", "onecycle", "multistep"]
S = TypeVar("S", bound="TrainSettings")


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """What every training run has. A subclass adds fields, their smallest values and what else can be wrong.

    Its presets lie beside its file, in ``presets/NAME``: of the verb, or of the task of ``finetune``.
    """

    #: smallest sensible value of a setting
    least: ClassVar[Mapping[str, float]] = {
        "steps": 1,
        "batch": 1,
        "micro_batch": 1,
        "momentum": 0,
        "dampening": 0,
        "weight_decay": 0,
        "seed": 0,
    }

    augment: str
    optimizer: Literal["sgd", "adamw"]
    lr: float
    momentum: float
    dampening: float
    weight_decay: float
    schedule: Schedule
    steps: int
    batch: int
    micro_batch: int
    precision: Precision
    sync_bn: bool
    channels_last: bool
    compile: bool
    seed: int = dataclasses.field(default=0, kw_only=True)

    def problems(self) -> list[str]:
        """Everything wrong with the numbers, each with its flag."""
        found = [
            f"--{name.replace('_', '-')} {getattr(self, name)}: give at least {least:g}"
            for name, least in self.least.items()
            if not getattr(self, name) >= least
        ]
        if not self.lr > 0:
            found.append(f"--lr {self.lr}: must be positive")
        if self.seed >= 1 << 32:
            found.append(f"--seed {self.seed}: give less than {1 << 32}")
        if not found and self.batch % self.micro_batch:
            found.append(f"--batch {self.batch} is not a multiple of --micro-batch {self.micro_batch}")
        return found

    @property
    def accumulate(self) -> int:
        """Forward passes per optimizer step."""
        return self.batch // self.micro_batch


def presets(kind: type[TrainSettings], verb: str) -> dict[str, Path]:
    """Shipped presets of ``pretrain``, or of a task of ``finetune``: name -> file, by name.

    They lie in ``presets/VERB`` beside the file that defines ``kind``.
    """
    folder = Path(inspect.getfile(kind)).parent / "presets" / verb
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def resolve(kind: type[S], verb: str, preset: str, given: Mapping[str, Any]) -> S:
    """Settings of a shipped preset or a YAML file, with what the user gives on top.

    ``preset`` may be several joined by commas: they are laid over each other, the later one wins. A file stands
    on what it names as ``base``, if it does: presets, or files beside it.
    ``given`` may hold all arguments of a verb: None means not given, and those that are no setting of ``kind`` (its
    folders, its workers) are left alone.

    Raises ConfigError naming every problem at once: unknown preset or key, wrong type, impossible number.
    """
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = _layers(verb, presets(kind, verb), preset)
    values |= {name: value for name, value in given.items() if value is not None and name in fields}
    problems = []
    for name, value in values.items():
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            problems.append(f"unknown setting {name!r}" + (f", did you mean {close[0]!r}?" if close else ""))
        else:
            try:
                values[name] = _convert(value, hints[name])
            except (TypeError, ValueError) as error:
                problems.append(f"{name} = {value!r}: {error}")
    required = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]
    if required:
        hint = " (lay it over a whole one, as in paper,small)" if preset == "small" else ""
        problems.append(f"missing: {', '.join(required)}{hint}")
    if not problems:
        settings = kind(**values)
        problems = settings.problems()
        if not problems:
            return settings
    raise ConfigError(f"settings (preset {preset!r} and flags): " + "; ".join(problems) + ".")


def _layers(verb: str, shipped: Mapping[str, Path], preset: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Key-value pairs of one preset or of several joined by commas, the later over the earlier."""
    values: dict[str, Any] = {}
    for layer in preset.split(","):
        values |= _read(verb, shipped, layer.strip(), above)
    return values


def _read(verb: str, shipped: Mapping[str, Path], preset: str, above: tuple[str, ...]) -> dict[str, Any]:
    """Key-value pairs of a shipped preset, or of the YAML file of that path, over those of its base."""
    if preset in above:
        raise ConfigError(f"preset {preset!r} is its own base ({' -> '.join([*above, preset])}). Remove one 'base:'.")
    path = Path(preset)
    if path.suffix not in {".yaml", ".yml"}:
        if preset not in shipped:
            choices = ", ".join([*shipped, "or the path of a .yaml file"])
            raise ConfigError(f"unknown preset {preset!r} of {verb}. Choices: {choices}.")
        path = shipped[preset]
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({error}).") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'name: value' lines.")
    base = values.pop("base", None)
    return values if base is None else _layers(verb, shipped, _beside(path, str(base)), (*above, preset)) | values


def _beside(path: Path, base: str) -> str:
    """What a file names as its base; files are looked for beside it."""
    layers = (layer.strip() for layer in base.split(","))
    files = (".yaml", ".yml")
    return ",".join(str((path.parent / layer).resolve()) if layer.endswith(files) else layer for layer in layers)


def _convert(value: Any, hint: Any) -> Any:
    """Value of the type a field wants; only changes that lose nothing. Raises TypeError or ValueError."""
    options = get_args(hint)
    origin = get_origin(hint)
    if origin is Literal:
        if not any(value == option and type(value) is type(option) for option in options):
            raise ValueError(f"choose one of {', '.join(map(str, options))}")
        return value
    if origin in (Union, UnionType):
        for option in options:
            with contextlib.suppress(TypeError, ValueError):
                return _convert(value, option)
        raise TypeError(f"expected {' or '.join(_name(option) for option in options)}")
    if origin is dict:
        if not isinstance(value, dict):
            raise TypeError("expected {name: number}")
        return {str(key): _convert(number, options[1]) for key, number in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    if hint is float and isinstance(value, str):
        raise TypeError("expected float; YAML takes 1e-3 for text and 1.0e-3 for a number")
    raise TypeError(f"expected {_name(hint)}")


def _name(hint: Any) -> str:
    """A type as a user would say it."""
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    return str(getattr(hint, "__name__", hint))
