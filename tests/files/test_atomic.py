"""Files and folders that appear whole or not at all, and what killed processes leave of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pri3d.files.atomic import remove_leftovers, replacing, temporary


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_leftovers_of_dead_processes_of_this_host_go(tmp_path):
    code = "import sys, pathlib, pri3d.files.atomic as a; print(a.temporary(pathlib.Path(sys.argv[1])).name)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a"], capture_output=True, text=True, check=True)
    dead, alive = tmp_path / done.stdout.strip(), temporary(tmp_path / "a")
    elsewhere = tmp_path / f".a.another-host.{dead.name.split('.')[-2]}.part"
    for folder in (dead, alive, elsewhere, tmp_path / "a", tmp_path / ".a.part"):
        (folder / "inner").mkdir(parents=True)
    file = dead.with_name(dead.name.replace(".a.", ".b."))
    file.touch()
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "missing")
    assert {p.name for p in tmp_path.iterdir()} == {alive.name, elsewhere.name, "a", ".a.part"}
