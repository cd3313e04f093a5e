"""The settings of a run: one dataclass per verb, filled from a preset file and overridden by what the user gives."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from pri3d.errors import ConfigError
from pri3d.geometry.images import Interpolation
from pri3d.geometry.matching import Mode
from pri3d.models.tuning import check_tuning
from pri3d.objectives.contrast import MIN_TEMPERATURE, Negatives

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Schedule = Literal["constant", "step", "poly", "cosine", "onecycle", "multistep"]
Mix = Literal["frames", "combine", "half", "alternate"]
S = TypeVar("S", bound="TrainSettings")

#: Smallest sensible value of a setting.
LEAST = {
    "steps": 1,
    "batch": 1,
    "micro_batch": 1,
    "channels": 1,
    "eval_every": 0,
    "eval_pairs": 1,
    "temperature": MIN_TEMPERATURE,
    "moco_temperature": MIN_TEMPERATURE,
    "moco_queue": 1,
    "moco_group": 0,
    "crop": 32,
    "keep": 0,
    "exclude_px": 0,
    "exclude_cm": 0,
    "distance": 1e-4,
    "momentum": 0,
    "dampening": 0,
    "weight_decay": 0,
    "rois": 1,
    "min_area": 0,
    "seed": 0,
}


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """What every training run has."""

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
            for name, least in LEAST.items()
            if hasattr(self, name) and not getattr(self, name) >= least
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


@dataclasses.dataclass(frozen=True)
class PretrainSettings(TrainSettings):
    """A pre-training run; see :func:`pri3d.train.pretrain.pretrain` for each field."""

    size: str
    encoder: str
    decoder: Literal["paper", "slim"]
    channels: int
    init: str
    tune: str
    objectives: dict[str, float]
    keep: float
    points: int | Literal["all"]
    temperature: float
    negatives: Negatives
    exclude_px: float
    exclude_cm: float
    match: Mode
    distance: float
    voxel: float
    chunks: Literal[1, 2]
    net3d: str
    voxel_input: Literal["occupancy", "color"]
    interpolation: Interpolation
    passes: Literal["joint", "separate"]
    bn_momentum: Literal["constant", "decay"]
    mix: Mix
    crop: int
    moco_queue: int
    moco_momentum: float
    moco_temperature: float
    moco_group: int
    holdout: float
    eval_every: int
    eval_pairs: int

    @property
    def weights(self) -> dict[str, float]:
        """Objectives with a positive weight, the retention term among them."""
        return {name: w for name, w in {**self.objectives, "keep": self.keep}.items() if w > 0}

    @property
    def crops_alone(self) -> bool:
        """Whether MoCo is alone: it needs single images, and neither pairs nor the decoder."""
        return set(self.weights) == {"moco"}

    def problems(self) -> list[str]:
        """Everything wrong with the numbers, each with its flag."""
        found = super().problems()
        if self.compile and self.bn_momentum == "decay":
            found.append("--compile: --bn-momentum decay changes the network ten times; take constant")
        if isinstance(self.points, int) and self.points < 2:
            found.append(f"--points {self.points}: give at least 2, or all")
        wanted = {name for name, weight in self.objectives.items() if weight > 0}
        if not wanted or not all(weight >= 0 for weight in self.objectives.values()):
            found.append(f"--objectives {self.objectives}: give at least one with a positive weight, as in {{view: 1}}")
        if "keep" in self.objectives:
            found.append("--objectives: the weight of keep is --keep")
        if self.keep > 0 and wanted == {"moco"}:
            found.append(f"--keep {self.keep}: moco alone looks at no pairs, give it beside view, geometry or another")
        if "moco" in wanted and self.moco_queue < self.batch:
            found.append(f"--moco-queue {self.moco_queue}: a step makes {self.batch} keys, give at least as many")
        if not 0 <= self.holdout <= 0.9:
            found.append(f"--holdout {self.holdout}: give a share of the frames between 0 and 0.9")
        if not 0 <= self.moco_momentum < 1:
            found.append(f"--moco-momentum {self.moco_momentum}: give a share, 0.999 in the paper")
        problem = check_tuning(self.tune)
        return [*found, problem] if problem else found


def presets(kind: str) -> list[str]:
    """Names of the shipped presets of ``pretrain``, or of a task of ``finetune``."""
    folder = resources.files("pri3d.train") / "presets" / kind
    return sorted(Path(str(item)).stem for item in folder.iterdir() if str(item).endswith(".yaml"))


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
    values = _layers(verb, preset)
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


def _layers(verb: str, preset: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """Key-value pairs of one preset or of several joined by commas, the later over the earlier."""
    values: dict[str, Any] = {}
    for layer in preset.split(","):
        values |= _read(verb, layer.strip(), above)
    return values


def _read(verb: str, preset: str, above: tuple[str, ...]) -> dict[str, Any]:
    """Key-value pairs of a shipped preset, or of the YAML file of that path, over those of its base."""
    if preset in above:
        raise ConfigError(f"preset {preset!r} is its own base ({' -> '.join([*above, preset])}). Remove one 'base:'.")
    path = Path(preset)
    if path.suffix not in {".yaml", ".yml"}:
        choices = presets(verb)
        if preset not in choices:
            raise ConfigError(
                f"unknown preset {preset!r} of {verb}. Choices: {', '.join(choices)}, or the path of a .yaml file."
            )
        path = Path(str(resources.files("pri3d.train") / "presets" / verb / f"{preset}.yaml"))
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({error}).") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'name: value' lines.")
    base = values.pop("base", None)
    return values if base is None else _layers(verb, _beside(path, str(base)), (*above, preset)) | values


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
