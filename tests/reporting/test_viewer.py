"""The verb view: its recording as rerun reads it back, its page as a browser would, with and without rerun."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from view_cases import made_up, pretrained

from pri3d.api.view import view
from pri3d.cli import main
from pri3d.errors import ConfigError, DataError
from pri3d.reporting import viewer as verb
from pri3d.reporting.viewer import write_page
from pri3d.reporting.viewer_scene import MEASURED

NASTY = "<script>alert('x')</script> & \"quoted\""


@pytest.fixture
def without_rerun(monkeypatch):
    """The package is not installed."""
    monkeypatch.setitem(sys.modules, "rerun", None)
    monkeypatch.delitem(sys.modules, "pri3d.reporting.viewer_rerun", raising=False)


@pytest.fixture
def writer() -> Any:
    """The module that knows rerun."""
    pytest.importorskip("rerun")
    return importlib.import_module("pri3d.reporting.viewer_rerun")


def read_back(path: Path) -> dict[str, list[Any]]:
    """Entity -> its chunks, as rerun's own reader finds them."""
    reader = importlib.import_module("rerun.chunk").RrdReader(path)
    assert len(reader.recordings()) == len(reader.blueprints()) == 1
    found: dict[str, list[Any]] = {}
    for chunk in reader.stream():
        found.setdefault(chunk.entity_path, []).append(chunk)
    return found


def column(chunks: list[Any], name: str) -> np.ndarray:
    """All rows of one component, in the order of the frames where it moves."""
    values: list[tuple[int, Any]] = []
    for chunk in chunks:
        table = chunk.to_record_batch()
        if name not in table.schema.names:
            continue
        time = table.column("frame").to_pylist() if "frame" in table.schema.names else [0] * table.num_rows
        values += zip(time, table.column(name).to_pylist(), strict=True)
    return np.array([value for _, value in sorted(values, key=lambda pair: pair[0])])


def test_the_recording_holds_what_was_shown(writer, tmp_path):
    shown = made_up(frames=3)
    writer.send_to_rerun(shown, tmp_path / "new" / "a.rrd")
    found = read_back(tmp_path / "new" / "a.rrd")
    wanted = {"surface", "path", "camera", "camera/color", "camera/depth", "pairs/0/measured", "pairs/0/after"}
    pairs = {"/pairs/0/color", "/pairs/0/measured", "/pairs/0/after"}
    entities = {f"/world/{name}" for name in wanted} | pairs | {"/about", "/frame/name", "/pictures/made_up"}
    assert entities <= set(found)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.rrd"]
    centres = column(found["/world/camera"], "Transform3D:translation").reshape(-1, 3)
    np.testing.assert_allclose(centres, shown.path)
    points = column(found["/world/surface"], "Points3D:positions").reshape(-1, 3)
    np.testing.assert_allclose(points, shown.points, atol=1e-6)
    assert column(found["/world/surface"], "Points3D:radii").item() == pytest.approx(0.02)
    lines = column(found["/world/pairs/0/after"], "LineStrips3D:strips")
    assert lines.reshape(-1, 2, 3).shape[0] == 9
    for name in ("camera/color", "camera/depth"):
        assert sum(chunk.num_rows for chunk in found[f"/world/{name}"]) == 3


def test_the_recorded_camera_sees_what_the_pixels_say(writer, tmp_path):
    shown = made_up()
    writer.send_to_rerun(shown, tmp_path / "a.rrd")
    found = read_back(tmp_path / "a.rrd")
    matrix = column(found["/world/camera"], "Pinhole:image_from_camera").reshape(-1, 3, 3)[0].T  # stored by columns
    np.testing.assert_allclose(matrix @ (0.2, -0.1, 2.0) / 2.0, (30 * 0.1 + 16, -30 * 0.05 + 12, 1))
    depth = found["/world/camera/depth"][0].to_record_batch()
    assert depth.column("DepthImage:meter").to_pylist()[0] == [1000.0]
    buffer = np.array(depth.column("DepthImage:buffer").to_pylist()[0][0], np.uint8).view(np.uint16)
    assert (buffer == 1500).all()


def test_a_recording_of_images_alone(writer, tmp_path):
    shown = made_up()
    frames = [f._replace(depth=None, intrinsics=None, world_from_camera=None) for f in shown.frames]
    none = np.zeros((0, 3))
    shown = shown._replace(frames=frames, path=none, points=none, colors=none.astype(np.uint8), pairs=[])
    writer.send_to_rerun(shown, tmp_path / "a.rrd")
    found = read_back(tmp_path / "a.rrd")
    assert {"/frame/color", "/pictures/made_up"} <= set(found)
    assert not any(name.startswith("/world") for name in found)


def test_a_window_is_opened_and_sent_to(writer, runs, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr(writer.rr.RecordingStream, "spawn", lambda *_, **options: opened.append(options))
    monkeypatch.setenv("DISPLAY", ":9")
    assert view(runs.store, max_frames=1, max_pairs=0) is None
    assert len(opened) == 1
    assert opened[0]["default_blueprint"] is not None


def test_without_a_screen_a_page_is_written(writer, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verb.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert view(runs.store, max_frames=1, max_pairs=0) == Path("store-view.html")
    assert "no display" in capsys.readouterr().err
    assert (tmp_path / "store-view.html").is_file()


@pytest.mark.thorough
def test_a_run_is_recorded_and_written_by_one_command(writer, runs, tmp_path):
    run, out, page = pretrained(runs, tmp_path / "run"), tmp_path / "a.rrd", tmp_path / "b.html"
    words = ["view", str(run), "--save", str(out), "--out", str(page), "--max-frames", "2", "--max-pairs", "1"]
    assert main(words) == 0
    found = read_back(out)
    assert {"/pictures/features_before", "/pictures/features_after", "/pairs/0/before"} <= set(found)
    text = page.read_text()
    assert text.count('class="pri3d-scene"') == 2
    assert text.count("<figcaption>features after</figcaption>") == 2
    assert text.count("by the features after:") == 2  # of the one pair, in its picture's name and below it


def test_without_rerun_the_page_is_written(without_rerun, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["view", str(runs.store), "--max-frames", "2", "--max-pairs", "1"]) == 0
    assert 'pip install "pri3d[view]"' in capsys.readouterr().err
    assert "pri3d-scene" in (tmp_path / "store-view.html").read_text()


@pytest.mark.thorough
def test_without_rerun_a_recording_becomes_a_page(without_rerun, runs, tmp_path, capsys):
    assert view(runs.store, max_frames=1, max_pairs=0, save=tmp_path / "kitchen.rrd") == tmp_path / "kitchen.html"
    assert [path.name for path in tmp_path.iterdir()] == ["kitchen.html"]
    assert (
        view(runs.store, max_frames=1, max_pairs=0, save=tmp_path / "x.rrd", out=tmp_path / "y.html")
        == tmp_path / "y.html"
    )
    assert capsys.readouterr().err.count("pip install") == 2


def test_a_wanted_page_needs_no_advice(without_rerun, runs, tmp_path, capsys):
    view(runs.store, max_frames=1, max_pairs=0, out=tmp_path / "a.html")
    assert "pip install" not in capsys.readouterr().err


def test_the_page_says_everything_and_escapes_it(tmp_path, read_page):
    page = read_page(write_page(made_up(NASTY), tmp_path / "a.html").read_text())
    scripts = [tag for tag, _ in page.tags if tag == "script"]
    assert len(scripts) == 2  # of the scene with measured matches, and with those of features
    assert page.texts.count(NASTY) >= 5
    assert all(address.startswith(("data:", "#")) for address in page.loads)
    svg = [attrs for tag, attrs in page.tags if tag == "line"]
    assert len(svg) == 2 * 3
    assert {line["stroke"] for line in svg} == {"rgb(0, 158, 115)", "rgb(213, 94, 0)"}
    assert "by the features after: 2 of 3 right" in page.texts
    assert "3 measured matches" in page.texts


def test_lines_on_the_page_end_in_the_second_image(tmp_path, read_page):
    shown = made_up()
    page = read_page(write_page(shown, tmp_path / "a.html").read_text())
    lines = [attrs for tag, attrs in page.tags if tag == "line"][:3]
    ends = np.array([[float(line[name]) for name in ("x1", "y1", "x2", "y2")] for line in lines])
    np.testing.assert_allclose(ends - shown.pairs[0].matches[MEASURED].pixels, [(0, 0, 32, 0)] * 3, atol=0.051)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_frames": 0}, "--max-frames 0"),
        ({"max_pairs": -1}, "--max-pairs -1"),
        ({"save": Path("a.html")}, "--save a.html: a rerun file ends in .rrd"),
    ],
)
def test_wrong_options_are_refused(runs, options, message):
    with pytest.raises(ConfigError, match=message):
        view(runs.store, **options)


def test_a_place_that_cannot_be_written_is_named(writer, runs, tmp_path):
    (tmp_path / "file").touch()
    for options in ({"save": tmp_path / "file" / "a.rrd"}, {"out": tmp_path / "file" / "a.html"}):
        with pytest.raises(ConfigError, match="cannot be written"):
            view(runs.store, **{"max_frames": 1, "max_pairs": 0, **options})


def test_nothing_is_written_for_what_is_not_there(tmp_path, capsys):
    with pytest.raises(DataError, match="no such folder"):
        view(tmp_path / "absent", save=tmp_path / "a.rrd")
    assert list(tmp_path.iterdir()) == []
    assert main(["view", str(tmp_path / "absent")]) == 1
    assert "error:" in capsys.readouterr().err
