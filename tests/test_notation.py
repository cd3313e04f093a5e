"""YAML and JSON that want to be read for ever: each ends at once, in one line."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pri3d.errors import ConfigError, DataError
from pri3d.labelled.spaces import load_space
from pri3d.notation import parse_json, parse_yaml
from pri3d.recordings._shared.cameras import read_cameras
from pri3d.runs import RunPaths, read_json

LAUGHS = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 12)
)
YAMLS = {
    "aliases": (LAUGHS, "its aliases expand to more than 1,000,000 values"),
    "itself": ("a: &a [*a]", "nested too deep, or holds itself"),
    "a mapping of itself": ("&a {b: *a}", "nested too deep, or holds itself"),
    "deep": ("[" * 1000 + "]" * 1000, "nested too deep"),
    "hex": (f"a: 0x{'f' * 9000}", "more than 64 bits"),
    "digits": (f"a: {'9' * 9000}", "digits"),
    "date": ("a: 2001-99-99", "month"),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "deep" else n for n in YAMLS])
def test_yaml_that_is_too_much(tmp_path: Path, name: str) -> None:
    text, why = YAMLS[name]
    began = time.process_time()
    with pytest.raises(yaml.YAMLError, match=why):
        parse_yaml(text)
    path = tmp_path / "config.yaml"
    path.write_text(f"verb: pretrain\nsettings: {{}}\n{text}" if text.startswith(("a:", "a0")) else text)
    doors: list[tuple[Callable[[], Any], type[Exception]]] = [
        (RunPaths(tmp_path).read_config, DataError),
        (lambda: read_cameras(path), ConfigError),
        (lambda: load_space(str(path)), ConfigError),
    ]
    for read, kind in doors:
        with pytest.raises(kind, match=r"config\.yaml"):
            read()
    assert time.process_time() - began < 5


def test_yaml_with_some_aliases_is_read() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: *a\nc: [*a, *a]") == {"a": {"x": 1}, "b": {"x": 1}, "c": [{"x": 1}] * 2}
    assert parse_yaml(b"") is None


@pytest.mark.parametrize("text", ["[" * 100_000, f"[{10**30}]", f'{{"a": [{{"b": -{10**19}}}]}}', "9" * 9000, "{"])
def test_json_that_is_too_much(tmp_path: Path, text: str) -> None:
    for form in (text, text.encode()):
        with pytest.raises(ValueError):
            parse_json(form)
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(DataError, match=r"scores\.json: cannot be read"):
        read_json(tmp_path / "scores.json")


def test_long_fractions_and_64_bits_are_read() -> None:
    assert parse_json("[0.12345678901234567890123, 9223372036854775807]") == [0.12345678901234568, 2**63 - 1]
