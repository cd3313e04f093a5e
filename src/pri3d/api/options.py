"""Options: a field with its help, default and bounds is the parameter, the flag, the preset's key and the check."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import (
    Any,
    ClassVar,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from pri3d.errors import ConfigError

#: A file or folder as callers give it; the field holds a :class:`pathlib.Path`.
AnyPath = str | os.PathLike[str]

P = ParamSpec("P")
R = TypeVar("R")
Given = TypeVar("Given", bound="Options")
_BOUNDS: dict[str, tuple[Callable[[float, float], bool], str]] = {
    "least": (lambda value, bound: value >= bound, "at least {}"),
    "most": (lambda value, bound: value <= bound, "at most {}"),
    "above": (lambda value, bound: value > bound, "more than {}"),
    "below": (lambda value, bound: value < bound, "less than {}"),
}


def option(
    about: str,
    *,
    default: Any = dataclasses.MISSING,
    default_factory: Any = dataclasses.MISSING,
    kw_only: bool = True,
    is_flag: bool = True,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """Field of an :class:`Options` class, whose help is ``about``.

    ``kw_only=False`` makes it positional, ``is_flag=False`` keeps it from the command line.

    ``least``, ``most``, ``above`` and ``below`` bound a number; each is checked where one is given.
    """
    bounds = {"least": least, "most": most, "above": above, "below": below}
    known = {name: bound for name, bound in bounds.items() if bound is not None}
    return dataclasses.field(
        default=default,
        default_factory=default_factory,
        kw_only=kw_only,
        metadata={"about": about, "bounds": known, "is_flag": is_flag},
    )


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(option,))
class Options:
    """Base of every group of options: a frozen dataclass that knows which of its fields were given.

    Values are converted where nothing is lost (a text to a path, a whole number to a float), and checked. A field whose
    type is another Options class is a group: on the command line ``--GROUP.FIELD``, in a preset
    ``GROUP: {FIELD: ...}``. A subclass may refuse more in :meth:`problems`.

    Raises ConfigError that names every unknown option and every value of a wrong type at once.
    """

    group: ClassVar[str] = ""  #: name of the group where it is one: of its field, objective, task or encoder
    #: whether a verb tells what is wrong with the numbers itself, together with what is wrong with its data
    told_together: ClassVar[bool] = False
    _given: frozenset[str]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        build: Callable[..., None] = cls.__init__

        @functools.wraps(build)
        def init(self: Options, *args: Any, **values: Any) -> None:
            positional = [field.name for field in fields_of(cls) if not field.kw_only]
            values |= dict(zip(positional, args, strict=False))
            if len(args) > len(positional):
                raise TypeError(f"{len(positional)} positional arguments at most, {len(args)} were given")
            # Defaults that are paths are stated as texts.
            hints, texts = hints_of(cls), [field for field in fields_of(cls) if isinstance(field.default, str)]
            known = {field.name: Path(str(field.default)) for field in texts if hints[field.name] == AnyPath}
            known |= convert_all(cls, values)
            build(self, **known)
            object.__setattr__(self, "_given", frozenset(values))

        cls.__init__ = init  # type: ignore[method-assign, assignment]

    def given(self) -> dict[str, Any]:
        """What the caller gave, groups as mappings; groups of which nothing was given are left out."""
        result: dict[str, Any] = {}
        for name, value in self.items():
            if isinstance(value, Options):
                if name in self._given and value._given:
                    result[name] = value.given()
            elif name in self._given:
                result[name] = value
        return result

    def items(self) -> Iterator[tuple[str, Any]]:
        """Name and value of every field."""
        return ((field.name, getattr(self, field.name)) for field in fields_of(type(self)))

    def plain(self) -> dict[str, Any]:
        """Every value, groups as mappings, paths as texts: what a file can hold."""
        return {name: _plain(value) for name, value in self.items()}

    def problems(self) -> list[str]:
        """Everything wrong with the numbers, those of groups included, each with its flag."""
        found = []
        for field in fields_of(type(self)):
            value = getattr(self, field.name)
            if isinstance(value, Options):
                found += value.problems()
            elif isinstance(value, int | float) and not isinstance(value, bool):
                for kind, bound in field.metadata.get("bounds", {}).items():
                    holds, words = _BOUNDS[kind]
                    if not holds(value, bound):
                        found.append(f"{flag_as_typed(field.name, self.group)} {value}: give {words.format(bound)}")
        return found

    def conflicts(self, settings: Any) -> list[str]:
        """What does not fit the other settings of the run, for the options of an objective, a task or an encoder."""
        return []


def _plain(value: Any) -> Any:
    if isinstance(value, Options):
        return value.plain()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, os.PathLike) else value


def flag_as_typed(name: str, group: str = "") -> str:
    """An option as it is typed: ``min_overlap`` is ``--min-overlap``, in a group ``--GROUP.min-overlap``."""
    return "--" + (f"{group}.{name}" if group else name).replace("_", "-")


_HINTS: dict[type[Options], dict[str, Any]] = {}


def fields_of(kind: type[Options]) -> tuple[dataclasses.Field[Any], ...]:
    """The fields, in order."""
    return dataclasses.fields(kind)  # type: ignore[arg-type]


def hints_of(kind: type[Options]) -> dict[str, Any]:
    """Types of the fields."""
    if kind not in _HINTS:
        hints = get_type_hints(kind)
        _HINTS[kind] = {field.name: hints[field.name] for field in fields_of(kind)}
    return _HINTS[kind]


def groups_of(kind: type[Options]) -> dict[str, type[Options]]:
    """Fields that are groups."""
    return {name: hint for name, hint in hints_of(kind).items() if isinstance(hint, type) and issubclass(hint, Options)}


def convert_all(kind: type[Options], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the types that the fields want. Raises ConfigError naming every problem."""
    hints, problems, result = hints_of(kind), [], {}
    for name, value in values.items():
        shown = flag_as_typed(name, kind.group)
        if name not in hints:
            close = difflib.get_close_matches(name, hints, n=1)
            problems.append(
                f"unknown option {shown}" + (f", did you mean {flag_as_typed(close[0], kind.group)}?" if close else "")
            )
            continue
        try:
            result[name] = convert(value, hints[name])
        except ConfigError as error:
            problems.append(str(error).removesuffix("."))
        except (TypeError, ValueError) as error:
            problems.append(f"{shown} {value!r}: {error}")
    if problems:
        raise ConfigError("; ".join(problems) + ".")
    return result


def convert(value: Any, hint: Any) -> Any:  # noqa: C901, PLR0911, PLR0912 (one case a type)
    """Value of the type a field wants; only changes that lose nothing. Raises TypeError or ValueError."""
    choices, origin = get_args(hint), get_origin(hint)
    if hint is Any or (isinstance(hint, TypeVar)):
        return value
    if hint == AnyPath or hint is Path:
        if not isinstance(value, str | os.PathLike):
            raise TypeError("expected the path of a file or folder")
        return Path(value)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            raise ValueError(f"choose one of {', '.join(map(str, choices))}")
        return value
    if origin in (Union, UnionType):
        if {str, os.PathLike[str]} <= set(choices):  # a path, or something else
            choices = (*(choice for choice in choices if choice not in (str, os.PathLike[str])), AnyPath)
        for choice in choices:
            with contextlib.suppress(TypeError, ValueError):
                return convert(value, choice)
        raise TypeError(f"expected {in_words(hint)}")
    if origin in (dict, Mapping) or hint is dict:
        if not isinstance(value, Mapping):
            raise TypeError("expected {name: value}")
        return {str(key): convert(item, choices[1]) if choices else item for key, item in value.items()}
    if origin in (list, Sequence) or (origin is not None and isinstance(origin, type) and issubclass(origin, Sequence)):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise TypeError("expected a list")
        return [convert(item, choices[0]) for item in value]
    if isinstance(hint, type) and issubclass(hint, Options):
        if isinstance(value, Options):  # of another class: its fields may be those of this one
            return value if hint in (Options, type(value)) else hint(**value.given())
        if isinstance(value, Mapping):
            return hint(**value)
        raise TypeError(f"expected {hint.__name__}(...)")
    if hint is type(None):
        if value is None:
            return None
        raise TypeError("expected nothing")
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    if hint is float and isinstance(value, str):
        raise TypeError("expected a number; YAML takes 1e-3 for text and 1.0e-3 for a number")
    if inspect.isclass(hint) and hint not in (int, float, str, bool) and isinstance(value, hint):
        return value
    raise TypeError(f"expected {in_words(hint)}")


def in_words(hint: Any) -> str:
    """A type as a user would say it."""
    choices = [choice for choice in get_args(hint) if choice is not type(None)]
    if hint is Path or {str, os.PathLike[str]} <= set(choices):
        return "a path"
    if get_origin(hint) is Literal:
        return ("one of " if len(choices) > 2 else "") + " or ".join(", ".join(map(str, choices)).rsplit(", ", 1))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(in_words, choices))
    if get_origin(hint) in (dict, Mapping):
        return "{name: value}"
    return {float: "a number", int: "a whole number", bool: "true or false", str: "text"}.get(
        hint, str(getattr(hint, "__name__", hint))
    )


class Verb:
    """What the command line knows of a verb."""

    def __init__(self, name: str, options: type[Options], function: Callable[..., Any], example: str) -> None:
        self.name, self.options, self.function, self.example = name, options, function, example

    @property
    def about(self) -> str:
        """First sentence of its docstring."""
        return inspect.getdoc(self.function).split("\n\n")[0].replace("\n", " ").removesuffix(".")  # type: ignore[union-attr]


VERBS: dict[str, Verb] = {}  #: in the order in which they are defined


def verb(
    options: Callable[P, Given], example: str, name: str | None = None
) -> Callable[[Callable[[Given], R]], Callable[P, R]]:
    """Make a function of one Options object a verb, whose parameters are the fields of that class.

    ``name`` is that of the command, where it differs from the function's; ``example`` a line for its help.
    """
    kind = cast("type[Given]", options)
    described = []
    for field in fields_of(kind):
        described.append(f"    {field.name}: {field.metadata['about']}")
        if group := groups_of(kind).get(field.name):
            described += [f"        {field.name}.{each.name}: {each.metadata['about']}" for each in fields_of(group)]

    def decorate(work: Callable[[Given], R]) -> Callable[P, R]:
        @functools.wraps(work)
        def call(*args: P.args, **values: P.kwargs) -> R:
            given = options(*args, **values)
            # A pool's new process imports the script of its parent, which must not run the verb once more.
            beginning = sys.modules.get("multiprocessing.process")
            if beginning is not None and getattr(beginning.current_process(), "_inheriting", False):
                raise ConfigError(
                    f"{work.__name__}: called while a new process imports the script. Put the script's calls below "
                    'if __name__ == "__main__": or give processes=1.'
                )
            if not kind.told_together and (problems := given.problems()):
                raise ConfigError("; ".join(problems) + ".")
            return work(given)

        signature = inspect.signature(kind)
        call.__signature__ = signature.replace(return_annotation=work.__annotations__["return"])  # type: ignore[attr-defined]
        call.__doc__ = "\n".join([f"{inspect.getdoc(work)}\n\nArgs:", *described])
        VERBS[name or work.__name__] = Verb(name or work.__name__, kind, call, example)
        return call

    return decorate


def implementation(target: str) -> Callable[..., Any]:
    """Import what does a verb's work, ``module:function``."""
    module, _, function = target.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), function)
    return found
