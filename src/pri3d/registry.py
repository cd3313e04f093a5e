"""Names -> classes. A folder keeps a dict ``name -> "module:attribute"``; other packages add entry points."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from pri3d.errors import ConfigError

T = TypeVar("T")

#: What is shipped, by kind and name; an entry point of the group ``pri3d.KIND`` adds to it.
ENCODERS = {
    "resnet18": "pri3d.networks.encoders:ResNetEncoder",
    "resnet34": "pri3d.networks.encoders:ResNetEncoder",
    "resnet50": "pri3d.networks.encoders:ResNetEncoder",
    "resnet101": "pri3d.networks.encoders:ResNetEncoder",
}
OBJECTIVES = {
    "view": "pri3d.objectives.view:ViewObjective",
    "geometry": "pri3d.objectives.geometry:GeometryObjective",
    "trivial": "pri3d.objectives.trivial:TrivialObjective",
    "depth": "pri3d.objectives.depth:DepthObjective",
    "moco": "pri3d.objectives.moco:MocoObjective",
    "keep": "pri3d.objectives.keep:KeepObjective",
    "distill": "pri3d.objectives.distill:DistillObjective",
    "pyramid": "pri3d.objectives.pyramid:PyramidObjective",
    "surface": "pri3d.objectives.surface:SurfaceObjective",
}
TASKS = {
    "semantic": "pri3d.tasks.semantic:SemanticTask",
    "instance": "pri3d.tasks.instance:InstanceTask",
}


def names(kind: str, builtin: Mapping[str, str]) -> list[str]:
    """Every name of a kind ("readers", "objectives", ...): the built-in ones, then those of installed packages."""
    extra = sorted(e.name for e in entry_points(group=f"pri3d.{kind}") if e.name not in builtin)
    return [*builtin, *extra]


def load(kind: str, builtin: Mapping[str, str], name: str) -> Any:
    """Import what ``name`` stands for; nothing else of the kind is imported.

    Raises ConfigError for an unknown name, listing the choices and the closest one.
    """
    if name in builtin:
        module, _, attribute = builtin[name].partition(":")
        return getattr(import_module(module), attribute)
    return _entry(kind, builtin, name).load()


def find(kind: str, builtin: Mapping[str, str], name: str) -> str:
    """Where ``name`` is defined, ``module:attribute``; nothing is imported.

    Raises ConfigError for an unknown name, listing the choices and the closest one.
    """
    return builtin[name] if name in builtin else _entry(kind, builtin, name).value


def _entry(kind: str, builtin: Mapping[str, str], name: str) -> EntryPoint:
    """What an installed package adds under a name."""
    for entry in entry_points(group=f"pri3d.{kind}"):
        if entry.name == name:
            return entry
    raise unknown(kind.removesuffix("s"), names(kind, builtin), name)


def choice(what: str, options: Mapping[str, T], name: str) -> T:
    """Look ``name`` up in a plain dict. Raises ConfigError for an unknown name, as :func:`load` does."""
    if name not in options:
        raise unknown(what, list(options), name)
    return options[name]


def unknown(what: str, choices: Sequence[str], name: str) -> ConfigError:
    """Build the error for a name that is not among the choices: lists them and suggests the closest."""
    close = difflib.get_close_matches(name, choices, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return ConfigError(f"unknown {what} {name!r}.{hint} Choices: {', '.join(choices)}.")
