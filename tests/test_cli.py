"""The command line: verbs, options, exit codes, and what a wrong word says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pri3d
from pri3d.cli import ABOUT, build_parser, main, normalise


@pytest.mark.parametrize("verb", ABOUT)
def test_every_verb_has_help_and_a_parsable_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    function = pri3d.find_verb(verb)
    assert getattr(pri3d, pri3d.VERBS[verb].partition(":")[2]) is function
    words = ABOUT[verb][1].split()[2:]
    options = build_parser(verb, function).parse_args(normalise(words, function))
    assert options
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "example:" in text
    assert "--frame_step" not in text


def test_verbs_and_abouts_agree() -> None:
    assert set(ABOUT) == set(pri3d.VERBS)


def test_overview_needs_no_torch() -> None:
    code = "import sys; from pri3d.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert pri3d.__version__ in capsys.readouterr().out


def test_unknown_verb_lists_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretran"]) == 1
    assert "Did you mean 'pretrain'" in capsys.readouterr().err


def test_unknown_option_and_wrong_type_exit_2(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["pretrain", "x", "--stepps", "3"], ["pretrain", "x", "--steps", "many"], ["prepare", "x"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
    assert "--stepps" in capsys.readouterr().err


def test_errors_are_one_line_and_exit_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["pretrain", str(tmp_path / "none")]) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert "Traceback" not in text


def test_hyphens_switches_and_lists() -> None:
    verb = pri3d.find_verb("prepare")
    words = normalise(["a", "b", "out", "--min-overlap", "0.4", "--no-pairs", "--surface"], verb)
    options = build_parser("prepare", verb).parse_args(words)
    assert [str(path) for path in options.recordings] == ["a", "b"]
    assert str(options.out) == "out"
    assert (options.min_overlap, options.pairs, options.surface) == (0.4, False, True)
    verb = pri3d.find_verb("probe")
    options = build_parser("probe", verb).parse_args(normalise(["s", "--weights", "a", "--weights", "b"], verb))
    assert [str(path) for path in options.weights] == ["a", "b"]


def test_dictionaries_parse() -> None:
    verb = pri3d.find_verb("pretrain")
    words = normalise(["s", "--objectives", "{view: 1, geometry: 0.5}"], verb)
    assert build_parser("pretrain", verb).parse_args(words).objectives == {"view": 1.0, "geometry": 0.5}


def test_optional_switches_need_no_value() -> None:
    verb = pri3d.find_verb("pretrain")
    options = build_parser("pretrain", verb).parse_args(normalise(["s", "--compile", "--no-channels-last"], verb))
    assert (options.compile, options.channels_last, options.sync_bn) == (True, False, None)
