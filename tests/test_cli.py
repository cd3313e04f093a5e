"""The command line: verbs, options, exit codes, and what a wrong word says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import pri3d
from pri3d.api.options import VERBS, flag_as_typed, groups_of, hints_of, in_words
from pri3d.api.training import CallOptions
from pri3d.cli import flags_of, main, parse

#: help of a command, of finetune with each task, too
HELPED = [[verb] for verb in VERBS] + [["finetune", "semantic"], ["finetune", "instance"]]


def help_of(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", HELPED, ids=" ".join)
def test_every_verb_has_help_and_a_parsable_example(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    verb = VERBS[words[0]]
    given = parse(verb, shlex.split(verb.example)[2:])
    assert given
    assert set(given) == set(verb.options(**given)._given)
    text = help_of(words, capsys, monkeypatch)
    assert " ".join(verb.example.split()) in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
    assert not re.search(r"--\w+_\w|<class|Literal|typing|null|True|False", text)
    plain = " ".join(text.split())
    for each in flags_of(verb, words[1:]):
        assert each.positional or f"{flag_as_typed(each.name)} " in text.replace(",", " ").replace("\n", " ")
        assert each.about in plain or each.about.replace("- ", "-") in plain
        choices = getattr(each.type, "__args__", ())
        assert "Literal" not in str(each.type)[:20] or f"{{{','.join(map(str, choices))}}}" in text


def test_the_list_of_commands_fits_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert all(verb.about in " ".join(text.split()) for verb in VERBS.values())


def test_help_shows_switches_groups_and_values_of_the_preset(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = help_of(["pretrain"], capsys, monkeypatch)
    assert "  --resume  " in quick
    assert "--compute.channels-last, --compute.no-channels-last" in quick
    assert "optim: The optimizer, except for its learning rate:" in quick
    assert quick.index("\nflags:") < quick.index("\ncheckpoint: ") < quick.index("\nmoco: ")
    assert "optimizer steps (default: 300)" in quick
    paper = help_of(["pretrain", "x", "--preset", "paper", "--optim.momentum", "0.5"], capsys, monkeypatch)
    assert "optimizer steps (default: 60000)" in paper
    assert "--labels, --no-labels" in help_of(["rooms"], capsys, monkeypatch)
    assert "[--" not in quick  # the usage names what is needed alone
    instance, any_task = (help_of(["finetune", *task], capsys, monkeypatch) for task in (["instance"], []))
    assert "--instance.rois" in instance and "--semantic.size" not in instance
    assert "--instance.rois" in any_task and "--semantic.size" in any_task
    assert "(default: 200)" in instance  # steps of the task's quick preset
    assert "optimizer steps (default" not in any_task


def test_values_shown_are_those_that_are_parsed() -> None:
    for words in (["x"], ["x", "--preset", "paper"], ["x", "--preset=moco,small"]):
        shown = {each.name: each.default for each in flags_of(VERBS["pretrain"], words)}
        preset = words[-1].removeprefix("--preset=") if len(words) > 1 else "quick"
        stated = pri3d.api.pretrain.resolve_pretraining(preset).stated()
        assert shown["optim.schedule"] == stated["optim"]["schedule"]
        assert (shown["batch"], shown["objectives"]) == (stated["batch"], stated["objectives"])


def test_a_training_has_at_most_25_flags_outside_of_groups() -> None:
    for verb in ("pretrain", "finetune"):
        flat = [each.name for each in flags_of(VERBS[verb], ["semantic"]) if not each.group and not each.positional]
        assert len(flat) <= 25, flat


def test_the_verbs_are_the_public_functions() -> None:
    for name, verb in VERBS.items():
        function = "import_weights" if name == "import" else name
        assert getattr(pri3d, function) is verb.function
        assert function in pri3d.__all__
        assert function in dir(pri3d)
    assert all(hasattr(pri3d, name) for name in pri3d.__all__)


def test_one_word_means_one_thing() -> None:
    """The same name in two verbs has the same type, but for what is listed here with a reason."""
    #: one or several; a number or also None, "as the set has it"; fewer choices, because another is no use there
    shapes = {"seed", "fraction", "data", "weights", "size", "frame_step", "workers", "encoder", "distance"}
    choices = {"precision", "which"}
    types: dict[str, set[str]] = {}
    for verb in VERBS.values():
        for name in set(hints_of(verb.options)) - set(groups_of(verb.options)):
            types.setdefault(name, set()).add(in_words(hints_of(verb.options)[name]))
    different = {name for name, kinds in types.items() if len(kinds) > 1}
    assert different <= shapes | choices | {"part"}  # of part the order of the choices alone


@pytest.mark.thorough
def test_overview_needs_no_torch() -> None:
    code = "import sys; from pri3d.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.thorough
@pytest.mark.parametrize("words", HELPED, ids=" ".join)
def test_help_and_misspelt_flags_need_no_torch(words: list[str]) -> None:
    code = (
        "import sys\nfrom pri3d.cli import main\n"
        "for last in ('--help', '--no-such-flag'):\n"
        "    try: main([*sys.argv[1:], last])\n"
        "    except SystemExit as stop: print('code', stop.code)\n"
        "print(sorted({'torch', 'numpy', 'lightning', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("code")] == ["code 0", "code 2"]
    assert lines[-1] == "[]"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert pri3d.__version__ in capsys.readouterr().out


def test_unknown_verb_lists_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretran"]) == 1
    assert "Did you mean 'pretrain'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("pretrain x --stepps 3", "unknown flag --stepps. Did you mean --steps?"),
        ("pretrain x --steps many", "--steps many: expected a whole number"),
        ("pretrain x --optim.schedule no", "--optim.schedule no: expected one of constant, step, poly"),
        ("pretrain x --contrast.points few", "--contrast.points few: expected a whole number or all"),
        ("pretrain x --resume=perhaps", "--resume perhaps: expected true or false"),
        ("pretrain x --moco.quee 4", "unknown flag --moco.quee. Did you mean --moco.queue?"),
        ("pretrain x --moco-queue 4", "unknown flag --moco-queue. It is --moco.queue now."),
        ("pretrain x --init imagenet", "unknown flag --init. It is --weights now."),
        ("finetune semantic x --bn-momentum 0.1", "unknown flag --bn-momentum. It is --backbone.bn-momentum now."),
        ("finetune semantic x --size 8x8", "unknown flag --size. It is --semantic.size now."),
        ("check x --frames 10", "unknown flag --frames. It is --max-frames now."),
        (
            "probe x --weights scratch --steps 9",
            "unknown flag --steps. Linear probes are solved in closed form, without",
        ),
        ("reproduce table1 --size paper", "unknown flag --size. It is --scale now."),
        ("finetune semantic x --instance.rois 4", "unknown flag --instance.rois."),
        ("prepare x", "missing: OUT"),
        ("prepare", "missing: RECORDING, OUT"),
    ],
)
def test_wrong_options_exit_2_and_say_what_is_right(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 2
    text = capsys.readouterr().err
    assert f"error: {said}" in text
    assert f"usage: pri3d {words.split(maxsplit=1)[0]} " in text


def test_errors_are_one_line_and_exit_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["pretrain", str(tmp_path / "none")]) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert "Traceback" not in text


def test_hyphens_switches_and_lists() -> None:
    verb = VERBS["prepare"]
    options = verb.options(**parse(verb, ["a", "b", "out", "--min-overlap", "0.4", "--no-pairs", "--surface"]))
    assert [str(path) for path in options.recordings] == ["a", "b"]
    assert str(options.out) == "out"
    assert (options.min_overlap, options.pairs, options.surface) == (0.4, False, True)
    given = parse(VERBS["probe"], ["s", "--weights", "a", "--weights", "b", "c"])
    assert [str(path) for path in given["weights"]] == ["a", "b", "c"]
    assert parse(verb, ["a", "out", "--min_overlap=0.4"])["min_overlap"] == 0.4


def test_dictionaries_and_groups_parse() -> None:
    words = ["s", "--objectives", "{view: 1, geometry: 0.5}", "--optim.momentum", "0.5", "--moco.queue", "4"]
    given = parse(VERBS["pretrain"], words)
    assert given["objectives"] == {"view": 1.0, "geometry": 0.5}
    assert given["optim"] == {"momentum": 0.5}
    assert [(type(group).__name__, group.given()) for group in given["options"]] == [("MocoOptions", {"queue": 4})]
    assert set(given) == {"data", "objectives", "optim", "options"}


def test_switches_of_a_group_need_no_value() -> None:
    for off in ("--compute.no-channels-last", "--no-compute.channels-last", "--compute.channels-last=false"):
        given = parse(VERBS["pretrain"], ["s", "--compute.compile", off, "--resume"])
        assert (given["compute"], given["resume"]) == ({"compile": True, "channels_last": False}, True)


@pytest.mark.parametrize("name", VERBS)
def test_defaults_have_the_types_of_what_is_given(name: str) -> None:
    """A path that is not given is a path, as one that is given."""
    options = VERBS[name].options
    needed = {
        n: "semantic" if n == "task" else ["x"] if "Sequence" in str(hints_of(options)[n]) else "x"
        for n in _needed(options)
    }
    made = options(**needed)
    again = options(**dict(made.items()))
    assert again.plain() == made.plain()
    kinds = [{n: type(v) for n, v in each.items() if n != "options"} for each in (again, made)]
    assert kinds[0] == kinds[1]


def _needed(options: type[pri3d.api.options.Options]) -> list[str]:
    signature = __import__("inspect").signature(options)
    return [name for name, each in signature.parameters.items() if each.default is each.empty]


def test_every_option_has_a_help_that_is_a_phrase() -> None:
    for name, verb in VERBS.items():
        for each in flags_of(verb, ["semantic"]):
            assert len(each.about) > 5, f"{name} {each.name}"
            assert not each.about.endswith("."), f"{name} {each.name}"
    assert "workers" in hints_of(CallOptions)


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_file_of_the_command(tmp_path: Path, closed: str) -> None:
    """Without them the first file that is opened would be the output."""
    program = "import sys; from pri3d.cli import main; sys.exit(main(['--version']) or sys.stdout.fileno() - 1)"
    words = [sys.executable, "-c", program]
    ended = subprocess.run(f"{shlex.join(words)} {closed}", shell=True, check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_output_that_nobody_reads_is_one_line() -> None:
    program = "import sys; from pri3d.cli import main; sys.exit(main(['--help']))"
    reading, writing = os.pipe()
    os.close(reading)
    try:
        words = [sys.executable, "-u", "-c", program]
        ended = subprocess.run(words, check=False, stdout=writing, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writing)
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr
