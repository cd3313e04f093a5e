"""Options of an objective, a task or an encoder, read from its file without running it.

The file imports PyTorch, which a question such as ``pri3d pretrain --help`` need not wait for. So of a module that is
not imported yet, only the Options classes are executed, with the light imports that they need. The result is a twin of
the class: same fields, same checks.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pri3d
from pri3d import registry
from pri3d.api.options import Options, hints_of
from pri3d.errors import ConfigError

BUILTIN = {"objectives": registry.OBJECTIVES, "tasks": registry.TASKS, "encoders": registry.ENCODERS}
#: what an Options class may use: modules whose import costs nothing
_LIGHT = ("__future__", "typing", "collections", "dataclasses", "math", "pathlib", "re", "pri3d.api", "pri3d.errors")


def source_of(module: str) -> Path:
    """File of a module, which is not imported for it (packages above one of somebody else are)."""
    if module.partition(".")[0] == "pri3d":
        path = Path(pri3d.__file__).parent.joinpath(*module.split(".")[1:])
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ConfigError(f"module {module} of an installed plug-in cannot be found. Install its package again.")
    return Path(spec.origin)


@functools.cache
def options_class(kind: str, name: str) -> type[Options] | None:
    """Options of an objective, a task or an encoder, None where it has none. ``kind`` is a key of ``BUILTIN``.

    Raises ConfigError for an unknown name.
    """
    module, _, attribute = registry.find(kind, BUILTIN[kind], name).partition(":")
    if module not in sys.modules and module.partition(".")[0] == "pri3d":
        return _read(source_of(module), attribute)
    found: type[Options] | None = getattr(getattr(import_module(module), attribute), "options", None)
    return found


def options_of_encoder(encoder: Any) -> dict[str, type[Options] | None]:
    """Name of an encoder -> its options, None where it has none; empty for a network of timm."""
    known = encoder in registry.names("encoders", registry.ENCODERS)
    return {encoder: options_class("encoders", encoder)} if known else {}


def refuse_other_encoders(encoder: Any, given: Mapping[str, Any]) -> None:
    """Raise ConfigError where options of an encoder are given that is not the chosen one."""
    others = [name for name in registry.names("encoders", registry.ENCODERS) if name in given and name != encoder]
    if others:
        listed = ", ".join(f"--{name}.{key}" for name in others for key in given[name])
        raise ConfigError(f"{listed}: not used by the encoder {encoder}. Leave it out.")


def gathered(kind: str, options: type[Options], values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values of a verb -> its arguments: groups of objectives, task or encoder become its ``options``.

    ``kind`` is "objectives" or "tasks".
    """
    own = {name: group for name, group in values.items() if name not in hints_of(options)}
    given = {name: value for name, value in values.items() if name not in own}
    objects = []
    for name, group in own.items():
        is_encoder = name not in registry.names(kind, BUILTIN[kind]) and options_of_encoder(name)
        found = options_class("encoders" if is_encoder else kind, name)
        if found is None:
            raise ConfigError(f"--{name}.{next(iter(group))}: {name} has no options. Leave it out.")
        objects.append(found(**group))
    return {**given, "options": objects} if objects else given


def _read(path: Path, attribute: str) -> type[Options] | None:
    """What ``options = NAME`` in the class of that name says, from the file's text."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    wanted = next(
        (
            node.value.id
            for node in classes[attribute].body
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Name)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name) and target.id == "options"
        ),
        None,
    )
    if wanted is None:
        return None
    light: list[ast.stmt] = [
        node
        for node in tree.body
        if (isinstance(node, ast.ImportFrom) and str(node.module).startswith(_LIGHT))
        or (isinstance(node, ast.Import) and node.names[0].name in _LIGHT)
    ]
    source = ast.Module([*light, classes[wanted]], [])
    names: dict[str, Any] = {"__name__": f"pri3d.api.plugins.{path.stem}"}
    sys.modules.setdefault(names["__name__"], type(sys)(names["__name__"])).__dict__.update(names)
    names = sys.modules[names["__name__"]].__dict__  # where the types of the fields are looked up
    exec(compile(source, str(path), "exec"), names)  # noqa: S102 (a file of this package)
    found: type[Options] = names[wanted]
    return found
