"""The command line: each command is the function of the same name, its flags are the fields of that function's options.

The only file that knows jsonargparse. Nothing here imports PyTorch: ``--help`` and a misspelt flag answer at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, get_args, get_origin

from jsonargparse import ArgumentParser

import pri3d
from pri3d import registry
from pri3d.api.finetune import FinetuneSettings, resolve_finetuning
from pri3d.api.options import VERBS, AnyPath, Options, Verb, fields_of, flag_as_typed, groups_of, hints_of, in_words
from pri3d.api.plugins import gathered, options_class
from pri3d.api.presets import RENAMED, RENAMED_IN
from pri3d.api.pretrain import PretrainOptions, PretrainSettings, resolve_pretraining
from pri3d.api.training import CallOptions, TrainSettings
from pri3d.errors import ConfigError, Pri3DError, printable
from pri3d.files.atomic import is_full
from pri3d.machine import limit_spinning

#: Flags of version 0.1 -> the present ones, by command, beside the options of training in ``RENAMED``.
RENAMED_FLAGS = {
    "check": {"frames": "max_frames", "pairs": "max_pairs"},
    "coco": {"labels": "label_map"},
    "demo": {"workers": "processes"},
    "embed": {"every": "frame_step"},
    "evaluate": {"labels": "label_map"},
    "finetune": {"labels": "label_map"},
    "predict": {"every": "frame_step", "weights": "which"},
    "prepare": {"workers": "processes"},
    "probe": {"frames": "max_frames", "pairs": "max_pairs", "split": "portion", "labels": "label_map"},
    "reproduce": {"size": "scale", "workers": "jobs", "frames": "scannet_frames"},
    "rooms": {"workers": "processes"},
    "view": {"frames": "max_frames", "pairs": "max_pairs"},
}
#: Flags that are no more -> what to do instead, by command.
REMOVED_FLAGS = {"probe": {"steps": "Linear probes are solved in closed form, without training: leave it out."}}


class Flag(NamedTuple):
    """One option of a command."""

    name: str  #: with its group, as in ``moco.queue``
    type: Any
    default: Any
    about: str
    group: str  #: title of its group in the help, empty for none
    positional: bool


class Parser(ArgumentParser):
    """Parser of one command, whose help and errors name flags and types as a user would say them."""

    verb: Verb
    flags: Sequence[Flag] = ()

    def format_help(self, *args: Any, **options: Any) -> str:
        """Flags by group, each with its choices and the value that it has where it is not given."""
        about = textwrap.fill(self.verb.about + ".", _width(), break_on_hyphens=False)
        example = textwrap.wrap(self.verb.example, _width() - 2, break_long_words=False, break_on_hyphens=False)
        parts = [f"usage: {self.usage}", "", about]
        groups = {"arguments": [flag for flag in self.flags if flag.positional], "flags": []}
        for flag in self.flags:
            if not flag.positional:
                groups.setdefault(flag.group or "flags", []).append(flag)
        for title, flags in groups.items():
            if flags:
                parts += ["", *textwrap.wrap(f"{title}:", _width()), *itertools.chain(*map(_help_of, flags))]
        if issubclass(self.verb.options, CallOptions):
            what = " TASK" if "task" in hints_of(self.verb.options) else ""
            note = (
                f"The defaults are those of the preset; pri3d {self.verb.name}{what} --preset NAME --help shows others."
            )
            parts += ["", *textwrap.wrap(note, _width(), break_on_hyphens=False)]
        return "\n".join([*parts, "", "example:", *(f"  {line}" for line in example), ""])

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Exit with 2, after the usage."""
        known = {flag.name: flag for flag in self.flags}
        wrong = re.match(r'Parser key "([\w.]+)":.*(?:Got|Given) value: (.*)', message, flags=re.DOTALL)
        if wrong and wrong[1] in known:
            flag = known[wrong[1]]
            typed = _shown(flag) if flag.positional else flag_as_typed(flag.name)
            message = f"{typed} {wrong[2]}: expected {in_words(flag.type)}"
        missing = re.fullmatch(r"the following arguments are required: (.*)", message)
        if missing:
            message = f"missing: {', '.join(_shown(known[name]) for name in missing[1].split(', '))}"
        self.exit(2, f"usage: {self.usage}\n(pri3d {self.verb.name} --help lists the flags)\nerror: {message}\n")


def _width() -> int:
    """Columns of a line of help."""
    return max(40, min(shutil.get_terminal_size().columns, 120) - 2)


def _help_of(flag: Flag) -> Iterator[str]:
    """Lines of the help of one option."""
    form = "WIDTHxHEIGHT" if "WIDTHxHEIGHT" in flag.about else _metavar(flag.type)
    name, value = f"{flag_as_typed(flag.name)} {form}", flag.default
    if flag.positional:
        name = _shown(flag) + (" ..." if _element(flag.type) else "")
    elif flag.type is bool:
        switch, off = flag_as_typed(flag.name), re.sub(r"([^.]+)$", r"no_\1", flag.name)
        name, value = f"{switch}, {flag_as_typed(off)}" if value else switch, "on" if value else None
    elif isinstance(value, Mapping):
        value = f"{{{', '.join(f'{key}: {item:g}' for key, item in value.items())}}}"
    elif isinstance(value, float):
        value = f"{value:g}"
    about = flag.about if value in (None, "", ()) else f"{flag.about} (default: {value})"
    lines = textwrap.wrap(about, _width() - 24, break_on_hyphens=False) or [""]
    if len(name) <= 20:
        yield f"  {name:<22}{lines.pop(0)}"
    else:
        yield f"  {name}"
    yield from (" " * 24 + line for line in lines)


def _metavar(hint: Any) -> str:
    """What stands after a flag for its value."""
    several, choices = _element(hint), [choice for choice in get_args(hint) if choice is not type(None)]
    if several is not None:
        return f"{_metavar(several)} ..."
    if get_origin(hint) is Literal:
        return f"{{{','.join(map(str, choices))}}}"
    if get_origin(hint) is dict:
        return "'{NAME: NUMBER}'"
    if "PathLike" in str(hint) or hint is Path:
        return "PATH"
    if choices:
        return "|".join(
            str(item) if get_origin(choice) is Literal else _metavar(choice)
            for choice in choices
            for item in (get_args(choice) or [choice])
        )
    return {int: "N", float: "NUMBER", bool: "true|false"}.get(hint, "TEXT")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit code 0, 1 for an error that says what to do, 2 for a wrong flag, 130 after CTRL-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    # Open what the shell has closed (`>&-`): else the next file that is opened gets the number of the output.
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:  # the lowest number that is free is its own
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, closefd=False))
    try:
        if not words or words[0] in ("-h", "--help"):
            width = max(map(len, VERBS))
            verbs = [VERBS[name] for name in sorted(VERBS)]
            print("usage: pri3d COMMAND ...    (pri3d COMMAND --help for its flags)\n")
            print("Turns posed RGB-D recordings into better image backbones (Pri3D, ICCV 2021).\n")
            print("commands:")
            for verb in verbs:
                lines = textwrap.wrap(verb.about, _width() - width - 4, break_on_hyphens=False)
                print(f"  {verb.name.ljust(width)}  " + f"\n{' ' * (width + 4)}".join(lines))
            print("\nexamples:", *(f"  {verb.example}" for verb in verbs), sep="\n")
            return 0
        if words[0] == "--version":
            print(f"pri3d {pri3d.__version__}")
            return 0
        if words[0] not in VERBS:
            raise registry.unknown("command", list(VERBS), words[0])
        verb = VERBS[words[0]]
        given = parse(verb, words[1:])
        limit_spinning()
        verb.function(**given)
    except Pri3DError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 130 if error.__class__.__name__ == "InterruptedRunError" else 1
    except OSError as error:  # of a disk, a network, a place that cannot be written: no fault of the program
        fix = (
            "The disk is full; free some space"
            if is_full(error)
            else "Check that the file or folder exists and that you have permission"
        )
        if isinstance(error, BrokenPipeError):  # `| head`; what Python still holds for it must not fail on the way out
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            fix = "The program that read the output has ended"
        print(f"error: {printable(str(error))}. {fix}; the same command continues", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        how = {"pretrain": "--resume continues", "finetune": "--resume continues", "demo": "it starts over next time"}
        print(f"interrupted; {how.get(words[0], 'the same command continues')}", file=sys.stderr)
        return 130
    return 0


def parse(verb: Verb, words: Sequence[str]) -> dict[str, Any]:
    """Options that the words give. Exits with 2 and the usage for a wrong flag, with 0 after --help."""
    flags = list(flags_of(verb, words))
    # Positional arguments, flat flags, and a section for every group.
    needed = (f"{_shown(flag)}{' ...' if _element(flag.type) else ''}" for flag in flags if flag.positional)
    parser = Parser(prog=f"pri3d {verb.name}", usage=" ".join([f"pri3d {verb.name}", *needed, "[flags]"]))
    parser.verb, parser.flags = verb, flags
    for flag in flags:
        several = _element(flag.type)
        if flag.positional and several is not None:
            parser.add_argument(flag.name, nargs="+", type=Path)
        elif flag.positional:
            parser.add_argument(flag.name, type=_typed(flag.type))
        elif several is not None:
            parser.add_argument(f"--{flag.name}", nargs="+", action="extend", type=str, default=flag.default)
        else:
            parser.add_argument(f"--{flag.name}", type=_typed(flag.type), default=flag.default)
    normal = normalise(words, flags)
    # A flag that the command does not have: say what it is called now, or which is the closest.
    known = {flag.name for flag in flags if not flag.positional} | {"help"}
    renamed = dict(RENAMED_FLAGS.get(verb.name, {}))
    if issubclass(verb.options, CallOptions):
        kind = "pretrain" if verb.options is PretrainOptions else str(_task(normal))
        renamed |= {**RENAMED, **RENAMED_IN.get(kind, {})}
    for word in normal:
        name = word[2:].partition("=")[0]
        if not word.startswith("--") or name in known or not name:
            continue
        if renamed.get(name) in known:
            hint = f" It is {flag_as_typed(renamed[name])} now."
        elif name in REMOVED_FLAGS.get(verb.name, {}):
            hint = f" {REMOVED_FLAGS[verb.name][name]}"
        else:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {flag_as_typed(close[0])}?" if close else ""
        parser.error(f"unknown flag {flag_as_typed(name)}.{hint}")
    found = parser.parse_args(normal, defaults=False).as_dict()
    return gathered("objectives" if verb.options is PretrainOptions else "tasks", verb.options, found)


def flags_of(verb: Verb, words: Sequence[str]) -> Iterator[Flag]:
    """Every option of a command; where it takes presets, with the values that the preset among the words gives."""
    values: Mapping[str, Any] = {}
    owners: list[tuple[str, type[Options] | None]] = []
    if issubclass(verb.options, CallOptions):
        settings = _preset_values(verb, words)
        values = settings.plain() | dict(settings.own) if settings else {}
        if verb.options is PretrainOptions:
            owners = [(name, options_class("objectives", name)) for name in _plugins("objectives", registry.OBJECTIVES)]
        else:
            task = _task(words)
            names = [task] if task else _plugins("tasks", registry.TASKS)
            owners = [(name, options_class("tasks", name)) for name in names]
        owners += [(name, options_class("encoders", name)) for name in _plugins("encoders", registry.ENCODERS)]
    flags = [*_flags(verb.options, "", "", values)]
    for name, kind in owners:
        if kind is not None:
            own = values.get(name)
            known = dict(own.items()) if isinstance(own, Options) else {}
            flags += _flags(kind, f"{name}.", f"{name}: {_first_line(kind)}", known)
    if values or not issubclass(verb.options, CallOptions):
        yield from flags
        return
    stated = {*hints_of(PretrainSettings if verb.options is PretrainOptions else FinetuneSettings), *dict(owners)}
    for flag in flags:  # what a preset states is not known
        yield flag._replace(default=None) if flag.name.partition(".")[0] in stated else flag


def _flags(kind: type[Options], prefix: str, title: str, values: Mapping[str, Any]) -> Iterator[Flag]:
    """Flags of a class of options, those of its groups after them."""
    hints, groups, shown = hints_of(kind), groups_of(kind), []
    for field in fields_of(kind):
        hint = hints[field.name]
        if not field.metadata["is_flag"]:
            continue
        if field.name in groups:
            shown.append((field.name, groups[field.name]))
            continue
        if field.name in values:
            default = values[field.name]
        elif callable(field.default_factory):
            default = field.default_factory()
        else:
            default = None if field.default is dataclasses.MISSING else field.default
        needed = not field.kw_only and field.default is dataclasses.MISSING
        yield Flag(prefix + field.name, hint, default, field.metadata["about"], title, needed)
    for name, hint in shown:
        yield from _flags(hint, f"{name}.", f"{name}: {_first_line(hint)}", values.get(name) or {})


def _first_line(kind: type[Options]) -> str:
    return str(kind.__doc__).split("\n")[0].removesuffix(".")


def _plugins(kind: str, builtin: Mapping[str, str]) -> list[str]:
    return [name for name in registry.names(kind, builtin) if options_class(kind, name) is not None]


def _task(words: Sequence[str]) -> str | None:
    """The task among the words of ``finetune``, where it is a known one."""
    known = registry.names("tasks", registry.TASKS)
    return next((word for word in words if word in known), None)


def _preset_values(verb: Verb, words: Sequence[str]) -> TrainSettings | None:
    """Settings of the preset among the words; None where it is unknown, which is refused later."""
    named: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name in ("preset", "weights", "encoder"):
            named[name] = value if equals else following
    preset = named.pop("preset", "")
    with suppress(ConfigError):
        if verb.options is PretrainOptions:
            return resolve_pretraining(preset, named)
        task = _task(words)
        return resolve_finetuning(task, preset or "quick") if task else None
    return None


def _shown(flag: Flag) -> str:
    """A positional argument as the usage names it; of several, one."""
    return flag.name.upper().removesuffix("S") if _element(flag.type) else flag.name.upper()


def _element(hint: Any) -> Any:
    """Type of the elements where several values are meant, else None."""
    for choice in (hint, *get_args(hint)):
        if getattr(choice, "__origin__", None) is Sequence and get_args(choice):
            return get_args(choice)[0]
    return None


def _typed(hint: Any) -> Any:
    """The type as jsonargparse knows it: a path or a name that may be one is a text, which the options convert."""
    choices = [choice for choice in get_args(hint) if "PathLike" not in str(choice)]
    if len(choices) == len(get_args(hint)):
        return hint
    return Path if hint == AnyPath else str | None if type(None) in choices else str


def normalise(words: Sequence[str], flags: Sequence[Flag]) -> list[str]:
    """Flags as the parser knows them: ``--min-overlap`` is ``--min_overlap``, ``--no-labels`` ``--labels=false``."""
    switches = {flag.name for flag in flags if flag.type in (bool, bool | None)}
    result = []
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        if not word.startswith("--"):
            result.append(word)
            continue
        name = name[2:].replace("-", "_")
        following = words[position + 1] if position + 1 < len(words) else ""
        positive = re.sub(r"(^|\.)no_", r"\1", name, count=1)
        if name in switches and not equals and following not in ("true", "false"):
            result.append(f"--{name}=true")
        elif positive != name and positive in switches and not equals:
            result.append(f"--{positive}=false")
        else:
            result.append(f"--{name}{equals}{value}")
    return result
