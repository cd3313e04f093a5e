"""The parts of the documentation that are generated from the program: options, commands, the tree of the source.

``python tests/generated.py`` writes them into the pages, between ``<!-- options: COMMAND -->``, ``<!-- commands -->``,
``<!-- tree -->`` and their end; tests compare them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pri3d.api.finetune import FinetuneOptions, FinetuneSettings, resolve_finetuning
from pri3d.api.options import VERBS, Options, fields_of, flag_as_typed, groups_of
from pri3d.api.plugins import options_class
from pri3d.api.presets import read_presets
from pri3d.api.pretrain import PRESETS, PretrainOptions, PretrainSettings, resolve_pretraining
from pri3d.api.training import CallOptions, TrainSettings
from pri3d.cli import flags_of
from pri3d.registry import OBJECTIVES, TASKS

DOCS = Path(__file__).parents[1] / "docs"
ARCHITECTURE = DOCS / "architecture.md"
COMMANDS = DOCS / "commands.md"
#: command -> the page with the table of its options; those of the others are in COMMANDS
PAGES = {
    verb: DOCS / page
    for verb, page in {
        "check": "check.md",
        "prepare": "prepare.md",
        "pretrain": "pretraining.md",
        "probe": "probe.md",
        "finetune": "finetuning.md",
        "evaluate": "evaluation.md",
        "predict": "evaluation.md",
        "report": "report.md",
        "coco": "labelled-data.md",
        "export": "weights.md",
        "embed": "weights.md",
        "view": "view.md",
        "reproduce": "reproduce.md",
    }.items()
}
SETTINGS: dict[str, type[TrainSettings]] = {"pretrain": PretrainSettings, "finetune": FinetuneSettings}
OPTIONS: dict[str, type[CallOptions]] = {"pretrain": PretrainOptions, "finetune": FinetuneOptions}
#: column -> settings of a preset in it
COLUMNS: dict[str, dict[str, Callable[[], TrainSettings]]] = {
    "pretrain": {name: lambda name=name: resolve_pretraining(name) for name in ("quick", "paper")},  # type: ignore[misc]
    "finetune": {
        f"{task} {name}": lambda task=task, name=name: resolve_finetuning(task, name)  # type: ignore[misc]
        for task in TASKS
        for name in ("quick", "paper")
    },
}


def tree() -> str:
    """Every file of the source with the first line of its docstring; folders with that of their ``__init__.py``."""
    lines = []
    source = DOCS.parent / "src" / "pri3d"
    for folder in (source, *sorted({path.parent for path in source.rglob("*.py")} - {source})):
        deep = "    " * len(folder.relative_to(source).parts)
        files = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
        lines.append(f"{deep}{folder.name + '/':<{26 - len(deep)}}{_about(folder / '__init__.py')}".rstrip())
        lines += [f"{deep}    {path.name:<{21 - len(deep)}} {_about(path)}" for path in files]
    return "```text\n" + "\n".join(lines) + "\n```"


def _about(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    return doc.split("\n")[0].replace("``", "")


def owners(kind: str) -> dict[str, type[Options]]:
    """Groups of objectives or tasks that are built in, by name."""
    place, known = ("objectives", OBJECTIVES) if kind == "pretrain" else ("tasks", TASKS)
    found = {name: options_class(place, name) for name in known}
    return {name: group for name, group in found.items() if group is not None}


def commands() -> str:
    """Every command: what it does, an example, its arguments, and its options or the page that has them."""
    parts = []
    for name, verb in VERBS.items():
        flags = [*flags_of(verb, [])]
        parts += [f"## pri3d {name}", f"{verb.about}.", f"```bash\n{verb.example}\n```"]
        arguments = [flag for flag in flags if flag.positional]
        if arguments:
            rows = [["argument", "meaning"], *([f"`{_shown(flag.name)}`", _text(flag.about)] for flag in arguments)]
            parts.append(_lines(rows))
        page = PAGES.get(name)
        parts.append(f"Options: [{_title(page)}]({page.name})." if page else tables(name))
    return "\n\n".join(parts)


def tables(kind: str) -> str:
    """Every table of a command, the flat options first, then one for each group."""
    if kind not in SETTINGS:
        rows = [["option", "default", "meaning"]]
        for flag in flags_of(VERBS[kind], []):
            if not flag.positional:
                default = "-" if flag.default in (None, "", ()) or flag.default == [] else _cell(flag.default)
                rows.append([f"`{flag_as_typed(flag.name)}`", default, _text(flag.about)])
        return _lines(rows) if len(rows) > 1 else "No options."
    settings, options = SETTINGS[kind], OPTIONS[kind]
    columns = {name: make() for name, make in COLUMNS[kind].items()}
    presets = {name: each.stated() for name, each in columns.items()}
    groups = groups_of(options)
    flat = [f for f in fields_of(options) if f.name not in groups and f.kw_only and f.metadata["is_flag"]]
    in_preset = (
        {f.name for f in fields_of(settings)} - {"weights", "seed"}
        if kind == "finetune"
        else {f.name for f in fields_of(settings)} - {"seed"}
    )
    parts = ["Of a preset:", _table([f for f in flat if f.name in in_preset], "", presets)]
    for name, group in {**groups, **owners(kind)}.items():
        of_preset = name in groups_of(settings) or name in owners(kind)
        own = {n: p.get(name) or _unused(kind, n, name, group) for n, p in presets.items()}
        parts += [f"`{name}`: {_first_line(group)}:", _table(fields_of(group), f"{name}.", own if of_preset else None)]
    parts += ["Of the call, and of no preset:", _table([f for f in flat if f.name not in in_preset], "", None)]
    return "\n\n".join(parts)


def _unused(kind: str, preset: str, name: str, group: type[Options]) -> Mapping[str, Any]:
    """Of an objective that a preset does not use, what holds where it is used; of another task nothing."""
    if kind == "finetune":
        return {}
    return group(**read_presets("pretrain", PRESETS, preset).get(name, {})).plain()


def _first_line(kind: type[Options]) -> str:
    text = str(kind.__doc__).split("\n")[0].removesuffix(".")
    return text[0].lower() + text[1:] if text.split(maxsplit=1)[0][1:].islower() else text


def _table(fields: Sequence[Any], prefix: str, presets: Mapping[str, Mapping[str, Any]] | None) -> str:
    names = list(presets) if presets is not None else ["default"]
    rows = [["option", *names, "meaning"]]
    for field in fields:
        values = [p.get(field.name, "-") for p in presets.values()] if presets is not None else [_default(field)]
        cells = [value if value in ("-", "none") and presets is None else _cell(value) for value in values]
        rows.append([f"`{flag_as_typed(prefix + field.name)}`", *cells, _text(field.metadata["about"])])
    return _lines(rows)


def _lines(rows: Sequence[Sequence[str]]) -> str:
    head, *others = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *others])


def _text(about: str) -> str:
    return about.replace("|", "\\|")


def _shown(name: str) -> str:
    return name.upper().replace("_", "-")


def _title(page: Path) -> str:
    return page.read_text().partition("\n")[0].removeprefix("# ")


def _default(field: Any) -> Any:
    value = field.default
    return "none" if value in (None, (), "") else value


def _cell(value: Any) -> str:
    if value == "-":
        return "-"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, Mapping):
        return f"`{{{', '.join(f'{key}: {item}' for key, item in value.items())}}}`"
    return "`none`" if value is None or value == "" else f"`{value}`"


def parts_of(text: str) -> Iterator[re.Match[str]]:
    """The generated parts of a page."""
    return re.finditer(r"(<!-- (options: \w+|tree|commands) -->\n\n)(.*?)(\n\n<!-- end -->)", text, flags=re.DOTALL)


def made(what: str) -> str:
    """What belongs into such a part."""
    whole = {"tree": tree, "commands": commands}
    return whole[what]() if what in whole else tables(what.removeprefix("options: "))


if __name__ == "__main__":
    for page in (*dict.fromkeys(PAGES.values()), ARCHITECTURE, COMMANDS):
        text = page.read_text()
        for part in parts_of(text):
            text = text.replace(part[0], part[1] + made(part[2]) + part[4])
        page.write_text(text)
